"""The records of an archive: the directory's entries and each record's own header, parsed strictly and compared.

Readers of zip files disagree about what is lax. torch looks names up without regard to case, and which of two equal
ones it meets depends on how many records there are (a binary search); Python's zipfile takes the last; who reads a
stream believes the records' own headers. What two readers may see differently is refused. Section numbers are those of
PKWARE's APPNOTE 6.3.10.

Everything is done by column, in C: an archive of 20,000 tensors is parsed in the time of 200,000 Python operations, and
torch's own headers, which are all alike, are compared as one.
"""

import struct
from collections.abc import Iterable, Sequence
from itertools import compress, pairwise
from operator import add, gt, sub
from typing import TYPE_CHECKING

import msgspec

from ..errors import Corrupt
from ..plain import clip

if TYPE_CHECKING:
    from .torch_zip import Source

NEIGHBOUR_BYTES = 4096
"""Local headers nearer to each other than a page are read together: the disk reads pages anyway."""
MAX_RUN_BYTES = 32 * 1024 * 1024
MAX_RECORDS = 2_000_000
"""Twenty times the largest checkpoints; the directory of such a file has 120 MB."""
STORED, DEFLATED = 0, 8

_CENTRAL_MARK, _LOCAL_MARK, _DESCRIPTOR_MARK = b"PK\x01\x02", b"PK\x03\x04", b"PK\x07\x08"
# 4.3.12 behind the signature: versions, flags, method, time · checksum, sizes · lengths · disk, attributes · header
_ENTRY = struct.Struct("<12s3I3H8sI")
_KIND = struct.Struct("<4x2H4x")
_PLACE = struct.Struct("<2HI")
_LOCAL = struct.Struct("<26s2H")  # 4.3.7: all up to the sizes, then the lengths of name and extra field
_LOCAL_KIND = struct.Struct("<4s2x2H4x3I")

# 4.3.9.1, and 4.3.9.2 for ZIP64; the signature before them is optional
_DESCRIPTORS = {size: struct.Struct("<3I" if size < 20 else "<I2Q") for size in (12, 16, 20, 24)}

_REFUSED_FLAGS = 0x0001 | 0x0020 | 0x0040 | 0x2000  # 4.4.4: encrypted, patch data, strong encryption, masked headers
_HAS_DESCRIPTOR = 0x0008
_DOS_DIRECTORY = 0x10
"""External attribute by which miniz, hence torch, takes a record for a directory, as it does one whose name ends in a
slash (`mz_zip_reader_is_file_a_directory`). It then reports success without reading: the tensor holds what was in
memory before."""
_UNIX_TYPES = {0x0: "", 0x4: "", 0x8: "", 0xA: "a symbolic link"}
"""File type in the upper four bits of the external attributes, of writers on Unix (4.4.15): none, directory, file."""
_ZIP64_EXTRA = 0x0001  # 4.5.3
_AMBIGUOUS_EXTRAS = {
    0x7075: "a second name (Info-ZIP Unicode Path)",  # 4.6.9
    0x0017: "strong encryption",  # 4.5.12
    0x9901: "AES encryption",  # WinZip's AE-1 and AE-2
}
_FULL32 = 0xFFFFFFFF
_SEPARATORS = tuple(f"/{part}/".encode() for part in ("", ".", ".."))


class Entries(msgspec.Struct):
    """The directory, column by column, in its order."""

    names: list[bytes]
    flags: list[int]
    methods: list[int]
    checksums: list[int]
    """CRC-32; all zero where checksums were switched off."""
    packed_sizes: list[int]
    sizes: list[int]
    name_sizes: list[int]
    headers: list[int]
    """Offsets of the local headers."""

    def ordered(self, order: list[int]) -> "Entries":
        """The same in another order."""
        return Entries(*([column[i] for i in order] for column in msgspec.structs.astuple(self)))


