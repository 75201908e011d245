"""The tensors of a checkpoint, in columns: what each looks like, which bytes it needs.

Columns and C-level loops (zip, map, set) instead of an object per tensor: 20,000 tensors are checked in milliseconds.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Iterable
from itertools import chain
from typing import Any

import msgspec

from . import arrays, standins
from .dtypes import Dtype
from .errors import Corrupt
from .plain import clip
from .standins import Opaque, Storage, Tensor

MAX_NAME = 4096
MAX_RANK = 64
"""Dimensions of a tensor; c10/core, `kMaxDims`-style limits of torch's kernels are 64 and below."""
MAX_BYTES = 2**62
MAX_PARTS = 4
"""Tensors that one consists of: compressed and plain indices, values, size of a sparse one."""
MAX_LAYERS = 8
"""Wrappers around one tensor: a parameter of a subclass of a tensor from a device; real ones are three."""


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One tensor: what `TensorTable` holds in columns."""

    name: str
    dtype: Dtype
    storage: Any
    """`Storage`, or None where there is none in the archive (meta, wrappers, sparse)."""
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: Any
    hidden: bool = False
    """Part of another tensor (the indices of a sparse one): checked, not listed."""


class TensorTable(msgspec.Struct):
    """All tensors of one segment of a checkpoint, column by column, in the checkpoint's order."""

    names: list[str]
    dtypes: list[Dtype]
    shapes: list[tuple[int, ...]]
    strides: list[tuple[int, ...]]
    keys: list[str]
    """Of the storage records; "" where the tensor has none."""
    storage_bytes: list[int]
    """What the pickle says the storage has; 0 where there is none."""
    offsets: list[int]
    """In elements; in bytes where several of them share one."""
    grads: list[bool]
    hidden: list[bool]
    numels: list[int]
    extents: list[int]
    """From the view's first element to behind its last, at least as many as it reaches over; 0 for empty ones.

    Counted like `offsets`.
    """
    origins: list[int]
    """Which of the stand-ins each row is from: one may have hidden rows, or none at all."""

    def __len__(self) -> int:
        return len(self.names)

    def part(self, begin: int, end: int) -> "TensorTable":
        """The rows of the stand-ins from `begin` to before `end`."""
        rows = slice(bisect_left(self.origins, begin), bisect_left(self.origins, end))
        if rows == slice(0, len(self.names)):  # most files have one part that holds all
            return self
        return TensorTable(*(column[rows] for column in msgspec.structs.astuple(self)))


