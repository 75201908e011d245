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

import blake3
import msgspec

from . import crc
from .checks import safety
from .checks.checksum import digest_file, mismatch_message
from .checks.structure import check_structure
from .errors import Corrupt, Incomplete
from .formats import dcp, safetensors, torch_zip
from .inspection import Inspection, Level, TensorInfo
from .levels import Located, verify_archive_contents, verify_plain
from .members import Gathered, Members, listed
from .plain import clip
from .ranges import RangeReader
from .reader import FileReader
from .standins import Storage, Tensor
from .storages import ArchiveStorages, Place, RangeStorages, Storages
from .tensors import TensorTable, contiguous_stride, make_table
from .unpickle import InertPickle, load_stream

MAX_PICKLE_BYTES = 512 * 1024 * 1024
"""Of one item's `data.pkl`."""

_HEAD_BYTES = 9
"""Enough to tell an archive from safetensors."""


class Piece(msgspec.Struct, frozen=True):
    """What is kept of one chunk: an archive of 256 KB and less is in memory whole, and there may be 20,000 of them."""

    checksum: int | None
    """CRC-32 of its bytes, where the shard carries one."""
    storages: Storages | None
    """Only of single numbers, whose values may be asked for."""
    key: str


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
            if pieces[0].storages is not None:
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
        if piece is None or piece.storages is None:
            return b""
        return piece.storages.read_part(piece.key, start, size)

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


_Item = tuple[str, dcp.Chunk | None, dcp.Extent]


def read_items(contents: dcp.Contents, members: Members, gathered: Gathered) -> Items:
    """Read the archive and the pickle of every extent that can be read.

    What is wrong with one of them becomes a finding; the others are read all the same.
    """
    reader = _ItemReader(contents, members, gathered)
    by_shard = _by_shard(contents)
    absent = [shard for shard in by_shard if shard not in members]
    if absent:
        named = f"{len(absent):,} of {len(by_shard):,} shards named in the metadata are not there"
        gathered.missing(f"{named}: {listed([members.prefix + shard for shard in absent])}")
    for shard, items in by_shard.items():
        if shard in members:
            reader.read_shard(shard, items)
    return reader.items()


def verify_items(contents: dcp.Contents, members: Members, gathered: Gathered, roles: dict[str, str]) -> None:
    """Read every byte of every shard: items against their checksums, at level `weights` also every value.

    Args:
        contents: of the metadata.
        members: the files.
        gathered: takes the findings, and for each shard the digest of what was read.
        roles: fully qualified name → part of the checkpoint, where the tensors have been described.
    """
    for shard, items in _by_shard(contents).items():
        reader = members.readers.get(shard)
        if reader is not None:
            verifier = _ShardVerifier(reader, members.prefix + shard, members.level, gathered, roles)
            gathered.digests[members.prefix + shard] = verifier.verify(items)


def _by_shard(contents: dcp.Contents) -> dict[str, list[_Item]]:
    """The items of each shard, by their place in it."""
    by_shard: dict[str, list[_Item]] = {}
    for item in sorted(contents.extents(), key=lambda item: (item[2].shard, item[2].offset)):
        by_shard.setdefault(item[2].shard, []).append(item)
    return by_shard


class _ItemReader:
    def __init__(self, contents: dcp.Contents, members: Members, gathered: Gathered) -> None:
        self._contents = contents
        self._members = members
        self._gathered = gathered
        self._storages = ItemStorages()
        self._values: dict[str, Any] = {}
        self._pieces: dict[tuple[str, tuple[int, ...]], Piece] = {}
        self._texts: dict[tuple[str, int], safetensors.Contents | None] = {}
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

    def read_shard(self, shard: str, items: list[_Item]) -> None:
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
        if chunk is not None and _is_text(reader, extent):
            self._read_from_text(reader, name, chunk)
            return
        archive = _open_archive(reader, extent)
        if not archive.has_checksums:
            self._unverifiable(f"{self._members.prefix}{extent.shard}: the items carry no checksums")
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
            self._pieces[name, chunk.offsets] = piece

    def _unverifiable(self, message: str) -> None:
        self._gathered.add("archive.unverifiable", message)

    def _read_from_text(self, reader: FileReader, name: str, chunk: dcp.Chunk) -> None:
        """Safetensors state no extents: those in the metadata are the tensors' own sizes, at the beginning of all."""
        extent = chunk.extent
        place = (extent.shard, extent.offset)
        source = _rest(reader, extent)
        if place not in self._texts:
            self._texts[place] = None
            self._unverifiable(f"{self._members.prefix}{extent.shard}: safetensors carry no checksums")
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
        is_number = math.prod(chunk.sizes) == 1
        storages = RangeStorages(source, text.ranges) if is_number else None
        self._pieces[name, chunk.offsets] = Piece(None, storages, tensor.storage[2])


