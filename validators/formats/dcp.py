"""The `.metadata` of torch.distributed.checkpoint: which tensors there are, cut into which chunks, lying where.

It is a pickle of dataclasses (torch/distributed/checkpoint/metadata.py, filesystem.py), parsed inertly: they arrive as
stand-ins with state. Everything in it is checked, because a file says it.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from ..dtypes import Dtype
from ..errors import Corrupt
from ..plain import clip
from ..standins import Opaque
from ..tensors import MAX_BYTES, MAX_NAME, MAX_RANK
from ..unpickle import InertPickle

METADATA = ".metadata"
UNFINISHED = ".metadata.tmp"
"""`FileSystemWriter.finish` writes it, then renames it to `.metadata`: the last step of a save."""

MAX_METADATA_BYTES = 512 * 1024 * 1024
"""Of one `.metadata`; that of 20,000 tensors has 4 MB."""
MAX_DEPTH = 32
"""Of the nested state dict that `planner_data` describes."""

_CLASSES = {
    "checkpoint.metadata": "Metadata MetadataIndex TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata "
    "TensorProperties StorageMeta _MEM_FORMAT_ENCODING",
    "checkpoint.filesystem": "_StorageInfo _StoragePrefix",
    "checkpoint._hf_utils": "_HFStorageInfo",
    # where torch 2.0 to 2.2 kept the properties: torch/distributed/_shard/sharded_tensor/metadata.py
    "_shard.sharded_tensor.metadata": "TensorProperties MEM_FORMAT_ENCODING",
}
OWN_NAMES: frozenset[str] = frozenset(
    f"torch.distributed.{module}.{name}" for module, names in _CLASSES.items() for name in names.split()
)
"""What every `.metadata` names: dataclasses and enums without code of their own."""


_Places = dict[tuple[str, tuple[int, ...] | None], "Extent"]
"""(name, offset of the chunk, or None for what is no tensor) → where it lies."""


class Extent(msgspec.Struct, frozen=True):
    """Where one item lies: a range of one shard."""

    shard: str
    offset: int
    length: int
    transformed: bool
    """By an extension of the writer (compression): only the same extension can read it."""


class Chunk(msgspec.Struct, frozen=True):
    """A box of a tensor, stored as a tensor of its own."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    extent: Extent


class Tensor(msgspec.Struct, frozen=True):
    """One tensor of the checkpoint, put together from chunks."""

    dtype: Dtype
    shape: tuple[int, ...]
    requires_grad: bool
    chunks: tuple[Chunk, ...]


_RANK_METADATA = re.compile(r"__(\d{1,9})\.metadata")
"""`FileSystemWriter._get_metadata_path`."""
_SHARD = re.compile(r"__(\d{1,9})_\d+\.distcp")
MAX_RANKS = 100_000


class Contents(msgspec.Struct, frozen=True):
    """What the metadata says, by fully qualified name."""

    tensors: dict[str, Tensor]
    values: dict[str, Extent]
    """Everything that is no tensor, each pickled by `torch.save`."""
    paths: dict[str, tuple[str | int, ...]]
    """Fully qualified name → its place in the nested state dict (planner_helpers `FLATTEN_MAPPING`)."""

    def extents(self) -> list[tuple[str, Chunk | None, Extent]]:
        """All places, with the name and, for tensors, the chunk that lies there."""
        found: list[tuple[str, Chunk | None, Extent]] = [(name, None, extent) for name, extent in self.values.items()]
        for name, tensor in self.tensors.items():
            found += [(name, chunk, chunk.extent) for chunk in tensor.chunks]
        return found


def read_contents(inert: InertPickle) -> Contents:
    """Read what an inertly parsed `.metadata` says.

    Raises:
        Corrupt: it is no metadata of this format, or it contradicts itself.
    """
    if inert.failure is not None:
        raise inert.failure
    metadata = _fields(inert.value, "Metadata")
    if metadata is None or not isinstance(metadata.get("state_dict_metadata"), dict):
        raise _malformed("it is no metadata of torch.distributed.checkpoint")
    places = _places(metadata.get("storage_data"))
    tensors: dict[str, Tensor] = {}
    values: dict[str, Extent] = {}
    for name, entry in metadata["state_dict_metadata"].items():
        if type(name) is not str or len(name) > MAX_NAME:
            raise _malformed("it names an item by something that is no name")
        if _fields(entry, "BytesStorageMetadata") is not None:
            values[name] = _placed(places, name, None)
        else:
            tensors[name] = _tensor(name, entry, places)
    return Contents(tensors, values, _paths(metadata.get("planner_data")))


