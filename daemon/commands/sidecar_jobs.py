"""One checkpoint's sidecar in the bulk command: what is to be done about it, and doing it."""

import difflib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ckptd.catalog.backups import replace_with_backup, set_aside
from ckptd.catalog.describe import sidecar_for
from ckptd.catalog.description import Description, FieldChange, SidecarRepair, SidecarStatus
from ckptd.catalog.entry import shown_path
from ckptd.catalog.experiment import sidecar_names
from ckptd.catalog.opening import status_of_checkpoint
from ckptd.catalog.roots import open_beneath
from ckptd.catalog.sidecar import place_sidecar, remove_sidecar, render, sidecar_path
from ckptd.validators.findings import Severity
from ckptd.validators.text import counted

from .sidecar_results import Outcome, Result, State, state_of
from .targets import Target

_LONGEST_DIFF_BYTES = 100_000
_STANDING = (State.OURS, State.FOREIGN, State.WRONG)


class Job(NamedTuple):
    """What is to be done for one checkpoint; nothing touches the disk before it is done."""

    target: Target
    description: Description
    state: State
    writes: bool
    """Whether a sidecar is generated."""
    repairs: Sequence[SidecarRepair]
    """Sidecars of others that are corrected, or set aside."""

    @property
    def does_nothing(self) -> bool:
        """Whether there is nothing to do."""
        return not self.writes and not self.repairs


def plan(target: Target, description: Description, *, repair: bool) -> Job:
    """Decide what is to be done. Only `repair` touches what others wrote."""
    state = state_of(description)
    if state is State.UNKNOWN:
        return Job(target, description, state, writes=False, repairs=())
    generated = state in (State.NONE, State.STALE_OURS)
    if repair:
        generated = state not in _STANDING
    return Job(target, description, state, writes=generated, repairs=description.repairs if repair else ())


def untouched(job: Job) -> Result:
    """The line of a checkpoint for which nothing is done, with the reason."""
    target, description, state = job.target, job.description, job.state
    worst = next((found for found in description.findings if found.severity is Severity.ERROR), None)
    if worst is not None:
        return Result(target, state, Outcome.INVALID, f"{worst.code}: {worst.message}")
    if state is State.STALE:
        return Result(target, state, Outcome.STALE, "describes an earlier file of this name; --repair replaces it")
    if state is State.UNREADABLE:
        return Result(target, state, Outcome.UNREADABLE, "is not metadata; --repair replaces it")
    if state is State.WRONG:
        changes = list(_changes(description.repairs))
        return Result(target, state, Outcome.WRONG, f"{in_short(changes)}; --repair corrects it", changes)
    return Result(target, state, Outcome.CURRENT)


def foreseen(job: Job, root_fd: int) -> Result:
    """What `done` would say, without doing it."""
    outcome = Outcome.WOULD_WRITE if job.writes else Outcome.WOULD_REPAIR
    changes = list(_changes(job.repairs))
    diff = "".join(_diff(root_fd, job.target, repair) for repair in job.repairs if repair.changes)
    asides = [os.path.basename(repair.name) for repair in job.repairs if not repair.changes]
    details = [in_short(changes)] if changes else []
    details += [f"{shown_path(name)[0]} would be kept as .bak" for name in asides]
    return Result(job.target, job.state, outcome, "; ".join(details), changes, diff)


def do(job: Job, root_fd: int, directory_fd: int, *, long_name: bool) -> Result:
    """Write and repair; durable once the directory has been synced.

    Args:
        job: from `plan`.
        root_fd: the opened root.
        directory_fd: the checkpoint's directory, opened for reading.
        long_name: name what is generated `best.ckpt.metadata.yaml`, not `best.metadata.yaml`.

    Raises:
        OSError: the system refused, or somebody was faster. Nothing is lost.
    """
    target, description = job.target, job.description
    checkpoint, identity = status_of_checkpoint(root_fd, target.path)
    if identity != description.inspection.identity:
        return Result(target, job.state, Outcome.FAILED, "the checkpoint changed meanwhile; run it again")
    path = sidecar_path(target.path, long_name=long_name)
    backups: list[bytes] = []
    if job.writes:
        backups += _write(job, root_fd, directory_fd, path, checkpoint)
    for repair in job.repairs:
        if repair.changes:
            backups.append(
                replace_with_backup(root_fd, repair.name, repair.data, like=checkpoint, expected=repair.identity)
            )
        elif repair.name != path:
            backups.append(set_aside(root_fd, repair.name))
    changes = list(_changes(job.repairs))
    details = [in_short(changes)] if changes else []
    details += [f"the old one is {shown_path(os.path.basename(backup))[0]}" for backup in backups]
    return Result(target, job.state, Outcome.WRITTEN if job.writes else Outcome.REPAIRED, "; ".join(details), changes)


def in_short(changes: Sequence[tuple[bytes, FieldChange]]) -> str:
    """The changes by name: which values are wrong, how many keys are missing."""
    named = [".".join(change.field) for _, change in changes if not change.missing]
    missing = sum(change.missing for _, change in changes)
    parts = [f"wrong: {', '.join(named)}"] if named else []
    return "; ".join([*parts, f"{counted(missing, 'key')} of schema 1.0 missing"] if missing else parts)


def _write(job: Job, root_fd: int, directory_fd: int, path: bytes, checkpoint: os.stat_result) -> Iterator[bytes]:
    """Generate the sidecar; yields the backup of what stood in its place."""
    data = render(sidecar_for(job.description), job.description.user)
    in_the_way = next((repair for repair in job.repairs if repair.name == path), None)
    if in_the_way is not None:
        yield replace_with_backup(root_fd, path, data, like=checkpoint, expected=in_the_way.identity)
        return
    replaces = job.description.sidecar is SidecarStatus.STALE_OURS
    place_sidecar(directory_fd, os.path.basename(path), data, like=checkpoint, replace_ours=replaces)
    if replaces:  # under its other name, ours would stay stale
        for name in sidecar_names(job.target.path):
            if name != path:
                remove_sidecar(root_fd, name)


def _changes(repairs: Sequence[SidecarRepair]) -> Iterator[tuple[bytes, FieldChange]]:
    return ((repair.name, change) for repair in repairs for change in repair.changes)


def _diff(root_fd: int, target: Target, repair: SidecarRepair) -> str:
    """A unified diff of a sidecar; nothing where it cannot be read any more or is too long to compare."""
    try:
        fd = open_beneath(root_fd, repair.name)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        before = file.read(_LONGEST_DIFF_BYTES + 1)
    if max(len(before), len(repair.data)) > _LONGEST_DIFF_BYTES:
        return ""
    name = shown_path(target.root.join(repair.name))[0]
    old, new = (data.decode("utf-8", "backslashreplace").splitlines() for data in (before, repair.data))
    return "\n".join(difflib.unified_diff(old, new, name, name, n=1, lineterm="")) + "\n"
