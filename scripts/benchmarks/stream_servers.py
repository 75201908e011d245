"""The servers of the fan-out benchmark, each in its own process: ours, nchan and sse-starlette with a queue each."""

import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from load_client import raise_descriptor_limit

ENTRY_BYTES = 600
"""About what an entry of a real catalog takes."""
PATHS = 5_000
"""Different checkpoints that change, in turn."""
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")


class StreamServer(NamedTuple):
    """One that runs."""

    pids: list[int]
    port: int
    path: str
    publish: Callable[[float], None]
    """Begin to publish so many events each second; 0 stops."""
    ask: Callable[[str], Any]
    """What only our own server can tell."""


Factory = Callable[[set[int], set[int], int], contextlib.AbstractContextManager[StreamServer]]
"""(cores of the server, cores of what drives it, entries there from the start) → a server."""


# ---- in-process servers: ours and sse-starlette ----------------------------------------------------------------


@contextlib.contextmanager
def ckptd(cores: set[int], _: set[int], entries: int = 0) -> Iterator[StreamServer]:
    """The hub behind the daemon's own connections and loop; its catalog is only told of checkpoints."""
    with _python_server(_serve_ckptd, cores, entries, "/checkpoints/events") as server:
        yield server


@contextlib.contextmanager
def sse_starlette(cores: set[int], _: set[int], entries: int = 0) -> Iterator[StreamServer]:
    """The usual way: an `EventSourceResponse` over an `asyncio.Queue` for each listener."""
    with _python_server(_serve_sse_starlette, cores, entries, "/events") as server:
        yield server


@contextlib.contextmanager
def _python_server(
    target: Callable[[Connection, set[int], int], None], cores: set[int], entries: int, path: str
) -> Iterator[StreamServer]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, cores, entries), daemon=True)
    process.start()

    def ask(command: str) -> Any:
        ours.send(command)
        return ours.recv()

    try:
        port = ours.recv()
        assert process.pid is not None
        yield StreamServer([process.pid], port, path, lambda rate: ours.send(rate), ask)
    finally:
        process.terminate()
        process.join()


def _serve_ckptd(pipe: Connection, cores: set[int], entries: int) -> None:
    os.sched_setaffinity(0, cores)
    raise_descriptor_limit()
    from hub_backend import HubBackend

    from ckptd.daemon.loop import LoopMonitor, new_event_loop

    monitor = LoopMonitor()
    backend = HubBackend(entries, monitor)
    backend.settle_memory()
    monitor.watch_collector()
    new_event_loop(monitor).run_until_complete(_ckptd(pipe, backend, monitor))


async def _ckptd(pipe: Connection, backend: Any, monitor: Any) -> None:
    from ckptd.daemon.http import AccessPolicy, build_app
    from ckptd.daemon.http.connections import HttpConfig, HttpServer, Limits

    app = build_app(backend, AccessPolicy(None, hosts=frozenset({"127.0.0.1"})))
    server = HttpServer(HttpConfig(app, Limits()))
    listener = socket.create_server(("127.0.0.1", 0))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(backend.hub.run())
        tasks.create_task(monitor.tick())
        tasks.create_task(server.serve([listener]))
        tasks.create_task(_publish(pipe, backend.publish_one, backend.answer))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        pipe.send(listener.getsockname()[1])


def _serve_sse_starlette(pipe: Connection, cores: set[int], _: int) -> None:
    os.sched_setaffinity(0, cores)
    raise_descriptor_limit()
    asyncio.run(_sse_starlette(pipe))


async def _sse_starlette(pipe: Connection) -> None:
    import uvicorn
    from sse_starlette import EventSourceResponse, ServerSentEvent
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    queues: set[asyncio.Queue[ServerSentEvent]] = set()

    async def events(_: Request) -> Response:
        queue: asyncio.Queue[ServerSentEvent] = asyncio.Queue()

        async def told() -> AsyncIterator[ServerSentEvent]:
            queues.add(queue)
            try:
                while True:
                    yield await queue.get()
            finally:
                queues.discard(queue)

        return EventSourceResponse(told())

    def publish_one(number: int) -> None:
        event = ServerSentEvent(data=event_data(number), id=str(number))
        for queue in queues:
            queue.put_nowait(event)

    app = Starlette(routes=[Route("/events", events)])
    config = uvicorn.Config(
        app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False, backlog=4096
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([listener]))
        tasks.create_task(_publish(pipe, publish_one, lambda _: None))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        pipe.send(listener.getsockname()[1])


