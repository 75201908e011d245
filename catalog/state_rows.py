"""What the rows of the state hold: entries as their JSON, the rest as msgpack; decoded into exact types or refused."""

import zlib
from collections.abc import Iterable
from types import NoneType

import msgspec

from ckptd.validators.inspection import FileIdentity, Level, TensorInfo

from .description import Description
from .entry import CheckpointEntry, Identities, Record
from .sharing import SharedValues
from .store import Tombstone
from .verification import Verification

PUT_ENTRY = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)"
GET_ENTRIES = "SELECT id, entry, path, identities, modified_ns, text_key FROM entries"
PUT_TOMBSTONE = "INSERT OR REPLACE INTO tombstones VALUES (?, ?, ?)"
GET_TOMBSTONES = "SELECT id, tombstone FROM tombstones ORDER BY revision"
PUT_VERIFICATION = (
    "INSERT OR REPLACE INTO verifications SELECT ?1, ?2, ?3, ?4, ?5 WHERE EXISTS (SELECT 1 FROM entries WHERE id = ?1)"
)
OUTDATE_VERIFICATION = "UPDATE verifications SET verified_at = 0 WHERE id = ? AND identity != ?"
"""It stays, to be compared with the next one, and no longer counts: the file has changed since."""
GET_UNVERIFIED = (
    "SELECT entries.id FROM entries LEFT JOIN verifications AS v ON v.id = entries.id "
    "WHERE v.id IS NULL OR v.verified_at = 0 OR v.asked < ?"
)
GET_OLDEST_VERIFIED = "SELECT MIN(verified_at) FROM verifications WHERE verified_at > 0"
GET_VERIFIED_BEFORE = (
    "SELECT verified_at, id FROM verifications "
    "WHERE verified_at > 0 AND (verified_at, id) > (?, ?) AND verified_at < ? ORDER BY verified_at, id LIMIT ?"
)

EntryRow = tuple[str, int, bytes, bytes, bytes, int, int | None]

_LEVEL = 1  # zlib: 20,001 tensors pack to a tenth; level 6 takes four times as long for little more


class BadRow(Exception):
    """Raised when a row does not decode; what it was about is then read again from the tree."""


def entry_row(record: Record) -> EntryRow:
    """The row of an entry. JSON decodes faster than msgpack here: 0.28 s against 0.51 s for 100,000."""
    entry = record.entry
    identities = _encoder.encode(record.identities)
    return (
        *(entry.id, entry.revision, record.encoded, record.relative_path),
        *(identities, record.modified_ns, record.text_key),
    )


def record_of(row: tuple[str, bytes, bytes, bytes, int, int | None], shared: SharedValues) -> Record:
    """The record behind a row of `GET_ENTRIES`.

    Raises:
        BadRow: a value is damaged or of another type.
    """
    row_id, entry_json, path, identities, modified_ns, text_key = row
    try:
        entry = _entries.decode(entry_json)
        decoded = _identities.decode(identities)
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise BadRow(str(error)) from error
    types_fit = type(path) is bytes and type(modified_ns) is int and type(text_key) in (int, NoneType)
    if entry.id != row_id or not types_fit:
        raise BadRow("its columns contradict each other")
    record = Record(entry=entry, relative_path=path, identities=decoded, modified_ns=modified_ns, text_key=text_key)
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
    """A description without its tensor table, and without the line that is kept once for all who share it."""
    inspection = msgspec.structs.replace(description.inspection, tensors=())
    return _pack(msgspec.structs.replace(description, inspection=inspection, search_text=""))


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


def verification_row(checkpoint_id: str, verification: Verification) -> tuple[str, int, float | None, bytes, bytes]:
    """The row of a verification. Its time says when it is due again: never for a file that ended its reader, and 0,
    as for one that was never verified, where the disk failed."""
    return (
        checkpoint_id,
        rank(verification.asked),
        None if verification.is_final else 0.0 if verification.is_unreadable else verification.verified_at,
        pack_identity(verification.identity, verification.shards),
        _encoder.encode(verification),
    )


def unpack_verification(data: bytes) -> Verification:
    """Undo what `verification_row` did. Raises BadRow."""
    try:
        return _verifications.decode(data)
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise BadRow(str(error)) from error


def outdating(record: Record) -> tuple[str, bytes]:
    """Parameters of `OUTDATE_VERIFICATION`."""
    return record.entry.id, pack_identity(record.identities.file, record.identities.shards)


def pack_identity(identity: FileIdentity, shards: str | None) -> bytes:
    """A state of a file, to be compared byte by byte."""
    return _encoder.encode((identity, shards))


def rank(level: Level) -> int:
    """A level as a number that grows with it."""
    return list(Level).index(level)


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
_verifications = msgspec.msgpack.Decoder(Verification)