def read_entries(directory: bytes, count: int) -> Entries:
    """Parse the directory's entries and check each by itself.

    Raises:
        Corrupt: there are not `count` of them, one contradicts itself, or is of a kind that torch refuses.
    """
    if count > MAX_RECORDS:
        raise Corrupt("pickle.limits", f"the archive names {count:,} records, more than {MAX_RECORDS:,}")
    if not count or count * (_ENTRY.size + 4) > len(directory):
        raise Corrupt("archive.malformed", f"the directory has no room for the {count:,} records that it counts")
    pieces = directory.split(_CENTRAL_MARK)
    if len(pieces) == count + 1 and not pieces[0]:
        del pieces[0]
        entries = _entries(pieces)
        if entries is not None:
            return entries
    walked = _entries(_walk(directory, count))
    if walked is None:
        raise Corrupt("archive.malformed", "the directory's entries do not add up")
    return walked


def check_names(names: list[bytes]) -> bytes:
    """Refuse names that readers tell apart differently; return the stem that all share, nothing where they share none.

    torch takes the stem from the first record and looks names up without regard to case
    (`mz_zip_reader_locate_file_v2`).
    """
    joined = b"\0".join(names)
    if joined.count(b"\0") != len(names) - 1 or b"\\" in joined:
        raise Corrupt(
            "archive.ambiguous", "a record's name holds a NUL or a backslash, which readers treat differently"
        )
    if len(set(names)) != len(names) or _collides(joined, len(names)):
        double = _first_double(list(map(bytes.lower, names)))
        raise Corrupt("archive.ambiguous", f"record {shown(double)} is there twice, upper and lower case being equal")
    stem, slash, _ = names[0].partition(b"/")
    inside = stem + slash
    if not slash or not stem or joined.count(b"\0" + inside) + joined.startswith(inside) != len(names):
        _refuse_strangers(names, inside)
        return b""
    ends = joined.replace(b"\0", b"/\0") + b"/"
    if any(part in ends for part in _SEPARATORS) and any(map(_has_odd_parts, names)):
        odd = next(filter(_has_odd_parts, names))
        raise Corrupt("archive.ambiguous", f"record {shown(odd)} has a path that readers simplify differently")
    return stem


def locate(source: "Source", entries: Entries, directory_offset: int) -> tuple[list[int], list[int]]:
    """Check every local header against its entry, and that the records cover the file without holes or overlaps.

    Returns:
        Where each record's bytes begin, and the size of the data descriptor behind them, in the directory's order.

    Raises:
        Corrupt: a record's header says something else than its entry, or bytes belong to no record or to two.
    """
    order: list[int] | None = None
    if any(map(gt, entries.headers, entries.headers[1:])):
        order = sorted(range(len(entries.names)), key=entries.headers.__getitem__)
        entries = entries.ordered(order)
    headers = entries.headers
    if headers[0] != 0:
        raise Corrupt("archive.ambiguous", f"{headers[0]} bytes lie before the first record")
    named = list(map(add, headers, entries.name_sizes))
    if max(named) + _LOCAL.size > directory_offset:
        raise Corrupt("archive.malformed", "a record begins behind the directory")
    kinds, extra_sizes = _read_headers(source, entries, [end + _LOCAL.size for end in named])
    _check_kinds(source, kinds, extra_sizes, entries)
    begins = [end + extra + _LOCAL.size for end, extra in zip(named, extra_sizes, strict=True)]
    gaps = _check_gaps(source, entries, list(map(add, begins, entries.packed_sizes)), directory_offset)
    if order is None:
        return begins, gaps
    places = dict(zip(order, zip(begins, gaps, strict=True), strict=True))
    return [places[i][0] for i in range(len(begins))], [places[i][1] for i in range(len(begins))]


def shown(name: bytes) -> str:
    """A record's name for people."""
    return clip(name.decode("utf-8", "surrogateescape"))


def _walk(directory: bytes, count: int) -> list[bytes]:
    """The entries without their signature, one after the other by the lengths that they state."""
    pieces: list[bytes] = []
    position = 0
    for _ in range(count):
        if directory[position : position + 4] != _CENTRAL_MARK:
            raise Corrupt("archive.malformed", "an entry of the directory does not begin with its signature")
        lengths = directory[position + 28 : position + 34]
        if len(lengths) < 6:
            raise Corrupt("archive.malformed", "the directory ends inside a record's entry")
        end = position + 4 + _ENTRY.size + sum(struct.unpack("<3H", lengths))
        piece = directory[position + 4 : end]
        if _CENTRAL_MARK in piece[_ENTRY.size :]:
            raise Corrupt("archive.ambiguous", "an entry of the directory holds what looks like another entry")
        pieces.append(piece)
        position = end
    if position != len(directory):
        raise Corrupt("archive.malformed", f"the directory's entries take {position} bytes, not {len(directory)}")
    return pieces


