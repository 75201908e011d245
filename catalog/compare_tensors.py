"""The tensors of several checkpoints, aligned by name; "same" and "changed" only where recorded checksums prove it."""

import collections
import enum
import itertools
from collections.abc import Sequence

import msgspec

from ckptd.validators.inspection import Level, TensorInfo

from .description import Description
from .entry import CheckpointEntry

MAX_PREFIXES = 8
"""Prefixes of one side that are tried: `state_dict.module._orig_mod.model.` has four parts."""

Key = tuple[str, str]
"""Role and aligned name."""


class TensorChange(enum.StrEnum):
    """What became of a tensor, against the first checkpoint. The first that applies, in this order."""

    ABSENT = "absent"
    """In neither of the two, but in a third one."""
    ADDED = "added"
    REMOVED = "removed"
    RESHAPED = "reshaped"
    """The element type may differ as well."""
    DTYPE_CHANGED = "dtype_changed"
    CHANGED = "changed"
    """Same shape and type, other bytes: the checksums of two storages differ that these tensors fill exactly."""
    UNKNOWN = "unknown"
    """Same shape and type, and no checksums that could tell: none are recorded, or they are of larger storages."""
    SAME = "same"
    """Same shape and type, and equal checksums of storages of equal size; or the files are known to be the same."""


class ChecksumEvidence(enum.StrEnum):
    """What the checksums of a checkpoint are worth."""

    NONE = "none"
    """It records none."""
    FAILED = "failed"
    """Bytes of it do not match them: it is damaged, and they tell nothing."""
    RECORDED = "recorded"
    """As the file states them."""
    VERIFIED = "verified"
    """Every byte was compared with them."""


_CONTRADICTED = frozenset(("archive.checksum_mismatch", "archive.bit_rot"))

_RANK = {
    change: rank
    for rank, change in enumerate(
        (
            TensorChange.ADDED,
            TensorChange.REMOVED,
            TensorChange.RESHAPED,
            TensorChange.DTYPE_CHANGED,
            TensorChange.CHANGED,
            TensorChange.UNKNOWN,
            TensorChange.SAME,
            TensorChange.ABSENT,
        )
    )
}
"""The order of the list: what differs comes first."""