async def _publish(pipe: Connection, publish_one: Callable[[int], None], answer: Callable[[str], Any]) -> None:
    """Publish at the rate that the pipe says last; answer what it asks."""
    rate, number = 0.0, 0
    due = time.monotonic()
    while True:
        while pipe.poll():
            command = pipe.recv()
            if isinstance(command, str):
                pipe.send(answer(command))
            else:
                rate, due = command, time.monotonic()
        if rate and time.monotonic() >= due:
            publish_one(number)
            number += 1
            due = max(due + 1 / rate, time.monotonic() - 1)  # one second of arrears at most
        await asyncio.sleep(max(0.0, due - time.monotonic()) if rate else 0.02)


def event_data(number: int) -> str:
    """An event as ours looks on the wire, for servers that know nothing of checkpoints."""
    entry = {"id": number % PATHS, "display_name": f"t={time.monotonic_ns()}"}
    return _filled({"type": "upsert", "checkpoints": [entry]})


def _filled(data: dict[str, Any]) -> str:
    text = json.dumps(data, separators=(",", ":"))
    return json.dumps(data | {"path": "x" * (ENTRY_BYTES - len(text) - 10)}, separators=(",", ":"))


# ---- nchan -----------------------------------------------------------------------------------------------------

_NGINX = """
load_module {module};
worker_processes 1;
worker_rlimit_nofile 20000;
daemon off;
user root;
error_log {directory}/error.log error;
pid {directory}/nginx.pid;
events {{ worker_connections 16000; multi_accept on; }}
http {{
  access_log off;
  client_body_temp_path {directory};
  nchan_max_reserved_memory 256m;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    keepalive_requests 1000000;
    location = /pub {{ nchan_publisher; nchan_channel_id all; nchan_message_buffer_length 100; }}
    location = /sub {{ nchan_subscriber eventsource; nchan_channel_id all; nchan_subscriber_first_message newest; }}
  }}
}}
"""


@contextlib.contextmanager
def nchan(cores: set[int], driver: set[int], _: int = 0) -> Iterator[StreamServer]:
    """nginx with nchan (Debian: libnginx-mod-nchan), one worker; a process of its own publishes by HTTP."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    with tempfile.TemporaryDirectory(prefix="ckptd-nchan-") as directory:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        config = Path(directory, "nginx.conf")
        config.write_text(_NGINX.format(module=NCHAN_MODULE, directory=directory, port=port))
        process = subprocess.Popen([nginx, "-c", str(config), "-e", f"{directory}/error.log"])
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        publisher = context.Process(target=_publish_by_http, args=(theirs, port, driver), daemon=True)
        publisher.start()
        try:
            workers = _wait_for_workers(process.pid, port)
            for pid in workers:
                os.sched_setaffinity(pid, cores)
            yield StreamServer(workers, port, "/sub", lambda rate: ours.send(rate), lambda _: None)
        finally:
            publisher.terminate()
            publisher.join()
            process.terminate()
            process.wait()


def has_nchan() -> bool:
    """Whether it is installed."""
    return NCHAN_MODULE.exists()


def _wait_for_workers(pid: int, port: int) -> list[int]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            workers = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
            if workers:
                return [int(worker) for worker in workers]
        time.sleep(0.01)
    raise SystemExit("nginx with nchan did not start")


def _publish_by_http(pipe: Connection, port: int, cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    rate, number, due = 0.0, 0, time.monotonic()
    while True:
        if pipe.poll(max(0.0, due - time.monotonic()) if rate else None):
            rate, due = pipe.recv(), time.monotonic()
            continue
        connection.request("POST", "/pub", event_data(number), {"Content-Type": "application/json"})
        connection.getresponse().read()
        number += 1
        due = max(due + 1 / rate, time.monotonic() - 1)
