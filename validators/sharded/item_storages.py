"""Where the data of a sharded checkpoint's tensors lies: of each tensor one storage, put together from its chunks."""

import math
import zlib
from collections.abc import Sequence

import msgspec

from ..formats import dcp
from ..formats.torch_zip import Archive
from ..plain import clip
from ..standins import Storage, Tensor
from ..storages import ArchiveStorages, Place, Storages
from ..tensors import contiguous_stride
from . import crc


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
        self.derived: set[str] = set()
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
        if not _is_sliced(tensor):
            self.derived.add(key)
        self._labels[key] = name
        if len(pieces) == 1 and pieces[0] is not None:
            self._pieces[key] = pieces[0]
            if pieces[0].storages is not None:
                self.big_endian = pieces[0].storages.big_endian
        storage = Storage(("storage", tensor.dtype, key, "cpu", numel))
        return Tensor(storage, 0, tensor.shape, contiguous_stride(tensor.shape), tensor.requires_grad)

    def add_value(self, prefix: str, archive: Archive, keys: Sequence[str]) -> None:
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
    if not _is_sliced(tensor):
        return zlib.crc32(msgspec.msgpack.encode(known))
    joined = 0
    for _, sizes, checksum in known:
        joined = crc.combine(joined, checksum, math.prod(sizes) * tensor.dtype.itemsize)
    return joined


def _is_sliced(tensor: dcp.Tensor) -> bool:
    """Whether the chunks, one behind the other, are the tensor's bytes in their order."""
    return len(tensor.chunks) == 1 or all(chunk.sizes[1:] == tensor.shape[1:] for chunk in tensor.chunks)