class TensorSelection(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows of the tensor table to list."""

    limit: int = 1000
    offset: int = 0
    changes: frozenset[TensorChange] = frozenset(TensorChange)
    """Rows with one of these in them."""


class TensorCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors of one checkpoint by what became of them, against the first one."""

    added: int = 0
    removed: int = 0
    reshaped: int = 0
    dtype_changed: int = 0
    changed: int = 0
    unknown: int = 0
    same: int = 0

    @property
    def n_different(self) -> int:
        """Tensors that are certainly not the same."""
        return self.added + self.removed + self.reshaped + self.dtype_changed + self.changed


class TensorRow(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of all checkpoints; null where one does not have it."""

    name: str
    """Without what `TensorSection.prefixes` says."""
    role: str
    shapes: tuple[tuple[int, ...] | None, ...]
    dtypes: tuple[str | None, ...]
    nbytes: tuple[int | None, ...]
    changes: tuple[TensorChange, ...]
    """Of each checkpoint but the first."""


class TensorSection(msgspec.Struct, frozen=True, kw_only=True):
    """The tensor tables of all checkpoints, side by side."""

    known: tuple[bool, ...]
    """Whether a checkpoint's tensors are known; one that could not be read, or was described by its sidecar, has none
    to compare."""
    totals: tuple[int, ...]
    """Tensors of each checkpoint."""
    prefixes: tuple[str, ...]
    """Of each checkpoint: what all names of its weights begin with, and was taken off so that they fit the others'."""
    checksums: tuple[ChecksumEvidence, ...]
    """Of each checkpoint."""
    counts: tuple[TensorCounts, ...]
    """Of each checkpoint but the first."""
    weights: tuple[TensorCounts, ...]
    """The same of the weights alone."""
    total: int
    """Rows that the selection fits."""
    limit: int
    offset: int
    rows: tuple[TensorRow, ...]
    """What differs first, then as the checkpoints have them."""

    @property
    def n_different(self) -> int:
        """Tensors that are certainly not the same, over all checkpoints."""
        return sum(counts.n_different for counts in self.counts)

    @property
    def n_unknown(self) -> int:
        """What could not be compared: tensors, and checkpoints none of whose tensors are known."""
        return sum(counts.unknown for counts in self.counts) + self.known.count(False)


def compare_tensors(
    entries: Sequence[CheckpointEntry], descriptions: Sequence[Description | None], selection: TensorSelection
) -> TensorSection:
    """Compare the tensor tables of checkpoints with that of the first one.

    Args:
        entries: of the checkpoints.
        descriptions: of the same, with their tensors.
        selection: which rows to list.
    """
    tables = [() if described is None else described.tensors for described in descriptions]
    known = [_is_known(described) for described in descriptions]
    prefixes = align([[tensor.name for tensor in table if tensor.role == "weights"] for table in tables])
    sides = [_by_key(table, prefix) for table, prefix in zip(tables, prefixes, strict=True)]
    keys = list(dict.fromkeys(itertools.chain.from_iterable(sides)))
    evidence = [_evidence(described) for described in descriptions]
    columns = []
    for other in range(1, len(sides)):
        if known[0] and known[other]:
            same_file = is_same_file(entries[0], entries[other], descriptions[0], descriptions[other])
            by_checksum = ChecksumEvidence.FAILED not in (evidence[0], evidence[other])
            columns.append([_change(sides[0].get(key), sides[other].get(key), same_file, by_checksum) for key in keys])
        else:
            columns.append([TensorChange.UNKNOWN] * len(keys))
    order = sorted(range(len(keys)), key=lambda index: min(_RANK[column[index]] for column in columns))
    chosen = [index for index in order if any(column[index] in selection.changes for column in columns)]
    listed = chosen[selection.offset : selection.offset + selection.limit]
    is_weight = [role == "weights" for role, _ in keys]
    return TensorSection(
        known=tuple(known),
        totals=tuple(map(len, tables)),
        prefixes=tuple(prefixes),
        checksums=tuple(evidence),
        counts=tuple(_counted(column) for column in columns),
        weights=tuple(_counted(list(itertools.compress(column, is_weight))) for column in columns),
        total=len(chosen),
        limit=selection.limit,
        offset=selection.offset,
        rows=tuple(_row(keys[index], sides, [column[index] for column in columns]) for index in listed),
    )


def is_same_file(
    one: CheckpointEntry, other: CheckpointEntry, described: Description | None, other_described: Description | None
) -> bool:
    """Whether two entries stand for the same bytes: one is a link to the other, or digests of both files are equal."""
    if one.id == (other.alias_of or other.id) or other.id == one.alias_of:
        return True
    if one.alias_of is not None and one.alias_of == other.alias_of:
        return True
    digest = described and described.inspection.digest
    return digest is not None and other_described is not None and digest == other_described.inspection.digest


def align(sides: Sequence[Sequence[str]]) -> list[str]:
    """For each side the prefix to take off its names, so that most of them are found in the first side.

    A prefix is dotted parts that all names of its side begin with, and never the whole of one. Where nothing is gained
    nothing is taken off: of equally good choices the shortest prefixes win.

    Args:
        sides: names; at most one prefix is taken off each.
    """
    if len({frozenset(names) for names in sides}) == 1:
        return [""] * len(sides)
    first, *others = [{prefix: _without(names, prefix) for prefix in _prefixes(names)} for names in sides]
    choices = []
    for prefix, names in first.items():
        found = [max((len(names & theirs), -len(p), p) for p, theirs in other.items()) for other in others]
        matches = sum(count for count, _, _ in found)
        taken_off = len(prefix) - sum(length for _, length, _ in found)
        choices.append((matches, -taken_off, [prefix, *(p for _, _, p in found)]))
    return max(choices)[2]


def _prefixes(names: Sequence[str]) -> list[str]:
    if not names:
        return [""]
    low, high = min(names), max(names)
    common = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    dots = [index + 1 for index, character in enumerate(low[:common]) if character == "."]
    # A name that ends where the others go on must keep a part of its own.
    shortest = min(map(len, names))
    return ["", *(low[:end] for end in dots if end < shortest)][: MAX_PREFIXES + 1]


def _without(names: Sequence[str], prefix: str) -> set[str]:
    return {name[len(prefix) :] for name in names}


def _is_known(described: Description | None) -> bool:
    if described is None:
        return False
    inspection = described.inspection
    return bool(inspection.tensors) or (inspection.level is not Level.NONE and inspection.is_valid)


def _evidence(described: Description | None) -> ChecksumEvidence:
    if described is None or all(tensor.storage_crc32 is None for tensor in described.tensors):
        return ChecksumEvidence.NONE
    if any(found.code in _CONTRADICTED for found in described.findings):
        return ChecksumEvidence.FAILED
    return ChecksumEvidence.VERIFIED if described.inspection.level.covers(Level.CHECKSUM) else ChecksumEvidence.RECORDED


def _by_key(table: Sequence[TensorInfo], prefix: str) -> dict[Key, TensorInfo]:
    found: dict[Key, TensorInfo] = {}
    again: collections.defaultdict[Key, int] = collections.defaultdict(lambda: 1)
    for tensor in table:
        name = tensor.name[len(prefix) :] if tensor.role == "weights" else tensor.name
        key = first = (tensor.role, name)
        while key in found:  # `{"a": {"b": x}, "a.b": y}`
            again[first] += 1  # kept: to count from 2 for each takes the square of how many a hostile file has
            key = (tensor.role, f"{name} ({again[first]})")
        found[key] = tensor
    return found


def _change(old: TensorInfo | None, new: TensorInfo | None, same_file: bool, by_checksum: bool) -> TensorChange:
    if old is None or new is None:
        if old is new:
            return TensorChange.ABSENT
        return TensorChange.ADDED if old is None else TensorChange.REMOVED
    if old.shape != new.shape:
        return TensorChange.RESHAPED
    if old.dtype != new.dtype:
        return TensorChange.DTYPE_CHANGED
    if same_file or old.nbytes == 0 == new.nbytes:
        return TensorChange.SAME
    if not by_checksum or old.storage_crc32 is None or new.storage_crc32 is None or old.stride != new.stride:
        return TensorChange.UNKNOWN
    if (old.storage_crc32, old.storage_nbytes) == (new.storage_crc32, new.storage_nbytes):
        return TensorChange.SAME if old.storage_offset == new.storage_offset else TensorChange.UNKNOWN
    # Storages that differ may differ outside of a tensor that is only a part of one.
    return TensorChange.CHANGED if _fills(old) and _fills(new) else TensorChange.UNKNOWN


def _fills(tensor: TensorInfo) -> bool:
    """Whether the tensor is the whole of its storage: every byte once."""
    if tensor.storage_offset or tensor.nbytes != tensor.storage_nbytes:
        return False
    step = 1
    for stride, side in sorted((stride, side) for stride, side in zip(tensor.stride, tensor.shape, strict=True)):
        if side > 1:
            if stride != step:
                return False
            step *= side
    return True


def _counted(column: Sequence[TensorChange]) -> TensorCounts:
    return TensorCounts(**{change: column.count(change) for change in TensorChange if change != TensorChange.ABSENT})


def _row(key: Key, sides: Sequence[dict[Key, TensorInfo]], changes: Sequence[TensorChange]) -> TensorRow:
    role, name = key
    tensors = [side.get(key) for side in sides]
    return TensorRow(
        name=name,
        role=role,
        shapes=tuple(None if tensor is None else tensor.shape for tensor in tensors),
        dtypes=tuple(None if tensor is None else tensor.dtype for tensor in tensors),
        nbytes=tuple(None if tensor is None else tensor.nbytes for tensor in tensors),
        changes=tuple(changes),
    )
