"""Connections: uvicorn's protocol with what it leaves open: how many, how large and how slow requests may be."""

import asyncio
import contextlib
import math
import socket
import struct
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ..sockets import BACKLOG
from .guesses import PEER, PEER_UID
from .problems import ProblemError

if TYPE_CHECKING:
    from uvicorn.server import ServerState

ACCEPTED_PER_TURN = 64
"""Connections taken from the kernel in one turn of the loop; each then costs about 0.1 ms in the next turns."""
RESERVED = 64
"""Connections above the limit that are still taken, for supervisors that ask for `HEALTH_PATH`."""
HEALTH_PATH = b"/health"
MAX_HEAD_BYTES = 64 << 10
"""Of a request: its line and its headers."""
MAX_BODY_BYTES = 64 << 10
"""No route takes a body. A small one is read and dropped, as some clients always send one."""
LINGER_S = 2.0
"""For a client that is refused to read why; until then what it sends is dropped, as a reset would lose the answer."""
FIRST_REQUEST_S = 2.0
"""How long from its beginning a clean stop waits for a connection's first request. With the socket units, those that
say nothing stay with the kernel (DeferAcceptSec=): this is for Unix sockets, and where a part of a request has come."""
TURNS_TO_BEGIN = 3
"""Turns of the loop from accept() to `connection_made`: a task that asyncio makes, its step, and a callback of that."""
_CREDENTIALS = struct.Struct("=iII")
"""struct ucred: process, user and group (unix(7))."""
MAX_PIPELINED = 16
"""Requests that wait on one connection for the answers to those before them."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What clients may ask of a server's connections."""

    max_connections: int = 16_384
    request_timeout_s: float = 10.0
    """For a whole request to arrive, from its first byte or from the connection's beginning."""
    keep_alive_s: int = 10
    """For the next request to begin."""


