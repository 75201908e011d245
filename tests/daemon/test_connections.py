"""Connections, over real sockets: how many, how large, how slow; what goes beyond a limit harms nobody else."""

import asyncio
import contextlib
import gc
import itertools
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from ckptd.daemon.http import connections
from ckptd.daemon.http.connections import MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_PIPELINED, LimitedProtocol, Limits
from ckptd.daemon.http.listener import Listener
from ckptd.daemon.http.sending import ChunkSender
from ckptd.daemon.settings import Settings
from tests.daemon.fakes import DEADLINE_S, FakeBackend, Server, serving, until

pytestmark = pytest.mark.anyio
HEAD = b"GET %b HTTP/1.1\r\nHost: localhost\r\n"
LIST = HEAD % b"/checkpoints" + b"\r\n"
EVENTS = HEAD % b"/checkpoints/events" + b"\r\n"


class Connection:
    """A client that writes whatever bytes it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        async with asyncio.timeout(DEADLINE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
            )
            return int(head[9:12]), await self.reader.readexactly(length)

    async def is_closed(self) -> bool:
        """Read to the end of the connection."""
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(1 << 16):
                    pass
            return True

    def vanish(self) -> None:
        transport = self.writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class Clients:
    """Connections to one server, hung up at the end."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.connections: list[Connection] = []

    async def connect(self, first: bytes = b"") -> Connection:
        assert not isinstance(self.server.address, str)
        connection = Connection(*await asyncio.open_connection(*self.server.address))
        self.connections.append(connection)
        connection.send(first)
        return connection


@contextlib.asynccontextmanager
async def clients_of(tmp_path: Path, **limits: object) -> AsyncIterator[tuple[Clients, FakeBackend]]:
    backend = FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")))
    async with serving(backend, limits=Limits(**limits)) as server:  # type: ignore[arg-type]
        clients = Clients(server)
        try:
            yield clients, backend
        finally:
            for connection in clients.connections:
                connection.vanish()


# ---- slow ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [b"G", b"GET /check", LIST[:-2], LIST[:-2] + b"X-Half", b"POST /rebuild HTTP/1.1\r\n"],
    ids=["a byte", "half a line", "no end", "half a header", "a line"],
)
async def test_half_a_request_is_answered_by_408_and_closed(sent: bytes, tmp_path: Path) -> None:
    async with clients_of(tmp_path, request_timeout_s=0.2) as (clients, _):
        slow = await clients.connect(sent)
        status, body = await slow.answer()
        assert (status, json.loads(body)["title"]) == (408, "Request Timeout")
        assert await slow.is_closed()


async def test_a_client_that_says_nothing_at_all_is_closed(tmp_path: Path) -> None:
    async with clients_of(tmp_path, request_timeout_s=0.2) as (clients, _):
        silent = await clients.connect()
        assert await silent.reader.read() == b""


async def test_a_connection_that_is_kept_alive_and_asks_no_more_is_closed(tmp_path: Path) -> None:
    async with clients_of(tmp_path, keep_alive_s=1) as (clients, _):
        idle = await clients.connect(LIST)
        assert (await idle.answer())[0] == 200
        assert await idle.is_closed()


async def test_a_byte_now_and_then_buys_no_time(tmp_path: Path) -> None:
    """Slowloris: each header line arrives well within any time-out between two of them."""
    async with clients_of(tmp_path, request_timeout_s=0.3) as (clients, _):
        slow = await clients.connect(HEAD % b"/checkpoints")
        answer = asyncio.ensure_future(slow.answer())
        for number in itertools.count():
            slow.send(b"X-%d: x\r\n" % number)
            if (await asyncio.wait([answer], timeout=0.02))[0]:
                break
        assert (await answer)[0] == 408


async def test_a_body_that_never_comes_closes_the_connection_after_its_answer(tmp_path: Path) -> None:
    async with clients_of(tmp_path, request_timeout_s=0.2) as (clients, _):
        for promise in (b"Content-Length: 10\r\n\r\nfive!", b"Transfer-Encoding: chunked\r\n\r\n5\r\n"):
            slow = await clients.connect(HEAD % b"/checkpoints" + promise)
            assert (await slow.answer())[0] == 200
            assert await slow.is_closed()