def make_table(names: list[str], found: list[Any], parts: Container[int] = ()) -> tuple[TensorTable, list[Corrupt]]:
    """Read and check what the stand-ins say. What cannot be a tensor becomes a problem, not a row.

    Args:
        names: of the tensors.
        found: their stand-ins.
        parts: positions of those that are part of another tensor; their rows are hidden.
    """
    plain = _plain_table(names, found) if found and set(map(type, found)) == {Tensor} else None
    if plain is not None:
        return plain, []
    rows: list[Row] = []
    origins: list[int] = []
    problems: list[Corrupt] = []
    for index, (name, tensor) in enumerate(zip(names, found, strict=True)):
        try:
            read = read_tensor(name, tensor)
        except Corrupt as problem:
            problems.append(problem)
        else:
            rows += [msgspec.structs.replace(row, hidden=True) for row in read] if index in parts else read
            origins += [index] * len(read)
    reached = [extent_of(row.shape, row.stride) for row in rows]
    packing = [row.dtype.per_byte for row in rows]
    table = TensorTable(
        names=[row.name for row in rows],
        dtypes=[row.dtype for row in rows],
        shapes=[row.shape for row in rows],
        strides=[row.stride for row in rows],
        keys=["" if row.storage is None else row.storage[2] for row in rows],
        storage_bytes=[0 if row.storage is None else row.storage[4] * row.storage[1].itemsize for row in rows],
        offsets=[row.offset // packed for row, packed in zip(rows, packing, strict=True)],
        grads=[row.requires_grad is True for row in rows],
        hidden=[row.hidden for row in rows],
        numels=[numel for numel, _ in reached],
        extents=[-(-extent // packed) for (_, extent), packed in zip(reached, packing, strict=True)],
        origins=origins,
    )
    return table, problems


def read_tensor(name: str, tensor: Any, depth: int = 0) -> list[Row]:
    """One stand-in → its row, followed by hidden rows for what it consists of.

    Args:
        name: of the tensor.
        tensor: its stand-in.
        depth: how many tensors this one is a part of.

    Raises:
        Corrupt: `tensor.out_of_bounds` or `pickle.malformed`, the arguments describe no tensor.
    """
    if depth > MAX_LAYERS // 2:
        raise Corrupt("pickle.malformed", f"tensor {clip(name)} consists of tensors of tensors without end")
    grad = False
    for _ in range(MAX_LAYERS):
        kind = type(tensor)
        if kind is standins.Parameter:
            grad, tensor = grad or tensor.requires_grad is True, tensor.data
        elif kind is standins.FromType:
            tensor = _call(name, tensor)
        elif kind is standins.DeviceTensor and type(tensor.data) in standins.TENSOR_TYPES:
            grad, tensor = grad or tensor.requires_grad is True, tensor.data
        else:
            break
    rows = list(_rows(name, tensor, grad, depth + 1))
    for row in rows:
        _check_row(row)
    return rows


def extent_of(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int]:
    """Number of elements, and how far in elements the view reaches from its offset. Strides are not negative."""
    numel = 1
    for side in shape:
        numel *= side
    if numel == 0:
        return 0, 0
    return numel, 1 + sum((side - 1) * step for side, step in zip(shape, stride, strict=False))


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The stride of a tensor without gaps."""
    strides: list[int] = []
    step = 1
    for side in reversed(shape):
        strides.append(step)
        step *= max(side, 1)
    return tuple(reversed(strides))


def _plain_table(names: list[str], found: list[Any]) -> TensorTable | None:
    """The table of tensors that are all of the usual kind and without fault, whole columns at once; else None.

    Types are checked before anything is compared or hashed: a tuple nested 400,000 deep must not be.
    """
    storages, offsets, shapes, strides, grads, _, _ = zip(*map(msgspec.structs.astuple, found), strict=True)
    if set(map(type, storages)) != {Storage} or set(map(len, storages)) != {5}:
        return None
    _, dtypes, keys, _, sizes = zip(*storages, strict=True)
    if set(map(type, dtypes)) != {Dtype} or set(map(type, keys)) != {str} or set(map(type, grads)) != {bool}:
        return None
    if set(map(type, chain(shapes, strides))) != {tuple}:
        return None
    sides = chain.from_iterable(chain(shapes, strides))
    if set(map(type, chain(sizes, offsets, sides))) != {int}:
        return None
    views = list(zip(shapes, strides, strict=True))
    extents = dict.fromkeys(views, (0, 0))
    if not all(_is_view(*view) for view in extents):
        return None
    for view in extents:
        extents[view] = extent_of(*view)
    if min(*sizes, *offsets, 0) < 0 or max(*sizes, *offsets, 0) >= MAX_BYTES:
        return None
    if "" in keys:
        return None
    numels, reached = zip(*map(extents.__getitem__, views), strict=True)
    return TensorTable(
        names=names,
        dtypes=list(dtypes),
        shapes=list(shapes),
        strides=list(strides),
        keys=list(keys),
        storage_bytes=[size * dtype.itemsize for size, dtype in zip(sizes, dtypes, strict=True)],
        offsets=list(offsets),
        grads=list(grads),
        hidden=[False] * len(names),
        numels=list(numels),
        extents=list(reached),
        origins=list(range(len(names))),
    )


def _is_view(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether integers can be a shape and a stride, and the tensor be one that fits a machine."""
    if len(shape) != len(stride) or len(shape) > MAX_RANK:
        return False
    if not shape:
        return True
    if min(*shape, *stride) < 0 or max(*shape, *stride) >= MAX_BYTES:
        return False
    return math.prod(shape) < MAX_BYTES // 16


def _rows(name: str, tensor: Any, grad: bool, depth: int) -> Iterable[Row]:
    match tensor:
        case standins.Tensor():
            yield _row(name, _dtype_of(tensor.storage), tensor.storage, tensor, grad)
        case standins.QuantizedTensor():
            yield _row(name, _dtype_of(tensor.storage), tensor.storage, tensor, grad)
            yield from _hidden(name, tensor.quantizer, depth)
        case standins.TensorV3():
            yield _row(name, tensor.dtype, tensor.storage, tensor, grad)
        case standins.MetaTensor() | standins.WrapperSubclass():
            shape = _size(tensor.shape)
            stride = tensor.stride if type(tensor.stride) is tuple else contiguous_stride(shape)
            yield Row(name, tensor.dtype, None, 0, shape, stride, grad or tensor.requires_grad is True)
        case standins.SparseTensor():
            yield from _sparse_rows(name, tensor, grad, depth)
        case standins.NestedTensor():
            # Its tensors lie in one buffer, and their shapes in tensors of their own: torch has no shape for it either.
            yield from _main(name, tensor.buffer, grad, depth)
            yield from _hidden(name, (tensor.sizes, tensor.strides, tensor.offsets), depth)
        case standins.JaggedTensor():
            parts = tensor.parts if isinstance(tensor.parts, dict) else {}
            yield from _main(name, parts.get("values"), grad or parts.get("requires_grad") is True, depth)
        case standins.DeviceTensor():
            yield _array_row(name, tensor, grad)
        case _:
            raise Corrupt("pickle.malformed", f"tensor {clip(name)} is built from something that is no tensor")


def _main(name: str, tensor: Any, grad: bool, depth: int) -> Iterable[Row]:
    """The rows of what holds a tensor's data."""
    rows = read_tensor(name, tensor, depth)
    yield msgspec.structs.replace(rows[0], requires_grad=grad or rows[0].requires_grad is True)
    yield from rows[1:]


def _hidden(name: str, parts: Any, depth: int) -> Iterable[Row]:
    for part in parts[:MAX_PARTS] if type(parts) is tuple else ():
        if type(part) in standins.TENSOR_TYPES:
            for row in read_tensor(name, part, depth):
                yield msgspec.structs.replace(row, hidden=True)


def _dtype_of(storage: Any) -> Any:
    return storage[1] if type(storage) is Storage and len(storage) == 5 else None


def _row(name: str, dtype: Any, storage: Any, tensor: Any, grad: bool) -> Row:
    return Row(
        name, dtype, storage, tensor.offset, _size(tensor.shape), tensor.stride, grad or tensor.requires_grad is True
    )


def _sparse_rows(name: str, tensor: standins.SparseTensor, grad: bool, depth: int) -> Iterable[Row]:
    data = tensor.data[:MAX_PARTS] if type(tensor.data) is tuple else ()
    parts = [part for part in data if type(part) in standins.TENSOR_TYPES]
    sizes = [part for part in data if type(part) in (tuple, list)]
    if len(parts) < 2 or not sizes:
        raise Corrupt("pickle.malformed", f"sparse tensor {clip(name)} lacks indices, values or size")
    inner = [read_tensor(name, part, depth)[0] for part in parts]
    yield Row(
        name, inner[-1].dtype, None, 0, _size(sizes[0]), contiguous_stride(_checked_ints(name, _size(sizes[0]))), grad
    )
    for row in inner:
        yield msgspec.structs.replace(row, hidden=True)


def _array_row(name: str, tensor: standins.DeviceTensor, grad: bool) -> Row:
    """A device without storages (XLA, MTIA) writes a numpy array: (version, shape, dtype, fortran order, bytes)."""
    state = tensor.data.state if isinstance(tensor.data, Opaque) else None
    if type(state) is not tuple or len(state) != 5 or arrays.read_type(state[2]) is None:
        raise Corrupt("pickle.malformed", f"tensor {clip(name)} is built from something that is no array")
    shape = _checked_ints(name, _size(state[1]))
    return Row(name, tensor.dtype, None, 0, shape, contiguous_stride(shape), grad or tensor.requires_grad is True)


def _size(shape: Any) -> Any:
    return tuple(shape) if type(shape) is list and len(shape) <= MAX_RANK else shape


def _checked_ints(name: str, values: Any) -> tuple[int, ...]:
    if (
        type(values) is not tuple
        or len(values) > MAX_RANK
        or any(type(v) is not int or not 0 <= v < MAX_BYTES for v in values)
    ):
        raise Corrupt("tensor.out_of_bounds", f"tensor {clip(name)} has a shape, stride or offset that none can have")
    return values


def _check_row(row: Row) -> None:
    if type(row.dtype) is not Dtype:
        raise Corrupt("pickle.malformed", f"tensor {clip(row.name)} has no known element type")
    storage = row.storage
    if storage is not None:
        if type(storage) is not Storage or len(storage) != 5 or type(storage[1]) is not Dtype:
            raise Corrupt("pickle.malformed", f"tensor {clip(row.name)} has no storage that torch knows")
        if type(storage[2]) is not str or not storage[2]:
            raise Corrupt("pickle.malformed", f"tensor {clip(row.name)} names its storage by something that is no name")
        _checked_ints(row.name, (storage[4], row.offset))
    shape = _checked_ints(row.name, row.shape)
    if len(_checked_ints(row.name, row.stride)) != len(shape):
        raise Corrupt(
            "tensor.out_of_bounds", f"tensor {clip(row.name)} has {len(shape)} sides, but another number of strides"
        )
    if extent_of(shape, row.stride)[0] * row.dtype.itemsize >= MAX_BYTES:
        raise Corrupt("tensor.out_of_bounds", f"tensor {clip(row.name)} is larger than any machine's memory")


def _call(name: str, built: standins.FromType) -> Any:
    if built.func in standins.TENSOR_TYPES and type(built.args) is tuple:
        try:
            return built.func(*built.args)
        except TypeError as error:
            raise Corrupt("pickle.malformed", f"tensor {clip(name)} is rebuilt from the wrong arguments") from error
    return built.func


def repeated(keys: list[str]) -> set[str]:
    """The storages that more than one tensor looks into."""
    return {key for key, count in Counter(keys).items() if count > 1 and key}
