"""The archive that `torch.save` writes: a ZIP64 file of stored records, parsed by positioned reads.

Written front to back with the directory last (caffe2/serialize/inline_container.cc on top of miniz), so the end record
is a seal. Everything is parsed strictly: readers of zip files disagree about what is lax (torch takes the first of two
equal names, Python's zipfile the last), and what two readers may see differently is not a checkpoint to trust.
Section numbers are those of PKWARE's APPNOTE 6.3.10.
"""

import struct
import zlib
from collections import Counter
from itertools import pairwise, repeat
from operator import add

import msgspec

from ..errors import Corrupt, Incomplete
from ..plain import clip
from ..reader import FileReader

SIGNATURE = b"PK\x03\x04"
"""Local file header, 4.3.7: what a torch archive starts with (torch/serialization.py, `_is_zipfile`)."""

WHOLE_FILE_BYTES = 256 * 1024
"""Files up to this size are read at once: one system call costs as much as copying 10 KB."""
TAIL_BYTES = 64 * 1024 + 22
"""The end record with the longest comment; also the whole directory of about 900 records."""
NEIGHBOUR_BYTES = 4096
"""Local headers nearer to each other than a page are read together: the disk reads pages anyway."""
MAX_RUN_BYTES = 8 * 1024 * 1024
MAX_RECORDS = 2_000_000
"""Twenty times the largest checkpoints; the directory of such a file has 120 MB."""

_END = struct.Struct("<4s4H2IH")  # 4.3.16, end of central directory
_END64 = struct.Struct("<4sQ2H2I4Q")  # 4.3.14
_LOCATOR = struct.Struct("<4sIQI")  # 4.3.15
_CENTRAL = struct.Struct("<4s6H3I5H2I")  # 4.3.12
_LOCAL = struct.Struct("<26s2H")  # 4.3.7: all up to the sizes, then the lengths of name and extra field
_LOCAL_FIELDS = struct.Struct("<4s5H3I")
_DESCRIPTOR = struct.Struct("<4s3I")  # 4.3.9, as miniz writes it
_DESCRIPTOR64 = struct.Struct("<4sI2Q")

_END_MARK, _END64_MARK, _LOCATOR_MARK = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL_MARK, _DESCRIPTOR_MARK = b"PK\x01\x02", b"PK\x07\x08"
_REFUSED_FLAGS = 0x0001 | 0x0020 | 0x0040 | 0x2000  # 4.4.4: encrypted, patch data, strong encryption, masked headers
_HAS_DESCRIPTOR = 0x0008
_ZIP64_EXTRA = 0x0001  # 4.5.3
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF
STORED, DEFLATED = 0, 8

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
        _refuse_end(source, directory, surplus, following)
    return directory


def read_archive(source: Source, directory: Directory) -> Archive:
    """Parse the central directory and check every local header against it.

    Raises:
        Corrupt: anything in it is contradictory, or could be read in two ways.
    """
    data = source.read(directory.offset, directory.size)
    names, columns = _parse_entries(data, directory.count)
    _check_flags(names, columns)
    stem = _check_names(names)
    offsets = _check_local_headers(source, names, columns, directory.offset)
    texts = _decode(b"\0".join(names)).split("\0")  # no name holds a NUL; one decoding is 20 times faster than 20,000
    return Archive(
        stem=_decode(stem),
        names=texts,
        sizes=columns.sizes,
        checksums=columns.checksums,
        offsets=offsets,
        methods=columns.methods,
        packed_sizes=columns.packed_sizes,
        positions=dict(zip(texts, range(len(texts)), strict=True)),
        directory=data,
        source=source,
    )


class _Columns(msgspec.Struct):
    flags: list[int]
    methods: list[int]
    checksums: list[int]
    packed_sizes: list[int]
    sizes: list[int]
    disks: list[int]
    headers: list[int]
    """Offsets of the local headers."""


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
    if locator_disk or disks > 1:
        raise Corrupt("archive.malformed", "the ZIP64 locator speaks of several disks")
    return Directory(offset64, size64, count64), begin


