"""From a rename into the tree to the event at every listener, with one listener and with a thousand."""

import multiprocessing
import re
import resource
import selectors
import shutil
import socket
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from daemon_process import Daemon, cpu_seconds
from files import cached, lightning_file
from report import Row, against, percentile, print_report

P50_BUDGET_MS, P99_BUDGET_MS = 25.0, 100.0
PAUSE_S = 0.1
_REQUEST = b"GET /checkpoints/events HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n\r\n"
_NAME = re.compile(rb"renamed-(\d+)\.ckpt")
_TAIL = 64
"""Bytes kept between two reads: a name may be cut in two."""


def run(*, quick: bool) -> None:
    """Print latencies over all deliveries, and what client and server needed for them."""
    events = 30 if quick else 200
    rows: list[Row] = []
    for listeners in (1, 100) if quick else (1, 1000):
        rows += _measure(listeners, events)
    print_report("live", rows)


def _measure(listeners: int, events: int) -> list[Row]:
    template = cached("lightning.ckpt", lightning_file)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name, "experiment", "checkpoints")
        directory.mkdir(parents=True)
        with Daemon(Path(name)) as daemon:
            daemon.seconds_until(0)
            ours, theirs = multiprocessing.Pipe()
            client = multiprocessing.get_context("spawn").Process(
                target=listen, args=(daemon.port, listeners, events, theirs)
            )
            client.start()
            ours.recv()  # every listener has its snapshot
            server_cpu, start = cpu_seconds(daemon.pid), time.monotonic()
            renamed = _rename_files(template, directory, events)
            if not ours.poll(30):
                client.terminate()
                raise SystemExit("events were missing for 30 s after the last rename")
            received, client_cpu = ours.recv()
            elapsed = time.monotonic() - start
            server_cpu = cpu_seconds(daemon.pid) - server_cpu
            client.join()
    latencies = [(at - renamed[event]) * 1e3 for event, at in received]
    p50, p99 = percentile(latencies, 0.5), percentile(latencies, 0.99)
    what = f"{listeners:,} listener{'s' if listeners > 1 else ''}"
    cpu = f"server {server_cpu / elapsed:.0%}, client {client_cpu / elapsed:.0%} of a core"
    return [
        Row(f"{what}: rename to event, p50", f"{p50:.1f} ms", f"{P50_BUDGET_MS:g} ms", against(p50, P50_BUDGET_MS)),
        Row(f"{what}: rename to event, p99", f"{p99:.1f} ms", f"{P99_BUDGET_MS:g} ms", against(p99, P99_BUDGET_MS)),
        Row(f"{what}: {len(latencies):,} deliveries of {events} events", cpu),
    ]


def _rename_files(template: Path, directory: Path, count: int) -> list[float]:
    """Rename `count` prepared files into place, one by one; returns when each was, by the monotonic clock."""
    for number in range(count):
        shutil.copyfile(template, directory / f".prepared-{number}")
    renamed = []
    for number in range(count):
        time.sleep(PAUSE_S)
        renamed.append(time.monotonic())
        (directory / f".prepared-{number}").rename(directory / f"renamed-{number}.ckpt")
    return renamed


def listen(port: int, listeners: int, events: int, report: Connection) -> None:
    """The client process: plain sockets in one epoll loop, so that the client is not what is measured."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    selector = selectors.EpollSelector()
    for _ in range(listeners):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(_REQUEST % port)
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ, [b"", set()])
    waiting = {key.fd for key in selector.get_map().values()}
    while waiting:
        for key, _ in selector.select():
            tail = key.data[0] + _receive(key.fileobj)
            if b'"complete"' in tail:
                waiting.discard(key.fd)
            key.data[0] = tail[-_TAIL:]
    report.send("ready")
    received: list[tuple[int, float]] = []
    cpu = time.process_time()
    while len(received) < listeners * events:
        for key, _ in selector.select():
            data = key.data[0] + _receive(key.fileobj)
            now = time.monotonic()
            key.data[0] = data[-_TAIL:]
            for number in map(int, _NAME.findall(data)):
                if number not in key.data[1]:
                    key.data[1].add(number)
                    received.append((number, now))
    report.send((received, time.process_time() - cpu))


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise SystemExit("the daemon closed a stream")
    return data
