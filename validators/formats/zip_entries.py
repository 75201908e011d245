"""The directory of an archive: its entries, each parsed strictly and checked by itself.

Readers of zip files disagree about what is lax. torch looks names up without regard to case, and which of two equal
ones it meets depends on how many records there are (a binary search); Python's zipfile takes the last; who reads a
stream believes the records' own headers (`zip_headers`). What two readers may see differently is refused. Section
numbers are those of PKWARE's APPNOTE 6.3.10.
"""

import struct

import msgspec

from ..errors import Corrupt
from ..text import clip
from .rows import Rows

MAX_RECORDS = 2_000_000
"""Twenty times the largest checkpoints; the directory of such a file has 120 MB."""
STORED, DEFLATED = 0, 8
HAS_DESCRIPTOR = 0x0008
"""Flag (4.4.4, bit 3): checksum and sizes stand behind the record, and need not in its header."""
FULL32 = 0xFFFFFFFF
"""In place of a size or an offset: the ZIP64 extra field has it."""

_MARK = b"PK\x01\x02"
_FIXED_BYTES = 42
"""Of an entry (4.3.12), behind its signature and before its name."""
# Offsets of fields behind the signature.
_KIND, _CHECKSUM, _PACKED_SIZE, _SIZE = (0, 12), 12, 16, 20
_NAME_SIZE, _EXTRA_SIZE, _COMMENT_SIZE, _PLACE, _HEADER = 24, 26, 28, (30, 38), 38
_FLAGS_AND_METHOD = struct.Struct("<4x2H4x")
_DISK_AND_ATTRIBUTES = struct.Struct("<2HI")

_REFUSED_FLAGS = 0x0001 | 0x0020 | 0x0040 | 0x2000  # 4.4.4: encrypted, patch data, strong encryption, masked headers
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
    if not count or count * (_FIXED_BYTES + 4) > len(directory):
        raise Corrupt("archive.malformed", f"the directory has no room for the {count:,} records that it counts")
    pieces = directory.split(_MARK)
    if len(pieces) == count + 1 and not pieces[0]:
        del pieces[0]
        entries = _entries(pieces)
        if entries is not None:
            return entries
    # A signature among the numbers of an entry, or one that is missing.
    walked = _entries(_walk(directory, count))
    if walked is None:
        raise Corrupt("archive.malformed", "the directory's entries do not add up")
    return walked


class Names(msgspec.Struct):
    """The names of all records as text, no two of which are the same to any reader."""

    stem: str
    """The directory inside the archive that all lie in; empty where they share none."""
    texts: list[str]
    positions: dict[str, int]


def read_names(names: list[bytes]) -> Names:
    """Decode the names, and refuse those that readers tell apart differently.

    torch takes the stem from the first record and looks names up without regard to case
    (`mz_zip_reader_locate_file_v2`).

    Raises:
        Corrupt: two are alike, one is simplified by some readers, or one lies outside the checkpoint's directory.
    """
    joined = b"\0".join(names)
    if joined.count(b"\0") != len(names) - 1 or b"\\" in joined:
        raise Corrupt(
            "archive.ambiguous", "a record's name holds a NUL or a backslash, which readers treat differently"
        )
    # No name holds a NUL: one decoding is 20 times faster than 20,000.
    texts = joined.decode("utf-8", "surrogateescape").split("\0")
    positions = dict(zip(texts, range(len(texts)), strict=True))
    if len(positions) != len(names) or _collides(joined, len(names)):
        double = _first_double(list(map(bytes.lower, names)))
        raise Corrupt("archive.ambiguous", f"record {shown(double)} is there twice, upper and lower case being equal")
    stem, slash, _ = names[0].partition(b"/")
    inside = stem + slash
    if not slash or not stem or joined.count(b"\0" + inside) + joined.startswith(inside) != len(names):
        _refuse_strangers(names, inside)
        return Names("", texts, positions)
    ends = joined.replace(b"\0", b"/\0") + b"/"
    if any(part in ends for part in _SEPARATORS) and any(map(_has_odd_parts, names)):
        odd = next(filter(_has_odd_parts, names))
        raise Corrupt("archive.ambiguous", f"record {shown(odd)} has a path that readers simplify differently")
    return Names(stem.decode("utf-8", "surrogateescape"), texts, positions)


def shown(name: bytes) -> str:
    """A record's name for people."""
    return clip(name.decode("utf-8", "surrogateescape"))


def zip64_field(name: bytes, extra: bytes) -> bytes:
    """The contents of the ZIP64 part of an extra field; nothing where there is none.

    Raises:
        Corrupt: the extra field is not made of whole parts, or of parts that some readers follow and torch does not.
    """
    found: list[bytes] = []
    position = 0
    while position < len(extra):
        head = extra[position : position + 4]
        kind, size = struct.unpack("<2H", head) if len(head) == 4 else (0, FULL32)
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