def _entries(pieces: list[bytes]) -> Entries | None:
    """The columns of all entries; None where one has not the length that it states."""
    fixed = b"".join([piece[: _ENTRY.size] for piece in pieces])
    if len(fixed) != _ENTRY.size * len(pieces):
        return None
    columns = [list(column) for column in zip(*_ENTRY.iter_unpack(fixed), strict=True)]
    kinds, checksums, packed_sizes, sizes, name_sizes, extra_sizes, comment_sizes, places, headers = columns
    begin = _ENTRY.size
    names = [piece[begin:] for piece in pieces]
    if any(extra_sizes) or any(comment_sizes):
        stated = [sum(lengths) for lengths in zip(name_sizes, extra_sizes, comment_sizes, strict=True)]
        if list(map(len, names)) != stated:
            return None
        tails = names
        names = [tail[:size] for tail, size in zip(tails, name_sizes, strict=True)]
        extras = [tail[n : n + e] for tail, n, e in zip(tails, name_sizes, extra_sizes, strict=True)]
        _apply_extras(names, extras, (sizes, packed_sizes, headers))
    elif list(map(len, names)) != name_sizes:
        return None
    elif _FULL32 in sizes or _FULL32 in packed_sizes or _FULL32 in headers:
        _apply_extras(names, [b""] * len(names), (sizes, packed_sizes, headers))
    flags, methods = _flags_and_methods(names, kinds)
    _check_places(names, places, packed_sizes)
    if sizes != packed_sizes:
        _check_stored(names, methods, sizes, packed_sizes)
    return Entries(names, flags, methods, checksums, packed_sizes, sizes, name_sizes, headers)


def _flags_and_methods(names: list[bytes], kinds: list[bytes]) -> tuple[list[int], list[int]]:
    # All are alike in what torch writes: then one comparison each is the cheapest.
    distinct = [kinds[0]] if kinds.count(kinds[0]) == len(kinds) else list(dict.fromkeys(kinds))
    by_kind = {kind: _KIND.unpack(kind) for kind in distinct}
    for kind, (flags, method) in by_kind.items():
        name = names[kinds.index(kind)]
        if flags & _REFUSED_FLAGS:
            message = f"record {shown(name)} is marked as encrypted or a patch, which torch refuses"
            raise Corrupt("archive.ambiguous", message)
        if method not in (STORED, DEFLATED):
            message = f"record {shown(name)} is compressed by method {method}, which torch cannot read"
            raise Corrupt("archive.malformed", message)
    if len(by_kind) == 1:
        flags, method = by_kind[kinds[0]]
        return [flags] * len(kinds), [method] * len(kinds)
    return [by_kind[kind][0] for kind in kinds], [by_kind[kind][1] for kind in kinds]


def _check_places(names: list[bytes], places: list[bytes], packed_sizes: list[int]) -> None:
    """Look at disks and external attributes, which are zero in what torch writes."""
    if places.count(bytes(8)) == len(places) and b"/\0" not in b"\0".join((*names, b"")):
        return
    for name, place, size in zip(names, places, packed_sizes, strict=True):
        disk, _, attributes = _PLACE.unpack(place)
        if disk:
            raise Corrupt("archive.malformed", f"record {shown(name)} lies on another disk")
        if size and (attributes & _DOS_DIRECTORY or name.endswith(b"/")):
            message = f"record {shown(name)} has contents but is marked as a directory: torch would not read them"
            raise Corrupt("archive.ambiguous", message)
        what = _UNIX_TYPES.get(attributes >> 28, "a device, a pipe or a socket")
        if what:
            message = f"record {shown(name)} is marked as {what}: who unpacks the archive sees something else"
            raise Corrupt("archive.ambiguous", message)


