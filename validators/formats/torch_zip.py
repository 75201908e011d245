"""The archive that `torch.save` writes: a ZIP64 file of stored records, parsed by positioned reads.

Written front to back with the directory last (caffe2/serialize/inline_container.cc on top of miniz), so the end record
is a seal. Everything is parsed strictly: readers of zip files disagree about what is lax (torch takes the first of two
equal names, Python's zipfile the last), and what two readers may see differently is not a checkpoint to trust.
Section numbers are those of PKWARE's APPNOTE 6.3.10.
"""

import struct
import zlib
from collections.abc import Iterator

import msgspec

from ..errors import Corrupt, Incomplete
from ..plain import clip
from ..reader import FileReader
from ..text import counted
from . import zip_entries, zip_headers
from .zip_entries import STORED as STORED

SIGNATURE = b"PK\x03\x04"
"""Local file header, 4.3.7: what a torch archive starts with (torch/serialization.py, `_is_zipfile`)."""

WHOLE_FILE_BYTES = 256 * 1024
"""Files up to this size are read at once: one system call costs as much as copying 10 KB."""
TAIL_BYTES = 64 * 1024 + 22
"""The end record with the longest comment; also the whole directory of about 900 records."""

_END = struct.Struct("<4s4H2IH")  # 4.3.16, end of central directory
_END64 = struct.Struct("<4sQ2H2I4Q")  # 4.3.14
_LOCATOR = struct.Struct("<4sIQI")  # 4.3.15

_END_MARK, _END64_MARK, _LOCATOR_MARK = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL_MARK = b"PK\x01\x02"
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF

_UNFINISHED = "the archive has no end record yet: it is still being written, or its writing was cut short"


class Archive(msgspec.Struct):
    """The directory of one archive, column by column, and access to its records."""

    stem: str
    """The directory inside the archive that holds everything; named after the file that was saved to."""
    names: list[str]
    sizes: list[int]
    """Of the contents, in bytes."""
    checksums: list[int]
    """CRC-32; all zero where checksums were switched off."""
    offsets: list[int]
    """Where each record's bytes begin in the file."""
    methods: list[int]
    packed_sizes: list[int]
    positions: dict[str, int]
    """Name → index into the columns."""
    directory: bytes
    """The central directory as it is in the file."""
    descriptors: list[int]
    """Size of the data descriptor behind each record, in bytes; 0 where there is none."""
    source: "Source"

    @property
    def has_checksums(self) -> bool:
        """False when every record that is not empty has CRC 0: `torch.serialization.set_crc32_options(False)`."""
        return any(self.checksums) or not any(self.sizes)

    def find(self, name: str) -> int | None:
        """The index of the record `<stem>/<name>`."""
        return self.positions.get(f"{self.stem}/{name}")

    def read(self, index: int) -> bytes:
        """The contents of one record; the caller has looked at its size.

        Raises:
            Corrupt: it is compressed and cannot be expanded to its size.
        """
        packed = self.source.read(self.offsets[index], self.packed_sizes[index])
        if self.methods[index] == STORED:
            return packed
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, self.sizes[index] + 1)
        except zlib.error as error:
            raise Corrupt(
                "archive.malformed", f"record {clip(self.names[index])} cannot be expanded: {error}"
            ) from error
        if len(data) != self.sizes[index]:
            raise Corrupt("archive.malformed", f"record {clip(self.names[index])} does not expand to its stated size")
        return data

    def read_part(self, index: int, start: int, size: int) -> bytes:
        """`size` bytes at `start` of one record; fewer where it ends. Compressed records are not opened for a part."""
        if self.methods[index] != STORED or start < 0 or start + size > self.sizes[index]:
            return b""
        return self.source.read(self.offsets[index] + start, size)


