"""What `torch.save` wrote before version 1.6, and still writes when asked: five pickles, then the storages' bytes.

torch/serialization.py, `_legacy_save`: magic number, protocol version, system information, the object, the storages'
keys; then for each key the number of its elements (int64) and the elements, little-endian (`THPStorage_writeFileRaw`).
There are no checksums. The pickles say how long every storage is, so once they are there the file's end is known.
"""

import io
import pickle
import struct
from typing import Any

import msgspec

from ..dtypes import Dtype
from ..errors import Corrupt, Incomplete
from ..plain import clip
from ..standins import Storage
from ..tally import Tally, note_strange
from ..tensors import MAX_BYTES
from ..text import counted
from ..unpickle import LimitReached, load_stream
from .torch_zip import Source

MAX_PICKLES_BYTES = 512 * 1024 * 1024
"""Most that the five pickles may take together; as for the `data.pkl` of an archive."""

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # torch/serialization.py, `MAGIC_NUMBER`
_PROTOCOL_VERSION = 1001  # `PROTOCOL_VERSION`
_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")
"""The number as LONG1 of 10 bytes, and STOP."""
_HEAD = b"\x80\x02" + _MAGIC
"""How a file begins in pickle's protocol 2, torch's default."""
_COUNT = struct.Struct("<q")
_BUFFER_BYTES = 1 << 20
TAR_BLOCK_BYTES = 512
PICKLES = 5
_WHAT = ("magic number", "protocol version", "system information", "checkpoint itself", "list of storages")


class Contents(msgspec.Struct, frozen=True):
    """What a file holds, as far as it could be parsed."""

    value: Any
    """Plain data and stand-ins; None after a failure."""
    globals: tuple[str, ...]
    """Every name that any of the pickles asked for."""
    ranges: dict[str, tuple[int, int]]
    """Storage → where it begins in the file, and its size in bytes."""
    pickles_end: int
    tally: Tally
    """What the opcodes of all of them were applied to."""
    failure: Corrupt | None = None


def looks_like_legacy(head: bytes) -> bool:
    """Whether a file that begins with `head` is of this format, or, with a few bytes so far, may become one."""
    return _MAGIC in head[:32] if len(head) >= len(_HEAD) else bool(head) and _HEAD.startswith(head)


def read_contents(source: Source) -> Contents:
    """Parse the pickles inertly and check where every storage lies.

    Raises:
        Incomplete: the file ends inside a pickle, or before the last storage does.
    """
    parser = _Parser(source)
    try:
        return parser.parse()
    except Corrupt as failure:
        return Contents(None, tuple(dict.fromkeys(parser.names)), {}, 0, parser.tally, failure)


class _Parser:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._stream = _Stream(source)
        self._file = io.BufferedReader(self._stream, min(_BUFFER_BYTES, source.size + 1))
        self.names: list[str] = []
        self.tally = Tally()

    def parse(self) -> Contents:
        if is_tar(self._source.read(0, min(TAR_BLOCK_BYTES, self._source.size))):
            raise Corrupt("archive.ambiguous", "the file is also a tar archive, which torch.load would look at first")
        persistent = _PersistentIds()
        magic, version, _, value, keys = (self._pickle(what, persistent) for what in _WHAT)
        if type(magic) is not int or magic != _MAGIC_NUMBER or type(version) is not int or version != _PROTOCOL_VERSION:
            raise Corrupt("archive.malformed", "the magic number or the protocol version is not that of torch.save")
        pickles_end = self._file.tell()
        ranges = self._ranges(_checked_keys(keys, persistent.storages), persistent, pickles_end)
        return Contents(value, tuple(dict.fromkeys(self.names)), ranges, pickles_end, self.tally)

    def _pickle(self, what: str, persistent: "_PersistentIds") -> Any:
        inert = load_stream(self._file, persistent)
        self.names += inert.globals
        self.tally += inert.tally
        if inert.failure is None:
            return inert.value
        if self._stream.ran_out:
            raise Incomplete(f"the file ends inside the pickle of the {what}: it is still being written or was cut")
        raise Corrupt(inert.failure.code, f"{inert.failure.message} (in the {what})")

    def _ranges(self, keys: list[str], persistent: "_PersistentIds", begin: int) -> dict[str, tuple[int, int]]:
        ranges: dict[str, tuple[int, int]] = {}
        position = begin
        for key in keys:
            numel, itemsize = persistent.storages[key]
            ranges[key] = (position + _COUNT.size, numel * itemsize)
            position += _COUNT.size + numel * itemsize
        self._check_counts({key: ranges[key][0] - _COUNT.size for key in keys}, persistent)
        size = self._source.size
        if size < position:
            raise Incomplete(f"{position - size:,} of {position:,} bytes are still missing")
        if size > position:
            raise Corrupt(
                "archive.trailing_data",
                f"the end of the last storage is followed by {counted(size - position, 'byte')}",
            )
        for key, (root, offset, view_bytes) in persistent.views.items():
            root_begin, root_bytes = ranges.get(root, (0, -1))
            if offset + view_bytes <= root_bytes:
                ranges.setdefault(key, (root_begin + offset, view_bytes))
        return ranges

    def _check_counts(self, places: dict[str, int], persistent: "_PersistentIds") -> None:
        """Compare the counts that are there already with what the pickles say; torch refuses where they differ."""
        there = {key: place for key, place in places.items() if place + _COUNT.size <= self._source.size}
        counts = self._source.read_each(list(there.values()), [_COUNT.size] * len(there))
        for key, data in zip(there, counts, strict=True):
            count, expected = _COUNT.unpack(data)[0], persistent.storages[key][0]
            if count != expected:
                raise Corrupt(
                    "archive.malformed",
                    f"storage {clip(key)} begins with the count {count:,}, but the pickle says {expected:,}",
                )