def _check_stored(names: list[bytes], methods: list[int], sizes: list[int], packed_sizes: list[int]) -> None:
    for name, method, size, packed_size in zip(names, methods, sizes, packed_sizes, strict=True):
        if method == STORED and size != packed_size:
            raise Corrupt("archive.malformed", f"record {shown(name)} is stored in two different sizes")


def _apply_extras(names: list[bytes], extras: list[bytes], columns: tuple[list[int], ...]) -> None:
    """Check the extra fields, and put 64 bit values in place of those that are all ones, in their order (4.5.3)."""
    for index, extra in enumerate(extras):
        missing = [column for column in columns if column[index] == _FULL32]
        if not extra and not missing:
            continue
        field = _zip64_field(names[index], extra)
        if len(field) != 8 * len(missing):
            name = shown(names[index])
            if len(field) < 8 * len(missing):
                raise Corrupt("archive.malformed", f"record {name} lacks its 64 bit sizes")
            raise Corrupt(
                "archive.ambiguous", f"record {name} has sizes of 32 and of 64 bits; readers take one of them"
            )
        for column, value in zip(missing, struct.unpack(f"<{len(missing)}Q", field), strict=True):
            column[index] = value


def _zip64_field(name: bytes, extra: bytes) -> bytes:
    """The contents of the ZIP64 field; nothing where there is none."""
    found: list[bytes] = []
    position = 0
    while position < len(extra):
        head = extra[position : position + 4]
        kind, size = struct.unpack("<2H", head) if len(head) == 4 else (0, _FULL32)
        position += 4 + size
        if position > len(extra):
            raise Corrupt("archive.malformed", f"the extra field of record {shown(name)} ends inside one of its parts")
        if kind in _AMBIGUOUS_EXTRAS:
            message = f"record {shown(name)} carries {_AMBIGUOUS_EXTRAS[kind]}, which some readers know and torch not"
            raise Corrupt("archive.ambiguous", message)
        if kind == _ZIP64_EXTRA:
            found.append(extra[position - size : position])
    if len(found) > 1:
        raise Corrupt("archive.ambiguous", f"record {shown(name)} states its 64 bit sizes twice")
    return found[0] if found else b""


def _collides(joined: bytes, count: int) -> bool:
    lower = joined.lower()
    return lower != joined and len(set(lower.split(b"\0"))) != count


def _first_double(names: list[bytes]) -> bytes:
    # Not Counter.most_common: it imports heapq when it is called, and behind the sandbox nothing can be imported.
    seen: set[bytes] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _refuse_strangers(names: list[bytes], inside: bytes) -> None:
    """A record outside the stem: torch refuses to load the file, other readers do not mind (`getAllRecords`)."""
    if inside + b"data.pkl" in names:
        stranger = next((name for name in names if not name.startswith(inside)), inside)
        message = (
            f"record {shown(stranger)} lies outside {shown(inside)}, which holds the checkpoint; torch refuses that"
        )
        raise Corrupt("archive.ambiguous", message)


def _has_odd_parts(name: bytes) -> bool:
    # The stem is a file's name and may be anything: saving to `...ckpt` makes it `..`.
    _, *parts = name.removesuffix(b"/").split(b"/")
    return any(part in (b"", b".", b"..") for part in parts)


def _read_headers(source: "Source", entries: Entries, ends: list[int]) -> tuple[list[bytes], list[int]]:
    """Read each header up to the end of its name, and see that the name is the directory's.

    Returns:
        What stands before the lengths, and the size of the extra field, of each record.
    """
    headers, names = entries.headers, entries.names
    run = source.whole
    if run is None and _are_near(headers, ends):
        run = source.read(0, ends[-1])
    if run is not None:
        fixed = b"".join([run[header : header + _LOCAL.size] for header in headers])
        same = all(map(run.startswith, names, [header + _LOCAL.size for header in headers]))
    else:
        heads = _read_apart(source, headers, ends)
        fixed = b"".join([head[: _LOCAL.size] for head in heads])
        same = all(map(bytes.endswith, heads, names))
    kinds, name_sizes, extra_sizes = map(list, zip(*_LOCAL.iter_unpack(fixed), strict=True))
    if kinds.count(kinds[0]) != len(kinds) or kinds[0][:4] != _LOCAL_MARK:
        unmarked = next((i for i, kind in enumerate(kinds) if kind[:4] != _LOCAL_MARK), None)
        if unmarked is not None:
            message = f"record {shown(names[unmarked])} has no header where the directory says"
            raise Corrupt("archive.malformed", message)
    if not same or name_sizes != entries.name_sizes:
        raise Corrupt("archive.ambiguous", "a record has one name in the directory and another in its own header")
    return kinds, extra_sizes


