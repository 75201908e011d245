"""The shards of torch.distributed.checkpoint: every item in its extent, most of them small archives of their own.

`_write_item` (torch/distributed/checkpoint/filesystem.py) saves each chunk of a tensor and each other value by
`torch.save` into the stream of its shard; with `SerializationFormat.SAFETENSORS` the tensors of a shard follow its
other values as one safetensors text.
"""

import io
import math
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from . import crc
from .checks import safety
from .checks.checksum import digest_file, mismatch_message, mismatches, verify_archive
from .checks.structure import check_structure
from .errors import Corrupt, Incomplete
from .formats import dcp, safetensors, torch_zip
from .inspection import Level
from .members import Gathered, Members, listed
from .plain import clip
from .ranges import RangeReader
from .reader import FileReader
from .standins import Storage, Tensor
from .storages import ArchiveStorages, Place, RangeStorages, Storages
from .tensors import contiguous_stride, make_table
from .unpickle import InertPickle, load_stream

MAX_PICKLE_BYTES = 512 * 1024 * 1024
"""Of one item's `data.pkl`."""

_HEAD_BYTES = 9
"""Enough to tell an archive from safetensors."""


class Piece(msgspec.Struct, frozen=True):
    """Where the bytes of one chunk are, and their CRC-32 where the shard carries one."""

    storages: Storages
    key: str
    checksum: int | None


class ItemStorages:
    """The data of all tensors: of each one storage, put together from chunks; further ones inside other values."""

    def __init__(self) -> None:
        self.big_endian = False
        self._sizes: dict[str, int] = {}
        self._checksums: dict[str, int | None] = {}
        self._pieces: dict[str, Piece] = {}
        self._labels: dict[str, str] = {}
        self._inner: dict[str, tuple[str, ArchiveStorages]] = {}

    def add(self, key: str, name: str, tensor: dcp.Tensor, pieces: Sequence[Piece | None]) -> Tensor:
        """Take a tensor and, for each of its chunks, where the bytes are, if they can be read; return its stand-in."""
        numel = math.prod(tensor.shape)
        self._sizes[key] = numel * tensor.dtype.itemsize
        self._checksums[key] = _checksum(tensor, pieces)
        self._labels[key] = name
        if len(pieces) == 1 and pieces[0] is not None:
            self._pieces[key] = pieces[0]
            self.big_endian = pieces[0].storages.big_endian
        storage = Storage(("storage", tensor.dtype, key, "cpu", numel))
        return Tensor(storage, 0, tensor.shape, contiguous_stride(tensor.shape), tensor.requires_grad)

    def add_value(self, prefix: str, archive: torch_zip.Archive, keys: Sequence[str]) -> None:
        """Take the storages `keys` of a value's own archive; they are known here as `prefix` and their key."""
        storages = ArchiveStorages(archive)
        self._inner |= {prefix + key: (key, storages) for key in keys}

    def sizes(self, keys: Sequence[str]) -> list[int]:
        return [
            self._inner[key][1].sizes((self._inner[key][0],))[0] if key in self._inner else self._size(key)
            for key in keys
        ]

    def checksums(self, keys: Sequence[str]) -> list[int] | None:
        if None in self._checksums.values():
            return None
        return [self._checksums.get(key) or 0 for key in keys]

    def read_part(self, key: str, start: int, size: int) -> bytes:
        if key in self._inner:
            return self._inner[key][1].read_part(self._inner[key][0], start, size)
        piece = self._pieces.get(key)
        return b"" if piece is None else piece.storages.read_part(piece.key, start, size)

    def places(self, keys: Sequence[str]) -> list[Place | None]:
        """None: a place lies in one file, and these tensors may lie in many."""
        return [None for _ in keys]

    def label(self, key: str) -> str:
        return f"the extent of {clip(self._labels.get(key, key))}"

    def _size(self, key: str) -> int:
        return self._sizes.get(key, -1)


class Items(msgspec.Struct):
    """What the extents hold."""

    leaves: dict[str, Any]
    """Every item by its fully qualified name: a tensor's stand-in, or an inert value."""
    storages: ItemStorages


def read_items(contents: dcp.Contents, members: Members, gathered: Gathered) -> Items:
    """Read every extent that can be read: its archive, its pickle, and at level `checksum` every byte.

    What is wrong with one of them becomes a finding; the others are read all the same.
    """
    reader = _ItemReader(contents, members, gathered)
    reader.read()
    return reader.items()