def rank_metadata(names: Iterable[str]) -> list[str]:
    """Those of `names` that are one rank's own metadata, in the order of the ranks."""
    ranks = {name: match for name in names if (match := _RANK_METADATA.fullmatch(name))}
    return sorted(ranks, key=lambda name: int(ranks[name][1]))


def missing_ranks(metadata: list[str], names: Iterable[str]) -> list[str]:
    """Metadata that ranks must have written: of the numbers up to the highest that metadata or shards show."""
    found = [_RANK_METADATA.fullmatch(name) for name in metadata]
    shards = [_SHARD.match(name) for name in names]
    ranks = {int(match[1]) for match in (*found, *shards) if match}
    wanted = [f"__{rank}.metadata" for rank in range(min(max(ranks, default=-1) + 1, MAX_RANKS))]
    return sorted(set(wanted) - set(metadata))


def merge(contents: list[Contents]) -> Contents:
    """The metadata of all ranks together, where each wrote its own (`__0.metadata`: saved without collectives)."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Extent] = {}
    paths: dict[str, tuple[str | int, ...]] = {}
    for each in contents:
        for name, tensor in each.tensors.items():
            known = tensors.get(name)
            if known is not None:
                seen = {chunk.offsets for chunk in known.chunks}
                new = tuple(chunk for chunk in tensor.chunks if chunk.offsets not in seen)
                tensor = msgspec.structs.replace(known, chunks=known.chunks + new)
            tensors[name] = tensor
        values |= each.values
        paths |= each.paths
    return Contents(tensors, values, paths)


def nested(contents: Contents, leaves: dict[str, Any]) -> dict[Any, Any]:
    """The nested state dict that was flattened for the save, with `leaves` in the place of its items.

    A checkpoint that was saved flat stays flat; an item whose place contradicts another's stands at the top.
    """
    top: dict[Any, Any] = {}
    for name, leaf in leaves.items():
        branch: Any = top
        path = contents.paths.get(name, (name,))
        for key in path[:-1]:
            branch = branch.setdefault(key, _Branch()) if isinstance(branch, dict) else None
        if type(branch) not in (dict, _Branch) or path[-1] in branch:
            top[name] = leaf
        else:
            branch[path[-1]] = leaf
    return {key: _with_lists(value) for key, value in top.items()}


class _Branch(dict[Any, Any]):
    """A part of the nested state dict, told apart from a value that happens to be a dictionary."""


def _with_lists(value: Any) -> Any:
    """What was a list before it was flattened: keys that count from 0. As deep as `MAX_DEPTH` at most."""
    if type(value) is not _Branch:
        return value
    children = {key: _with_lists(child) for key, child in value.items()}
    if all(type(key) is int for key in children) and sorted(children) == list(range(len(children))):
        return [children[index] for index in range(len(children))]
    return children


def _places(storage_data: Any) -> _Places:
    if not isinstance(storage_data, dict):
        raise _malformed("it does not say where its items lie")
    places: _Places = {}
    for index, info in storage_data.items():
        key, place = _fields(index, "MetadataIndex"), _fields(info, "_StorageInfo")
        if key is None or place is None or type(key.get("fqn")) is not str:
            raise _malformed("it describes the place of an item in an unknown way")
        offset = key.get("offset")
        if offset is not None and not _are_sizes(offset):
            raise _malformed(f"it gives {clip(key['fqn'])} an offset that is none")
        places[key["fqn"], offset] = _extent(key["fqn"], place)
    return places


def _extent(name: str, place: dict[Any, Any]) -> Extent:
    shard, offset, length = place.get("relative_path"), place.get("offset"), place.get("length")
    if type(shard) is not str or not _are_sizes((offset, length)):
        raise _malformed(f"it says of {clip(name)} that it lies at no possible place")
    assert type(offset) is int
    assert type(length) is int
    return Extent(shard, offset, length, bool(place.get("transform_descriptors")))


def _placed(places: _Places, name: str, offset: tuple[int, ...] | None) -> Extent:
    found = places.get((name, offset))
    if found is None:
        raise Corrupt("tensor.missing_storage", f"the metadata does not say where {clip(name)} lies")
    return found


def _tensor(name: str, entry: Any, places: _Places) -> Tensor:
    fields = _fields(entry, "TensorStorageMetadata")
    shape: Any = None if fields is None else fields.get("size")
    chunks: Any = None if fields is None else fields.get("chunks")
    dtype, requires_grad = (None, False) if fields is None else _properties(fields.get("properties"))
    if dtype is None or not _are_sizes(shape) or type(chunks) is not list or not _fits(shape, dtype):
        raise _malformed(f"it describes {clip(name)} without type, shape or chunks")
    read = tuple(_chunk(name, chunk, shape, places) for chunk in chunks)
    covered, numel = sum(math.prod(chunk.sizes) for chunk in read), math.prod(shape)
    if covered < numel:
        raise Corrupt(
            "tensor.missing_storage",
            f"the chunks of tensor {clip(name)} hold {covered:,} of its {numel:,} elements",
        )
    return Tensor(dtype, shape, requires_grad, read)


def _chunk(name: str, chunk: Any, shape: tuple[int, ...], places: _Places) -> Chunk:
    fields = _fields(chunk, "ChunkStorageMetadata")
    offsets: Any = None if fields is None else fields.get("offsets")
    sizes: Any = None if fields is None else fields.get("sizes")
    if not _are_sizes(offsets) or not _are_sizes(sizes) or not len(offsets) == len(sizes) == len(shape):
        raise _malformed(f"it describes a chunk of {clip(name)} without offsets or sizes")
    if any(offset + size > side for offset, size, side in zip(offsets, sizes, shape, strict=True)):
        raise Corrupt("tensor.out_of_bounds", f"a chunk of tensor {clip(name)} reaches beyond the tensor")
    return Chunk(offsets, sizes, _placed(places, name, offsets))


def _properties(properties: Any) -> tuple[Dtype | None, bool]:
    """Dtype and `requires_grad`; metadata.py, `TensorProperties.__getstate__`."""
    if not isinstance(properties, Opaque) or not properties.name.endswith(".TensorProperties"):
        return None, False
    state = properties.state
    if isinstance(state, dict):
        state = (state.get("dtype"), None, state.get("requires_grad"))
    if type(state) is not tuple or len(state) < 3 or type(state[0]) is not Dtype:
        return None, False
    return state[0], state[2] is True


def _paths(planner_data: Any) -> dict[str, tuple[str | int, ...]]:
    """Those of the usual planner; another planner's data says nothing to us, and the names then stay flat."""
    if not isinstance(planner_data, dict):
        return {}
    return {name: path for name, path in planner_data.items() if type(name) is str and _is_path(path)}


def _is_path(path: Any) -> bool:
    return type(path) is tuple and 0 < len(path) <= MAX_DEPTH and all(type(key) in (str, int) for key in path)


def _fields(value: Any, kind: str) -> dict[Any, Any] | None:
    """The attributes of a dataclass of this format; None of anything else."""
    if not isinstance(value, Opaque) or not value.name.startswith("torch.distributed."):
        return None
    if value.name.rpartition(".")[2] != kind:
        return None
    return value.state if isinstance(value.state, dict) else {}


def _are_sizes(values: Any) -> bool:
    return (
        type(values) is tuple
        and len(values) <= MAX_RANK
        and all(type(value) is int and 0 <= value < MAX_BYTES for value in values)
    )


def _fits(shape: tuple[int, ...], dtype: Dtype) -> bool:
    return math.prod(shape) * dtype.itemsize < MAX_BYTES


def _malformed(message: str) -> Corrupt:
    return Corrupt("pickle.malformed", f"the metadata cannot be used: {message}")
