"""Archives put together byte by byte, so that every field can lie: what torch writes, and what it never would."""

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

__all__ = ["LIE", "Entry", "archive", "checkpoint_entries", "with_end"]

LOCAL = struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.7
CENTRAL = struct.Struct("<4s6H3I5H2I")  # 4.3.12
END = struct.Struct("<4s4H2IH")  # 4.3.16
ZIP64_END = struct.Struct("<4sQ2H2I4Q")  # 4.3.14
LOCATOR = struct.Struct("<4sIQI")  # 4.3.15
LIE = 0x0BAD
"""A number that is true of nothing in these files."""
ALIGNMENT = 64
"""torch/csrc: caffe2/serialize/inline_container.h, `kFieldAlignment`."""


class Entry(msgspec.Struct, kw_only=True):
    """One record. None for what is to be as it must be."""

    name: bytes
    data: bytes = b""
    local_name: bytes | None = None
    flags: int = 0x0808
    """A descriptor follows, names are UTF-8: as miniz writes for torch."""
    local_flags: int | None = None
    method: int = 0
    local_method: int | None = None
    checksum: int | None = None
    local_checksum: int = 0
    sizes: tuple[int, int] | None = None
    """Packed and unpacked, in the directory."""
    local_sizes: tuple[int, int] = (0, 0)
    extra: bytes = b""
    local_extra: bytes | None = None
    """None: padding, as torch aligns records."""
    comment: bytes = b""
    attributes: int = 0
    made_by: int = 0
    descriptor: bytes | None = None
    before: bytes = b""
    """Bytes between the record before and this one's header."""
    header: int | None = None
    """Where the directory says that the header lies."""


def padding(name: bytes, begin: int) -> bytes:
    """The extra field with which torch aligns a record: inline_container.cc, `getPadding`."""
    start = begin + LOCAL.size + len(name) + 4
    size = ALIGNMENT - start % ALIGNMENT
    return b"FB" + struct.pack("<H", size) + b"Z" * size


def archive(
    entries: Sequence[Entry],
    *,
    prefix: bytes = b"",
    before_directory: bytes = b"",
    after_directory: bytes = b"",
    comment: bytes = b"",
    zip64: bool = True,
    **end: Any,
) -> bytes:
    """The bytes of an archive with these records, written as miniz does for torch unless an argument says otherwise."""
    body = bytearray(prefix)
    directory = b""
    for entry in entries:
        body += entry.before
        begin = len(body)
        body += _local(entry, begin)
        directory += _central(entry, begin)
    body += before_directory
    return bytes(body) + with_end(directory, len(body), len(entries), after_directory, comment, zip64=zip64, **end)


def with_end(
    directory: bytes,
    offset: int,
    count: int,
    after_directory: bytes = b"",
    comment: bytes = b"",
    *,
    zip64: bool = True,
    count64: int | None = None,
    offset64: int | None = None,
    size64: int | None = None,
    located: int | None = None,
    disks: int = 1,
) -> bytes:
    """A directory that lies at `offset`, and its end records."""
    size = len(directory)
    end = END.pack(b"PK\x05\x06", 0, 0, count, count, size, offset, len(comment)) + comment
    if not zip64:
        return directory + after_directory + end
    begin = offset + size + len(after_directory)
    wide = (
        count if count64 is None else count64,
        count if count64 is None else count64,
        size if size64 is None else size64,
        offset if offset64 is None else offset64,
    )
    record = ZIP64_END.pack(b"PK\x06\x06", ZIP64_END.size - 12, 0x031E, 45, 0, 0, *wide)
    locator = LOCATOR.pack(b"PK\x06\x07", 0, begin if located is None else located, disks)
    return directory + after_directory + record + locator + end


def checkpoint_entries(stem: bytes = b"archive", **changes: Entry) -> list[Entry]:
    """The records of a small sound checkpoint, `{"state_dict": {"w": zeros(4)}}`.

    Args:
        stem: the directory inside the archive.
        changes: records to put in place of `pickle`, `byteorder`, `storage`, `version` or `serialization`.
    """
    from tests.validators.hostile import state_dict_of, tensor_opcodes

    records = {
        "pickle": (b"data.pkl", state_dict_of(tensor_opcodes())),
        "byteorder": (b"byteorder", b"little"),
        "storage": (b"data/0", b"\0" * 16),
        "version": (b"version", b"3\n"),
        "serialization": (b".data/serialization_id", b"1" * 40),
    }
    return [changes.get(what) or Entry(name=stem + b"/" + name, data=data) for what, (name, data) in records.items()]


def _local(entry: Entry, begin: int) -> bytes:
    name = entry.name if entry.local_name is None else entry.local_name
    flags = entry.flags if entry.local_flags is None else entry.local_flags
    method = entry.method if entry.local_method is None else entry.local_method
    extra = padding(name, begin) if entry.local_extra is None else entry.local_extra
    fields = (0, flags, method, 0, 0, entry.local_checksum, *entry.local_sizes, len(name), len(extra))
    packed = _packed(entry)
    descriptor = entry.descriptor
    if descriptor is None:
        announced = flags & 0x0008 and packed
        numbers = (zlib.crc32(entry.data), len(packed), len(entry.data))
        descriptor = struct.pack("<4s3I", b"PK\x07\x08", *numbers) if announced else b""
    return LOCAL.pack(b"PK\x03\x04", *fields) + name + extra + packed + descriptor


def _central(entry: Entry, begin: int) -> bytes:
    checksum = zlib.crc32(entry.data) if entry.checksum is None else entry.checksum
    sizes = (len(_packed(entry)), len(entry.data)) if entry.sizes is None else entry.sizes
    lengths = (len(entry.name), len(entry.extra), len(entry.comment))
    header = begin if entry.header is None else entry.header
    numbers = (entry.made_by, 0, entry.flags, entry.method, 0, 0, checksum, *sizes, *lengths, 0, 0)
    return CENTRAL.pack(b"PK\x01\x02", *numbers, entry.attributes, header) + entry.name + entry.extra + entry.comment


def _packed(entry: Entry) -> bytes:
    if entry.method != 8:
        return entry.data
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(entry.data) + compressor.flush()
