"""Pages of a list of 100,000 entries: first requests and further ones, quiet and while entries change."""

import collections
import multiprocessing
import os
import resource
import selectors
import socket
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

from daemon_process import cpu_seconds
from list_backend import ListServer, list_server
from report import Row, against, percentile, print_report

P99_BUDGET_MS, SEARCH_BUDGET_MS, NOT_MODIFIED_BUDGET_MS = 10.0, 15.0, 1.0
CHANGES_PER_S = 50.0
CLIENTS = 16
PAUSE_S = 0.05
"""Of each of several clients, between an answer and its next request."""
_PLAIN = "/checkpoints?page_size=50"
_REPEATED = {
    "a page": [_PLAIN],
    "pages, sorted by a metric": [f"{_PLAIN}&sort_by=hmean&page={n}" for n in range(1, 2_000, 97)],
    "filtered by experiment": [f"{_PLAIN}&exp_name=dbnet_v{n}" for n in (0, 5, 10, 15)],
    "with 4 facets": [f"{_PLAIN}&facets=exp_name,architecture,health,safety"],
    "searched, kept": [f"{_PLAIN}&q=adamw%20lr:0.001%20dbnet", f"{_PLAIN}&q=hmean%3E0.9%20-craft"],
}


class Measured(NamedTuple):
    """Of one round of requests."""

    latencies_ms: list[float]
    server_cpu_s: float
    client_cpu_s: float
    seconds: float


def run(*, quick: bool) -> None:
    """Print latencies, and what server and client needed for them."""
    entries, count = (20_000, 300) if quick else (100_000, 2_000)
    cores = sorted(os.sched_getaffinity(0))
    rows: list[Row] = []
    with list_server(entries, {cores[0]}) as server:
        for rate in (0.0, CHANGES_PER_S):
            server.change(rate)
            under = f", {rate:g} changes/s" if rate else ""
            for what, paths in _REPEATED.items():
                _measure(server, paths, clients=1, count=len(paths))  # makes the lists
                one = _measure(server, paths, clients=1, count=count)
                rows.append(_row(f"{what}, 1 client{under}", one, P99_BUDGET_MS))
                many = _measure(server, paths, clients=CLIENTS, count=count, pause_s=PAUSE_S)
                rows.append(_row(f"{what}, {CLIENTS} clients{under}", many, P99_BUDGET_MS))
            flat_out = _measure(server, _REPEATED["a page"], CLIENTS, count)
            rows.append(_row(f"a page, {CLIENTS} clients without a pause{under}", flat_out, None))
            rows.append(_row(f"searched, new words{under}", _measure(server, _new_words(rate), 1, 40), None))
            rows.append(_row(f"searched, new values{under}", _measure(server, _new_values(rate), 1, 40), None))
        server.change(0)
        rows.append(_not_modified(server, count))
    print_report(f"list of {entries:,} entries", rows)


def _new_words(rate: float) -> list[str]:
    """Searches that nobody has made before, found in entries."""
    return [f"{_PLAIN}&q=run_{n:04d}" for n in range(100 + int(rate), 140 + int(rate))]


def _new_values(rate: float) -> list[str]:
    """Searches that nobody has made before, found in configs."""
    return [f"{_PLAIN}&q=seed:{n}%20optimizer.lr:*" for n in range(100 + int(rate), 140 + int(rate))]


def _row(what: str, measured: Measured, budget: float | None) -> Row:
    p50, p99 = percentile(measured.latencies_ms, 0.5), percentile(measured.latencies_ms, 0.99)
    count = len(measured.latencies_ms)
    figures = (
        f"p50 {p50:6.2f} p99 {p99:6.2f} ms, {count / measured.seconds:6.0f}/s, CPU a request: server "
        f"{measured.server_cpu_s / count * 1e3:.2f} client {measured.client_cpu_s / count * 1e3:.2f} ms"
    )
    if budget is None:
        return Row(what, figures, f"typically {SEARCH_BUDGET_MS:g} ms", against(p50, SEARCH_BUDGET_MS))
    return Row(what, figures, f"p99 {budget:g} ms", against(p99, budget))


def _not_modified(server: ListServer, count: int) -> Row:
    etag = _ask_once(server.port, _PLAIN)
    measured = _measure(server, [_PLAIN], 1, count * 2, headers=f"If-None-Match: {etag}\r\n")
    cpu_ms = measured.server_cpu_s / len(measured.latencies_ms) * 1e3
    figures = f"{cpu_ms:.3f} ms of CPU, p99 {percentile(measured.latencies_ms, 0.99):.2f} ms"
    return Row("304", figures, f"{NOT_MODIFIED_BUDGET_MS:g} ms of CPU", against(cpu_ms, NOT_MODIFIED_BUDGET_MS))


def _ask_once(port: int, path: str) -> str:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.headers["ETag"]


def _measure(
    server: ListServer, paths: list[str], clients: int, count: int, *, headers: str = "", pause_s: float = 0.0
) -> Measured:
    """So many requests in all, each client's next one as soon as it has its answer; from a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    before = cpu_seconds(server.pid)
    began = time.perf_counter()
    process = context.Process(target=_clients, args=(theirs, server.port, paths, clients, count, headers, pause_s))
    process.start()
    latencies, client_cpu_s = ours.recv()
    process.join()
    return Measured(latencies, cpu_seconds(server.pid) - before, client_cpu_s, time.perf_counter() - began)


def _clients(
    pipe: Connection, port: int, paths: list[str], clients: int, count: int, headers: str, pause_s: float
) -> None:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    asked = [f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n".encode() for path in paths]
    selector = selectors.DefaultSelector()
    connections = [_Connection(port) for _ in range(min(clients, count))]
    latencies: list[float] = []
    sent = 0
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.ask(asked[sent % len(asked)])
        sent += 1
    pausing: collections.deque[tuple[float, _Connection]] = collections.deque()
    while len(latencies) < count:
        while pausing and pausing[0][0] <= time.perf_counter() and sent < count:
            pausing.popleft()[1].ask(asked[sent % len(asked)])
            sent += 1
        for key, _ in selector.select(max(0.0, pausing[0][0] - time.perf_counter()) if pausing else None):
            connection = key.data
            if connection.read():
                latencies.append((time.perf_counter() - connection.asked_at) * 1e3)
                pausing.append((time.perf_counter() + pause_s, connection))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send((latencies, usage.ru_utime + usage.ru_stime))


class _Connection:
    """One that is kept alive, and reads no more of an answer than its length."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.asked_at = 0.0
        self._left: int | None = None
        self._head = b""

    def ask(self, request: bytes) -> None:
        self._left, self._head = None, b""
        self.asked_at = time.perf_counter()
        self.socket.sendall(request)

    def read(self) -> bool:
        """Whether the answer is complete."""
        data = self.socket.recv(1 << 20)
        if not data:
            raise SystemExit("the server hung up")
        if self._left is None:
            self._head += data
            head, found, body = self._head.partition(b"\r\n\r\n")
            if not found:
                return False
            lower = head.lower()
            status = int(head[9:12])
            if status not in (200, 304):
                raise SystemExit(f"the server refused: {self._head.decode(errors='replace')}")
            at = lower.find(b"content-length:")
            length = 0 if at < 0 else int(lower[at + 15 : lower.find(b"\r\n", at) if b"\r\n" in lower[at:] else None])
            self._left = (0 if status == 304 else length) - len(body)
        else:
            self._left -= len(data)
        return self._left <= 0
