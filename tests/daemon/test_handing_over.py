"""A clean stop while somebody else holds the socket: who was accepted is answered, others wait for the next process."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ckptd.daemon.http import connections
from ckptd.daemon.http.app import build_app
from ckptd.daemon.http.connections import HttpConfig, HttpServer, Limits
from ckptd.daemon.http.security import AccessPolicy
from ckptd.daemon.settings import Settings
from tests.daemon.fakes import DEADLINE_S, FakeBackend, until

pytestmark = pytest.mark.anyio
ASKS = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CLIENTS = 20


@pytest.fixture
def held(tmp_path: Path):
    """A socket that listens, whoever serves it, as systemd's."""
    with socket.create_server(("127.0.0.1", 0), backlog=2 * CLIENTS) as listener:
        listener.setblocking(False)
        yield listener


@contextlib.asynccontextmanager
async def served(held: socket.socket, tmp_path: Path) -> AsyncIterator[HttpServer]:
    """One process after the other would serve it; ended as the service ends."""
    backend = FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")))
    app = build_app(backend, AccessPolicy(None, hosts=frozenset({"localhost"})))
    server = HttpServer(HttpConfig(app, Limits()))
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([held.dup()]))
        await until(lambda: server.started)
        yield server
        server.should_exit = True


def client(held: socket.socket, sent: bytes = ASKS) -> socket.socket:
    """Connect and send, before anybody in this process can accept."""
    made = socket.create_connection(held.getsockname())
    made.sendall(sent)
    made.setblocking(False)
    return made


async def answer(of: socket.socket) -> bytes:
    """Everything that a client is sent; a reset fails the test."""
    reader, writer = await asyncio.open_connection(sock=of)
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("turns", range(6))
async def test_at_whichever_turn_of_the_loop_it_stops_nobody_is_reset(
    turns: int, held: socket.socket, tmp_path: Path
) -> None:
    """asyncio resets connections that it has accepted and not begun when their server is closed."""
    async with served(held, tmp_path) as first:
        clients = [client(held) for _ in range(CLIENTS)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await first.take_no_more()
        clients += [client(held) for _ in range(CLIENTS)]
    async with served(held, tmp_path):
        answers = [await answer(of) for of in clients]
    assert [text[:15] for text in answers] == [b"HTTP/1.1 200 OK"] * len(clients)


async def test_a_client_that_has_just_connected_may_still_finish_its_question(
    held: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "FIRST_REQUEST_S", 3600)
    async with served(held, tmp_path) as server:
        slow = client(held, ASKS[:10])
        await until(lambda: server.server_state.connections, "it is accepted")
        stopping = asyncio.ensure_future(server.take_no_more())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(stopping), 0.1)
        slow.send(ASKS[10:])
        assert (await answer(slow)).startswith(b"HTTP/1.1 200")
        await stopping


async def test_a_stop_does_not_wait_for_one_that_has_been_silent_for_long(
    held: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "FIRST_REQUEST_S", 0)
    async with served(held, tmp_path) as server:
        silent = client(held, b"")
        await until(lambda: server.server_state.connections, "it is accepted")
        async with asyncio.timeout(DEADLINE_S):
            await server.take_no_more()
    assert await answer(silent) == b""