class _PersistentIds:
    """Takes pickle's persistent ids: ("storage", class, key, location, elements, view) and ("module", class, …)."""

    def __init__(self) -> None:
        self.storages: dict[str, tuple[int, int]] = {}
        """Key → elements and bytes per element, as the first mention says: that is what torch allocates."""
        self.views: dict[str, tuple[str, int, int]] = {}
        """Key → storage that it lies in, offset and size in bytes. Written by torch before version 0.4."""

    def __call__(self, saved: Any) -> Any:
        kind = saved[0] if type(saved) is tuple and saved else None
        if type(kind) is str and kind == "module" and len(saved) == 4:
            note_strange()
            return saved[1]
        if type(kind) is not str or kind != "storage" or len(saved) != 6:
            raise pickle.UnpicklingError("a persistent id that torch.save does not write")
        _, dtype, key, location, numel, view = saved
        if type(dtype) is not Dtype or type(key) is not str or not key or not _is_size(numel):
            raise pickle.UnpicklingError("a storage without type, key or size")
        self.storages.setdefault(key, (numel, dtype.itemsize))
        if view is None:
            return Storage(("storage", dtype, key, location, numel))
        if type(view) is not tuple or len(view) != 3 or not _is_size(view[1]) or not _is_size(view[2]):
            raise pickle.UnpicklingError("a view of a storage without key, offset or size")
        view_key = f"{key}[{view[1]}:{view[1] + view[2]}]"
        self.views[view_key] = (key, view[1] * dtype.itemsize, view[2] * dtype.itemsize)
        return Storage(("storage", dtype, view_key, location, view[2]))


class _Stream(io.RawIOBase):
    """The file as the unpickler reads it; knows whether more was asked for than there is."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source
        self._position = 0
        self.ran_out = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= MAX_PICKLES_BYTES:
            raise LimitReached(f"the pickles take more than {MAX_PICKLES_BYTES:,} bytes")
        size = min(len(buffer), max(0, self._source.size - self._position))
        self.ran_out |= not size
        buffer[:size] = self._source.read(self._position, size)
        self._position += size
        return size


def _checked_keys(keys: Any, storages: dict[str, tuple[int, int]]) -> list[str]:
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise Corrupt("archive.malformed", "the list of storages is no list of keys")
    if len(set(keys)) != len(keys):
        raise Corrupt("archive.ambiguous", "the list of storages names one of them twice")
    unknown = next((key for key in keys if key not in storages), None)
    if unknown is not None:
        raise Corrupt("archive.malformed", f"no tensor uses the storage {clip(unknown)} that the list names")
    return keys


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_BYTES // 16


def is_tar(block: bytes) -> bool:
    """Whether a block is a tar header by its checksum (POSIX ustar): the sum of its bytes, its own field as spaces."""
    if len(block) < TAR_BLOCK_BYTES:
        return False
    field, rest = block[148:156], block[:148] + block[156:]
    try:  # as tarfile does, which torch uses: octal up to a NUL, or 7 bytes behind a mark
        stated = int.from_bytes(field[1:]) if field[0] == 0o200 else int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return False
    if not stated:  # no header sums up to nothing
        return False
    unsigned = sum(rest) + 8 * ord(" ")
    # tarfile also takes the sum of signed bytes, as some old writers made it.
    return stated in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest))
