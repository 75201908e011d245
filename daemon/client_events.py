"""Server-sent events, parsed from the bytes of a response (WHATWG HTML, 9.2.6), and what those of ckptd say."""

import codecs
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import msgspec

from ckptd.catalog.entry import CheckpointEntry

from .client_types import ClientError

_T = TypeVar("_T")
MAX_EVENT_BYTES = 64 << 20
"""Of one event; a daemon's largest is a batch of a snapshot, some 100 KB."""
MAX_RETRY_MS = 3_600_000


class Event(NamedTuple):
    """One event."""

    data: bytes
    id: str
    """The last event id as it stands once this event is delivered; empty where there is none."""


class Gone(msgspec.Struct, frozen=True):
    """An entry that left."""

    id: str
    path: str
    reason: str


class Message(msgspec.Struct, frozen=True):
    """The data of an event, whatever its type. Types that are not known here have other members, and mean nothing."""

    type: str
    checkpoints: list[msgspec.Raw] = []
    """Of `batch` and `upsert` entries, of `delete` `Gone`."""
    revision: int = 0
    reason: str = ""
    token: str = ""
    complete_as_of: str | None = None
    done: int = 0
    total: int = 0

    def entries(self) -> list[CheckpointEntry]:
        """The entries of a `batch` or `upsert`."""
        return [_decoded(_entries, raw) for raw in self.checkpoints]

    def gone(self) -> list[Gone]:
        """The entries of a `delete`."""
        return [_decoded(_gone, raw) for raw in self.checkpoints]


class EventParser:
    """Cuts bytes into events. The id moves when its event is complete: never ahead of what was delivered."""

    def __init__(self, last_id: str = "") -> None:
        self.retry_ms: int | None = None
        """The reconnection time that the server asked for last."""
        self._rest = b""
        self._begun = False
        self._id = last_id
        self._next_id = last_id
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that `chunk` completes.

        Raises:
            ClientError: an event has no end.
        """
        for line in self._lines(chunk):
            if not self._begun:
                self._begun, line = True, line.removeprefix(codecs.BOM_UTF8)
            if line:
                self._take(line)
                continue
            self._id = self._next_id
            if self._data:
                data, self._data, self._size = b"\n".join(self._data), [], 0
                yield Event(data, self._id)

    def _lines(self, chunk: bytes) -> list[bytes]:
        """Complete lines. They end in LF, CR or both, and in nothing else that Unicode would break a line at."""
        text = self._rest + chunk
        if b"\r" in text:
            held = b"\r" if text.endswith(b"\r") else b""  # an LF may still belong to it
            text = text.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        *lines, self._rest = text.split(b"\n")
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise ClientError(f"an event of the live stream has more than {MAX_EVENT_BYTES} bytes; is this a ckptd?")
        return lines

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value)
        elif field == b"id" and b"\0" not in value:
            self._next_id = value.decode("utf-8", "replace")
        elif field == b"retry" and value.isdigit():
            self.retry_ms = min(int(value[:10]), MAX_RETRY_MS)


def message_of(event: Event) -> Message:
    """What an event says.

    Raises:
        ClientError: it is none of a ckptd's.
    """
    return _decoded(_messages, event.data)


def _decoded(decoder: "msgspec.json.Decoder[_T]", data: bytes | msgspec.Raw) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"an event of the live stream is not understood ({error}); is it a ckptd, and of this version?"
        raise ClientError(message) from error


_messages = msgspec.json.Decoder(Message)
_entries = msgspec.json.Decoder(CheckpointEntry)
_gone = msgspec.json.Decoder(Gone)