def _are_near(headers: list[int], ends: list[int]) -> bool:
    return ends[-1] <= MAX_RUN_BYTES and max(map(sub, headers[1:], headers), default=0) <= NEIGHBOUR_BYTES


def _read_apart(source: "Source", headers: list[int], ends: list[int]) -> list[bytes]:
    """Each header with its name, those near each other read in one go."""
    apart = [
        i
        for i, (before, header) in enumerate(pairwise(headers), 1)
        if header - before > NEIGHBOUR_BYTES or before // MAX_RUN_BYTES != header // MAX_RUN_BYTES
    ]
    begins, stops = [0, *apart], [*apart, len(headers)]
    starts = [headers[begin] for begin in begins]
    sizes = [ends[stop - 1] - start for start, stop in zip(starts, stops, strict=True)]
    if min(sizes) < _LOCAL.size or sum(sizes) > source.size:
        raise Corrupt("archive.ambiguous", "records overlap")
    runs = source.read_each(starts, sizes)
    if len(runs) == len(headers):  # large tensors: each header was read by itself
        return runs
    heads: list[bytes] = []
    for run, begin, stop, start in zip(runs, begins, stops, starts, strict=True):
        heads += [run[headers[i] - start : ends[i] - start] for i in range(begin, stop)]
    return heads


def _check_kinds(source: "Source", kinds: list[bytes], extra_sizes: list[int], entries: Entries) -> None:
    """Compare flags, method, checksum and sizes of each header with its entry."""
    first = _LOCAL_KIND.unpack(kinds[0])
    expected = (first[1], first[2])
    # torch leaves checksum and sizes to the directory (4.4.4, bit 3): one kind of header, nothing more to compare.
    if not any(first[3:]) and kinds.count(kinds[0]) == len(kinds):
        count = len(kinds)
        if (entries.flags.count(expected[0]), entries.methods.count(expected[1])) == (count, count):
            return
    unpacked = {kind: _LOCAL_KIND.unpack(kind) for kind in set(kinds)}
    columns = (entries.flags, entries.methods, entries.checksums, entries.packed_sizes, entries.sizes)
    for index, (kind, entry) in enumerate(zip(kinds, zip(*columns, strict=True), strict=True)):
        _, flags, method, *stated = unpacked[kind]
        wide = (stated[0], *_widened(source, entries, index, extra_sizes[index], (stated[1], stated[2])))
        unstated = (0, _FULL32) if flags & _HAS_DESCRIPTOR else ()
        same = all(value == known or value in unstated for value, known in zip(wide, entry[2:], strict=True))
        if (flags, method) != entry[:2] or not same:
            message = f"record {shown(entries.names[index])} has other flags or sizes in its own header"
            raise Corrupt("archive.ambiguous", f"{message} than in the directory")


def _widened(
    source: "Source", entries: Entries, index: int, extra_size: int, sizes: tuple[int, int]
) -> tuple[int, int]:
    """Packed size and size of a local header, from its ZIP64 field where they stand there."""
    if _FULL32 not in sizes:
        return sizes
    begin = entries.headers[index] + _LOCAL.size + entries.name_sizes[index]
    extra = source.read(begin, extra_size) if begin + extra_size <= source.size else b""
    size, packed = [sizes[1]], [sizes[0]]
    field = _zip64_field(entries.names[index], extra)
    if not field and entries.flags[index] & _HAS_DESCRIPTOR:  # then the descriptor says
        return sizes
    if len(field) not in (8, 16):
        raise Corrupt("archive.malformed", f"the header of record {shown(entries.names[index])} lacks its 64 bit sizes")
    values = iter(struct.unpack(f"<{len(field) // 8}Q", field))
    for column in (size, packed):
        if column[0] == _FULL32:
            column[0] = next(values, _FULL32)
    return packed[0], size[0]


