"""What the bulk command found beside a checkpoint, and what it did about it."""

import enum
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ckptd.catalog.description import Description, FieldChange, SidecarStatus
from ckptd.validators.findings import Severity

from .targets import Target


class State(enum.StrEnum):
    """What lies beside a checkpoint."""

    NONE = "none"
    OURS = "ours"
    FOREIGN = "foreign"
    """A person's or a training's, and nothing is known to be wrong with it."""
    WRONG = "wrong"
    """A person's, or an older generator's, with values that are known to be wrong, or without keys of the schema."""
    STALE = "stale"
    """About an earlier file of this name, and not ours."""
    STALE_OURS = "stale ours"
    UNREADABLE = "unreadable"
    """Not metadata."""
    UNKNOWN = "unknown"
    """The checkpoint is invalid, so nobody asked."""


class Outcome(enum.StrEnum):
    """What became of one checkpoint's sidecar."""

    WRITTEN = "written"
    WOULD_WRITE = "would write"
    REPAIRED = "repaired"
    WOULD_REPAIR = "would repair"
    CURRENT = "current"
    """One is there and describes this file."""
    WRONG = "wrong"
    """`--repair` corrects it."""
    STALE = "stale"
    """A person's or a training's, about an earlier file of this name; `--repair` replaces it."""
    UNREADABLE = "unreadable"
    """There is one that is not metadata; `--repair` replaces it."""
    INVALID = "invalid checkpoint"
    """Nothing is written about a file that cannot be used."""
    FAILED = "failed"


class Result(NamedTuple):
    """One checkpoint's line of the answer."""

    target: Target
    state: State
    outcome: Outcome
    detail: str = ""
    changes: Sequence[tuple[bytes, FieldChange]] = ()
    """Sidecar (relative path) and what was, or would be, changed in it."""
    diff: str = ""
    """What would be changed, as a unified diff."""
    errno: int | None = None
    """Why it failed, where the system said so."""


class Audit(NamedTuple):
    """Checkpoints by what lies beside them."""

    checkpoints: int
    with_metadata: int
    without_metadata: int
    ours: int
    foreign: int
    wrong: int
    stale: int
    unreadable: int
    invalid: int


_STATES = {
    SidecarStatus.NONE: State.NONE,
    SidecarStatus.OURS: State.OURS,
    SidecarStatus.FOREIGN: State.FOREIGN,
    SidecarStatus.STALE: State.STALE,
    SidecarStatus.STALE_OURS: State.STALE_OURS,
    SidecarStatus.INVALID: State.UNREADABLE,
}


def state_of(description: Description) -> State:
    """What lies beside a described checkpoint."""
    if any(found.severity is Severity.ERROR for found in description.findings):
        return State.UNKNOWN
    state = _STATES[description.sidecar]
    wrong = any(repair.changes for repair in description.repairs)
    return State.WRONG if state is State.FOREIGN and wrong else state


def audit_of(results: Sequence[Result]) -> Audit:
    """Count checkpoints by what lay beside them before anything was done."""
    states = Counter(result.state for result in results)
    having = (State.OURS, State.FOREIGN, State.WRONG)
    return Audit(
        checkpoints=len(results),
        with_metadata=sum(states[state] for state in having),
        without_metadata=len(results) - sum(states[state] for state in having) - states[State.UNKNOWN],
        ours=states[State.OURS],
        foreign=states[State.FOREIGN],
        wrong=states[State.WRONG],
        stale=states[State.STALE] + states[State.STALE_OURS],
        unreadable=states[State.UNREADABLE],
        invalid=states[State.UNKNOWN],
    )