def _walk(directory: bytes, count: int) -> list[bytes]:
    """The entries without their signature, one after the other by the lengths that they state."""
    pieces: list[bytes] = []
    position = 0
    for _ in range(count):
        if directory[position : position + 4] != _MARK:
            raise Corrupt("archive.malformed", "an entry of the directory does not begin with its signature")
        lengths = directory[position + 28 : position + 34]
        if len(lengths) < 6:
            raise Corrupt("archive.malformed", "the directory ends inside a record's entry")
        end = position + 4 + _FIXED_BYTES + sum(struct.unpack("<3H", lengths))
        piece = directory[position + 4 : end]
        if _MARK in piece[_FIXED_BYTES:]:
            raise Corrupt("archive.ambiguous", "an entry of the directory holds what looks like another entry")
        pieces.append(piece)
        position = end
    if position != len(directory):
        raise Corrupt("archive.malformed", f"the directory's entries take {position} bytes, not {len(directory)}")
    return pieces


def _entries(pieces: list[bytes]) -> Entries | None:
    """The columns of all entries; None where one has not the length that it states."""
    fixed = b"".join([piece[:_FIXED_BYTES] for piece in pieces])
    if len(fixed) != _FIXED_BYTES * len(pieces):
        return None
    rows = Rows(fixed, _FIXED_BYTES)
    packed_sizes, sizes, headers = (rows.numbers(offset, 4) for offset in (_PACKED_SIZE, _SIZE, _HEADER))
    name_sizes = rows.numbers(_NAME_SIZE, 2)
    names = [piece[_FIXED_BYTES:] for piece in pieces]
    if rows.common(_EXTRA_SIZE, _COMMENT_SIZE + 2) != bytes(4):
        extra_sizes, comment_sizes = rows.numbers(_EXTRA_SIZE, 2), rows.numbers(_COMMENT_SIZE, 2)
        stated = [sum(lengths) for lengths in zip(name_sizes, extra_sizes, comment_sizes, strict=True)]
        if list(map(len, names)) != stated:
            return None
        tails = names
        names = [tail[:size] for tail, size in zip(tails, name_sizes, strict=True)]
        extras = [tail[n : n + e] for tail, n, e in zip(tails, name_sizes, extra_sizes, strict=True)]
        _apply_extras(names, extras, (sizes, packed_sizes, headers))
    elif list(map(len, names)) != name_sizes:
        return None
    elif FULL32 in sizes or FULL32 in packed_sizes or FULL32 in headers:
        _apply_extras(names, [b""] * len(names), (sizes, packed_sizes, headers))
    flags, methods = _flags_and_methods(names, rows)
    if rows.common(*_PLACE) != bytes(8) or b"/\0" in b"\0".join((*names, b"")):
        _check_places(names, rows.parts(*_PLACE), packed_sizes)
    if sizes != packed_sizes:
        _check_stored(names, methods, sizes, packed_sizes)
    return Entries(names, flags, methods, rows.numbers(_CHECKSUM, 4), packed_sizes, sizes, name_sizes, headers)


def _flags_and_methods(names: list[bytes], rows: Rows) -> tuple[list[int], list[int]]:
    common = rows.common(*_KIND)
    kinds = [common] * rows.count if common is not None else rows.parts(*_KIND)
    by_kind = {kind: _FLAGS_AND_METHOD.unpack(kind) for kind in ([common] if common is not None else set(kinds))}
    for kind, (flags, method) in by_kind.items():
        if flags & _REFUSED_FLAGS:
            message = f"record {shown(names[kinds.index(kind)])} is marked as encrypted or a patch, which torch refuses"
            raise Corrupt("archive.ambiguous", message)
        if method not in (STORED, DEFLATED):
            name = shown(names[kinds.index(kind)])
            raise Corrupt(
                "archive.malformed", f"record {name} is compressed by method {method}, which torch cannot read"
            )
    if common is not None:
        flags, method = by_kind[common]
        return [flags] * rows.count, [method] * rows.count
    return [by_kind[kind][0] for kind in kinds], [by_kind[kind][1] for kind in kinds]


def _check_places(names: list[bytes], places: list[bytes], packed_sizes: list[int]) -> None:
    """Look at disks and external attributes, which are zero in what torch writes."""
    for name, place, size in zip(names, places, packed_sizes, strict=True):
        disk, _, attributes = _DISK_AND_ATTRIBUTES.unpack(place)
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
        missing = [column for column in columns if column[index] == FULL32]
        if not extra and not missing:
            continue
        field = zip64_field(names[index], extra)
        if len(field) != 8 * len(missing):
            name = shown(names[index])
            if len(field) < 8 * len(missing):
                raise Corrupt("archive.malformed", f"record {name} lacks its 64 bit sizes")
            raise Corrupt(
                "archive.ambiguous", f"record {name} has sizes of 32 and of 64 bits; readers take one of them"
            )
        for column, value in zip(missing, struct.unpack(f"<{len(missing)}Q", field), strict=True):
            column[index] = value


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
