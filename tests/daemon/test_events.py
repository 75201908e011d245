"""The live stream over real sockets: what is told, to whom, and how streams end."""

import asyncio
import contextlib
import gzip
import logging
import os
import re
import socket
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

from ckptd.catalog.entry import Health
from ckptd.catalog.store import Catalog, Retention
from ckptd.daemon.http import AccessPolicy, build_app, events
from ckptd.daemon.http.compression import GZIP_HEADER, shared_piece
from ckptd.daemon.http.frames import View
from ckptd.daemon.http.sending import SteppedSender
from ckptd.daemon.settings import Settings
from tests.catalog.catalog_records import put, record_of
from tests.daemon.fakes import FakeBackend, RawListener, Server, serving, until
from tests.daemon.stream_clients import ClientState, InProcessListener

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parent / "golden"
REGENERATE = os.environ.get("CKPTD_REGENERATE_GOLDEN") == "1"


def backend_of(tmp_path: Path, **hub_options: Any) -> FakeBackend:
    return FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")), **hub_options)


# ---- the wire, as it is written --------------------------------------------------------------------------------


async def _snapshot_then_changes(backend: FakeBackend, server: Server) -> list[RawListener]:
    backend.put("run/best.ckpt", epoch=7, metrics={"hmean": 0.9})
    backend.put("run/last.ckpt")
    listener = await server.listen()
    heard = Heard(listener)
    await heard.until("complete")
    backend.put("run/next.ckpt")
    await heard.until("upsert")
    backend.drop("run/last.ckpt")
    await heard.until("delete")
    backend.hub.announce_progress(1, 2)
    await heard.until("progress")
    backend.hub.announce_rebuilt("token-1", backend.catalog.revision)
    await heard.until("rebuilt")
    await backend.hub.close()
    await heard.to_the_end()
    return [heard]


async def _under_a_filter(backend: FakeBackend, server: Server) -> list[Any]:
    backend.put("run/a.ckpt", exp_name="one")
    backend.put("run/b.ckpt", exp_name="two")
    heard = Heard(await server.listen("?exp_name=one"))
    await heard.until("complete")
    backend.put("run/a.ckpt", exp_name="two")
    await heard.until("delete")
    backend.put("run/b.ckpt", exp_name="one", health=Health.INVALID)
    await heard.until("filtered")
    backend.put("run/b.ckpt", exp_name="one")
    await heard.until("upsert")
    return [heard]


async def _resumed(backend: FakeBackend, server: Server) -> list[Any]:
    backend.put("run/a.ckpt")
    backend.put("run/b.ckpt")
    by_header = Heard(await server.listen(headers="Last-Event-ID: testing.1.0\r\n"))
    await by_header.until("upsert")
    by_query = Heard(await server.listen("?last_event_id=testing.2.0"))
    await by_query.until("resumed")
    return [by_header, by_query]


async def _any_doubt(backend: FakeBackend, server: Server) -> list[Any]:
    backend.put("run/a.ckpt")
    doubtful = ("another.1.0", "testing.99.0", "testing.1.feedbeef", "gibberish")
    heard = [Heard(await server.listen(headers=f"Last-Event-ID: {cursor}\r\n")) for cursor in doubtful]
    for one in heard:
        await one.until("complete")
    return heard


async def _heartbeat(backend: FakeBackend, server: Server) -> list[Any]:
    backend.put("run/a.ckpt")
    heard = Heard(await server.listen())
    await heard.until("heartbeat")
    return [heard]


async def _too_many(backend: FakeBackend, server: Server) -> list[Any]:
    first = Heard(await server.listen())
    await first.until("complete")
    second = Heard(await server.listen())
    await second.to_the_end()
    return [second]


class Heard:
    """A listener that keeps what it read."""

    def __init__(self, listener: RawListener) -> None:
        self.listener = listener
        self.body = b""

    async def until(self, word: str) -> None:
        start = len(self.body)
        while f'"{word}"'.encode() not in self.body[start:]:
            chunk = await self.listener.chunk()
            assert chunk, f"the stream ended before {word}"
            self.body += chunk

    async def to_the_end(self) -> None:
        while chunk := await self.listener.chunk():
            self.body += chunk


SCENARIOS: dict[str, tuple[Callable[[FakeBackend, Server], Awaitable[Any]], dict[str, Any]]] = {
    "snapshot_then_changes": (_snapshot_then_changes, {}),
    "under_a_filter": (_under_a_filter, {}),
    "resumed": (_resumed, {}),
    "any_doubt": (_any_doubt, {}),
    "heartbeat": (_heartbeat, {"heartbeat_s": 0.1}),
    "too_many": (_too_many, {"max_listeners": 1}),
}