class Source:
    """Reads of one file, from memory where the file is small."""

    def __init__(self, reader: FileReader) -> None:
        self._reader = reader
        self.size = reader.size
        self.whole = reader.read_exactly(0, reader.size) if reader.size <= WHOLE_FILE_BYTES else None

    @property
    def piece_bytes(self) -> int:
        """How much to ask of `read_into` at once."""
        return self._reader.piece_bytes

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`.

        Raises:
            Changed: the file has become shorter.
        """
        if self.whole is not None:
            return self.whole[offset : offset + size]
        return self._reader.read_exactly(offset, size)

    def read_each(self, offsets: list[int], sizes: list[int]) -> list[bytes]:
        """Like `read`, for many places at once."""
        if self.whole is not None:
            return [self.whole[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]
        return self._reader.read_each(offsets, sizes)

    def read_into(self, offset: int, buffer: memoryview, size: int) -> memoryview:
        """`size` bytes from `offset`, in `buffer` unless they are in memory already; see `FileReader.read_into`.

        Raises:
            Changed: the file has become shorter.
        """
        if self.whole is not None:
            return memoryview(self.whole)[offset : offset + size]
        self._reader.read_into(offset, buffer, size)
        return buffer[:size]

    def holes(self) -> list[tuple[int, int]]:
        """Where nothing was ever written, in order, as begin and end; see `FileReader.holes`."""
        return self._reader.holes(0, self.size)


class Directory(msgspec.Struct, frozen=True):
    """Where the central directory lies, from an end record that is where the file ends."""

    offset: int
    size: int
    count: int


def looks_like_archive(head: bytes) -> bool:
    """Whether a file that begins with `head` is an archive, or, with less than four bytes so far, may become one."""
    return bool(head) and head[:4] == SIGNATURE[: len(head)]


def find_directory(source: Source) -> Directory:
    """Find the seal: an end record at the very end of the file that agrees with where it stands.

    Raises:
        Incomplete: there is none, as in every file that is still being written from front to back.
        Corrupt: there is one, but bytes before it are missing, or bytes follow it.
    """
    tail_offset = max(0, source.size - TAIL_BYTES)
    tail = source.read(tail_offset, source.size - tail_offset)
    position = len(tail) - _END.size
    if position < 0 or tail[position : position + 4] != _END_MARK or tail[-2:] != b"\0\0":
        # The last one with room for a whole record: also what miniz and zipfile take.
        position = tail.rfind(_END_MARK, 0, max(0, len(tail) - _END.size + 4))
    if position < 0:
        raise Incomplete(_UNFINISHED)
    end = tail_offset + position
    fields = _END.unpack_from(tail, position)
    following = source.size - (end + _END.size + fields[7])
    try:
        directory, directory_end = _read_end(source, end, fields)
    except Corrupt:
        if following:  # four bytes of a tensor that happen to read like an end record
            raise Incomplete(_UNFINISHED) from None
        raise
    surplus = directory_end - (directory.offset + directory.size)
    if surplus or following:
        _refuse_second_end(source, tail, tail_offset, position)
        _refuse_end(source, directory, surplus, following)
    return directory


def read_archive(source: Source, directory: Directory) -> Archive:
    """Parse the central directory and check every local header against it.

    Raises:
        Corrupt: anything in it is contradictory, or could be read in two ways.
    """
    data = source.read(directory.offset, directory.size)
    entries = zip_entries.read_entries(data, directory.count)
    names = zip_entries.read_names(entries.names)
    offsets, descriptors = zip_headers.locate(source, entries, directory.offset)
    return Archive(
        stem=names.stem,
        names=names.texts,
        sizes=entries.sizes,
        checksums=entries.checksums,
        offsets=offsets,
        methods=entries.methods,
        packed_sizes=entries.packed_sizes,
        positions=names.positions,
        directory=data,
        descriptors=descriptors,
        source=source,
    )


def check_descriptors(archive: Archive) -> None:
    """Compare what stands behind each record with the directory; one read each, for when all bytes are read anyway.

    Raises:
        Corrupt: a data descriptor says something else. torch never looks at it; who streams the archive believes it.
    """
    present = [i for i, size in enumerate(archive.descriptors) if size]
    ends = [archive.offsets[i] + archive.packed_sizes[i] for i in present]
    stated = ((archive.checksums[i], archive.packed_sizes[i], archive.sizes[i]) for i in present)
    liar = zip_headers.lying_descriptor(archive.source, ends, [archive.descriptors[i] for i in present], stated)
    if liar is not None:
        name = clip(archive.names[present[liar]])
        raise Corrupt("archive.malformed", f"record {name} is followed by other sizes than the directory states")


def hidden_archive(source: Source) -> int | None:
    """Where an archive begins that other readers find by its end record, in a file that does not begin as one.

    zipfile, unzip and the Java of this world look for an archive at the end of a file only.
    """
    tail_offset = max(0, source.size - TAIL_BYTES)
    tail = source.read(tail_offset, source.size - tail_offset)
    for position in _ends(tail):
        end = tail_offset + position
        try:
            directory, directory_end = _read_end(source, end, _END.unpack_from(tail, position))
        except Corrupt:
            continue
        begin = directory_end - directory.size - directory.offset
        if begin >= 0 and directory.size and source.read(begin + directory.offset, 4) == _CENTRAL_MARK:
            return begin
    return None


def _ends(tail: bytes) -> Iterator[int]:
    """Where end records stand whose comment ends where the file does, the last first."""
    position = len(tail)
    while (position := tail.rfind(_END_MARK, 0, position)) >= 0:
        if position + _END.size <= len(tail):
            comment_size = int.from_bytes(tail[position + _END.size - 2 : position + _END.size], "little")
            if position + _END.size + comment_size == len(tail):
                yield position


def _read_end(source: Source, end: int, fields: tuple[int, ...]) -> tuple[Directory, int]:
    """The directory that the end record names, and where that record, with its ZIP64 part, begins."""
    _, disk, directory_disk, count_here, count, size, offset, _ = fields
    locator_bytes = source.read(end - _LOCATOR.size, _LOCATOR.size) if end >= _LOCATOR.size else b""
    if locator_bytes[:4] != _LOCATOR_MARK:
        if disk or directory_disk or count_here != count:
            raise Corrupt("archive.malformed", "the end record speaks of several disks")
        return Directory(offset, size, count), end
    begin = end - _LOCATOR.size - _END64.size
    record = source.read(begin, _END64.size) if begin >= 0 else b""
    if record[:4] != _END64_MARK:
        raise Corrupt("archive.malformed", "the ZIP64 end record is not where it must be")
    _, record_size, _, _, disk64, directory_disk64, count_here64, count64, size64, offset64 = _END64.unpack(record)
    if record_size != _END64.size - 12 or disk64 or directory_disk64 or count_here64 != count64:
        raise Corrupt("archive.malformed", "the ZIP64 end record has values that no torch archive has")
    narrow = ((count, count64, _FULL16), (size, size64, _FULL32), (offset, offset64, _FULL32))
    if any(value not in (wide, full) for value, wide, full in narrow):
        raise Corrupt("archive.ambiguous", "the two end records name different directories")
    _, locator_disk, located, disks = _LOCATOR.unpack(locator_bytes)
    if located != begin and offset64 + size64 == begin:
        raise Corrupt("archive.ambiguous", "the ZIP64 locator points elsewhere than to the end record")
    if locator_disk or disks != 1:  # miniz writes 1 and reads nothing else
        raise Corrupt("archive.malformed", "the ZIP64 locator speaks of several disks")
    return Directory(offset64, size64, count64), begin


def _refuse_second_end(source: Source, tail: bytes, tail_offset: int, found: int) -> None:
    """Refuse a file with another end record that is right, in whose comment the one that was found stands."""
    for position in _ends(tail):
        if position < found:
            try:
                directory, directory_end = _read_end(source, tail_offset + position, _END.unpack_from(tail, position))
            except Corrupt:
                continue
            if directory.offset + directory.size == directory_end:
                raise Corrupt("archive.ambiguous", "the archive's comment holds another end record, with other records")


def _refuse_end(source: Source, directory: Directory, surplus: int, following: int) -> None:
    """Say why an end record does not seal the file.

    It may also be that of an archive *inside* a tensor of a file that is still being written: then its offsets count
    from the inner archive's start, and nothing is wrong but that the bytes to come are missing.
    """
    if following < 0:
        raise Incomplete(
            f"the archive's comment lacks {counted(-following, 'byte')}: it is still being written or was cut short"
        )
    if surplus < 0:
        raise Corrupt(
            "archive.truncated",
            f"{-surplus} bytes are missing: by its end record, the directory reaches beyond that record itself",
        )
    if surplus == 0:
        raise Corrupt("archive.trailing_data", f"the end of the archive is followed by {counted(following, 'byte')}")
    if _is_end(source, surplus):
        raise Corrupt("archive.trailing_data", f"another archive follows the first one, which ends at byte {surplus}")
    if following == 0 and source.read(directory.offset, 4) == _CENTRAL_MARK:
        raise Corrupt(
            "archive.malformed",
            f"between the directory and the end record, nothing accounts for {counted(surplus, 'byte')}",
        )
    raise Incomplete("the only end record belongs to an archive inside this one, which is still being written")


def _is_end(source: Source, position: int) -> bool:
    """Whether an archive that begins where the file begins ends at `position`."""
    record = source.read(position - _END.size, _END.size) if position >= _END.size else b""
    if record[:4] != _END_MARK or record[-2:] != b"\0\0":
        return False
    try:
        directory, directory_end = _read_end(source, position - _END.size, _END.unpack(record))
    except Corrupt:
        return False
    return directory.offset + directory.size == directory_end
