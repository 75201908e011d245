"""Listeners for tests of the live stream: what a client makes of the bytes, and one that speaks ASGI in-process."""

import asyncio
import json
import zlib
from collections.abc import Callable
from typing import Any, Self

from ckptd.daemon.http.events import EventHub
from ckptd.daemon.http.frames import View
from ckptd.daemon.http.listener import Asked


class Message:
    """One event as EventSource would report it."""

    def __init__(self, last_event_id: str, data: dict[str, Any], retry: int | None) -> None:
        self.last_event_id = last_event_id
        self.data = data
        self.retry = retry

    @property
    def type(self) -> str:
        return str(self.data["type"])


class EventParser:
    """The event stream format of the WHATWG HTML standard, section 9.2.6, as far as we use it."""

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self._rest = b""

    def feed(self, chunk: bytes) -> list[Message]:
        self._rest += chunk
        *blocks, self._rest = self._rest.split(b"\n\n")
        return [self._message(block.decode()) for block in blocks]

    def interrupted(self) -> None:
        """The connection ended: half an event is none (WHATWG HTML, 9.2.6, at the end of the stream)."""
        self._rest = b""

    def _message(self, block: str) -> Message:
        retry, data = None, []
        for line in block.split("\n"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "id":
                self.last_event_id = value
            elif field == "retry":
                retry = int(value)
            elif field == "data":
                data.append(value)
            else:
                raise AssertionError(f"unexpected field in {line!r}")
        return Message(self.last_event_id, json.loads("\n".join(data)), retry)


class ClientState:
    """What a client keeps: the rules of the wire, and checks that nothing ever goes backwards."""

    def __init__(self, has_all: Callable[[int], bool] | None = None) -> None:
        """`has_all(revision)`: whether everything up to there was told; by default, as far as the ids say."""
        self.has_all = has_all or (lambda revision: self.revision >= revision)
        self.entries: dict[str, dict[str, Any]] = {}
        self.whole = False
        """A snapshot is complete, or the stream was resumed."""
        self.revision = 0
        self.instance = ""
        self.parser = EventParser()
        self.said_bye = False
        self.rebuilt: dict[str, int] = {}
        self._snapshot_seen: set[str] = set()

    def feed(self, chunk: bytes) -> list[Message]:
        messages = self.parser.feed(chunk)
        for message in messages:
            self._apply(message)
        return messages

    def _apply(self, message: Message) -> None:
        data = message.data
        match message.type:
            case "reset":
                assert message.last_event_id == "", "a snapshot must not be resumable in its middle"
                self.entries, self.whole, self._snapshot_seen = {}, False, set()
            case "batch":
                assert not self.whole
                assert message.last_event_id == ""
                for entry in data["checkpoints"]:
                    assert entry["id"] not in self._snapshot_seen, "an entry twice in one snapshot"
                    self._snapshot_seen.add(entry["id"])
                    self.entries[entry["id"]] = entry
                assert len(data["checkpoints"]) == data["count"]
            case "complete":
                assert len(self.entries) == data["total"]
                self._reach(message, data["revision"])
                self.whole = True
            case "resumed":
                assert data["revision"] == self.revision
                self.whole = True
            case "upsert":
                self._upsert(message)
            case "delete":
                assert self.whole
                for gone in data["checkpoints"]:
                    self.entries.pop(gone["id"], None)
                self._reach(message, _revision_of(message))
            case "heartbeat":
                assert data["revision"] == _revision_of(message) == self.revision
            case "rebuilt":
                assert self.has_all(data["revision"]), "a rebuild was reported before what it found"
                self.rebuilt[data["token"]] = data["revision"]
            case "bye":
                assert message.retry is not None
                self.said_bye = True
            case "progress":
                pass
            case other:
                raise AssertionError(f"unknown message {other}")

    def _upsert(self, message: Message) -> None:
        assert self.whole
        for entry in message.data["checkpoints"]:
            known = self.entries.get(entry["id"])
            assert known is None or entry["revision"] > known["revision"], "an entry went backwards"
            assert self.revision < entry["revision"] <= _revision_of(message), "out of order"
            self.entries[entry["id"]] = entry
        self._reach(message, _revision_of(message))

    def _reach(self, message: Message, revision: int) -> None:
        assert _revision_of(message) == revision
        instance = message.last_event_id.rsplit(".", 2)[0]
        if instance != self.instance:
            assert message.type in ("complete", "upsert", "delete"), "nothing is resumed from another instance"
        else:
            assert revision >= self.revision, "the stream went backwards"
        self.instance, self.revision = instance, revision


def _revision_of(message: Message) -> int:
    return int(message.last_event_id.rsplit(".", 2)[1])


class InProcessListener:
    """A listener without a socket, whose reading can be stopped, and whose going is seen as servers report it.

    What it does not read waits first on its way (`lag`: the server's sends succeed), or in the server (`stall`).
    """

    def __init__(self, state: ClientState, *, gzip: bool = False) -> None:
        self.state = state
        self.messages: list[Message] = []
        self.ended = False
        self.is_waited_for = False
        self.failure: AssertionError | None = None
        """What was wrong with a message. Raised here it would only look like a client that broke."""
        self._decompressor = zlib.decompressobj(31) if gzip else None
        self._gzip = gzip
        self._on_its_way = bytearray()
        self.lags = False
        self._room = asyncio.Event()
        self._room.set()
        self._gone = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def connect(self, hub: EventHub, view: View, last_event_id: str | None) -> Self:
        asked = Asked(view, last_event_id, self._gzip)
        self._task = asyncio.ensure_future(hub.serve(asked, self._receive, self._send))
        return self

    def lag(self) -> None:
        """Read nothing more, while all that is sent finds room."""
        self.lags = True

    def stall(self) -> None:
        """Read nothing more, and have the next send wait."""
        self.lags = True
        self._room.clear()

    def read(self, limit: int | None = None) -> None:
        """Read what is on its way, at most so many bytes."""
        size = len(self._on_its_way) if limit is None else limit
        chunk = bytes(self._on_its_way[:size])
        del self._on_its_way[:size]
        try:
            self.messages += self.state.feed(
                chunk if self._decompressor is None else self._decompressor.decompress(chunk)
            )
        except AssertionError as failure:
            self.failure = self.failure or failure

    def read_on(self) -> None:
        """Read all there is, and all that comes."""
        self.lags = False
        self.read()
        self._room.set()

    async def leave(self) -> None:
        """Close the connection; whatever was not read is lost."""
        self._gone.set()
        self._room.set()
        assert self._task is not None
        await self._task
        self.state.parser.interrupted()

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        # As uvicorn: wait while the client does not read, drop what comes after it has gone.
        self.is_waited_for = True
        await self._room.wait()
        self.is_waited_for = False
        if self._gone.is_set() or message["type"] == "http.response.start":
            return
        self._on_its_way += message["body"]
        if not self.lags:
            self.read()
        if not message["more_body"]:
            self.ended = True
            self._gone.set()