def _refuse_end(source: Source, directory: Directory, surplus: int, following: int) -> None:
    """Say why an end record does not seal the file.

    It may also be that of an archive *inside* a tensor of a file that is still being written: then its offsets count
    from the inner archive's start, and nothing is wrong but that the bytes to come are missing.
    """
    if following < 0:
        raise Incomplete(f"the archive's comment lacks {-following} bytes: it is still being written or was cut short")
    if surplus < 0:
        raise Corrupt(
            "archive.truncated",
            f"{-surplus} bytes are missing: by its end record, the directory reaches beyond that record itself",
        )
    if surplus == 0:
        raise Corrupt("archive.trailing_data", f"{following} bytes follow the end of the archive")
    if _is_end(source, surplus):
        raise Corrupt("archive.trailing_data", f"another archive follows the first one, which ends at byte {surplus}")
    if following == 0 and source.read(directory.offset, 4) == _CENTRAL_MARK:
        raise Corrupt("archive.malformed", f"{surplus} bytes lie between the directory and the end record")
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


def _parse_entries(data: bytes, count: int) -> tuple[list[bytes], _Columns]:
    if count > MAX_RECORDS:
        raise Corrupt("pickle.limits", f"the archive names {count:,} records, more than {MAX_RECORDS:,}")
    if not count or count * _CENTRAL.size > len(data):
        raise Corrupt("archive.malformed", f"the directory has no room for the {count:,} records that it counts")
    names: list[bytes] = []
    rows: list[tuple[int, ...]] = []
    extras: dict[int, bytes] = {}
    position = 0
    unpack, header_size = _CENTRAL.unpack_from, _CENTRAL.size
    try:
        for _ in range(count):
            row = unpack(data, position)
            begin = position + header_size
            position = begin + row[10]
            names.append(data[begin:position])
            if row[11] or row[12]:
                extras[len(rows)] = data[position : position + row[11]]
                position += row[11] + row[12]
            rows.append(row)
    except struct.error as error:
        raise Corrupt("archive.malformed", "the directory ends inside a record's entry") from error
    if position != len(data):
        raise Corrupt("archive.malformed", f"the directory's entries take {position} bytes, not {len(data)}")
    return names, _columns(rows, extras)


def _columns(rows: list[tuple[int, ...]], extras: dict[int, bytes]) -> _Columns:
    by_field = list(zip(*rows, strict=True))
    if set(by_field[0]) != {_CENTRAL_MARK}:
        raise Corrupt("archive.malformed", "an entry of the directory does not begin with its signature")
    columns = _Columns(
        flags=list(by_field[3]),
        methods=list(by_field[4]),
        checksums=list(by_field[7]),
        packed_sizes=list(by_field[8]),
        sizes=list(by_field[9]),
        disks=list(by_field[13]),
        headers=list(by_field[16]),
    )
    wide = (columns.sizes, columns.packed_sizes, columns.headers)
    if _FULL32 in columns.sizes or _FULL32 in columns.packed_sizes or _FULL32 in columns.headers:
        for index in range(len(rows)):
            _widen(wide, index, extras.get(index, b""))
    return columns


def _widen(columns: tuple[list[int], ...], index: int, extra: bytes) -> None:
    """Put the 64 bit values of the ZIP64 extra field in place of those that are all ones, in that order (4.5.3)."""
    missing = [column for column in columns if column[index] == _FULL32]
    if not missing:
        return
    field = _extra_field(extra, _ZIP64_EXTRA)
    if len(field) < 8 * len(missing):
        raise Corrupt("archive.malformed", f"record {index} lacks its 64 bit sizes")
    for column, value in zip(missing, struct.unpack_from(f"<{len(missing)}Q", field), strict=True):
        column[index] = value


def _extra_field(extra: bytes, wanted: int) -> bytes:
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        if kind == wanted:
            return extra[position + 4 : position + 4 + size]
        position += 4 + size
    return b""