class _ItemReader:
    def __init__(self, contents: dcp.Contents, members: Members, gathered: Gathered) -> None:
        self._contents = contents
        self._members = members
        self._gathered = gathered
        self._storages = ItemStorages()
        self._values: dict[str, Any] = {}
        self._pieces: dict[dcp.Extent, dict[str, Piece]] = {}
        self._texts: dict[tuple[str, int], safetensors.Contents | None] = {}
        self._names: dict[str, None] = {}
        self._unproved = False
        self._verified: dict[str, list[tuple[int, int, str]]] = {}

    def read(self) -> None:
        by_shard: dict[str, list[tuple[str, dcp.Chunk | None, dcp.Extent]]] = {}
        for item in self._contents.extents():
            by_shard.setdefault(item[2].shard, []).append(item)
        absent = sorted(shard for shard in by_shard if shard not in self._members)
        if absent:
            named = f"{len(absent):,} of {len(by_shard):,} shards named in the metadata are not there"
            self._gathered.missing(f"{named}: {listed(absent)}")
        for shard, items in sorted(by_shard.items()):
            if shard in self._members:
                items.sort(key=lambda item: item[2].offset)
                self._read_shard(shard, items)
        judgement = safety.judge(self._names, not self._unproved)
        self._gathered.judge(judgement.safety, judgement.unsafe_globals, judgement.imports)
        self._gathered.findings += judgement.findings
        self._digest_shards()

    def items(self) -> Items:
        leaves: dict[str, Any] = dict(self._values)
        for index, (name, tensor) in enumerate(self._contents.tensors.items()):
            pieces = [self._pieces.get(chunk.extent, {}).get(name) for chunk in tensor.chunks]
            leaves[name] = self._storages.add(f"tensor {index}", name, tensor, pieces)
        return Items(leaves, self._storages)

    def _read_shard(self, shard: str, items: list[tuple[str, dcp.Chunk | None, dcp.Extent]]) -> None:
        size = self._members.size(shard)
        beyond = [name for name, _, extent in items if extent.offset + extent.length > size]
        if beyond:
            self._gathered.add(
                "archive.truncated",
                f"{shard} has {size:,} bytes, which do not reach over {len(beyond):,} of its {len(items):,} items: "
                f"{listed(beyond)}",
            )
        reader = self._members.readers.get(shard)
        if reader is None:
            self._skip(shard)
            return
        for name, chunk, extent in items:
            if extent.offset + extent.length <= size:
                try:
                    self._read_item(reader, name, chunk, extent)
                except Corrupt as error:
                    self._gathered.add(error.code, f"{shard}: {clip(name)}: {error.message}")
                    self._unproved = True

    def _skip(self, shard: str) -> None:
        self._gathered.unopened.add(shard)
        self._gathered.unverified = True
        self._unproved = True

    def _read_item(self, reader: FileReader, name: str, chunk: dcp.Chunk | None, extent: dcp.Extent) -> None:
        if extent.transformed:
            self._gathered.add(
                "archive.unverifiable", f"{extent.shard}: the items were transformed by an extension of their writer"
            )
            self._gathered.unverified = True
            self._unproved = True
            return
        head = reader.read(extent.offset, _HEAD_BYTES)
        if chunk is not None and not torch_zip.looks_like_archive(head) and safetensors.looks_like_safetensors(head):
            self._read_from_text(reader, name, chunk)
            return
        source = torch_zip.Source(RangeReader(reader, extent.offset, extent.length))
        try:
            archive = torch_zip.read_archive(source, torch_zip.find_directory(source))
        except Incomplete as error:
            raise Corrupt("archive.malformed", "its extent holds no whole archive") from error
        self._read_archive(archive, name, chunk, extent)

    def _read_archive(self, archive: torch_zip.Archive, name: str, chunk: dcp.Chunk | None, extent: dcp.Extent) -> None:
        if not archive.has_checksums:
            self._gathered.add("archive.unverifiable", f"{extent.shard}: the items carry no checksums")
            self._gathered.unverified = True
        elif self._members.level is not Level.STRUCTURE:
            self._verify(archive, name, extent)
        prefix = f"value {len(self._values)} "
        keys: list[str] = []
        inert = _load(archive, prefix if chunk is None else "", keys)
        self._names |= dict.fromkeys(inert.globals)
        if inert.failure is not None:
            raise inert.failure
        if chunk is None:
            self._values[name] = inert.value
            self._storages.add_value(prefix, archive, keys)
        else:
            piece = _piece(archive, name, chunk, self._contents.tensors[name], inert.value)
            self._pieces.setdefault(extent, {})[name] = piece

    def _verify(self, archive: torch_zip.Archive, name: str, extent: dcp.Extent) -> None:
        verification = verify_archive(archive)
        self._verified.setdefault(extent.shard, []).append((extent.offset, extent.length, verification.digest))
        for code, message in mismatches(archive, verification, None):
            self._gathered.add(code, f"{extent.shard}: {clip(name)}: {message}")

    def _read_from_text(self, reader: FileReader, name: str, chunk: dcp.Chunk) -> None:
        """Safetensors state no extents: those in the metadata are the tensors' own sizes, at the beginning of all."""
        extent = chunk.extent
        place = (extent.shard, extent.offset)
        source = torch_zip.Source(RangeReader(reader, extent.offset, reader.size - extent.offset))
        if place not in self._texts:
            self._texts[place] = None
            self._gathered.add("archive.unverifiable", f"{extent.shard}: safetensors carry no checksums")
            self._gathered.unverified = True
            try:
                self._texts[place] = safetensors.read_contents(source)
            except Incomplete as error:
                raise Corrupt("archive.truncated", error.message) from error
        text = self._texts[place]
        if text is None:  # a finding says why
            return
        if name not in text.names:
            raise Corrupt("tensor.missing_storage", "it is not in its shard")
        tensor = text.tensors[text.names.index(name)]
        dtype = self._contents.tensors[name].dtype
        if tensor.shape != chunk.sizes or tensor.storage[1] is not dtype:
            raise _differs(chunk, dtype)
        piece = Piece(RangeStorages(source, text.ranges), tensor.storage[2], None)
        self._pieces.setdefault(extent, {})[name] = piece

    def _digest_shards(self) -> None:
        """A shard's digest is that of its items' digests, which were taken while their checksums were compared."""
        for shard, parts in self._verified.items():
            reader = self._members.readers[shard]
            rows: list[tuple[int, int, str]] = []
            position = 0
            for offset, length, digest in sorted(parts):
                if offset > position:
                    between = torch_zip.Source(RangeReader(reader, position, offset - position))
                    rows.append((position, offset - position, digest_file(between)))
                rows.append((offset, length, digest))
                position = max(position, offset + length)
            if position < reader.size:
                rest = torch_zip.Source(RangeReader(reader, position, reader.size - position))
                rows.append((position, reader.size - position, digest_file(rest)))
            self._gathered.digests[shard] = msgspec.json.encode(rows).decode()


