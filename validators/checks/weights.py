"""Is every value a number: NaN and infinities in weights and optimizer state, and weights that are all zero.

The values are looked at while the file is read through for its checksums, piece by piece, where the tensor table says
that they lie. torch only counts: nothing of the file's pickle reaches it, and no tensor is ever whole in memory.
(Reading is preferred to mapping the file: a file that is truncated while mapped kills the process, and cold a mapped
file is read half as fast.)
"""

import importlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ..findings import Finding, Severity, finding
from ..floats import KINDS, Kind
from ..plain import clip
from ..storages import Place, Storages
from ..tensors import TensorTable
from ..text import counted
from .structure import limited

_MAX_NAMED = 5
_SENTINELS = ("min_val", "max_val")
"""Buffers of torch.ao.quantization's observers; infinite until they have observed something."""


class TorchMissing(ValueError):
    """Raised when level `weights` is asked for where torch is not installed."""

    def __init__(self) -> None:
        super().__init__("level 'weights' needs torch, which is not installed: pip install 'ckptd[torch]'")


def load_torch() -> Any:
    """torch, imported now: it takes a second and 200 MB, which no other level needs.

    Raises:
        TorchMissing: it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":  # it is there, but something that it needs is not: that says more
            raise
        raise TorchMissing from error


def warm_up() -> None:
    """Import torch, keep it to one thread, and use once all that a scan may use: what torch loads late is there then.

    Raises:
        TorchMissing: torch is not installed.
    """
    torch = load_torch()
    torch.set_num_threads(1)
    for kind in KINDS.values():
        raw = torch.frombuffer(bytearray(b"\xff\0\x7f" * 32), dtype=torch.uint8)
        tensor = _Tensor(
            "", "weights", 0, len(raw), (len(raw) // kind.width, 1), (1, 1), is_dense=False, hidden=False, place=0
        )
        region = _Region(kind, 0, len(raw), [tensor])
        for swapped in (False, True):
            WeightScan({None: [region]}, swapped=swapped).feed(0, memoryview(bytes(raw.tolist())))


class _Tensor(msgspec.Struct):
    """One tensor whose values are looked at."""

    name: str
    role: str
    begin: int
    end: int
    """Bytes that its values lie between, where its storage lies."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    is_dense: bool
    """No bytes of others lie in between."""
    hidden: bool
    place: int
    """In the checkpoint's order."""
    n_bad: int = 0
    n_nan: int = 0
    first: int = 0
    """Position of the first value that is not finite, in elements from the first of all."""


class _Region(msgspec.Struct):
    """Bytes of one type that belong to one tensor, or to several that overlap. Met once, front to back."""

    kind: Kind
    begin: int
    end: int
    tensors: list[_Tensor]
    is_zero: bool = True
    is_mask: bool = True
    """Nothing but zeros and minus infinity so far."""
    is_bad: bool = False
    rest: bytes = b""
    """The first bytes of a number that the last piece ended in."""
    done: bool = False