def _check_flags(names: list[bytes], columns: _Columns) -> None:
    for flags in set(columns.flags):
        if flags & _REFUSED_FLAGS:
            marked = clip(_decode(names[columns.flags.index(flags)]))
            raise Corrupt(
                "archive.ambiguous", f"record {marked} is marked as encrypted or a patch, which torch refuses"
            )
    if set(columns.methods) - {STORED, DEFLATED}:
        raise Corrupt("archive.malformed", "a record is compressed by a method that torch cannot read")
    if any(columns.disks):
        raise Corrupt("archive.malformed", "a record lies on another disk")
    if columns.sizes != columns.packed_sizes:
        packed = zip(names, columns.methods, columns.sizes, columns.packed_sizes, strict=True)
        for name, method, size, packed_size in packed:
            if method == STORED and size != packed_size:
                raise Corrupt("archive.malformed", f"record {clip(_decode(name))} is stored in two different sizes")


def _check_names(names: list[bytes]) -> bytes:
    """Refuse names that readers tell apart differently; return the stem that all share.

    torch looks names up without regard to case (`mz_zip_reader_locate_file_v2`) and takes the first of two.
    """
    joined = b"\0".join(names)
    if joined.count(b"\0") != len(names) - 1 or b"\\" in joined:
        raise Corrupt(
            "archive.ambiguous", "a record's name holds a NUL or a backslash, which readers treat differently"
        )
    if len(set(joined.lower().split(b"\0"))) != len(names):
        double = Counter(map(bytes.lower, names)).most_common(1)[0][0]
        raise Corrupt(
            "archive.ambiguous", f"record {clip(_decode(double))} is there twice, upper and lower case being equal"
        )
    stem, slash, _ = names[0].partition(b"/")
    inside = stem + slash
    # Of sorted strings that lie between two with one prefix, all have it.
    if not slash or not (min(names).startswith(inside) and max(names).startswith(inside)):
        return b""
    return stem


def _check_local_headers(source: Source, names: list[bytes], columns: _Columns, directory_offset: int) -> list[int]:
    """Check every local header against its entry, and that the records cover the file without holes or overlaps.

    Returns:
        Where each record's bytes begin, in the order of the directory.
    """
    order = sorted(range(len(names)), key=columns.headers.__getitem__)
    if order != list(range(len(names))):
        names = [names[i] for i in order]
        columns = _Columns(*([column[i] for i in order] for column in msgspec.structs.astuple(columns)))
    if columns.headers[0] != 0:
        raise Corrupt("archive.ambiguous", f"{columns.headers[0]} bytes lie before the first record")
    rows = _read_local_headers(source, names, columns.headers, directory_offset)
    _check_against_entries(rows, names, columns)
    begins = [
        header + _LOCAL.size + name_size + extra_size
        for header, (_, name_size, extra_size) in zip(columns.headers, rows, strict=True)
    ]
    ends = list(map(add, begins, columns.packed_sizes))
    gaps = [after - end for after, end in zip([*columns.headers[1:], directory_offset], ends, strict=True)]
    _check_gaps(source, names, columns, ends, gaps)
    if order != list(range(len(names))):
        by_place = dict(zip(order, begins, strict=True))
        return [by_place[i] for i in range(len(names))]
    return begins