class _ShardVerifier:
    """Reads one shard from front to back: extent by extent, and what lies between them."""

    def __init__(self, reader: FileReader, shown: str, level: Level, gathered: Gathered, roles: dict[str, str]) -> None:
        self._reader = reader
        self._shown = shown
        self._level = level
        self._gathered = gathered
        self._roles = roles
        self._digest = blake3.blake3()
        self._position = 0

    def verify(self, items: list[_Item]) -> str:
        """Verify items that are sorted by their place; return a digest of the whole shard.

        It is that of its pieces' digests, which are taken while their checksums are compared.
        """
        for name, chunk, extent in items:
            end = extent.offset + extent.length
            if extent.offset < self._position or end > self._reader.size or extent.transformed:
                continue
            try:
                verified, end = self._verified(name, chunk, extent)
            except (Corrupt, Incomplete):  # a finding says so already
                continue
            self._take(verified, name)
            self._position = end
        self._skip_to(self._reader.size)
        return f"blake3:{self._digest.hexdigest()}"

    def _verified(self, name: str, chunk: dcp.Chunk | None, extent: dcp.Extent) -> tuple[Inspection, int]:
        """What reading an extent through showed, and where it ends.

        Raises:
            Corrupt: what is in it cannot be parsed.
            Incomplete: the same, its end is missing.
        """
        if chunk is not None and _is_text(self._reader, extent):
            source = _rest(self._reader, extent)
            contents = safetensors.read_contents(source)
            located = Located(_table(contents.names, contents.tensors), RangeStorages(source, contents.ranges))
            self._skip_to(extent.offset)
            return verify_plain(source, self._blank(contents.names), located, self._level), self._reader.size
        archive = _open_archive(self._reader, extent)
        inert = _load(archive, "", [])
        if inert.failure is not None:
            raise inert.failure
        table = _table([], []) if chunk is None else _table([name], [inert.value])
        self._skip_to(extent.offset)
        located = Located(table, ArchiveStorages(archive))
        verified = verify_archive_contents(archive, self._blank([name]), located, self._level)
        return verified, extent.offset + extent.length

    def _blank(self, names: Sequence[str]) -> Inspection:
        """An inspection that says which part of the checkpoint the tensors belong to, and no more."""
        roles = ((name, self._roles.get(name, "other")) for name in names)
        tensors = tuple(TensorInfo(name, "", (), (), "", 0, 0, role) for name, role in roles)
        return Inspection(checkpoint_path="", identity=self._reader.identity, tensors=tensors)

    def _take(self, verified: Inspection, name: str) -> None:
        self._gathered.reach(verified.level)
        for found in verified.findings:
            if found.code == "archive.unverifiable":  # said once of the whole shard
                continue
            message = f"{self._shown}: {clip(name)}: {found.message}"
            self._gathered.findings.append(msgspec.structs.replace(found, message=message))
        self._digest.update((verified.digest or "").encode())

    def _skip_to(self, position: int) -> None:
        """Digest what no item was verified in, up to `position`."""
        if position > self._position:
            between = torch_zip.Source(RangeReader(self._reader, self._position, position - self._position))
            self._digest.update(f"{self._position} {digest_file(between)}".encode())
            self._position = position


def _table(names: list[str], tensors: list[Any]) -> TensorTable:
    table, problems = make_table(names, tensors)
    if problems:
        raise problems[0]
    return table


def _is_text(reader: FileReader, extent: dcp.Extent) -> bool:
    head = reader.read(extent.offset, _HEAD_BYTES)
    return not torch_zip.looks_like_archive(head) and safetensors.looks_like_safetensors(head)


def _rest(reader: FileReader, extent: dcp.Extent) -> torch_zip.Source:
    return torch_zip.Source(RangeReader(reader, extent.offset, reader.size - extent.offset))


def _open_archive(reader: FileReader, extent: dcp.Extent) -> torch_zip.Archive:
    source = torch_zip.Source(RangeReader(reader, extent.offset, extent.length))
    try:
        return torch_zip.read_archive(source, torch_zip.find_directory(source))
    except Incomplete as error:
        raise Corrupt("archive.malformed", "its extent holds no whole archive") from error


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
    is_number = table.numels[0] == 1
    index = archive.find(f"data/{key}")
    exact = index is not None and archive.sizes[index] == table.numels[0] * tensor.dtype.itemsize
    plain = exact and table.strides[0] == contiguous_stride(chunk.sizes)
    checksum = archive.checksums[index] if plain and index is not None and archive.has_checksums else None
    return Piece(checksum, storages if is_number else None, key)


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