def _check_gaps(source: "Source", entries: Entries, ends: list[int], directory_offset: int) -> list[int]:
    """Between a record's last byte and the next header there may be its data descriptor, and nothing else.

    Returns the size of each.

    One of an unusual size is read and compared: the gap also grows when the length of the extra field before the
    record is damaged, and its bytes then are taken from elsewhere.
    """
    gaps = list(map(sub, [*entries.headers[1:], directory_offset], ends))
    expected = _descriptor_sizes(entries)
    if gaps == expected:
        return gaps
    unusual: list[int] = []
    for index in compress(range(len(gaps)), map(int.__ne__, gaps, expected)):
        gap, name = gaps[index], entries.names[index]
        if gap < 0:
            raise Corrupt("archive.ambiguous", f"record {shown(name)} overlaps what follows it")
        # miniz writes no descriptor after an empty record; other writers leave out the signature.
        allowed = (12, 16, 20, 24) if entries.flags[index] & _HAS_DESCRIPTOR else (0,)
        if gap not in allowed and (gap or entries.packed_sizes[index]):
            raise Corrupt("archive.malformed", f"{gap} bytes after record {shown(name)} belong to nothing")
        if gap:
            unusual.append(index)
    unsigned = [index for index in unusual if gaps[index] in (12, 20)]
    if unsigned and len(unsigned) != sum(map(bool, entries.packed_sizes)):
        # A writer leaves out all signatures or none: one missing is one that was taken for the record's last bytes.
        message = f"record {shown(entries.names[unsigned[0]])} ends where its header does not say"
        raise Corrupt("archive.malformed", message)
    stated = ((entries.checksums[i], entries.packed_sizes[i], entries.sizes[i]) for i in unusual)
    liar = lying_descriptor(source, [ends[i] for i in unusual], [gaps[i] for i in unusual], stated)
    if liar is not None:
        message = f"record {shown(entries.names[unusual[liar]])} is not followed by what its header announces"
        raise Corrupt("archive.malformed", message)
    return gaps


def _descriptor_sizes(entries: Entries) -> list[int]:
    """The size of each record's data descriptor as miniz writes it: wide from 4 GiB on, in the file or in the record.

    None follows an empty record.
    """
    if entries.headers[-1] >= _FULL32 or max(entries.packed_sizes) >= _FULL32:
        columns = zip(entries.flags, entries.headers, entries.packed_sizes, strict=True)
        return [
            (24 if header >= _FULL32 or size >= _FULL32 else 16) if size and flag & _HAS_DESCRIPTOR else 0
            for flag, header, size in columns
        ]
    if all(flag & _HAS_DESCRIPTOR for flag in set(entries.flags)):
        return [16 if size else 0 for size in entries.packed_sizes]
    pairs = zip(entries.flags, entries.packed_sizes, strict=True)
    return [16 if size and flag & _HAS_DESCRIPTOR else 0 for flag, size in pairs]


def lying_descriptor(
    source: "Source", ends: Sequence[int], sizes: Sequence[int], stated: Iterable[tuple[int, int, int]]
) -> int | None:
    """The position of the first data descriptor that does not say what the directory does; None where all do.

    torch never looks at descriptors; readers that stream an archive believe them.

    Args:
        source: the file.
        ends: where each record's bytes end and its descriptor begins.
        sizes: of the descriptors in bytes: 12 or 16, with 64 bit sizes 20 or 24.
        stated: checksum, packed size and size of each record, as the directory says.
    """
    pieces = source.read_each(list(ends), list(sizes))
    for position, (piece, numbers) in enumerate(zip(pieces, stated, strict=True)):
        layout = _DESCRIPTORS[len(piece)]
        marked = len(piece) == layout.size or piece[:4] == _DESCRIPTOR_MARK
        if not marked or layout.unpack_from(piece, len(piece) - layout.size) != numbers:
            return position
    return None
