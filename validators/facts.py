"""Which tensors the unpickled value holds, in which roles, and what can be said of the weights without reading them."""

import itertools
import marshal
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from . import modules, standins
from .collector import SCALARS, Collector
from .dtypes import Dtype
from .errors import Corrupt
from .modules import Splitter
from .plain import clip, key_text
from .standins import Opaque
from .tensors import TensorTable, make_table, repeated

WEIGHT_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
"""Where trainers put the weights, the most telling first: Lightning, PyTorch's tutorials, DeepSpeed, others."""

_WRAPPERS = frozenset(("module", "_orig_mod", "model"))
_PART = re.compile(r"(?:(?:module|_orig_mod|model)\.)*([^.]*)")
"""What DataParallel, torch.compile and the habit of calling the one child `model` put before every name; the part."""
_INT64 = 2**63


class Segment(msgspec.Struct, frozen=True):
    """The tensors below one key of the checkpoint's top level."""

    key: str
    """"" for the top level itself: a bare state dict."""
    role: str
    table: TensorTable
    relative_names: list[str]
    """Names inside the segment: a state dict's own keys."""


class Tensors(msgspec.Struct, frozen=True):
    """All tensors of a checkpoint."""

    table: TensorTable
    segments: tuple[Segment, ...]
    """Of the table, in its order."""
    problems: list[Corrupt]
    """About tensors that are no tensors; those are not in the table."""
    model_class: str | None = None
    """Of the module that was pickled whole."""

    def of(self, role: str) -> list[Segment]:
        """The segments of one role."""
        return [segment for segment in self.segments if segment.role == role]


class WeightFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of the weights without reading them."""

    n_parameters: int | None = None
    parameters_by_part: dict[str, int] = {}
    weights_bytes: int | None = None
    dtypes: tuple[str, ...] = ()


class _Mark(msgspec.Struct, frozen=True):
    """Which of the collected stand-ins came from one key of the top level."""

    key: str
    begin: int
    rest: int
    """Where those begin that a module holds outside of its state dict."""
    end: int
    is_module: bool


def find_tensors(value: Any, beside: dict[str, Any] | None = None, split: Splitter = modules.split) -> Tensors:
    """Find all tensors, and the role of the part of the checkpoint that each is in.

    Args:
        value: what the pickle holds.
        beside: name → value of what is in the file besides; never weights unless its name says so.
        split: takes modules apart.

    Raises:
        Corrupt: `pickle.limits`, see `collector.Collector`.
    """
    collector = Collector(split)
    marks: list[_Mark] = []
    bare: dict[Any, Any] = {}
    for key, part in itertools.chain(_parts_of(value), (beside or {}).items()):
        begin = len(collector.found)
        rest = collector.collect(key, part)
        if len(collector.found) > begin:
            is_module = isinstance(part, Opaque) and split(part) is not None
            marks.append(_Mark(key, begin, rest, len(collector.found), is_module))
            bare = part if not key and isinstance(part, dict) else bare
    table, problems = make_table(collector.names, collector.found, collector.parts)
    bare_weights = any(map(_has_sides, bare.values())) or isinstance(value, Opaque)
    weights = _weight_keys(marks, bare_weights)
    segments = itertools.chain.from_iterable(_segments(mark, mark.key in weights, table) for mark in marks)
    return Tensors(table, tuple(segments), problems, _model_class(value, weights))


def _model_class(value: Any, weights: set[str]) -> str | None:
    """The class of the module that the checkpoint is, or whose tensors are its weights."""
    if not isinstance(value, dict):
        return modules.class_name(value)
    holding = (modules.class_name(part) for key, part in value.items() if type(key) is str and key in weights)
    return next((name for name in holding if name is not None), None)


def _parts_of(value: Any) -> Iterable[tuple[str, Any]]:
    """What lies below each key of the top level; its own tensors first, together, under the name ""."""
    if not isinstance(value, dict):
        yield "", value
        return
    bare = {key: child for key, child in value.items() if _is_bare(child)}
    if bare:
        yield "", bare
    for key, child in value.items():
        if type(child) not in SCALARS and key not in bare:
            name = key_text(key)
            if name in WEIGHT_KEYS or "optim" in name or not _is_plain_data(child):
                yield name, child


def _is_bare(value: Any) -> bool:
    """A tensor, or the pair of them that quantized modules put into their state dict."""
    if type(value) is tuple:
        return any(type(part) in standins.TENSOR_TYPES for part in value)
    return type(value) in standins.TENSOR_TYPES


def _is_plain_data(value: Any) -> bool:
    """Whether `value` is certainly nothing but exact builtin types, so that no tensor is in it.

    marshal writes nothing else, in C, within a depth of 2,000 and shared parts once: Lightning's `loops` are 50 nested
    dictionaries of counters, and walking them in Python takes as long as reading the whole archive.
    """
    try:
        marshal.dumps(value)
    except ValueError:
        return False
    return True


def _segments(mark: _Mark, is_weights: bool, table: TensorTable) -> Iterable[Segment]:
    start = len(mark.key) + 1 if mark.key else 0
    role = "weights" if is_weights else _other_role(mark.key)
    for begin, end, its_role in ((mark.begin, mark.rest, role), (mark.rest, mark.end, "other")):
        if begin < end:
            part = table.part(begin, end)
            names = [name[start:] or name for name in part.names] if start else part.names
            yield Segment(mark.key, its_role, part, names)


def weight_facts(segments: Iterable[Segment]) -> WeightFacts:
    """Count the weights. Memory that several tensors share is counted once."""
    by_dtype: dict[Dtype, int] = {}
    by_part: dict[str, int] = {}
    counted = False
    for segment in segments:
        counted = counted or bool(segment.table)
        elements = own_elements(segment.table)
        dtypes = set(segment.table.dtypes)
        for dtype in dtypes:
            chosen = (n for n, d in zip(elements, segment.table.dtypes, strict=True) if d is dtype)
            by_dtype[dtype] = by_dtype.get(dtype, 0) + sum(elements if len(dtypes) == 1 else chosen)
        for part, numel in zip(_parts(segment.relative_names), elements, strict=True):
            by_part[part] = by_part.get(part, 0) + numel
    if not counted:
        return WeightFacts()
    return WeightFacts(
        n_parameters=min(sum(by_dtype.values()), _INT64 - 1),
        parameters_by_part=_printable(by_part),
        weights_bytes=min(sum(dtype.itemsize * numel for dtype, numel in by_dtype.items()), _INT64 - 1),
        dtypes=tuple(dtype.name for dtype in sorted(by_dtype, key=lambda dtype: (-by_dtype[dtype], dtype.name))),
    )


def bytes_of(segments: Iterable[Segment]) -> int | None:
    """Bytes that the tensors need, shared memory once; None where there are none."""
    tables = [segment.table for segment in segments]
    sizes = [n * dtype.itemsize for t in tables for n, dtype in zip(own_elements(t), t.dtypes, strict=True)]
    return min(sum(sizes), _INT64 - 1) if sizes else None


def own_elements(table: TensorTable) -> list[int]:
    """Elements of each tensor that no tensor before it in the table has already counted.

    Exact for what occurs (the same view twice, one view inside another, views side by side), and never too many.
    """
    shared = repeated(table.keys)
    if not shared and not any(table.hidden):
        return table.numels
    own: list[int] = []
    reached: dict[str, list[tuple[int, int]]] = {}
    columns = zip(table.keys, table.offsets, table.extents, table.numels, table.hidden, strict=True)
    for key, offset, extent, numel, hidden in columns:
        if hidden:
            own.append(0)
        elif key not in shared:
            own.append(numel)
        else:
            own.append(min(numel, _claim(reached.setdefault(key, []), offset, offset + extent)))
    return own


def _weight_keys(marks: list[_Mark], bare_weights: bool) -> set[str]:
    """Which top-level keys hold the weights.

    The best known one, else all `…state_dict…`, else all whole modules, else the bare tensors.
    """
    keys = {mark.key for mark in marks}
    known = next((key for key in WEIGHT_KEYS if key in keys), None)
    if known is not None:
        return {known}
    named = {key for key in keys if "state_dict" in key and _other_role(key) == "other" and "sched" not in key}
    whole = {mark.key for mark in marks if mark.is_module and mark.rest > mark.begin}
    return named or (whole if "" not in whole else set()) or ({""} if bare_weights else set())


def _has_sides(tensor: Any) -> bool:
    """Not a 0-dim tensor: a lone loss at the top level makes no state dict."""
    inner = tensor.data if type(tensor) is standins.Parameter else tensor
    return bool(getattr(inner, "shape", True))


def _other_role(key: str) -> str:
    return "optimizer" if "optim" in key.lower() or key.lower() in ("opt", "opt_state") else "other"


def _printable(by_part: dict[str, int]) -> dict[str, int]:
    everything = "".join(by_part)
    if everything.isascii() and everything.isprintable() and max(by_part.values()) < _INT64:
        return by_part
    return {clip(part): min(numel, _INT64 - 1) for part, numel in by_part.items()}


def _parts(names: list[str]) -> list[str]:
    """Top-level part of each name, wrappers' prefixes taken off."""
    heads = [name.partition(".")[0] for name in names]
    if _WRAPPERS.isdisjoint(heads):
        return heads
    return [match[1] if match else "" for match in map(_PART.match, names)]


def _claim(taken: list[tuple[int, int]], start: int, end: int) -> int:
    """How many of [start, end) lie outside the disjoint, sorted intervals `taken`, which they then join."""
    if len(taken) > 1000:  # nobody cuts a storage so finely; hostile files would make it quadratic
        return 0
    new = end - start
    merged: list[tuple[int, int]] = []
    for a, b in taken:
        if b < start or a > end:
            merged.append((a, b))
        else:
            new -= max(0, min(b, end) - max(a, start))
            start, end = min(a, start), max(b, end)
    merged.append((start, end))
    taken[:] = sorted(merged)
    return max(0, new)
