"""Cursors that clients come with, of every kind: whatever it is, the answer is 200 and a stream that ends up right."""

import asyncio
import urllib.parse
from pathlib import Path

import pytest

from ckptd.daemon.http.sse import Cursor
from ckptd.daemon.settings import Settings
from tests.daemon.fakes import DEADLINE_S, FakeBackend, RawListener, Server, serving, until
from tests.daemon.stream_clients import ClientState

pytestmark = pytest.mark.anyio

GARBAGE = [
    "x",
    ".",
    "..",
    "...",
    "testing",
    "testing.",
    "testing.1",
    "testing.1.",
    ".1.0",
    "testing..0",
    "testing.-1.0",
    "testing.+1.0",
    "testing.1e0.0",
    "testing.0x1.0",
    "testing.01.0",
    "testing. 1.0",
    "testing.1 .0",
    "testing.1.00",
    "testing.1.0.0",
    "TESTING.1.0",
    "testing.99999999999999999999999999.0",
    "testing.\N{ARABIC-INDIC DIGIT ONE}.0",
    "null",
    "undefined",
    '{"instance":"testing","revision":1}',
    "' OR 1=1 --",
    "\N{PILE OF POO}.1.0",
    "testing.1.0,testing.1.0",
    "a" * 60_000,
]
STALE = {
    "another instance": "another.2.0",
    "another filter": "testing.2.beefbeef",
    "the future": "testing.3.0",
    "the far future": "testing.999999999999999999.0",
}


def backend_of(tmp_path: Path) -> FakeBackend:
    backend = FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")))
    backend.put("run/a.ckpt")
    backend.put("run/b.ckpt")
    return backend


async def snapshot_of(listener: RawListener) -> ClientState:
    state = ClientState()
    while not state.whole:
        state.feed(await listener.chunk())
    return state


async def test_any_cursor_that_is_not_ours_or_not_good_gets_a_snapshot(tmp_path: Path) -> None:
    """Never 4xx: a browser would give up for good."""
    backend = backend_of(tmp_path)
    async with serving(backend) as server:
        for given in (*GARBAGE, *STALE.values()):
            raw = given.encode()
            ways = {
                "header": await _listen(server, b"Last-Event-ID: " + raw),
                "query": await _listen(server, query=b"?last_event_id=" + urllib.parse.quote(raw).encode()),
            }
            for way, listener in ways.items():
                assert listener.head.startswith(b"HTTP/1.1 200"), f"{given[:40]!r} as {way}: {listener.head!r}"
                state = await snapshot_of(listener)
                assert len(state.entries) == 2, f"{given[:40]!r} as {way}"
                await listener.close()
        await until(lambda: len(backend.hub) == 0)


async def test_bytes_that_are_no_text_are_no_cursor(tmp_path: Path) -> None:
    async with serving(backend_of(tmp_path)) as server:
        for raw in (b"\xff\xfe\x80", b"testing.\xb2.0", b"\x80" * 100):
            listener = await _listen(server, b"Last-Event-ID: " + raw)
            assert len((await snapshot_of(listener)).entries) == 2


async def test_an_empty_cursor_is_none(tmp_path: Path) -> None:
    """EventSource sends none then; others send an empty header, or the parameter without a value."""
    async with serving(backend_of(tmp_path)) as server:
        for header, query in ((b"Last-Event-ID:", b""), (b"Last-Event-ID:  ", b""), (b"X: y", b"?last_event_id=")):
            listener = await _listen(server, header, query)
            assert b'"reason":"start"' in await listener.until("reset")


async def test_the_header_goes_before_the_parameter(tmp_path: Path) -> None:
    """A page opens its stream with a parameter; when the browser reconnects, the header is the newer one."""
    async with serving(backend_of(tmp_path)) as server:
        listener = await _listen(server, b"Last-Event-ID: testing.2.0", b"?last_event_id=testing.1.0")
        assert b'"revision":2' in await listener.until("resumed")


async def test_a_good_cursor_is_resumed_whatever_the_encoding(tmp_path: Path) -> None:
    async with serving(backend_of(tmp_path)) as server:
        for header in (b"Last-Event-ID: testing.1.0", b"last-event-id: testing.1.0\r\nAccept-Encoding: gzip"):
            listener = await _listen(server, header)
            assert b"resumed" in await listener.chunk()


def test_a_cursor_is_read_back_only_from_what_it_writes() -> None:
    for text in GARBAGE:
        cursor = Cursor.parse(text)
        assert cursor is None or str(cursor) == text


async def test_head_tells_of_the_stream_and_opens_none(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    async with serving(backend) as server:
        for path in (b"/checkpoints/events", b"/checkpoints/stream", b"/api/inference/checkpoints/stream"):
            reader, writer = await asyncio.open_connection(*server.address)  # type: ignore[misc]
            # The answer to a second request on the connection shows that the first one has ended.
            for _ in range(2):
                writer.write(b"HEAD %b HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: x\r\n\r\n" % path)
                async with asyncio.timeout(DEADLINE_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert b"content-type: text/event-stream" in head
                assert b"cache-control: no-store" in head
            assert len(backend.hub) == 0
            writer.close()
            await writer.wait_closed()


async def _listen(server: Server, header: bytes = b"X-None: 1", query: bytes = b"") -> RawListener:
    reader, writer = await asyncio.open_connection(*server.address)  # type: ignore[misc]
    listener = RawListener(reader, writer)
    server.listeners.append(listener)
    writer.write(b"GET /checkpoints/events%b HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n" % (query, header))
    async with asyncio.timeout(DEADLINE_S):
        listener.head = await reader.readuntil(b"\r\n\r\n")
    return listener
