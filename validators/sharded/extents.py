"""The shards of torch.distributed.checkpoint: every item in its extent, most of them small archives of their own.

`_write_item` (torch/distributed/checkpoint/filesystem.py) saves each chunk of a tensor and each other value by
`torch.save` into the stream of its shard; with `SerializationFormat.SAFETENSORS` the tensors of a shard follow its
other values as one safetensors text.
"""

import math
from typing import Any

import msgspec

from ..checks import safety
from ..errors import Corrupt, Incomplete
from ..formats import dcp, safetensors
from ..inspection import Level
from ..plain import clip
from ..reader import FileReader
from ..standins import Tensor
from ..storages import RangeStorages
from .item_storages import ItemStorages, Piece
from .items import ChunkReader, differs, is_text, load_value, open_archive, read_pickle, text_source
from .members import Gathered, Members, listed

Item = tuple[str, dcp.Chunk | None, dcp.Extent]
"""Fully qualified name, the chunk of a tensor or None for what is none, and where it lies."""


class Items(msgspec.Struct):
    """What the extents hold."""

    leaves: dict[str, Any]
    """Every item by its fully qualified name: a tensor's stand-in, or an inert value."""
    storages: ItemStorages


def read_items(contents: dcp.Contents, members: Members, gathered: Gathered) -> Items:
    """Read the archive and the pickle of every extent that can be read.

    What is wrong with one of them becomes a finding; the others are read all the same.
    """
    reader = _ItemReader(contents, members, gathered)
    shards = by_shard(contents)
    absent = [shard for shard in shards if shard not in members]
    if absent:
        named = f"{len(absent):,} of {len(shards):,} shards named in the metadata are not there"
        gathered.missing(f"{named}: {listed([members.prefix + shard for shard in absent])}")
    for shard, items in shards.items():
        if shard in members:
            reader.read_shard(shard, items)
    return reader.items()


def by_shard(contents: dcp.Contents) -> dict[str, list[Item]]:
    """The items of each shard, by their place in it."""
    shards: dict[str, list[Item]] = {}
    for item in sorted(contents.extents(), key=lambda item: (item[2].shard, item[2].offset)):
        shards.setdefault(item[2].shard, []).append(item)
    return shards


class _ItemReader:
    def __init__(self, contents: dcp.Contents, members: Members, gathered: Gathered) -> None:
        self._contents = contents
        self._members = members
        self._gathered = gathered
        self._storages = ItemStorages()
        self._chunks = ChunkReader()
        self._values: dict[str, Any] = {}
        self._pieces: dict[tuple[str, tuple[int, ...]], Piece] = {}
        self._texts: dict[tuple[str, int], dict[str, tuple[Tensor, RangeStorages]]] = {}
        self._names: dict[str, None] = {}
        self._unproved = False

    def items(self) -> Items:
        """Everything that was read; what loading the pickles would do has then been judged."""
        judgement = safety.judge(self._names, not self._unproved)
        self._gathered.judge(judgement.safety, judgement.unsafe_globals, judgement.imports)
        self._gathered.findings += judgement.findings
        leaves: dict[str, Any] = dict(self._values)
        for index, (name, tensor) in enumerate(self._contents.tensors.items()):
            pieces = [self._pieces.get((name, chunk.offsets)) for chunk in tensor.chunks]
            leaves[name] = self._storages.add(f"tensor {index}", name, tensor, pieces)
        return Items(leaves, self._storages)

    def read_shard(self, shard: str, items: list[Item]) -> None:
        """Read the items that lie in one shard."""
        size = self._members.size(shard)
        beyond = [name for name, _, extent in items if extent.offset + extent.length > size]
        if beyond:
            self._gathered.add(
                "archive.truncated",
                f"{self._members.prefix}{shard} has {size:,} bytes, which do not reach over {len(beyond):,} of its "
                f"{len(items):,} items: {listed(beyond)}",
            )
        reader = self._members.readers.get(shard)
        if reader is None:
            self._gathered.unopened.add(self._members.prefix + shard)
            self._gathered.reach(Level.STRUCTURE)
            self._unproved = True
            return
        for name, chunk, extent in items:
            if extent.offset + extent.length <= size:
                try:
                    self._read_item(reader, name, chunk, extent)
                except Corrupt as error:
                    self._gathered.add(error.code, f"{self._members.prefix}{shard}: {clip(name)}: {error.message}")
                    self._unproved = True

    def _read_item(self, reader: FileReader, name: str, chunk: dcp.Chunk | None, extent: dcp.Extent) -> None:
        if extent.transformed:
            self._unverifiable(
                f"{self._members.prefix}{extent.shard}: the items were transformed by an extension of their writer"
            )
            self._gathered.reach(Level.STRUCTURE)
            self._unproved = True
            return
        if chunk is not None and is_text(reader, extent):
            self._read_from_text(reader, name, chunk)
            return
        archive = open_archive(reader, extent)
        if not archive.has_checksums:
            self._unverifiable(f"{self._members.prefix}{extent.shard}: the items carry no checksums")
        if chunk is not None:
            tensor = self._contents.tensors[name]
            self._pieces[name, chunk.offsets] = self._chunks.piece(archive, chunk, tensor, self._names)
            return
        prefix = f"value {len(self._values)} "
        keys: list[str] = []
        loaded = load_value(read_pickle(archive), prefix, keys)
        self._names |= dict.fromkeys(loaded.names)
        if loaded.failure is not None:
            raise loaded.failure
        self._values[name] = loaded.value
        self._storages.add_value(prefix, archive, keys)

    def _unverifiable(self, message: str) -> None:
        self._gathered.add("archive.unverifiable", message)

    def _read_from_text(self, reader: FileReader, name: str, chunk: dcp.Chunk) -> None:
        """Safetensors state no extents: those in the metadata are the tensors' own sizes, at the beginning of all."""
        extent = chunk.extent
        place = (extent.shard, extent.offset)
        source = text_source(reader, extent)
        if place not in self._texts:
            self._texts[place] = {}
            self._unverifiable(f"{self._members.prefix}{extent.shard}: safetensors carry no checksums")
            try:
                contents = safetensors.read_contents(source)
            except Incomplete as error:
                raise Corrupt("archive.truncated", error.message) from error
            storages = RangeStorages(source, contents.ranges)
            tensors = zip(contents.names, contents.tensors, strict=True)
            self._texts[place] = {name: (tensor, storages) for name, tensor in tensors}
        text = self._texts[place]
        if not text:  # a finding says why
            return
        if name not in text:
            raise Corrupt("tensor.missing_storage", "it is not in its shard")
        tensor, storages = text[name]
        promised = self._contents.tensors[name]
        if tensor.shape != chunk.sizes or tensor.storage[1] is not promised.dtype:
            raise differs(chunk, promised)
        is_number = math.prod(chunk.sizes) == 1
        self._pieces[name, chunk.offsets] = Piece(None, storages if is_number else None, tensor.storage[2])
