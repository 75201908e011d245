"""A daemon that says exactly what a test tells it to, connection by connection; for what a real one does only by bad
luck."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from tests.catalog.catalog_records import record_of

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%bConnection: close\r\n\r\n"
HOLD = object()
"""In a script: keep the connection open and say nothing."""


def event(kind: str, event_id: str | None = None, **members: Any) -> bytes:
    """One event of the live stream, as the daemon writes it."""
    data = json.dumps({"type": kind, **members}, ensure_ascii=False).encode()
    return (b"" if event_id is None else f"id: {event_id}\n".encode()) + b"data: " + data + b"\n\n"


def entry(path: str, revision: int = 1, **fields: Any) -> dict[str, Any]:
    """An entry as it is on the wire."""
    return dict(json.loads(record_of(path, revision=revision, **fields).encoded))


def snapshot(*entries: dict[str, Any], event_id: str, revision: int = 1) -> bytes:
    """A whole snapshot."""
    return (
        event("reset", "", reason="testing")
        + event("batch", checkpoints=list(entries), count=len(entries), has_more=False)
        + event("complete", event_id, total=len(entries), revision=revision)
    )


Script = Sequence[bytes | object]


class ScriptedDaemon:
    """One script after the other, for one connection each; the last one serves all further ones."""

    def __init__(self, scripts: Sequence[Script | Callable[[str | None], Script]]) -> None:
        self.scripts = scripts
        self.requests: list[bytes] = []
        """Heads, in the order in which they came."""
        self.url = ""

    def cursors(self) -> list[str | None]:
        """What each request sent as its `Last-Event-ID`."""
        return [self._header(head, b"last-event-id") for head in self.requests]

    @staticmethod
    def _header(head: bytes, name: bytes) -> str | None:
        for line in head.split(b"\r\n"):
            key, _, value = line.partition(b":")
            if key.strip().lower() == name:
                return value.strip().decode()
        return None

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        script = self.scripts[min(len(self.requests), len(self.scripts)) - 1]
        if callable(script):
            script = script(self.cursors()[-1])
        with contextlib.suppress(ConnectionError):
            for part in script:
                if part is HOLD:
                    await reader.read()
                    break
                assert isinstance(part, bytes)
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()


@contextlib.asynccontextmanager
async def scripted(
    *scripts: Script | Callable[[str | None], Script], headers: bytes = b"", raw: bool = False
) -> AsyncIterator[ScriptedDaemon]:
    """Serve scripts on a free port of loopback.

    Args:
        scripts: bodies of the answers, piece by piece, or what makes one of the cursor that was sent; as
            `ScriptedDaemon` has them.
        headers: more of them, each with its line end.
        raw: the scripts begin with the status line.
    """
    head = HEAD % headers

    def with_head(script: Script | Callable[[str | None], Script]) -> Script | Callable[[str | None], Script]:
        if callable(script):
            return lambda cursor: [head, *script(cursor)]
        return script if raw else [head, *script]

    daemon = ScriptedDaemon([with_head(script) for script in scripts])
    server = await asyncio.start_server(daemon.answer, "127.0.0.1", 0)
    daemon.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield daemon
    finally:
        server.close()