@pytest.mark.parametrize("name", SCENARIOS)
async def test_the_wire_is_as_the_golden_transcript_says(name: str, tmp_path: Path) -> None:
    """Clients exist: a change here is a change of the protocol. `CKPTD_REGENERATE_GOLDEN=1` writes them anew."""
    scenario, hub_options = SCENARIOS[name]
    backend = backend_of(tmp_path, **hub_options)
    async with serving(backend) as server:
        heard = await scenario(backend, server)
    transcript = "\n========\n\n".join(_normalised(one.listener.head + one.body) for one in heard)
    path = GOLDEN / f"{name}.txt"
    if REGENERATE:
        path.write_text(transcript)
    assert transcript == path.read_text()


def _normalised(data: bytes) -> str:
    text = data.decode().replace("\r\n", "\n")
    text = re.sub(r"^date: .*$", "date: <now>", text, flags=re.MULTILINE)
    return re.sub(r"^retry: \d+$", "retry: <random>", text, flags=re.MULTILINE)


# ---- compression -----------------------------------------------------------------------------------------------


async def test_a_reader_that_asks_for_gzip_is_told_the_same_and_at_once(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    backend.put_many(1_200)
    async with serving(backend) as server:
        plain = await server.listen()
        packed = await server.listen(headers="Accept-Encoding: br, gzip;q=0.8\r\n")
        assert b"content-encoding: gzip" in packed.head
        assert b"content-encoding" not in plain.head
        states, unpack = (ClientState(), ClientState()), zlib.decompressobj(31)
        transferred = 0
        while not states[0].whole:
            states[0].feed(await plain.chunk())
        while not states[1].whole:
            chunk = await packed.chunk()
            transferred += len(chunk)
            states[1].feed(unpack.decompress(chunk))
        assert states[0].entries == states[1].entries
        assert len(states[1].entries) == 1_200
        assert transferred * 5 < 1_200 * 400, "it is compressed"
        # A small change is stored as it is, a large one is compressed; each can be read as soon as it is there.
        for count in (1, 300):
            backend.publish(*(put(record_of(f"run/{n:06d}.ckpt", epoch=-count)) for n in range(count)))
            told = states[1].feed(unpack.decompress(await packed.chunk()))
            assert [len(message.data["checkpoints"]) for message in told] == [count]
        await backend.hub.close()
        rest = states[1].feed(unpack.decompress(await packed.chunk()))
        assert [message.type for message in rest] == ["bye"]


async def test_gzip_is_not_forced_on_a_reader_that_refuses_it(tmp_path: Path) -> None:
    async with serving(backend_of(tmp_path)) as server:
        for refusal in ("gzip;q=0", "identity", "*;q=0", "deflate"):
            listener = await server.listen(headers=f"Accept-Encoding: {refusal}\r\n")
            assert b"content-encoding" not in listener.head


@pytest.mark.parametrize("path", ["/checkpoints/stream", "/api/inference/checkpoints/stream"])
async def test_the_stream_that_ends_is_a_whole_gzip_file_where_asked(path: str, tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    backend.put_many(40)
    async with serving(backend) as server, server.client() as client:
        plain = await client.get(f"{path}?batch_size=7", headers={"Accept-Encoding": "identity"})
        async with client.stream("GET", f"{path}?batch_size=7", headers={"Accept-Encoding": "gzip"}) as packed:
            assert packed.headers["content-encoding"] == "gzip"
            raw = b"".join([chunk async for chunk in packed.aiter_raw()])
        assert gzip.decompress(raw) == plain.content, "with its checksum and length"
        assert "content-encoding" not in plain.headers


@given(st.lists(st.binary(max_size=3000)))
def test_pieces_that_were_compressed_apart_are_one_stream_in_any_order(pieces: list[bytes]) -> None:
    unpack = zlib.decompressobj(31)
    assert unpack.decompress(GZIP_HEADER) == b""
    for piece in [*pieces, *reversed(pieces)]:
        assert unpack.decompress(shared_piece(piece)) == piece, "each can be read at once"


# ---- behaviour -------------------------------------------------------------------------------------------------


async def test_a_large_snapshot_comes_in_pieces_the_first_one_small(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    backend.put_many(1_200)
    async with serving(backend) as server:
        state, counts = ClientState(), []
        listener = await server.listen()
        while not state.whole:
            messages = state.feed(await listener.chunk())
            counts += [message.data["count"] for message in messages if message.type == "batch"]
        assert counts == [32, *[100] * 11, 68]
        assert len(state.entries) == 1_200


async def test_changes_during_a_snapshot_are_told_after_it(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    backend.put_many(3_000)
    async with serving(backend) as server:
        state = ClientState()
        listener = await server.listen()
        state.feed(await listener.chunk())
        backend.drop("run/000001.ckpt")
        backend.put("run/new.ckpt")
        while state.revision < backend.catalog.revision:
            state.feed(await listener.chunk())
        expected = {record.entry.id for record in backend.catalog}
        assert set(state.entries) == expected


async def test_a_stalled_reader_is_cut_off_and_delays_nobody(tmp_path: Path, caplog: Any) -> None:
    backend = backend_of(tmp_path, send_timeout_s=0.4)
    async with serving(backend) as server:
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stalled, server.address)  # type: ignore[arg-type]
        await loop.sock_sendall(stalled, b"GET /checkpoints/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: len(backend.hub) == 1)
        state = ClientState()
        reader = await server.listen()
        rounds = 0
        with caplog.at_level(logging.WARNING):
            while backend.hub.counts.timed_out == 0:
                rounds += 1
                backend.publish(*_big_changes(rounds))
                while state.revision < backend.catalog.revision:
                    state.feed(await reader.chunk())
        assert len(backend.hub) == 1, "only the one that reads is left"
        assert await _is_closed(stalled), "the connection is cut, not left to the kernel"
        assert not caplog.records
        stalled.close()


async def test_a_client_that_vanishes_mid_frame_is_forgotten_without_a_word(tmp_path: Path, caplog: Any) -> None:
    backend = backend_of(tmp_path)
    backend.put_many(8_000)
    async with serving(backend) as server:
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                listener = await server.listen()
                await listener.reader.readexactly(1000)
                transport = listener.writer.transport
                assert isinstance(transport, asyncio.Transport)
                transport.abort()
            await until(lambda: len(backend.hub) == 0, "all listeners gone")
            survivor = await server.listen()
            await survivor.until("complete")
        assert not caplog.records


async def test_closing_says_bye_to_everyone_and_lets_the_server_drain(tmp_path: Path, caplog: Any) -> None:
    backend = backend_of(tmp_path)
    backend.put_many(8_000)
    with caplog.at_level(logging.WARNING):
        async with serving(backend) as server:
            idle = [await server.listen("?q=nothing") for _ in range(20)]
            for listener in idle:
                await listener.until("complete")
            amid = await server.listen()
            stalled = await server.listen()
            await until(lambda: len(backend.hub) == 22)
            ends = [asyncio.ensure_future(_read_to_the_end(listener)) for listener in [*idle, amid]]
            await backend.hub.close()
            for body in await asyncio.gather(*ends):
                assert re.search(rb'retry: \d+\ndata: {"type":"bye","reason":"shutdown"}\n\n$', body)
            late = await server.listen()
            assert b'"bye"' in await _read_to_the_end(late)
            assert len(backend.hub) == 0
        await stalled.close()
    assert not [record for record in caplog.records if "ASGI" in record.message]


async def test_superseded_states_are_skipped_and_the_last_one_is_told(tmp_path: Path) -> None:
    backend = backend_of(tmp_path, coalesce_ms=50)
    async with serving(backend) as server:
        listener = await server.listen()
        await listener.until("complete")
        backend.put("a.ckpt", epoch=0)  # the first goes at once, the others within the coalescing time
        for epoch in range(1, 100):
            backend.put("a.ckpt", epoch=epoch)
        state = ClientState()
        state.whole = True
        seen: list[int] = []
        while not seen or seen[-1] != 99:
            for message in state.feed(await listener.chunk()):
                seen += [entry["epoch"] for entry in message.data.get("checkpoints", [])]
        assert seen == sorted(seen)
        assert len(seen) <= 3


async def test_those_who_still_wait_in_a_round_are_told_what_came_meanwhile_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With thousands of listeners a round takes 100 ms: nobody waits for two of them."""
    monkeypatch.setattr(events, "LIVE_PER_TURN", 1)
    backend = backend_of(tmp_path, coalesce_ms=0, sender_factory=lambda send, ready, _: SteppedSender(send, ready))
    async with serving(backend):
        states = [ClientState() for _ in range(4)]
        listeners = [InProcessListener(state).connect(backend.hub, View("0", lambda _: True), None) for state in states]
        await until(lambda: all(state.whole for state in states))
        backend.put("a.ckpt")
        while all(state.revision == 0 for state in states):  # noqa: ASYNC110 - each turn of the loop counts
            await asyncio.sleep(0)
        backend.put("b.ckpt")
        await until(lambda: all(state.revision == 2 for state in states))
        told = [
            [len(message.data["checkpoints"]) for message in listener.messages if message.type == "upsert"]
            for listener in listeners
        ]
        assert told == [[1, 1], [2], [2], [2]]
        for listener in listeners:
            await listener.leave()
            assert listener.failure is None


async def test_a_rebuild_that_ended_while_a_listener_was_away_is_told_on_return(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    async with serving(backend) as server:
        first = await server.listen()
        await first.until("complete")
        await first.close()
        backend.hub.announce_rebuilt("token-1", 0)
        again = await server.listen(headers="Last-Event-ID: testing.0.0\r\n")
        assert b'"token":"token-1"' in await again.until("rebuilt")
        fresh = await server.listen()
        assert b"rebuilt" not in await fresh.until("complete")


async def test_a_rebuild_is_never_told_before_what_it_found(tmp_path: Path) -> None:
    """A listener that is behind reaches the next round's announcements only after the next round's changes."""
    backend = backend_of(tmp_path, coalesce_ms=300)
    async with serving(backend):
        state = ClientState()  # asserts that a rebuild's revision was reached before it is told
        slow = InProcessListener(state).connect(backend.hub, View("0", lambda _: True), None)
        await until(lambda: state.whole)
        slow.stall()
        backend.put("first.ckpt")
        await until(lambda: slow.is_waited_for, "a send that waits for the slow one")
        backend.put("found.ckpt")
        backend.hub.announce_rebuilt("token-1", backend.catalog.revision)
        slow.read_on()
        await until(lambda: "token-1" in state.rebuilt or slow.failure)
        await slow.leave()
        assert slow.failure is None


async def test_a_live_listener_that_missed_a_forgotten_deletion_is_given_a_new_snapshot(tmp_path: Path) -> None:
    now = 0.0
    catalog = Catalog("testing", lambda: now, Retention(tombstones_kept=1, tombstone_age_s=5))
    backend = FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")), catalog)
    async with serving(backend):
        for name in "abcd":
            backend.put(f"{name}.ckpt")
        state = ClientState()
        slow = InProcessListener(state).connect(backend.hub, View("0", lambda _: True), None)
        await until(lambda: state.whole)
        slow.stall()
        backend.put("e.ckpt")
        await until(lambda: slow.is_waited_for, "a send that waits for the slow one")
        backend.drop("a.ckpt")
        backend.drop("b.ckpt")
        now = 10.0
        backend.drop("c.ckpt")
        assert not catalog.can_resume(5), "its cursor is below the floor"
        slow.read_on()
        await until(lambda: state.revision == catalog.revision or slow.failure)
        await slow.leave()
        assert slow.failure is None
        assert [message.data["reason"] for message in slow.messages if message.type == "reset"] == [
            "start",
            "cursor too old",
        ]
        assert {entry["path"] for entry in state.entries.values()} == {"d.ckpt", "e.ckpt"}


async def test_the_stream_works_mounted_in_another_application_with_middleware(tmp_path: Path) -> None:
    """Middleware wraps `send`; nothing is assumed of it, each message gets a task."""
    backend = backend_of(tmp_path)
    inner = build_app(backend, AccessPolicy(None, hosts=frozenset({"localhost"})))

    class Wrapping(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            response = await call_next(request)
            response.headers["x-host-app"] = "yes"
            return response

    outer = Starlette(routes=[Mount("/inference", app=inner)], middleware=[Middleware(Wrapping)])
    listener_socket = socket.socket()
    listener_socket.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(outer, lifespan="off", log_config=None, access_log=False))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    async with asyncio.TaskGroup() as tasks:
        hub = tasks.create_task(backend.hub.run())
        tasks.create_task(server.serve([listener_socket]))
        await until(lambda: server.started)
        listener = RawListener(*await asyncio.open_connection(*listener_socket.getsockname()))
        await listener.ask("/inference/checkpoints/events")
        assert b"x-host-app: yes" in listener.head
        await listener.until("complete")
        backend.put("a.ckpt")
        assert b"a.ckpt" in await listener.until("upsert")
        await backend.hub.close()
        assert b"bye" in await _read_to_the_end(listener)
        await listener.close()
        server.should_exit = True
        hub.cancel()


# ---- helpers ---------------------------------------------------------------------------------------------------


def _big_changes(number: int) -> list[Any]:

    return [put(record_of(f"run/{n}.ckpt", epoch=number, display_name="x" * 4000)) for n in range(100)]


async def _is_closed(connection: socket.socket) -> bool:
    """Read what the kernel still holds; True when the peer's end follows."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        while True:
            try:
                if not await loop.sock_recv(connection, 1 << 16):
                    return True
            except ConnectionResetError:
                return True


async def _read_to_the_end(listener: RawListener) -> bytes:
    body = b""
    while chunk := await listener.chunk():
        body += chunk
    return body