async def test_empty_lines_keep_no_connection_open(tmp_path: Path) -> None:
    async with clients_of(tmp_path, request_timeout_s=0.2) as (clients, _):
        idle = await clients.connect(LIST)
        assert (await idle.answer())[0] == 200
        idle.send(b"\r\n")
        assert await idle.is_closed()


async def test_a_live_stream_is_no_slow_request(tmp_path: Path) -> None:
    """Nor does an empty line after its request end it."""
    async with clients_of(tmp_path, request_timeout_s=0.1) as (clients, backend):
        live = await clients.connect(EVENTS + b"\r\n")
        slow = await clients.connect(LIST[:-2])
        assert (await slow.answer())[0] == 408, "more than the time of a request has passed"
        backend.put("run/a.ckpt")
        async with asyncio.timeout(DEADLINE_S):
            assert await live.reader.readuntil(b"a.ckpt")


# ---- large -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(
    "head",
    [
        b"GET /checkpoints?q=%b HTTP/1.1\r\nHost: localhost\r\n" % (b"x" * MAX_HEAD_BYTES),
        HEAD % b"/checkpoints" + b"X-Long: %b\r\n" % (b"x" * MAX_HEAD_BYTES),
        HEAD % b"/checkpoints" + b"X-Many: 1\r\n" * (MAX_HEAD_BYTES // 7),
    ],
    ids=["target", "header", "headers"],
)
async def test_too_large_a_head_is_answered_by_431(head: bytes, ended: bool, tmp_path: Path) -> None:
    """Whether it ever ends or not."""
    async with clients_of(tmp_path) as (clients, _):
        large = await clients.connect()
        pieces = head + b"\r\n" if ended else head.removesuffix(b"\r\n") + b"x" * 400_000
        for start in range(0, len(pieces), 10_000):
            large.send(pieces[start : start + 10_000])
        status, body = await large.answer()
        assert status == 431
        assert json.loads(body)["remedy"]


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1),
        b"Content-Length: 99999999999999\r\n\r\n",
    ],
)
async def test_a_body_that_is_too_large_is_answered_by_413_before_it_is_read(framing: bytes, tmp_path: Path) -> None:
    async with clients_of(tmp_path) as (clients, backend):
        large = await clients.connect(b"POST /rebuild HTTP/1.1\r\nHost: localhost\r\n" + framing)
        for _ in range(20):
            large.send(b"x" * 100_000)  # a client that reads only once it has sent is not reset
        status, body = await large.answer()
        assert (status, json.loads(body)["title"]) in [(413, "Request Entity Too Large"), (413, "Content Too Large")]
        assert not backend.rebuilds


