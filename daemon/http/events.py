"""EventHub: the live stream. One broadcaster serves every listener from one log, each at its own cursor.

No queue exists for a listener, so none can grow: a slow reader simply gets a longer range of the log later, with
superseded states skipped.
"""

import asyncio
import collections
import functools
import logging
import time
import weakref
from collections.abc import Callable, Sequence

from starlette.types import Receive, Send

from ckptd.catalog.store import Batch, Catalog

from ..loop import LoopMonitor, Phase
from ..metrics import StreamCounts
from .frames import Frame, Group
from .listener import Asked, Listener, opening_of, seen_by
from .rounds import Rounds
from .sending import SenderFactory, sender_for
from .source import FrameSource, bye
from .sse import Cursor

LIVE_PER_TURN = 128
"""Listeners served before the loop gets its turn (about 1 ms)."""
STARTING_PER_TURN_S = 0.0015
"""Time for those who start, of each turn: 200 snapshots at once must not delay those who listen."""
CLOSING_GRACE_S = 2.0
"""At the end, a listener that does not take its `bye` for so long is cut off."""

_log = logging.getLogger(__name__)

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]
GZIP_HEADERS = [*STREAM_HEADERS, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]


class EventHub:
    """All listeners of one catalog. `run` is the broadcaster; everything is called on its loop's thread."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        complete_as_of: Callable[[], float | None],
        coalesce_ms: float = 10,
        heartbeat_s: float = 15,
        max_listeners: int = 12_000,
        send_timeout_s: float = 30,
        sender_factory: SenderFactory = sender_for,
        monitor: LoopMonitor | None = None,
    ) -> None:
        """Args:
        catalog: the log.
        complete_as_of: up to when the catalog is known to be complete, in epoch seconds; shown in heartbeats.
        coalesce_ms: least time between two rounds to all listeners.
        heartbeat_s: time between heartbeats.
        max_listeners: further ones get `bye` at once.
        send_timeout_s: a listener that takes nothing for so long is cut off.
        sender_factory: how `send()` is driven.
        monitor: learns how long sending keeps the loop.
        """
        self.counts = StreamCounts()
        self.complete_as_of = complete_as_of
        self._catalog = catalog
        self._heartbeat_s = heartbeat_s
        self._max_listeners = max_listeners
        self._send_timeout_s = send_timeout_s
        self._sender_factory = sender_factory
        self._monitor = monitor or LoopMonitor()
        self._source = FrameSource(catalog, lambda: self.complete_as_of())
        self._news = self._source.news
        self._listeners: dict[Listener, None] = {}
        self._live: collections.deque[Listener] = collections.deque()
        self._starting: collections.deque[Listener] = collections.deque()
        self._idle: list[Listener] = []
        """Those that have everything: until the next round there is nothing to be done for them."""
        self._groups: weakref.WeakValueDictionary[tuple[str, bool], Group] = weakref.WeakValueDictionary()
        self._blocked: dict[Listener, None] = {}
        self._work = asyncio.Event()
        self._rounds = Rounds(coalesce_ms, self._work.set)
        self._gone = asyncio.Event()
        self._closing = False
        self._tasks: asyncio.TaskGroup | None = None
        catalog.on_publish(self._published)

    def __len__(self) -> int:
        return len(self._listeners)

    # ---- what the service says -----------------------------------------------------------------------------

    def announce_progress(self, done: int, total: int) -> None:
        """Tell all listeners how far a sweep or rebuild has come, in paths; only the latest is sent."""
        self._news.progress(done, total)
        self._request_round()

    def announce_rebuilt(self, token: str, revision: int) -> None:
        """Tell all listeners that a rebuild is done, after the changes that it found (up to `revision`)."""
        self._news.rebuilt(token, revision)
        self._request_round()

    async def run(self) -> None:
        """Broadcast until cancelled. Listeners are accepted while this runs."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._keep_time())
                while True:
                    self._work.clear()
                    await (asyncio.sleep(0) if self._turn() else self._work.wait())
        finally:
            self._closing = True
            self._tasks = None
            for listener in list(self._listeners):
                self._cut_off(listener)

    async def close(self) -> None:
        """End every stream with `bye`, so that the server can drain; accept no more.

        Returns when all have ended. One that does not take its `bye` within the grace is cut off.
        """
        self._closing = True
        self._wake_idle()
        self._work.set()
        try:
            async with asyncio.timeout(CLOSING_GRACE_S):
                while self._listeners:
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            for listener in list(self._listeners):
                self._cut_off(listener)

    def end_streams(self, reason: str) -> None:
        """End every stream that is open now with `bye`; whoever may still listen comes back with its cursor.

        One that does not take what is under way to it is cut off after `send_timeout_s`.
        """
        for listener in self._listeners:
            listener.dismissed_for = reason
        self._wake_idle()
        self._work.set()

    # ---- one listener --------------------------------------------------------------------------------------

    async def serve(
        self, asked: Asked, receive: Receive, send: Send, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Serve one listener until it goes or the hub closes.

        Args:
            asked: what it wants.
            receive: ASGI.
            send: ASGI.
            headers: further response headers.
        """
        own = GZIP_HEADERS if asked.gzip else STREAM_HEADERS
        await send({"type": "http.response.start", "status": 200, "headers": [*own, *headers]})
        if self._closing or self._tasks is None or len(self._listeners) >= self._max_listeners:
            self.counts.turned_away += 1
            full = len(self._listeners) >= self._max_listeners
            frame = bye("too many listeners" if full else "shutdown", len(self._listeners))
            await send((frame.gzipped(first=True) if asked.gzip else frame).message)
            return
        listener = self._enter(asked)
        del asked  # thousands wait here for hours
        listener.sender = self._sender_factory(send, functools.partial(self._ready, listener), self._tasks)
        self._enqueue(listener)
        try:
            await listener.sender.until_closed(receive)
        except asyncio.CancelledError:
            if not await self._dismissed(listener, send):
                raise
        finally:
            self._forget(listener)

    async def _dismissed(self, listener: Listener, send: Send) -> bool:
        """Whether a listener could be told `bye` by a server that stops to wait for open streams.

        uvicorn does so after `timeout_graceful_shutdown`, before it ends the lifespan that would have told it.
        """
        if listener.frame is not None:
            return False  # it does not take what is under way to it
        last = self._source.bye(listener, "shutdown", len(self._listeners))
        self._forget(listener)
        try:
            async with asyncio.timeout(CLOSING_GRACE_S):
                await send(last.message)
        except (OSError, TimeoutError):
            return False
        return True

    def _enter(self, asked: Asked) -> Listener:
        opening = opening_of(self._catalog, asked)
        self.counts.opened += 1
        self.counts.resumed += isinstance(opening, Cursor)
        key = (asked.view.filter_hash, asked.gzip)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(asked.view, gzip=asked.gzip)
        listener = Listener(group, self._news.told_to(asked.last_event_id), opening)
        listener.seen = seen_by(self._catalog, asked.last_event_id)
        self._listeners[listener] = None
        self.counts.listeners = len(self._listeners)
        return listener

    # ---- the broadcaster -----------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Serve some listeners; True when there is more to do at once."""
        with self._monitor.phase(Phase.LIVE):
            if self._rounds.is_due:
                self._begin_round()
            for _ in range(min(LIVE_PER_TURN, len(self._live))):
                self._advance(self._live.popleft())
        if self._starting:
            with self._monitor.phase(Phase.SNAPSHOT):
                self._serve_starting()
        return bool(self._live or self._starting or self._rounds.is_due)

    def _serve_starting(self) -> None:
        """Each at most once, so that one that waits for its filter does not use up the time of the others."""
        until = time.perf_counter() + STARTING_PER_TURN_S
        for _ in range(len(self._starting)):
            self._advance(self._starting.popleft())
            if time.perf_counter() >= until:
                return

    def _begin_round(self) -> None:
        self._rounds.begin()
        self._source.begin_round()
        self._wake_idle()

    def _wake_idle(self) -> None:
        # Those that were not yet served in the last round are at the head, and are served up to the new target:
        # with 10,000 listeners nobody waits for two rounds of 100 ms.
        self._live += self._idle
        self._idle.clear()

    def _advance(self, listener: Listener) -> None:
        """Finish what is under way to a listener, and start the next frame; one that must wait calls back."""
        listener.queued = False
        if listener.has_gone:
            return
        try:
            if listener.frame is None:
                frame = listener.frame = self._next_frame(listener)
                if frame is None:
                    self._rest(listener)
                    return
                delivered = listener.sender.write(frame)
            else:
                delivered = listener.sender.resume()
        except Exception as error:  # noqa: BLE001 - whatever breaks one stream must not end the broadcaster
            _log.warning("a live stream was cut off: %r", error, exc_info=not isinstance(error, OSError))
            self._cut_off(listener)
            return
        if delivered:
            self._delivered(listener)
        elif listener.blocked_since is None:
            listener.blocked_since = time.monotonic()
            self._blocked[listener] = None

    def _delivered(self, listener: Listener) -> None:
        frame, listener.frame = listener.frame, None
        assert frame is not None
        self.counts.frames_sent += 1
        self.counts.bytes_sent += frame.size
        if listener.blocked_since is not None:
            listener.blocked_since = None
            self._blocked.pop(listener, None)
        if frame.cursor is not None:
            listener.cursor = frame.cursor
        if frame.is_final:
            self._forget(listener)
        else:
            self._rest(listener)

    def _next_frame(self, listener: Listener) -> Frame | None:
        if self._closing:
            return self._source.bye(listener, "shutdown", len(self._listeners))
        if listener.dismissed_for is not None:
            return self._source.bye(listener, listener.dismissed_for, len(self._listeners))
        return self._source.next_frame(listener)

    def _rest(self, listener: Listener) -> None:
        """Have it wait its turn if there is more for it, else for the next round."""
        if self._closing or listener.dismissed_for is not None or self._source.has_more(listener):
            self._enqueue(listener)
        else:
            self._idle.append(listener)

    # ---- wake-ups ------------------------------------------------------------------------------------------

    def _published(self, _: Batch) -> None:
        self._request_round()

    def _request_round(self) -> None:
        if self._tasks is not None:  # without a broadcaster there are no listeners
            self._rounds.request()

    def _enqueue(self, listener: Listener) -> None:
        """Have the broadcaster look at a listener, unless it waits for its client."""
        if listener.queued or listener.blocked_since is not None:
            return
        listener.queued = True
        (self._starting if listener.is_starting else self._live).append(listener)
        self._work.set()

    def _ready(self, listener: Listener) -> None:
        """A sender's call back: the message under way can go on."""
        if not listener.has_gone and not listener.queued:
            listener.queued = True
            (self._starting if listener.is_starting else self._live).append(listener)
            self._work.set()

    async def _keep_time(self) -> None:
        beat_at = time.monotonic() + self._heartbeat_s
        while True:
            await asyncio.sleep(min(self._heartbeat_s, self._send_timeout_s, 4.0) / 4)
            now = time.monotonic()
            if now >= beat_at:
                beat_at = now + self._heartbeat_s
                self._news.heartbeat()
                self.counts.heartbeat_at = time.time()
                self._request_round()
            self._check_blocked(now)
            self._source.frames.forget_unused()

    def _check_blocked(self, now: float) -> None:
        for listener in list(self._blocked):
            assert listener.blocked_since is not None
            if now - listener.blocked_since >= self._send_timeout_s:
                self.counts.timed_out += 1
                self._cut_off(listener)
        self._source.snapshots.unpin_slow(now)

    def _cut_off(self, listener: Listener) -> None:
        listener.sender.abandon()
        self._forget(listener)

    def _forget(self, listener: Listener) -> None:
        if self._listeners.pop(listener, self) is self:
            return
        self.counts.listeners = len(self._listeners)
        self._blocked.pop(listener, None)
        listener.has_gone = True
        self._source.forget(listener)
        # The sender knows its listener: without this only the garbage collector, which runs once in hours, would free
        # the connection with all that it had buffered, 100 KB of a stalled one.
        del listener.sender
        listener.frame = None
        self._gone.set()