class Deadlines:
    """Connections that owe us the rest of a request. All have the same time, so the first to enter is the first due."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._due: dict[LimitedProtocol, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, connection: "LimitedProtocol") -> None:
        """Begin its time, unless it has begun: who sends a byte now and then gets no more of it."""
        if connection in self._due:
            return
        loop = asyncio.get_running_loop()
        self._due[connection] = loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s, self._expire)

    def age_s(self, connection: "LimitedProtocol") -> float:
        """Seconds since its time began; infinite where it owes nothing."""
        due = self._due.get(connection, -math.inf)
        return asyncio.get_running_loop().time() - (due - self._timeout_s)

    def stop(self, connection: "LimitedProtocol") -> None:
        """It owes nothing any more."""
        self._due.pop(connection, None)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._due:
            connection, due = next(iter(self._due.items()))
            if due > loop.time():
                self._timer = loop.call_at(due, self._expire)
                return
            del self._due[connection]
            connection.time_is_over()


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration, with the limits that the protocol enforces."""

    def __init__(self, app: ASGIApp, limits: Limits, *, root_path: str = "", drain_s: int = 4) -> None:
        """Args:
        app: what answers.
        limits: see there.
        root_path: a prefix that a proxy strips.
        drain_s: how long open answers may take at the end.
        """
        super().__init__(
            app,
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            root_path=root_path,
            timeout_keep_alive=limits.keep_alive_s,
            timeout_graceful_shutdown=drain_s,
            backlog=ACCEPTED_PER_TURN,  # asyncio takes so many at once
        )
        self.limits = limits
        self.deadlines = Deadlines(limits.request_timeout_s)
        self.lingering = Deadlines(min(LINGER_S, limits.request_timeout_s))


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the service decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """No handlers."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; with a longer queue in the kernel than asyncio takes from it at once."""
        await super().startup(sockets=sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    async def take_no_more(self) -> None:
        """Stop accepting, and let every client that was accepted ask its question.

        With sockets that systemd holds, whoever comes later waits in the kernel's queue for the next process.
        """
        loop = asyncio.get_running_loop()
        for listener in (listener for server in self.servers for listener in server.sockets):
            loop.remove_reader(listener)
        # A server that is closed at once resets those that were accepted and have not begun: 73 in 40 restarts.
        for _ in range(TURNS_TO_BEGIN):
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        # No event: nothing else ever waits for a first request, and each connection would have to carry one.
        while any(connection.is_about_to_ask() for connection in self._connections()):  # noqa: ASYNC110
            await anyio.sleep(0.01)

    def _connections(self) -> Iterator["LimitedProtocol"]:
        return (connection for connection in self.server_state.connections if isinstance(connection, LimitedProtocol))


class LimitedProtocol(HttpToolsProtocol):
    """One connection. What goes beyond a limit is answered by a problem where that is still possible, and closed."""

    config: HttpConfig
    # Beside uvicorn's own attributes: with more than 30 of them Python no longer shares the keys, 1.3 KB each.
    __slots__ = (
        "_body_bytes",
        "_crowded",
        "_cycles",
        "_deadlines",
        "_head_bytes",
        "_in_head",
        "_limits",
        "_peer_uid",
        "_refused",
    )

    def __init__(
        self,
        config: HttpConfig,
        server_state: "ServerState",
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.pipeline = _Pipeline()  # type: ignore[assignment]  # an empty deque takes 0.7 KB
        self._limits = config.limits
        self._deadlines = config.deadlines
        self._crowded = False
        self._peer_uid: int | None = None
        self._in_head = False
        self._head_bytes = 0
        self._body_bytes = 0
        self._refused = False
        self._cycles: list[RequestResponseCycle] = []
        """Requests without their whole answer; usually the one."""

    def is_about_to_ask(self) -> bool:
        """Nothing was asked on it yet, and it is so young that something may well be."""
        has_asked = self._refused or self.cycle is not None  # None until then, whatever uvicorn's annotation says
        return not has_asked and self._deadlines.age_s(self) < FIRST_REQUEST_S

    # ---- asyncio -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, or hang up where even the reserve is used up."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._peer_uid = _peer_uid(transport)
        surplus = len(self.connections) - self._limits.max_connections
        self._crowded = surplus > 0
        if surplus > RESERVED:
            transport.abort()
        else:
            self._deadlines.start(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request of the connection; uvicorn tells the last one."""
        self._deadlines.stop(self)
        self.config.lingering.stop(self)
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
            cycle.message_event.set()
        self._cycles.clear()
        super().connection_lost(exc)
        # asyncio's transport refers to itself by this method. The collector that would free it runs once in hours, and
        # 1,000 connections of stalled readers leave 60 MB in pieces until then.
        self.transport._read_ready_cb = None  # type: ignore[attr-defined]  # noqa: SLF001 - nothing public ends it
        self._unset_keepalive_if_required()  # uvicorn leaves the timer, and what it holds, after a reset

    def data_received(self, data: bytes) -> None:
        """Parse, as long as it is worth it."""
        if self._refused:
            return  # read on, so that the kernel does not answer by a reset before the client has the reason
        was_in_head = self._in_head
        if not self._is_answering():
            self._deadlines.start(self)
        super().data_received(data)
        if was_in_head and self._in_head:
            self._count_head(len(data))

    def time_is_over(self) -> None:
        """What was owed did not come in time."""
        if self._refused or not self._in_head or self._is_answering():
            self.transport.abort()
        else:
            self._refuse(408, "the request did not arrive in time", "send it at once")

    # ---- the parser ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        if self._peer_uid is not None:
            self.scope[PEER_UID] = self._peer_uid  # type: ignore[literal-required]  # for `security` alone
        elif self.client is not None:
            self.scope[PEER] = self.client[0]  # type: ignore[literal-required]  # before a proxy's headers count
        self._in_head = True
        self._head_bytes = self._body_bytes = 0
        if not self._refused:
            self._deadlines.start(self)

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        super().on_header(name, value)
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Answer it, unless it is refused for what is known by now."""
        self._in_head = False
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        if self._refused:
            return
        if self._is_surplus() and self.url.partition(b"?")[0] != HEALTH_PATH:
            self._refuse(503, "there are too many connections", "try again later", {"Retry-After": "5"})
        elif self._content_length() > MAX_BODY_BYTES:
            self._refuse_body()
        elif len(self._cycles) > MAX_PIPELINED:
            self._refused = True
            self.transport.close()
        else:
            super().on_headers_complete()
            self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body_bytes += len(body)
        if self._refused:
            return
        if self._body_bytes > MAX_BODY_BYTES:
            self._refuse_body()
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived."""
        if not self._refused:
            self._deadlines.stop(self)
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser does not understand."""
        if not self._refused:
            self._refuse(400, "the request is not valid HTTP/1.1", "speak HTTP/1.1, without TLS")

    # ---- refusing ------------------------------------------------------------------------------------------

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES and not self._refused:
            self._refuse(431, f"the request's line and headers exceed {MAX_HEAD_BYTES} bytes", "send fewer or shorter")

    def _is_surplus(self) -> bool:
        return self._crowded and len(self.connections) > self._limits.max_connections

    def _content_length(self) -> int:
        # The parser has checked it: digits, and only one.
        return int(next((value for name, value in self.headers if name == b"content-length"), 0))

    def _refuse_body(self) -> None:
        self._refuse(413, f"the body exceeds {MAX_BODY_BYTES} bytes", "send none: no request here takes one")

    def _is_answering(self) -> bool:
        return any(not cycle.response_complete for cycle in self._cycles)

    def _refuse(self, status: int, detail: str, remedy: str, headers: dict[str, str] | None = None) -> None:
        """Answer by a problem and end the connection; one that has other answers under way is just ended."""
        self._refused = True
        if self._is_answering():
            self.transport.abort()
            return
        response = ProblemError(status, detail, remedy=remedy, headers=headers).response()
        head = [b"%b: %b\r\n" % pair for pair in (*self.server_state.default_headers, *response.raw_headers)]
        self.transport.write(b"".join([STATUS_LINE[status], *head, b"connection: close\r\n\r\n", bytes(response.body)]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._deadlines.stop(self)
        self.config.lingering.start(self)


def _peer_uid(transport: asyncio.Transport) -> int | None:
    """The user who connected to a Unix socket; None for any other socket."""
    peer = transport.get_extra_info("socket")
    if peer is None or peer.family != socket.AF_UNIX:
        return None
    _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


class _Pipeline(list[tuple[RequestResponseCycle, Any]]):
    """Requests that wait, the last one first; as much of a deque as uvicorn uses."""

    def appendleft(self, request: tuple[RequestResponseCycle, Any]) -> None:
        self.insert(0, request)


class _Flow(FlowControl):
    """uvicorn's, with an event only while there is something to wait for: an idle one takes 0.8 KB."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.write_paused = False
        self._writable: asyncio.Event | None = None

    async def drain(self) -> None:
        if self._writable is not None:
            await self._writable.wait()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._writable = self._writable or asyncio.Event()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None:
            self._writable.set()
            self._writable = None
