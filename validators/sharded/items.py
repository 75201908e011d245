"""One item of a shard: the archive, or the safetensors text, in its extent."""

import io
import zlib
from typing import Any

import msgspec

from ..checks.checksum import mismatch_message
from ..checks.structure import check_structure
from ..errors import Corrupt, Incomplete
from ..formats import dcp, safetensors, torch_zip
from ..reader import FileReader
from ..standins import Storage
from ..storages import ArchiveStorages
from ..tensors import TensorTable, contiguous_stride, make_table
from ..text import counted
from ..unpickle import InertPickle, load_inert, load_stream, names_behind
from .item_storages import Piece
from .ranges import RangeReader

MAX_PICKLE_BYTES = 512 * 1024 * 1024
"""Of one item's `data.pkl`."""

_HEAD_BYTES = 9
"""Enough to tell an archive from safetensors."""
_MAX_KNOWN, _MAX_KNOWN_BYTES = 1000, 2048


class ItemPickle(msgspec.Struct, frozen=True):
    """What the pickle of one item holds."""

    value: Any
    names: tuple[str, ...]
    """Every name that it asks for, those of streams behind its end included."""
    failure: Corrupt | None
    """Why it cannot be used."""


def is_text(reader: FileReader, extent: dcp.Extent) -> bool:
    """Whether safetensors begin at an extent, not an archive."""
    head = reader.read(extent.offset, _HEAD_BYTES)
    return not torch_zip.looks_like_archive(head) and safetensors.looks_like_safetensors(head)


def text_source(reader: FileReader, extent: dcp.Extent) -> torch_zip.Source:
    """The safetensors of a shard, which take all that is left of it, whatever the extents in the metadata say."""
    return torch_zip.Source(RangeReader(reader, extent.offset, reader.size - extent.offset))


def open_archive(reader: FileReader, extent: dcp.Extent) -> torch_zip.Archive:
    """The archive in an extent.

    Raises:
        Corrupt: there is none, or it contradicts itself.
    """
    source = torch_zip.Source(RangeReader(reader, extent.offset, extent.length))
    try:
        return torch_zip.read_archive(source, torch_zip.find_directory(source))
    except Incomplete as error:
        raise Corrupt("archive.malformed", "its extent holds no whole archive") from error


def read_pickle(archive: torch_zip.Archive) -> bytes:
    """The bytes of `data.pkl`, once their size and checksum have been found right.

    Raises:
        Corrupt: they are not, or there are none.
    """
    index = archive.find("data.pkl")
    if index is None:
        raise Corrupt("archive.malformed", "its archive holds no data.pkl")
    if archive.sizes[index] > MAX_PICKLE_BYTES:
        raise Corrupt("pickle.limits", f"its data.pkl has {archive.sizes[index]:,} bytes")
    pickle = archive.read(index)
    if archive.has_checksums and zlib.crc32(pickle) != archive.checksums[index]:
        raise Corrupt("archive.checksum_mismatch", mismatch_message(archive, index))
    return pickle


def load_value(pickle: bytes, prefix: str, keys: list[str]) -> ItemPickle:
    """Parse the pickle of a value inertly; the storages that it asks for get `prefix`, and are noted in `keys`."""

    def persistent_load(persistent_id: Any) -> Storage:
        parts = tuple(persistent_id) if type(persistent_id) is tuple else ()
        if len(parts) == 5 and type(parts[2]) is str:
            keys.append(parts[2])
            parts = (*parts[:2], prefix + parts[2], *parts[3:])
        return Storage(parts)

    return _whole(pickle, load_stream(io.BufferedReader(io.BytesIO(pickle), len(pickle) + 1), persistent_load))


def load_tensor(pickle: bytes) -> ItemPickle:
    """Parse the pickle of a chunk inertly."""
    return _whole(pickle, load_inert(pickle))


def _whole(pickle: bytes, inert: InertPickle) -> ItemPickle:
    behind = len(pickle) - inert.consumed
    if inert.failure is not None or not behind:
        return ItemPickle(inert.value, inert.globals, inert.failure)
    names = (*inert.globals, *names_behind(pickle[inert.consumed :]))
    return ItemPickle(
        None, names, Corrupt("pickle.second_stream", f"its pickle is followed by {counted(behind, 'byte')}")
    )


class ChunkReader:
    """Reads the tensors in archives. Chunks of equal type and shape have equal pickles, which are parsed once."""

    def __init__(self) -> None:
        self._known: dict[bytes, TensorTable] = {}

    def table(self, pickle: bytes, names: dict[str, None]) -> TensorTable:
        """The one tensor that a pickle holds; `names` takes what the pickle asks for.

        Raises:
            Corrupt: it holds something else.
        """
        known = self._known.get(pickle)
        if known is not None:
            return known
        loaded = load_tensor(pickle)
        names |= dict.fromkeys(loaded.names)
        if loaded.failure is not None:
            raise loaded.failure
        table, problems = make_table(["the tensor"], [loaded.value])
        if problems:
            raise problems[0]
        if len(self._known) < _MAX_KNOWN and len(pickle) <= _MAX_KNOWN_BYTES:
            self._known[pickle] = table
        return table

    def piece(self, archive: torch_zip.Archive, chunk: dcp.Chunk, tensor: dcp.Tensor, names: dict[str, None]) -> Piece:
        """What is kept of a chunk, once the tensor in its archive has been found to be the one that was promised.

        Raises:
            Corrupt: it is another one, or its data is not there.
        """
        table = self.table(read_pickle(archive), names)
        storages = ArchiveStorages(archive)
        for found in check_structure(table, storages):
            raise Corrupt(found.code, found.message)
        if table.shapes[0] != chunk.sizes or table.dtypes[0] is not tensor.dtype:
            raise differs(chunk, tensor)
        index = archive.find(f"data/{table.keys[0]}")
        exact = index is not None and archive.sizes[index] == table.numels[0] * tensor.dtype.itemsize
        plain = exact and table.strides[0] == contiguous_stride(chunk.sizes)
        checksum = archive.checksums[index] if plain and index is not None and archive.has_checksums else None
        return Piece(checksum, storages if table.numels[0] == 1 else None, table.keys[0])


def differs(chunk: dcp.Chunk, tensor: dcp.Tensor) -> Corrupt:
    """That an extent holds another tensor than the metadata says."""
    return Corrupt(
        "tensor.out_of_bounds",
        f"its extent holds another tensor than the {tensor.dtype.name} {list(chunk.sizes)} of the metadata",
    )