def _read_local_headers(
    source: Source, names: list[bytes], headers: list[int], directory_offset: int
) -> list[tuple[bytes, int, int]]:
    """Read and unpack each header, and see that its name is the directory's; those near each other in one go."""
    fixed = _LOCAL.size
    ends = [header + fixed + size for header, size in zip(headers, map(len, names), strict=True)]
    if max(ends) > directory_offset:
        raise Corrupt("archive.malformed", "a record begins behind the directory")
    apart = [
        i
        for i, (before, header) in enumerate(pairwise(headers), 1)
        if header - before > NEIGHBOUR_BYTES or before // MAX_RUN_BYTES != header // MAX_RUN_BYTES
    ]
    begins, stops = [0, *apart], [*apart, len(headers)]
    starts = [headers[begin] for begin in begins]
    sizes = [ends[stop - 1] - start for start, stop in zip(starts, stops, strict=True)]
    if sum(sizes) > source.size:
        raise Corrupt("archive.ambiguous", "records overlap")
    read = source.read_each(starts, sizes)
    runs: list[bytes] = []
    places: list[int] = []
    if len(read) == len(headers):  # large tensors: each header was read by itself
        runs, places = read, [0] * len(read)
    else:
        for run, begin, stop, start in zip(read, begins, stops, starts, strict=True):
            runs += repeat(run, stop - begin)
            places += [header - start for header in headers[begin:stop]]
    rows = list(map(_LOCAL.unpack_from, runs, places))
    if {kind[:4] for kind in {row[0] for row in rows}} != {SIGNATURE}:
        name = clip(_decode(next(name for name, row in zip(names, rows, strict=True) if row[0][:4] != SIGNATURE)))
        raise Corrupt("archive.malformed", f"record {name} has no header where the directory says")
    name_places = [place + fixed for place in places]
    if not all(map(bytes.startswith, runs, names, name_places)) or [row[1] for row in rows] != list(map(len, names)):
        raise Corrupt("archive.ambiguous", "a record has one name in the directory and another in its own header")
    return rows


def _check_against_entries(rows: list[tuple[bytes, int, int]], names: list[bytes], columns: _Columns) -> None:
    fields, _, _ = zip(*rows, strict=True)
    kinds = {kind: _LOCAL_FIELDS.unpack(kind) for kind in set(fields)}
    # torch leaves checksum and sizes to the directory (4.4.4, bit 3): one kind of header, nothing to compare.
    uniform = len(kinds) == 1 and not any(next(iter(kinds.values()))[6:])
    if not uniform or set(zip(columns.flags, columns.methods, strict=True)) != {kind[2:4] for kind in kinds.values()}:
        _compare_fields(names, columns, [kinds[kind] for kind in fields])


def _compare_fields(names: list[bytes], columns: _Columns, local: list[tuple[int, ...]]) -> None:
    entries = zip(columns.flags, columns.methods, columns.checksums, columns.packed_sizes, columns.sizes, strict=True)
    for name, (_, _, flags, method, _, _, *stated), entry in zip(names, local, entries, strict=True):
        unstated = (0, _FULL32) if flags & _HAS_DESCRIPTOR else (_FULL32,)
        same = all(value == wide or value in unstated for value, wide in zip(stated, entry[2:], strict=True))
        if (flags, method) != entry[:2] or not same:
            raise Corrupt(
                "archive.ambiguous",
                f"record {clip(_decode(name))} has other flags or sizes in its own header than in the directory",
            )


def _check_gaps(source: Source, names: list[bytes], columns: _Columns, ends: list[int], gaps: list[int]) -> None:
    """Between a record's last byte and the next header there may be its data descriptor, and nothing else."""
    kinds = set(zip(gaps, (flag & _HAS_DESCRIPTOR for flag in columns.flags), strict=True))
    if kinds <= {(0, 0), (_DESCRIPTOR.size, _HAS_DESCRIPTOR), (_DESCRIPTOR64.size, _HAS_DESCRIPTOR)}:
        return
    for name, flag, size, gap in zip(names, columns.flags, columns.packed_sizes, gaps, strict=True):
        if gap < 0:
            raise Corrupt("archive.ambiguous", f"record {clip(_decode(name))} overlaps what follows it")
        # miniz writes no descriptor after an empty record; other writers leave out the signature.
        allowed = (12, 16, 20, 24) if flag & _HAS_DESCRIPTOR else (0,)
        if gap not in allowed and (gap or size):
            raise Corrupt("archive.malformed", f"{gap} bytes after record {clip(_decode(name))} belong to nothing")


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
