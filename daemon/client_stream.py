"""Following a live stream over all its connections: resuming, backing off, noticing a dead one."""

import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import anyio
import httpx

from .client_events import Event, EventParser, Message, message_of
from .client_types import ClientError, StreamState, StreamStatus
from .client_view import View

EVENTS_PATH = "/checkpoints/events"
MEDIA_TYPE = "text/event-stream"
HEARTBEAT_HEADER = "x-heartbeat-interval"
"""Seconds between two heartbeats of the daemon that answers."""
HEARTBEAT_S = 15.0
"""Where it does not say."""
MISSED_HEARTBEATS = 2.5
"""A stream that says nothing for so many of them is dead: its peer is gone without a word, or hangs."""
CONNECT_TIMEOUT_S = 30.0
"""Until the answer begins."""
FIRST_RETRY_S, LAST_RETRY_S = 0.25, 15.0
LONGEST_RETRY_S = 120.0
"""However long a daemon asks to stay away."""
_LATER = frozenset((408, 425, 429))
"""Refusals that pass by themselves, as all of 500 and above do."""

OnStatus = Callable[[StreamStatus], None]


class _Broken(Exception):
    """Raised when a connection ended or never came about; says why."""

    def __init__(self, reason: str, retry_in_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_in_s = retry_in_s
        """What the daemon asked for."""


class Follower:
    """One watch of one daemon."""

    def __init__(self, http: httpx.AsyncClient, filters: Mapping[str, Any], view: View, on_status: OnStatus) -> None:
        self._http = http
        self._filters = filters
        self._view = view
        self._on_status = on_status
        self._failures = 0
        self._complete_as_of: str | None = None

    async def events(self) -> AsyncGenerator[tuple[Event, Message]]:
        """Events of one connection after the other, for ever.

        Raises:
            ClientError: the daemon refuses for good, or is none.
        """
        while True:
            self._tell(StreamState.CONNECTING)
            try:
                async with contextlib.aclosing(self._connection()) as events:
                    async for event, message in events:
                        self._failures = 0
                        self._note(message)
                        yield event, message
            except _Broken as broken:
                self._view.interrupted()
                wait_s = _pause(self._failures, broken.retry_in_s)
                self._failures += 1
                self._tell(StreamState.WAITING, str(broken), wait_s)
                await anyio.sleep(wait_s)

    async def _connection(self) -> AsyncGenerator[tuple[Event, Message]]:
        """Events of one connection.

        Raises:
            _Broken: when it ends, always.
            ClientError: as `events`.
        """
        parser = EventParser(self._view.event_id)
        headers = {"Accept": MEDIA_TYPE, "Cache-Control": "no-store"}
        if self._view.event_id:
            headers["Last-Event-ID"] = self._view.event_id
        try:
            async with self._http.stream("GET", EVENTS_PATH, params=self._filters, headers=headers) as answer:
                await _check(answer)
                async with contextlib.aclosing(_chunks(answer)) as chunks:
                    async for chunk in chunks:
                        for event in parser.feed(chunk):
                            yield event, message_of(event)
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Broken(str(error) or type(error).__name__, _asked(parser)) from error
        raise _Broken("the daemon ended the stream", _asked(parser))

    def _note(self, message: Message) -> None:
        match message.type:
            case "reset":
                self._tell(StreamState.SNAPSHOT, message.reason)
            case "complete" | "resumed":
                self._tell(StreamState.LIVE)
            case "heartbeat":
                self._complete_as_of = message.complete_as_of
                self._tell(StreamState.LIVE)
            case "progress":
                self._tell(StreamState.LIVE, progress=(message.done, message.total))

    def _tell(
        self,
        state: StreamState,
        reason: str | None = None,
        retry_in_s: float | None = None,
        progress: tuple[int, int] | None = None,
    ) -> None:
        self._on_status(
            StreamStatus(
                state=state,
                reason=reason,
                retry_in_s=retry_in_s,
                complete_as_of=self._complete_as_of,
                progress=progress,
            )
        )


async def check_answer(answer: httpx.Response) -> None:
    """Let an answer pass that is no refusal; its body is read otherwise.

    Raises:
        ClientError: in the daemon's own words.
    """
    if not answer.is_success:
        await answer.aread()
        raise refusal(answer)


def refusal(answer: httpx.Response) -> ClientError:
    """What a refused request becomes. The body has been read."""
    problem: Any = None
    with contextlib.suppress(ValueError):
        problem = answer.json()
    problem = problem if isinstance(problem, dict) else {}
    detail = problem.get("detail") or f"the daemon answered {answer.status_code}"
    remedy = problem.get("remedy")
    return ClientError(f"{detail}; {remedy}" if remedy else str(detail), answer.status_code, problem)


async def _check(answer: httpx.Response) -> None:
    if answer.status_code in _LATER or answer.status_code >= 500:
        raise _Broken(f"the daemon answered {answer.status_code}", _retry_after(answer))
    await check_answer(answer)
    media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != MEDIA_TYPE:
        raise ClientError(f"{answer.url} gives {media_type or 'nothing'} instead of events; is it a ckptd?")


async def _chunks(answer: httpx.Response) -> AsyncGenerator[bytes]:
    """The body, piece by piece.

    Raises:
        _Broken: nothing came for longer than heartbeats leave room for.
    """
    silence_s = MISSED_HEARTBEATS * _heartbeat_s(answer)
    pieces = answer.aiter_bytes()
    while True:
        try:
            with anyio.fail_after(silence_s):
                piece = await anext(pieces, None)
        except TimeoutError:
            raise _Broken(f"no heartbeat for {silence_s:g} s") from None
        if piece is None:
            return
        yield piece


def _heartbeat_s(answer: httpx.Response) -> float:
    try:
        seconds = float(answer.headers[HEARTBEAT_HEADER])
    except (KeyError, ValueError):
        return HEARTBEAT_S
    return seconds if 0 < seconds < 86_400 else HEARTBEAT_S  # not a number is neither


def _asked(parser: EventParser) -> float | None:
    return None if parser.retry_ms is None else parser.retry_ms / 1000


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds of `Retry-After`; a date, which proxies send, does not count (RFC 9110, 10.2.3)."""
    text = answer.headers.get("retry-after", "")
    return float(text[:9]) if text.isascii() and text.isdigit() else None


def _pause(failures: int, asked_s: float | None) -> float:
    """Until the next attempt, with jitter: of a thousand clients no two shall come back in the same moment.

    What the daemon asks for is the least; while it stays away the pauses grow.
    """
    pause_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.5)  # noqa: S311
    if asked_s is None:
        return pause_s
    asked_s = min(asked_s, LONGEST_RETRY_S) * random.uniform(1, 1.1)  # noqa: S311
    return asked_s if failures == 0 else max(asked_s, pause_s)
