"""The messages of the live stream, as bytes: one unnamed server-sent event each, its data one JSON object."""

import re
from collections.abc import Iterable, Sequence

import msgspec

from ckptd.catalog.entry import Record
from ckptd.catalog.store import DeleteReason, LogItem, Tombstone, revision_of

_encode = msgspec.json.encode
_REVISION = re.compile(r"0|[1-9][0-9]{0,17}")
"""As `str` writes it: what begins with a zero is not ours."""


class Cursor(msgspec.Struct, frozen=True):
    """What an event id says: up to which revision of which log a reader of which filter has read."""

    instance: str
    revision: int
    filter_hash: str

    def __str__(self) -> str:
        return f"{self.instance}.{self.revision}.{self.filter_hash}"

    @classmethod
    def parse(cls, text: str) -> "Cursor | None":
        """Read an id back; None for anything that `str` of a cursor does not produce."""
        instance, revision, filter_hash = ["", "", *text.rsplit(".", 2)][-3:]
        if not (instance and filter_hash and _REVISION.fullmatch(revision)):
            return None
        return cls(instance, int(revision), filter_hash)


def message(data: bytes, cursor: Cursor | None = None) -> bytes:
    """One event. `data` is JSON, which holds no line breaks; without a cursor the reader's last id stays."""
    if cursor is None:
        return b"data: %b\n\n" % data
    return b"id: %b\ndata: %b\n\n" % (str(cursor).encode(), data)


def reset(reason: str) -> bytes:
    """Drop what you have, a snapshot follows. The empty id makes a reader that is cut off here start anew."""
    return b"id: \ndata: %b\n\n" % _encode({"type": "reset", "reason": reason})


def batch(records: Sequence[Record], *, has_more: bool) -> bytes:
    """A piece of a snapshot, newest first. It has no id: a snapshot cannot be resumed in its middle."""
    return batch_of([record.encoded for record in records], has_more=has_more)


def batch_of(entries: Sequence[bytes], *, has_more: bool) -> bytes:
    """As `batch`, of entries that are JSON already."""
    more = b"true" if has_more else b"false"
    return message(
        b'{"type":"batch","checkpoints":[%b],"count":%d,"has_more":%b}' % (b",".join(entries), len(entries), more)
    )


def complete(total: int, revision: int, cursor: Cursor | None = None) -> bytes:
    """The snapshot is done; it showed the catalog as it stood at `revision`."""
    return message(b'{"type":"complete","total":%d,"revision":%d}' % (total, revision), cursor)


def resumed(cursor: Cursor) -> bytes:
    """The reader's cursor is good; what it missed follows."""
    return message(b'{"type":"resumed","revision":%d}' % cursor.revision, cursor)


def upsert(records: Iterable[Record], cursor: Cursor) -> bytes:
    """Full states of new or changed entries."""
    return message(b'{"type":"upsert","checkpoints":[%b]}' % b",".join([r.encoded for r in records]), cursor)


def delete(items: Iterable[LogItem], cursor: Cursor) -> bytes:
    """Entries that left the catalog; a record stands for one that left only the reader's filtered view."""
    gone = [
        {"id": item.id, "path": item.path, "reason": item.reason}
        if isinstance(item, Tombstone)
        else {"id": item.entry.id, "path": item.entry.path, "reason": DeleteReason.FILTERED}
        for item in items
    ]
    return message(_encode({"type": "delete", "checkpoints": gone}), cursor)


def heartbeat(cursor: Cursor, complete_as_of: str | None) -> bytes:
    """Nothing is new: the reader has everything up to its cursor."""
    data = {"type": "heartbeat", "revision": cursor.revision, "complete_as_of": complete_as_of}
    return message(_encode(data), cursor)


def progress(done: int, total: int) -> bytes:
    """How far a sweep or rebuild has come, in paths."""
    return message(b'{"type":"progress","done":%d,"total":%d}' % (done, total))


def rebuilt(token: str, revision: int) -> bytes:
    """The rebuild of that token is done; what it found is in the log up to `revision`."""
    return message(_encode({"type": "rebuilt", "token": token, "revision": revision}))


def bye(reason: str, retry_ms: int) -> bytes:
    """The server ends this stream; come back after `retry_ms`."""
    return b"retry: %d\n" % retry_ms + message(_encode({"type": "bye", "reason": reason}))


def last_revision(items: Sequence[LogItem]) -> int:
    """The revision that a reader has reached once it has all of `items`, which are in revision order."""
    return revision_of(items[-1])
