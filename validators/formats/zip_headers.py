"""The records' own headers, compared with the directory, and the places of all bytes between them.

torch reads the directory and, of a record's own header, the lengths of its name and extra field only; streaming readers
believe all of it. torch's headers are all alike: then they are compared by column, in C, and one by one only where they
are not. Section numbers are those of PKWARE's APPNOTE 6.3.10.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import compress
from operator import add, gt, sub
from typing import TYPE_CHECKING

from ..errors import Corrupt
from ..text import counted
from .rows import Rows
from .zip_entries import FULL32, HAS_DESCRIPTOR, Entries, shown, zip64_field

if TYPE_CHECKING:
    from .torch_zip import Source

NEIGHBOUR_BYTES = 4096
"""Local headers nearer to each other than a page are read together: the disk reads pages anyway."""
MAX_RUN_BYTES = 1024 * 1024
"""What is read together at most: what fits into a core's cache is cut up fastest."""

_MARK, _DESCRIPTOR_MARK = b"PK\x03\x04", b"PK\x07\x08"
_FIXED_BYTES = 30
"""Of a local header (4.3.7), with its signature and before its name."""
_KIND, _NAME_SIZE, _EXTRA_SIZE = (0, 26), 26, 28
_FIELDS = struct.Struct("<4s2x2H4x3I")
"""Signature, flags, method, checksum, packed size, size."""
# 4.3.9.1, and 4.3.9.2 for ZIP64; the signature before them is optional
_DESCRIPTORS = {size: struct.Struct("<3I" if size < 20 else "<I2Q") for size in (12, 16, 20, 24)}


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
        raise Corrupt("archive.ambiguous", f"the first record is preceded by {counted(int(headers[0]), 'byte')}")
    named = list(map(add, headers, entries.name_sizes))
    if max(named) + _FIXED_BYTES > directory_offset:
        raise Corrupt("archive.malformed", "a record begins behind the directory")
    rows = _read_headers(source, entries, named)
    extra_sizes = rows.numbers(_EXTRA_SIZE, 2)
    _check_fields(source, rows, extra_sizes, entries)
    begins = [end + extra + _FIXED_BYTES for end, extra in zip(named, extra_sizes, strict=True)]
    gaps = _check_gaps(source, entries, list(map(add, begins, entries.packed_sizes)), directory_offset)
    if order is None:
        return begins, gaps
    places = dict(zip(order, zip(begins, gaps, strict=True), strict=True))
    return [places[i][0] for i in range(len(begins))], [places[i][1] for i in range(len(begins))]


def _read_headers(source: "Source", entries: Entries, named: list[int]) -> Rows:
    """Read each header up to the end of its name, and see that the name is the directory's.

    Args:
        source: the file.
        entries: in the order of their headers.
        named: offset of each header, plus the size of its name.

    Returns:
        What stands before the names.
    """
    headers, names = entries.headers, entries.names
    ends = [end + _FIXED_BYTES for end in named]
    whole = source.whole
    if whole is not None:
        heads = [whole[begin:end] for begin, end in zip(headers, ends, strict=True)]
    else:
        heads = _read_apart(source, headers, ends)
    fixed = b"".join([head[:_FIXED_BYTES] for head in heads])
    same = all(map(bytes.endswith, heads, names))
    rows = Rows(fixed, _FIXED_BYTES)
    if rows.common(0, 4) != _MARK:
        unmarked = next(i for i, mark in enumerate(rows.parts(0, 4)) if mark != _MARK)
        raise Corrupt("archive.malformed", f"record {shown(names[unmarked])} has no header where the directory says")
    if not same or rows.numbers(_NAME_SIZE, 2) != entries.name_sizes:
        raise Corrupt("archive.ambiguous", "a record has one name in the directory and another in its own header")
    return rows


def _read_apart(source: "Source", headers: list[int], ends: list[int]) -> list[bytes]:
    """Each header with its name, those near each other read in one go."""
    runs = _runs(headers)
    if len(runs) == len(headers):  # large tensors: each by itself
        return source.read_each(headers, list(map(sub, ends, headers)))
    starts = [headers[begin] for begin, _ in runs]
    sizes = [ends[stop - 1] - start for (_, stop), start in zip(runs, starts, strict=True)]
    if min(sizes) < _FIXED_BYTES or sum(sizes) > source.size:
        raise Corrupt("archive.ambiguous", "records overlap")
    heads: list[bytes] = []
    for run, (begin, stop), start in zip(source.read_each(starts, sizes), runs, starts, strict=True):
        places = zip(headers[begin:stop], ends[begin:stop], strict=True)
        heads += [run[header - start : end - start] for header, end in places]
    return heads


