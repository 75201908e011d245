"""What the rows of the state hold: entries as their JSON, the rest as msgpack; decoded into exact types or refused."""

import zlib
from collections.abc import Iterable

import msgspec

from ckptd.validators.inspection import TensorInfo

from .description import Description
from .entry import CheckpointEntry, Identities, Record
from .sharing import SharedValues
from .store import Tombstone

PUT_ENTRY = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)"
GET_ENTRIES = "SELECT id, entry, path, identities, modified_ns FROM entries"
PUT_TOMBSTONE = "INSERT OR REPLACE INTO tombstones VALUES (?, ?, ?)"
GET_TOMBSTONES = "SELECT id, tombstone FROM tombstones ORDER BY revision"

EntryRow = tuple[str, int, bytes, bytes, bytes, int]

_LEVEL = 1  # zlib: 20,001 tensors pack to a tenth; level 6 takes four times as long for little more


class BadRow(Exception):
    """Raised when a row does not decode; what it was about is then read again from the tree."""


def entry_row(record: Record) -> EntryRow:
    """The row of an entry. JSON decodes faster than msgpack here: 0.28 s against 0.51 s for 100,000."""
    entry = record.entry
    identities = _encoder.encode(record.identities)
    return entry.id, entry.revision, record.encoded, record.relative_path, identities, record.modified_ns


def record_of(row: tuple[str, bytes, bytes, bytes, int], shared: SharedValues) -> Record:
    """The record behind a row of `GET_ENTRIES`.

    Raises:
        BadRow: a value is damaged or of another type.
    """
    row_id, entry_json, path, identities, modified_ns = row
    try:
        entry = _entries.decode(entry_json)
        decoded = _identities.decode(identities)
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise BadRow(str(error)) from error
    if entry.id != row_id or type(path) is not bytes or type(modified_ns) is not int:
        raise BadRow("its columns contradict each other")
    record = Record(entry=entry, relative_path=path, identities=decoded, modified_ns=modified_ns)
    shared.share(record)
    return record


def tombstone_row(tombstone: Tombstone) -> tuple[str, int, bytes]:
    """The row of a deletion."""
    return tombstone.id, tombstone.revision, _encoder.encode(tombstone)


def tombstone_of(row: tuple[str, bytes]) -> Tombstone:
    """The deletion behind a row of `GET_TOMBSTONES`.

    Raises:
        BadRow: a value is damaged or of another type.
    """
    try:
        tombstone = _tombstones.decode(row[1])
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise BadRow(str(error)) from error
    if tombstone.id != row[0]:
        raise BadRow("its columns contradict each other")
    return tombstone


def pack_summary(description: Description) -> bytes:
    """A description without its tensor table."""
    inspection = msgspec.structs.replace(description.inspection, tensors=())
    return _pack(msgspec.structs.replace(description, inspection=inspection))


def pack_tensors(tensors: tuple[TensorInfo, ...]) -> bytes:
    """A tensor table: kept apart, because it is a hundred times the rest and seldom asked for."""
    return _pack(tensors)


def unpack_summary(data: bytes) -> Description:
    """Undo `pack_summary`. Raises BadRow."""
    try:
        return _summaries.decode(zlib.decompress(data))
    except (zlib.error, msgspec.DecodeError, TypeError, ValueError) as error:
        raise BadRow(str(error)) from error


def unpack_tensors(data: bytes) -> tuple[TensorInfo, ...]:
    """Undo `pack_tensors`. Raises BadRow."""
    try:
        return _tensors.decode(zlib.decompress(data))
    except (zlib.error, msgspec.DecodeError, TypeError, ValueError) as error:
        raise BadRow(str(error)) from error


def one_column(ids: Iterable[str]) -> list[tuple[str]]:
    """Ids as parameters of executemany."""
    return [(row_id,) for row_id in ids]


def _pack(value: object) -> bytes:
    return zlib.compress(_encoder.encode(value), _LEVEL)


_encoder = msgspec.msgpack.Encoder()
_entries = msgspec.json.Decoder(CheckpointEntry)
_identities = msgspec.msgpack.Decoder(Identities)
_tombstones = msgspec.msgpack.Decoder(Tombstone)
_summaries = msgspec.msgpack.Decoder(Description)
_tensors = msgspec.msgpack.Decoder(tuple[TensorInfo, ...])