async def test_a_body_without_end_closes_the_connection(tmp_path: Path) -> None:
    async with clients_of(tmp_path) as (clients, _):
        large = await clients.connect(HEAD % b"/checkpoints/events" + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(MAX_BODY_BYTES // 1000 + 2):
            large.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        assert await large.is_closed()


async def test_a_small_body_is_dropped(tmp_path: Path) -> None:
    async with clients_of(tmp_path) as (clients, _):
        for _ in range(2):
            usual = await clients.connect(HEAD % b"/checkpoints" + b"Content-Length: 2\r\n\r\n{}" + LIST)
            assert [(await usual.answer())[0] for _ in range(2)] == [200, 200]


async def test_what_is_not_http_is_answered_by_a_problem(tmp_path: Path) -> None:
    async with clients_of(tmp_path) as (clients, _):
        for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\0" * 50, HEAD % b"/" + b"no colon\r\n\r\n"):
            other = await clients.connect(garbage)
            status, body = await other.answer()
            assert (status, json.loads(body)["status"]) == (400, 400)
            assert await other.is_closed()


# ---- many ------------------------------------------------------------------------------------------------------


async def test_connections_above_the_limit_are_answered_by_503_and_health_goes_on(tmp_path: Path) -> None:
    async with clients_of(tmp_path, max_connections=5) as (clients, backend):
        for _ in range(5):
            await clients.connect(EVENTS)
        await until(lambda: len(backend.hub) == 5)
        surplus = await clients.connect(LIST)
        status, body = await surplus.answer()
        assert (status, json.loads(body)["detail"]) == (503, "there are too many connections")
        supervisor = await clients.connect(HEAD % b"/health?probe=1" + b"\r\n")
        assert (await supervisor.answer())[0] == 200
        clients.connections[0].vanish()
        surplus.vanish()
        supervisor.vanish()
        await until(lambda: len(backend.hub) == 4)
        assert (await (await clients.connect(LIST)).answer())[0] == 200, "there is room again"


async def test_above_the_reserve_connections_are_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "RESERVED", 2)
    async with clients_of(tmp_path, max_connections=1) as (clients, _):
        kept = [await clients.connect() for _ in range(3)]
        surplus = await clients.connect(HEAD % b"/health" + b"\r\n")
        assert await surplus.is_closed()
        kept[2].send(HEAD % b"/health" + b"\r\n")
        assert (await kept[2].answer())[0] == 200


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with clients_of(tmp_path) as (clients, _):
        hasty = await clients.connect(b"".join(HEAD % b"/checkpoints?page=%d" % n + b"\r\n" for n in range(1, 11)))
        pages = [json.loads((await hasty.answer())[1])["page"] for _ in range(10)]
        assert pages == list(range(1, 11))


async def test_too_many_pipelined_requests_close_the_connection(tmp_path: Path) -> None:
    async with clients_of(tmp_path) as (clients, _):
        hasty = await clients.connect(EVENTS + LIST * (MAX_PIPELINED + 1))
        assert await hasty.is_closed()


async def test_a_listener_that_pipelined_a_request_behind_its_stream_is_forgotten_when_it_vanishes(
    tmp_path: Path,
) -> None:
    """uvicorn tells only the last request of a connection that the client has gone."""
    async with clients_of(tmp_path) as (clients, backend):
        hasty = await clients.connect(EVENTS + LIST)
        await until(lambda: len(backend.hub) == 1)
        hasty.vanish()
        await until(lambda: len(backend.hub) == 0, "the listener is forgotten")


# ---- gone ------------------------------------------------------------------------------------------------------


async def test_what_a_connection_held_is_freed_when_it_ends_without_the_garbage_collector(tmp_path: Path) -> None:
    """The collector runs once in hours: a thousand stalled readers would leave 60 MB until then, in pieces."""
    kinds = (LimitedProtocol, RequestResponseCycle, Listener, ChunkSender)

    def held() -> int:
        # Not isinstance: among all there is are things that do not like to be asked for their class.
        return sum(type(thing) in kinds or "SocketTransport" in type(thing).__name__ for thing in gc.get_objects())

    backend = FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")), send_timeout_s=0.2)
    loop = asyncio.get_running_loop()
    gc.collect()
    gc.disable()
    try:
        async with serving(backend) as server:
            assert not isinstance(server.address, str)
            before = held()
            for end in ("vanishes", "stalls", "asks and hangs up"):
                connections = [socket.socket() for _ in range(5)]
                for connection in connections:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    connection.setblocking(False)
                    await loop.sock_connect(connection, server.address)
                    await loop.sock_sendall(connection, LIST if end == "asks and hangs up" else EVENTS)
                    await loop.sock_recv(connection, 15)
                while end == "stalls" and backend.hub.counts.timed_out < len(connections):
                    backend.put_many(100, display_name="x" * 4000 + str(backend.catalog.revision))
                    await asyncio.sleep(0.01)
                for connection in connections:
                    connection.close()
                await until(lambda: len(backend.hub) == 0)
                backend.put("round.ckpt", epoch=backend.catalog.revision)
                await until(lambda: held() == before, f"nothing of one that {end} is left")
    finally:
        gc.enable()