def _runs(headers: list[int]) -> list[tuple[int, int]]:
    """Ranges of the headers that are read together: near each other, and no more than memory should hold."""
    steps = map(sub, headers[1:], headers)
    cuts = [i for i, step in enumerate(steps, 1) if step > NEIGHBOUR_BYTES]
    runs: list[tuple[int, int]] = []
    begin = 0
    for cut in (*cuts, len(headers)):
        while headers[cut - 1] - headers[begin] > MAX_RUN_BYTES:
            middle = bisect_right(headers, headers[begin] + MAX_RUN_BYTES, begin, cut)
            runs.append((begin, middle))
            begin = middle
        runs.append((begin, cut))
        begin = cut
    return runs


def _check_fields(source: "Source", rows: Rows, extra_sizes: list[int], entries: Entries) -> None:
    """Compare flags, method, checksum and sizes of each header with its entry."""
    common = rows.common(*_KIND)
    if common is not None:
        _, flags, method, *stated = _FIELDS.unpack(common)
        alike = entries.flags.count(flags) == entries.methods.count(method) == rows.count
        # torch leaves checksum and sizes to the directory (4.4.4, bit 3): nothing more to compare.
        if alike and flags & HAS_DESCRIPTOR and not any(stated):
            return
    columns = (entries.flags, entries.methods, entries.checksums, entries.packed_sizes, entries.sizes)
    for index, (kind, entry) in enumerate(zip(rows.parts(*_KIND), zip(*columns, strict=True), strict=True)):
        _, flags, method, checksum, *sizes = _FIELDS.unpack(kind)
        wide = (checksum, *_widened(source, entries, index, extra_sizes[index], (sizes[0], sizes[1])))
        unstated = (0, FULL32) if flags & HAS_DESCRIPTOR else ()
        same = all(value == known or value in unstated for value, known in zip(wide, entry[2:], strict=True))
        if (flags, method) != entry[:2] or not same:
            message = f"record {shown(entries.names[index])} has other flags or sizes in its own header"
            raise Corrupt("archive.ambiguous", f"{message} than in the directory")


def _widened(
    source: "Source", entries: Entries, index: int, extra_size: int, sizes: tuple[int, int]
) -> tuple[int, int]:
    """Packed size and size of a local header, from its ZIP64 field where they stand there."""
    if FULL32 not in sizes:
        return sizes
    begin = entries.headers[index] + _FIXED_BYTES + entries.name_sizes[index]
    extra = source.read(begin, extra_size) if begin + extra_size <= source.size else b""
    size, packed = [sizes[1]], [sizes[0]]
    field = zip64_field(entries.names[index], extra)
    if not field and entries.flags[index] & HAS_DESCRIPTOR:  # then the descriptor says
        return sizes
    if len(field) not in (8, 16):
        raise Corrupt("archive.malformed", f"the header of record {shown(entries.names[index])} lacks its 64 bit sizes")
    values = iter(struct.unpack(f"<{len(field) // 8}Q", field))
    for column in (size, packed):
        if column[0] == FULL32:
            column[0] = next(values, FULL32)
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
        allowed = (12, 16, 20, 24) if entries.flags[index] & HAS_DESCRIPTOR else (0,)
        if gap not in allowed and (gap or entries.packed_sizes[index]):
            raise Corrupt(
                "archive.malformed", f"after record {shown(name)}, nothing accounts for {counted(int(gap), 'byte')}"
            )
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
    if entries.headers[-1] >= FULL32 or max(entries.packed_sizes) >= FULL32:
        columns = zip(entries.flags, entries.headers, entries.packed_sizes, strict=True)
        return [
            (24 if header >= FULL32 or size >= FULL32 else 16) if size and flag & HAS_DESCRIPTOR else 0
            for flag, header, size in columns
        ]
    if all(flag & HAS_DESCRIPTOR for flag in set(entries.flags)):
        return (
            [16 if size else 0 for size in entries.packed_sizes]
            if 0 in entries.packed_sizes
            else [16] * len(entries.flags)
        )
    pairs = zip(entries.flags, entries.packed_sizes, strict=True)
    return [16 if size and flag & HAS_DESCRIPTOR else 0 for flag, size in pairs]


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
