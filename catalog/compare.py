"""Compare: two to four checkpoints side by side; what is equal, what differs, what only some of them know."""

import enum
from collections.abc import Sequence
from typing import Any

import msgspec

from ckptd.validators.inspection import Plain
from ckptd.validators.text import counted

from .compare_metrics import Direction, best_of, direction_of
from .compare_tensors import TensorSection, TensorSelection, compare_tensors, is_same_file
from .compare_values import Known, flatten, values_equal
from .description import Description
from .entry import CheckpointEntry

FEWEST, MOST = 2, 4
MAX_ROWS = 2_000
"""Of one section. Equal ones are left out first: whoever compares looks for what differs."""


class Agreement(enum.StrEnum):
    """What the values of one row have to do with each other."""

    EQUAL = "equal"
    DIFFERING = "differing"
    MISSING = "missing"
    """Some have it and some do not; those that have it may agree."""


class Sameness(enum.StrEnum):
    """Whether something is the same in all checkpoints, as far as can be told without reading the tensors."""

    SAME = "same"
    DIFFERENT = "different"
    UNKNOWN = "unknown"
    """Nothing differs, but not everything could be compared: a file without checksums, a view into a larger storage."""


class Side(msgspec.Struct, frozen=True):
    """One of the checkpoints to compare."""

    entry: CheckpointEntry
    description: Description | None
    """With its tensors; None where none is kept."""


class Attribute(msgspec.Struct, frozen=True, kw_only=True):
    """One attribute of all checkpoints."""

    name: str
    values: tuple[Plain, ...]
    """In the order of the checkpoints; null where it is not known."""
    status: Agreement
    missing: tuple[int, ...] = ()
    """Positions, from 0, of the checkpoints that do not have it: a null that stands there is none that was set."""
    direction: Direction | None = None
    """Of a metric: whether smaller or larger is better; null where nobody said, and the name does not tell."""
    best: tuple[int, ...] = ()
    """Of a metric: positions of the best value."""