def _load(archive: torch_zip.Archive, prefix: str, keys: list[str]) -> InertPickle:
    """The inert value of an item's archive; its storages' keys get `prefix` and are noted in `keys`."""
    index = archive.find("data.pkl")
    if index is None:
        raise Corrupt("archive.malformed", "its archive holds no data.pkl")
    if archive.sizes[index] > MAX_PICKLE_BYTES:
        raise Corrupt("pickle.limits", f"its data.pkl has {archive.sizes[index]:,} bytes")
    pickle = archive.read(index)
    if archive.has_checksums and zlib.crc32(pickle) != archive.checksums[index]:
        raise Corrupt("archive.checksum_mismatch", mismatch_message(archive, index))

    def persistent_load(persistent_id: Any) -> Storage:
        parts = tuple(persistent_id) if type(persistent_id) is tuple else ()
        if len(parts) == 5 and type(parts[2]) is str:
            keys.append(parts[2])
            parts = (*parts[:2], prefix + parts[2], *parts[3:])
        return Storage(parts)

    inert = load_stream(io.BufferedReader(io.BytesIO(pickle), len(pickle) + 1), persistent_load)
    if inert.failure is None and inert.consumed != len(pickle):
        raise Corrupt("pickle.second_stream", f"{len(pickle) - inert.consumed:,} bytes follow the end of its pickle")
    return inert


def _piece(archive: torch_zip.Archive, name: str, chunk: dcp.Chunk, tensor: dcp.Tensor, value: Any) -> Piece:
    """Where a chunk's bytes are, once the tensor in its archive has been found to be the one that was promised."""
    table, problems = make_table([name], [value])
    if problems:
        raise problems[0]
    storages = ArchiveStorages(archive)
    for found in check_structure(table, storages):
        raise Corrupt(found.code, found.message)
    if not table.names or table.shapes[0] != chunk.sizes or table.dtypes[0] is not tensor.dtype:
        raise _differs(chunk, tensor.dtype)
    key = table.keys[0]
    index = archive.find(f"data/{key}")
    exact = index is not None and archive.sizes[index] == table.numels[0] * tensor.dtype.itemsize
    plain = exact and table.strides[0] == contiguous_stride(chunk.sizes)
    checksum = archive.checksums[index] if plain and index is not None and archive.has_checksums else None
    return Piece(storages, key, checksum)


def _checksum(tensor: dcp.Tensor, pieces: Sequence[Piece | None]) -> int | None:
    """CRC-32 of a whole tensor: known where its chunks are slices along the first dimension, as FSDP cuts them.

    Of chunks that lie otherwise, a checksum of theirs that tells this tensor, cut in this way, from others.
    """
    if any(piece is None or piece.checksum is None for piece in pieces):
        return None
    known = sorted(
        (chunk.offsets, chunk.sizes, piece.checksum or 0)
        for chunk, piece in zip(tensor.chunks, pieces, strict=True)
        if piece
    )
    if len(known) == 1:
        return known[0][2]
    if any(sizes[1:] != tensor.shape[1:] for _, sizes, _ in known):
        return zlib.crc32(msgspec.msgpack.encode(known))
    joined = 0
    for _, sizes, checksum in known:
        joined = crc.combine(joined, checksum, math.prod(sizes) * tensor.dtype.itemsize)
    return joined


def _differs(chunk: dcp.Chunk, dtype: Any) -> Corrupt:
    return Corrupt(
        "tensor.out_of_bounds",
        f"its extent holds another tensor than the {dtype.name} {list(chunk.sizes)} of the metadata",
    )