class WeightScan:
    """Looks at the values of a file's tensors while somebody else reads it; see `findings`."""

    @classmethod
    def of(cls, table: TensorTable, roles: dict[str, str], storages: Storages) -> "WeightScan":
        """Prepare to look at the tensors of one file.

        Args:
            table: the tensors.
            roles: name → part of the checkpoint. Weights and optimizer state are looked at. Of the rest nothing
                follows: the best score of a callback is infinite before the first epoch.
            storages: where their data lies.

        Raises:
            TorchMissing: torch is not installed.
        """
        return cls(_regions(table, roles, storages), swapped=storages.big_endian)

    def __init__(self, regions: dict[int | None, list[_Region]], *, swapped: bool) -> None:
        self._torch = load_torch()
        self._swapped = swapped
        self._streams = {record: _Stream(found) for record, found in regions.items()}
        self._regions = [region for found in regions.values() for region in found]

    def feed(self, position: int, piece: memoryview) -> None:
        """Take the piece of the file at `position`, which follows the one before."""
        self._take(None, position, piece)

    def feed_record(self, index: int, position: int, piece: memoryview) -> None:
        """The same for what the compressed record `index` expands to."""
        self._take(index, position, piece)

    @property
    def is_complete(self) -> bool:
        """Whether every value was met; not, if a compressed record could not be expanded."""
        return all(region.done for region in self._regions)

    def findings(self) -> list[Finding]:
        """What is not finite, tensor by tensor, and what is all zero."""
        found: dict[Severity, list[tuple[str, str]]] = {}
        for _, severity, message in sorted(_messages(self._regions)):
            found.setdefault(severity, []).append(("weights.non_finite", message))
        judged = [_as(severity, each) for severity, messages in found.items() for each in limited(messages)]
        zero = _all_zero(self._regions)
        return judged if zero is None else [*judged, finding("weights.all_zero", zero)]

    def _take(self, record: int | None, position: int, piece: memoryview) -> None:
        stream = self._streams.get(record)
        if stream is None:
            return
        parts = stream.parts(position, len(piece))
        if not parts:
            return
        try:
            raw = self._torch.frombuffer(bytearray(piece) if piece.readonly else piece, dtype=self._torch.uint8)
            for region, begin, end in parts:
                self._look(region, position + begin, raw[begin:end])
        except RuntimeError as error:
            if "allocate" in str(error):  # c10/core/impl/alloc_cpu.cpp has no type of its own for it
                raise MemoryError(str(error)) from error
            raise

    def _look(self, region: _Region, position: int, raw: Any) -> None:
        """Judge the bytes of a region that begin at `position`."""
        width = region.kind.width
        if region.rest:
            wanted = width - len(region.rest)
            region.rest += bytes(raw[:wanted].tolist())
            if len(region.rest) == width:
                number, region.rest = region.rest, b""
                whole = self._torch.frombuffer(bytearray(number), dtype=self._torch.uint8)
                self._judge(region, position + wanted - width, whole)
            raw, position = raw[wanted:], position + wanted
        left = len(raw) % width
        if left:
            region.rest = bytes(raw[-left:].tolist())
            raw = raw[:-left]
        if len(raw):
            self._judge(region, position, raw)
        region.done = position + len(raw) == region.end

    def _judge(self, region: _Region, position: int, raw: Any) -> None:
        kind = region.kind
        if self._swapped and kind.width > 1:
            raw = raw.view(-1, kind.width).flip(1).reshape(-1)
        elif raw.storage_offset() % kind.width:
            raw = raw.clone()  # numbers that do not lie at a multiple of their size
        finite, zero = kind.judge(self._torch, raw)
        region.is_zero &= zero
        if finite:
            region.is_mask &= zero
        else:
            self._blame(region, position, kind.values(self._torch, raw))

    def _blame(self, region: _Region, position: int, values: Any) -> None:
        """Find whose values are not finite; `values` begins at byte `position`."""
        torch = self._torch
        region.is_bad = True
        region.is_mask &= bool(((values == 0) | (values == -math.inf)).all())
        width = region.kind.width
        for tensor in region.tensors:
            begin = max(0, (tensor.begin - position) // width)
            mine = values[begin : max(begin, (tensor.end - position) // width)]
            before = max(0, position - tensor.begin) // width  # numbers of the tensor in earlier pieces
            bad = ~torch.isfinite(mine)
            places = torch.nonzero(bad).flatten() + before
            if not tensor.is_dense:
                inside = _belong(torch, tensor, places.div(region.kind.numbers, rounding_mode="floor"))
                places = places[inside]
            if len(places):
                if not tensor.n_bad:
                    tensor.first = int(places[0]) // region.kind.numbers
                tensor.n_bad += len(places)
                tensor.n_nan += int(torch.isnan(mine[places - before]).sum())


class _Stream:
    """The regions of one file, or of one record, in the order in which its pieces meet them."""

    def __init__(self, regions: list[_Region]) -> None:
        self._regions = sorted(regions, key=lambda region: region.begin)
        self._next = 0
        self._begun: list[_Region] = []

    def parts(self, position: int, size: int) -> list[tuple[_Region, int, int]]:
        """The regions that a piece of `size` bytes at `position` touches, and from where to where inside the piece."""
        end = position + size
        found, self._begun = self._begun, []
        while self._next < len(self._regions) and self._regions[self._next].begin < end:
            found.append(self._regions[self._next])
            self._next += 1
        self._begun = [region for region in found if region.end > end]
        return [(region, max(0, region.begin - position), min(size, region.end - position)) for region in found]


# ---- which bytes are whose -------------------------------------------------------------------------------------


def _regions(table: TensorTable, roles: dict[str, str], storages: Storages) -> dict[int | None, list[_Region]]:
    """Record, or None for the file → regions. Tensors that share bytes share a region; each byte is met once."""
    by_place: dict[tuple[int | None, Kind, int], list[_Tensor]] = {}
    places = storages.places(table.keys)
    for i, (place, dtype) in enumerate(zip(places, table.dtypes, strict=True)):
        kind = KINDS.get(dtype.name)
        role = roles.get(table.names[i], "other")
        if place is not None and kind is not None and role != "other" and table.extents[i]:
            tensor = _tensor(table, i, role, place)
            if tensor.end <= place.begin + place.size:
                by_place.setdefault((place.record, kind, tensor.begin % dtype.itemsize), []).append(tensor)
    regions: dict[int | None, list[_Region]] = {}
    for (record, kind, _), tensors in by_place.items():
        regions.setdefault(record, []).extend(_merged(kind, tensors))
    return regions


def _tensor(table: TensorTable, i: int, role: str, place: Place) -> _Tensor:
    size = table.dtypes[i].itemsize
    begin = place.begin + table.offsets[i] * size
    return _Tensor(
        name=table.names[i],
        role=role,
        begin=begin,
        end=begin + table.extents[i] * size,
        shape=table.shapes[i],
        stride=table.strides[i],
        is_dense=table.numels[i] == table.extents[i],
        hidden=table.hidden[i],
        place=i,
    )


def _merged(kind: Kind, tensors: list[_Tensor]) -> Iterator[_Region]:
    tensors.sort(key=lambda tensor: tensor.begin)  # stable: equal ones stay in the order of the checkpoint
    region: _Region | None = None
    for tensor in tensors:
        if region is not None and tensor.begin < region.end:
            region.end = max(region.end, tensor.end)
            region.tensors.append(tensor)
            continue
        if region is not None:
            yield region
        region = _Region(kind, tensor.begin, tensor.end, [tensor])
    if region is not None:
        yield region


def _belong(torch: Any, tensor: _Tensor, places: Any) -> Any:
    """Which positions, in elements from the tensor's first, are elements of it and not of what lies in between."""
    rest = places.clone()
    for _, side, step in _sides(tensor):
        rest -= rest.div(step, rounding_mode="floor").clamp(max=side - 1) * step
    return rest == 0


def _index(tensor: _Tensor, place: int) -> tuple[int, ...]:
    """The index of the element at `place`, a position as in `_belong`."""
    index = [0] * len(tensor.shape)
    for axis, side, step in _sides(tensor):
        index[axis] = min(place // step, side - 1)
        place -= index[axis] * step
    return tuple(index)


def _sides(tensor: _Tensor) -> list[tuple[int, int, int]]:
    """(axis, length, stride) of the sides that lead to other elements, the longest way first."""
    sides = zip(range(len(tensor.shape)), tensor.shape, tensor.stride, strict=True)
    return sorted((side for side in sides if side[1] > 1 and side[2] > 0), key=lambda side: -side[2])


# ---- what is said of it ----------------------------------------------------------------------------------------


def _messages(regions: Sequence[_Region]) -> Iterator[tuple[int, Severity, str]]:
    """Of each tensor that holds something else than numbers: its place in the checkpoint, how bad that is, and what."""
    for region in regions:
        said: set[tuple[object, ...]] = set()
        for tensor in region.tensors if region.is_bad else ():
            same = (tensor.begin, tensor.shape, tensor.stride, tensor.role)
            if tensor.n_bad and same not in said:
                said.add(same)
                sharing = sum(same == (t.begin, t.shape, t.stride, t.role) for t in region.tensors) - 1
                yield tensor.place, _severity(region, tensor), _message(tensor, sharing)


def _message(tensor: _Tensor, sharing: int) -> str:
    what = "the values of sparse tensor" if tensor.hidden else "tensor"
    also = f" (and {sharing:,} more that share its memory)" if sharing else ""
    kinds = [
        f"{count:,} {name}" for count, name in ((tensor.n_nan, "NaN"), (tensor.n_bad - tensor.n_nan, "infinite"))
        if count
    ]  # fmt: skip
    where = f", the first at index {list(_index(tensor, tensor.first))}" if tensor.shape else ""
    number = counted(tensor.n_bad, "value")
    verb = "is" if tensor.n_bad == 1 else "are"
    return f"{number} of {what} {clip(tensor.name, 200)}{also} {verb} not finite ({' and '.join(kinds)}){where}"


def _severity(region: _Region, tensor: _Tensor) -> Severity:
    """Weights that are no numbers cannot be used. Three cases are milder.

    A diverged optimizer state spoils the next step of a training that goes on from here, but the weights are what they
    are: a warning. An attention mask (nothing but zeros and minus infinity, two sides or more) and the bounds of an
    observer that has observed nothing hold infinities on purpose: worth knowing.
    """
    if tensor.role == "optimizer":
        return Severity.WARNING
    is_sentinel = tensor.name.rpartition(".")[2] in _SENTINELS
    if not tensor.n_nan and (is_sentinel or (region.is_mask and len(tensor.shape) >= 2)):
        return Severity.INFO
    return Severity.ERROR


_REMEDIES = {
    Severity.WARNING: "the weights can be used; a training that resumes from here may diverge: use an earlier "
    "checkpoint, or start with a fresh optimizer",
    Severity.INFO: "expected of attention masks and of observers that have observed nothing yet",
}


def _as(severity: Severity, found: Finding) -> Finding:
    remedy = _REMEDIES.get(severity, found.remedy)
    return msgspec.structs.replace(found, severity=severity, remedy=remedy)


def _all_zero(regions: Sequence[_Region]) -> str | None:
    """Vectors and single numbers are left out: biases, running means and counters begin as zeros."""
    found = [
        (tensor.place, tensor.name)
        for region in regions
        if region.is_zero and region.done
        for tensor in region.tensors
        if tensor.role == "weights" and not tensor.hidden and sum(side > 1 for side in tensor.shape) >= 2
    ]
    if not found:
        return None
    names = [name for _, name in sorted(found)]
    shown = ", ".join(clip(name, 120) for name in names[:_MAX_NAMED])
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    return f"every value is zero in tensor {shown}{more}"
