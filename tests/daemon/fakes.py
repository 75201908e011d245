"""A service for tests of the wire: a real catalog and hub behind real sockets; its checkpoints are only told of."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import structlog

from ckptd.catalog.description import CheckpointMetadata, Description
from ckptd.catalog.entry import CheckpointId, Record
from ckptd.catalog.matching import Lines
from ckptd.catalog.store import Catalog, Change
from ckptd.daemon.http import AccessPolicy, CatalogApp, EventHub, build_app
from ckptd.daemon.http.backend import RebuildMode
from ckptd.daemon.http.connections import HttpConfig, HttpServer, Limits
from ckptd.daemon.http.page_files import PageFiles
from ckptd.daemon.metrics import Metrics
from ckptd.daemon.settings import Settings
from ckptd.daemon.status import CatalogStatus, RecentError, RootStatus, Status
from ckptd.validators.findings import finding
from ckptd.validators.inspection import FileIdentity, Inspection, TensorInfo
from tests.catalog.catalog_records import drop, put, record_of
from tests.service.contract import CheckedClient, contract

COMPLETE_AS_OF = 1_760_000_000.0
DEADLINE_S = 60.0


class FakeBackend:
    """What HTTP asks of a service, without files, workers and state."""

    def __init__(self, settings: Settings, catalog: Catalog | None = None, **hub_options: Any) -> None:
        self.catalog = Catalog("testing") if catalog is None else catalog  # an empty one is false
        self.lines: Lines | None = None
        self.settings = settings
        self.metrics = Metrics()
        self.hub = EventHub(self.catalog, complete_as_of=lambda: COMPLETE_AS_OF, **hub_options)
        self.rebuilds: list[RebuildMode] = []
        self.descriptions: dict[CheckpointId, Description] = {}

    def publish(self, *changes: Change) -> None:
        """Publish changes as the journal does."""
        batch = self.catalog.prepare(changes)
        if batch is not None:
            self.catalog.publish(batch)

    def put(self, path: str, **fields: Any) -> CheckpointId:
        """Publish an entry at `path`; returns its id."""
        record = record_of(path, **fields)
        self.publish(put(record))
        return record.entry.id

    def put_many(self, count: int, **fields: Any) -> None:
        """Publish so many entries at once."""
        self.publish(
            *(put(record_of(f"run/{n:06d}.ckpt", modified_ns=n * 10**9, epoch=n, **fields)) for n in range(count))
        )

    def drop(self, path: str) -> None:
        """Publish a deletion."""
        self.publish(drop(path))

    def status(self) -> Status:
        """See `Backend`."""
        return Status(
            instance=self.catalog.instance,
            revision=self.catalog.revision,
            started_at=COMPLETE_AS_OF - 60,
            state=CatalogStatus.DEGRADED,
            reasons=("metadata coverage is 50 %",),
            complete_as_of=COMPLETE_AS_OF,
            roots=(RootStatus(path="/outputs", online=True, watching=True, complete_as_of=COMPLETE_AS_OF),),
            checkpoint_count=len(self.catalog),
            by_health={"valid": len(self.catalog)},
            with_sidecar=len(self.catalog) // 2,
            last_build_s=0.15,
            last_build_at=COMPLETE_AS_OF,
            recent_errors=(RecentError(at=COMPLETE_AS_OF, what="sidecar", path="a.ckpt", message="no space left"),),
        )

    async def description(self, checkpoint_id: CheckpointId) -> Description | None:
        """See `Backend`."""
        return self.descriptions.get(checkpoint_id)

    def request_rebuild(self, mode: RebuildMode) -> str:
        """See `Backend`."""
        self.rebuilds.append(mode)
        return f"token-{len(self.rebuilds)}"

    def record(self, checkpoint_id: CheckpointId) -> Record:
        """The published record of an id."""
        record = self.catalog.get(checkpoint_id)
        assert record is not None
        return record


def description_of(path: str) -> Description:
    """A description with a tensor, a finding and metadata."""
    inspection = Inspection(
        checkpoint_path=f"/outputs/{path}",
        identity=FileIdentity(1, 1, 1, 1),
        tensors=(TensorInfo("state_dict.w", "float32", (2, 3), (3, 1), "0", 0, 24, "weights"),),
        n_parameters=6,
        hyper_parameters={"lr": 0.001},
    )
    return Description(
        inspection=inspection,
        findings=(finding("metadata.missing", "no sidecar lies beside the checkpoint"),),
        metadata=CheckpointMetadata(exp_name="demo"),
        provenance={"exp_name": "layout"},
        config={"seed": 1},
    )


class Server:
    """A running application: how to reach it."""

    def __init__(self, app: CatalogApp, address: tuple[str, int] | str) -> None:
        self.app = app
        self.address = address
        self.listeners: list[RawListener] = []

    @property
    def url(self) -> str:
        """Base URL."""
        return "http://localhost" if isinstance(self.address, str) else f"http://127.0.0.1:{self.address[1]}"

    def client(self, **options: Any) -> httpx.AsyncClient:
        """An HTTP client of the server, which holds every answer against the description of the API."""
        contract()  # once a session it takes a second, in which the loop would stand still
        transport = httpx.AsyncHTTPTransport(uds=self.address) if isinstance(self.address, str) else None
        return CheckedClient(base_url=self.url, transport=transport, timeout=DEADLINE_S, **options)

    async def listen(self, query: str = "", headers: str = "") -> "RawListener":
        """Open a live stream on a socket of its own."""
        if isinstance(self.address, str):
            reader, writer = await asyncio.open_unix_connection(self.address)
        else:
            reader, writer = await asyncio.open_connection(*self.address)
        listener = RawListener(reader, writer)
        self.listeners.append(listener)
        await listener.ask(f"/checkpoints/events{query}", headers)
        return listener


class RawListener:
    """A live stream read from a socket, byte by byte as the server wrote it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.head = b""

    async def ask(self, path: str, headers: str = "", host: str = "localhost") -> None:
        """Send the request and read the head of the answer."""
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode())
        async with asyncio.timeout(DEADLINE_S):
            self.head = await self.reader.readuntil(b"\r\n\r\n")

    async def chunk(self) -> bytes:
        """The next chunk of the body; empty at the end of the response."""
        async with asyncio.timeout(DEADLINE_S):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def until(self, *kinds: str) -> bytes:
        """Everything up to and including the first message of one of these kinds."""
        body = b""
        marks = [f'"type":"{kind}"'.encode() for kind in kinds]
        while not any(mark in body for mark in marks):
            chunk = await self.chunk()
            assert chunk, f"the stream ended before {kinds}: {body!r}"
            body += chunk
        return body

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(
    backend: FakeBackend,
    access: AccessPolicy | None = None,
    uds: str | None = None,
    limits: Limits | None = None,
    log: structlog.stdlib.BoundLogger | None = None,
    page: PageFiles | None = None,
) -> AsyncIterator[Server]:
    """Serve the backend as the daemon does, on a free port of loopback or on a Unix socket."""
    app = build_app(backend, access or AccessPolicy(None, hosts=frozenset({"localhost"})), log=log, page=page)
    listener = socket.socket(socket.AF_UNIX if uds else socket.AF_INET)
    listener.bind(uds or ("127.0.0.1", 0))
    server = HttpServer(HttpConfig(app, limits or Limits()))
    async with asyncio.TaskGroup() as tasks:
        hub = tasks.create_task(backend.hub.run())
        tasks.create_task(server.serve([listener]))
        await until(lambda: server.started)
        running = Server(app, listener.getsockname())
        try:
            yield running
        finally:
            await backend.hub.close()
            for connection in running.listeners:
                await connection.close()
            server.should_exit = True
            hub.cancel()


async def until(condition: Any, what: str = "the condition") -> None:
    """Poll until `condition()` holds; fails after a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        await asyncio.sleep(0.005)