class AttributeSection(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one kind, with their number by status."""

    rows: tuple[Attribute, ...]
    equal: int
    differing: int
    missing: int
    omitted: int = 0
    """Rows that are counted and not listed."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Checkpoints side by side. What is said of changes is said against the first one."""

    checkpoints: tuple[CheckpointEntry, ...]
    verdict: Sameness
    """Over everything but `identity`."""
    weights: tuple[Sameness, ...]
    """Of each checkpoint but the first: its weights against the first one's."""
    identity: AttributeSection
    metrics: AttributeSection
    training: AttributeSection
    hyper_parameters: AttributeSection
    config: AttributeSection
    model: AttributeSection
    tensors: TensorSection


SECTIONS = ("metrics", "training", "hyper_parameters", "config", "model", "tensors")
"""What decides whether checkpoints are the same. Where they lie and when they were written does not."""


def compare(sides: Sequence[Side], tensors: TensorSelection | None = None) -> Comparison:
    """Compare checkpoints by what is known of them; no file is opened.

    Args:
        sides: two to four.
        tensors: which rows of the tensor table to list; the totals are always those of the whole table.

    Raises:
        ValueError: fewer than two or more than four were given.
    """
    if not FEWEST <= len(sides) <= MOST:
        raise ValueError(f"{counted(len(sides), 'checkpoint')} cannot be compared; give {FEWEST} to {MOST}")
    descriptions = [side.description for side in sides]
    entries = [side.entry for side in sides]
    parts: dict[str, Any] = {
        "identity": _section([_identity(side) for side in sides]),
        "metrics": _metrics(entries),
        "training": _section([_training(side) for side in sides]),
        "hyper_parameters": _section([flatten(d and d.inspection.hyper_parameters) for d in descriptions]),
        "config": _section([flatten(d and d.config) for d in descriptions]),
        "model": _section([_model(side) for side in sides]),
        "tensors": compare_tensors(entries, descriptions, tensors or TensorSelection()),
    }
    weights = tuple(_weights(sides[0], other, parts["tensors"], n) for n, other in enumerate(sides[1:]))
    comparison = Comparison(checkpoints=tuple(entries), verdict=Sameness.UNKNOWN, weights=weights, **parts)
    return msgspec.structs.replace(comparison, verdict=sameness(comparison))


def sameness(comparison: Comparison, sections: Sequence[str] = SECTIONS) -> Sameness:
    """Whether all checkpoints are the same in these sections of `SECTIONS`.

    What one knows and another does not counts as a difference.
    """
    different = any(
        section.differing or section.missing
        for section in (getattr(comparison, name) for name in sections if name != "tensors")
    )
    if different or ("tensors" in sections and comparison.tensors.n_different):
        return Sameness.DIFFERENT
    return Sameness.UNKNOWN if "tensors" in sections and comparison.tensors.n_unknown else Sameness.SAME


# ---- sections --------------------------------------------------------------------------------------------------


def _section(sides: Sequence[Known]) -> AttributeSection:
    """A row for each name, in the order in which the first side, then the others have them."""
    rows = [_row(name, sides) for name in dict.fromkeys(name for side in sides for name in side)]
    counted = {status: sum(row.status is status for row in rows) for status in Agreement}
    listed = rows
    if len(rows) > MAX_ROWS:
        told = [row for row in rows if row.status is not Agreement.EQUAL]
        listed = [*told, *(row for row in rows if row.status is Agreement.EQUAL)][:MAX_ROWS]
    return AttributeSection(
        rows=tuple(listed), omitted=len(rows) - len(listed), **{s.value: n for s, n in counted.items()}
    )


def _row(name: str, sides: Sequence[Known]) -> Attribute:
    missing = tuple(position for position, side in enumerate(sides) if name not in side)
    values = tuple(side.get(name) for side in sides)
    if missing:
        status = Agreement.MISSING
    else:
        status = Agreement.EQUAL if all(values_equal(values[0], value) for value in values[1:]) else Agreement.DIFFERING
    return Attribute(name=name, values=values, status=status, missing=missing)


def _metrics(entries: Sequence[CheckpointEntry]) -> AttributeSection:
    section = _section([dict(entry.metrics) for entry in entries])
    rows = []
    for row in section.rows:
        direction = direction_of(row.name, entries)
        rows.append(msgspec.structs.replace(row, direction=direction, best=best_of(row.values, direction)))
    return msgspec.structs.replace(section, rows=tuple(rows))


def _identity(side: Side) -> Known:
    entry, description = side.entry, side.description
    inspection = description and description.inspection
    fields = (
        *("id", "path", "root", "checkpoint_path", "display_name", "exp_name", "run_id", "format", "size_bytes"),
        *("modified_at", "created_at", "health", "verified", "safety", "metadata_source", "config_path"),
        *("content_id", "alias_of", "revision"),
    )
    known: Known = {name: getattr(entry, name) for name in fields}
    known["findings"] = sorted({found.code for found in entry.findings})
    known["archive_id"] = inspection and inspection.archive_id
    known["digest"] = inspection and inspection.digest
    return _told(known)


def _training(side: Side) -> Known:
    entry, description = side.entry, side.description
    fields = ("epoch", "global_step", "monitor", "monitor_mode", "monitor_value")
    known: Known = {name: getattr(entry, name) for name in fields}
    if description is not None:
        metadata = description.metadata
        known |= {
            "training_phase": metadata.training.training_phase,
            "max_epochs": metadata.training.max_epochs,
            "save_top_k": metadata.checkpointing.save_top_k,
            "save_last": metadata.checkpointing.save_last,
            "wandb_run_id": metadata.wandb_run_id,
            "lightning_version": description.inspection.lightning_version,
        }
    return _told(known)


def _model(side: Side) -> Known:
    entry, description = side.entry, side.description
    fields = ("architecture", "backbone", "n_parameters", "weights_bytes", "optimizer_bytes")
    known: Known = {name: getattr(entry, name) for name in fields}
    known["dtypes"] = list(entry.dtypes) or None
    if description is not None:
        parts = description.inspection.parameters_by_part
        known |= {f"parameters.{part or '(top level)'}": count for part, count in parts.items()}
        model = msgspec.to_builtins(description.metadata.model)
        del model["architecture"]
        known |= flatten(model)
        known |= {f"recognized.{part.part}": part.name for part in description.inspection.recognized}
    return _told(known)


def _told(known: Known) -> Known:
    """Without what nobody knows: null stands for that in entries and metadata."""
    return {name: value for name, value in known.items() if value is not None}


def _weights(first: Side, other: Side, tensors: TensorSection, position: int) -> Sameness:
    ids = [side.entry.content_id for side in (first, other)]
    if is_same_file(first.entry, other.entry, first.description, other.description) or (ids[0] and ids[0] == ids[1]):
        return Sameness.SAME
    counts = tensors.weights[position]
    if counts.n_different:
        return Sameness.DIFFERENT
    return Sameness.SAME if counts.same and not counts.unknown else Sameness.UNKNOWN
