"""The load client: thousands of listeners in one epoll loop in its own process, which counts and does not parse."""

import collections
import math
import multiprocessing
import os
import re
import resource
import select
import socket
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple, Self

_TIME = re.compile(rb'"t=(\d+)"')
"""Once in every event: when it was published, by the monotonic clock, as the entry's name."""
_ID = b"id: benchmark."
"""No message of a snapshot has an id, but the one that ends it and all that follow. In a compressed stream as well:
what is as small as a single change is stored as it is."""
_BUFFER_BYTES = 1 << 18
_CONNECTING = 128
"""Connections under way at once; the kernel's queue of many servers holds no more."""
_PER_SOURCE = 5_000
"""Connections from one address of loopback: the range of local ports is not endless."""
_STALLED_BUFFER_BYTES = 4096


class Request(NamedTuple):
    """What each listener asks for."""

    port: int
    path: str
    gzip: bool = False

    def encoded(self) -> bytes:
        """As HTTP/1.1."""
        accept = "Accept-Encoding: gzip\r\n" if self.gzip else ""
        return (
            f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAccept: text/event-stream\r\n{accept}\r\n"
        ).encode()


class Received(NamedTuple):
    """What a load client saw in a window of time."""

    seconds: float
    deliveries: int
    """Events received, over all listeners."""
    size_bytes: int
    latencies_ms: list[float]
    """From publication to reading, of some listeners."""
    cpu_s: float
    """What the client itself used."""
    closed: int
    """Connections that the server ended."""


class Swarm:
    """Listeners in a process of their own. `connect`, then any number of windows between `start` and `stop`."""

    def __init__(self, cores: set[int], sampled: int = 50) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_client, args=(theirs, cores, sampled), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    @property
    def pid(self) -> int:
        """Of the client."""
        assert self._process.pid is not None
        return self._process.pid

    def connect(self, request: Request, count: int, stalled: int = 0) -> float:
        """Open so many streams, and more that never read; returns the seconds until all have their answer's head."""
        seconds = self._ask("connect", request, count, stalled)
        assert isinstance(seconds, float)
        return seconds

    def take_snapshots(self, request: Request, count: int) -> tuple[float, int]:
        """Open so many streams at once, and close them when all have their whole snapshot; seconds and bytes."""
        taken = self._ask("take", request, count)
        assert isinstance(taken, tuple)
        return taken

    def start(self) -> None:
        """Begin a window."""
        self._ask("start")

    def stop(self) -> Received:
        """End the window."""
        received = self._ask("stop")
        assert isinstance(received, Received)
        return received

    def _ask(self, *command: object) -> object:
        self._pipe.send(command)
        if not self._pipe.poll(120):
            raise SystemExit(f"the load client did not do its part: {command[0]}")
        return self._pipe.recv()


class _Client:
    def __init__(self, pipe: Connection, sampled: int) -> None:
        self._pipe = pipe
        self._sampled = sampled
        self._epoll = select.epoll()
        self._epoll.register(pipe.fileno(), select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._stalled: list[socket.socket] = []
        self._samples: dict[int, bytes] = {}
        self._buffer = bytearray(_BUFFER_BYTES)
        self._reset()

    def _reset(self) -> None:
        self._began_at = time.monotonic()
        self._began_cpu = time.process_time()
        self._size_bytes = self._sampled_bytes = self._closed = 0
        self._latencies_ms: list[float] = []

    def run(self) -> None:
        pipe_number = self._pipe.fileno()
        while True:
            for number, _ in self._epoll.poll(-1, 512):
                if number == pipe_number:
                    self._obey(*self._pipe.recv())
                else:
                    self._read(number)

    def _obey(self, command: str, *arguments: object) -> None:
        if command == "connect":
            request, count, stalled = arguments
            assert isinstance(request, Request)
            assert isinstance(count, int)
            assert isinstance(stalled, int)
            self._pipe.send(self._connect(request, count, stalled))
        elif command == "take":
            request, count = arguments
            assert isinstance(request, Request)
            assert isinstance(count, int)
            self._pipe.send(self._take(request, count))
        elif command == "start":
            self._reset()
            self._pipe.send(None)
        else:
            self._pipe.send(
                Received(
                    time.monotonic() - self._began_at,
                    self._deliveries(),
                    self._size_bytes,
                    self._latencies_ms,
                    time.process_time() - self._began_cpu,
                    self._closed,
                )
            )

    def _read(self, number: int) -> None:
        sampled = number in self._samples
        try:
            # What is not looked at is not even copied: for TCP, MSG_TRUNC drops it in the kernel (tcp(7)).
            flags = 0 if sampled else socket.MSG_TRUNC
            size = self._sockets[number].recv_into(self._buffer, _BUFFER_BYTES, flags)
        except BlockingIOError:
            return
        except ConnectionError:
            size = 0
        if not size:
            self._closed += 1
            self._epoll.unregister(number)
            self._sockets.pop(number).close()
            return
        self._size_bytes += size
        if sampled:
            self._sample(number, bytes(memoryview(self._buffer)[:size]))

    def _sample(self, number: int, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        self._sampled_bytes += len(data)
        data = self._samples[number] + data
        end = 0
        for found in _TIME.finditer(data):
            self._latencies_ms.append((now_ns - int(found[1])) / 1e6)
            end = found.end()
        self._samples[number] = data[max(end, len(data) - 64) :]

    def _deliveries(self) -> int:
        """Of all listeners, by the bytes: how many events are in so many is known of the sampled ones."""
        return round(self._size_bytes / max(1, self._sampled_bytes) * len(self._latencies_ms))

    def _connect(self, request: Request, count: int, stalled: int) -> float:
        began_at = time.monotonic()
        asked = request.encoded()
        for connection in self._stalled:
            connection.close()
        self._stalled.clear()
        wanted = collections.deque([True] * stalled + [False] * count)
        opening: dict[int, tuple[socket.socket, bool]] = {}
        every = max(1, math.ceil(count / self._sampled))
        opened = 0
        while wanted or opening:
            while wanted and len(opening) < _CONNECTING:
                connection = _open(request.port, opened, small=wanted[0])
                opened += 1
                opening[connection.fileno()] = (connection, wanted.popleft())
                self._epoll.register(connection, select.EPOLLOUT)
            for number, _ in self._epoll.poll(10, 512):
                if number in opening:
                    self._go_on(number, opening, asked, every)
                elif number in self._sockets:
                    self._read(number)
        return time.monotonic() - began_at

    def _take(self, request: Request, count: int) -> tuple[float, int]:
        began_at = time.monotonic()
        tails: dict[int, bytes] = {}
        size_bytes = 0
        for index in range(count):
            connection = _open(request.port, index, small=False)
            self._sockets[connection.fileno()] = connection
            tails[connection.fileno()] = b""
            self._epoll.register(connection, select.EPOLLOUT)
        while tails:
            for number, _ in self._epoll.poll(10, 512):
                try:
                    size = self._sockets[number].recv_into(self._buffer)
                except BlockingIOError:
                    self._epoll.modify(number, select.EPOLLIN)
                    self._sockets[number].send(request.encoded())
                    continue
                size_bytes += size
                data = tails[number] + bytes(memoryview(self._buffer)[max(0, size - 1024) : size])
                tails[number] = data[-64:]
                if _ID in data or not size:
                    del tails[number]
                    self._epoll.unregister(number)
                    self._sockets.pop(number).close()
        return time.monotonic() - began_at, size_bytes

    def _go_on(self, number: int, opening: dict[int, tuple[socket.socket, bool]], asked: bytes, every: int) -> None:
        """Connected: ask. Answered: from now on a listener, or one that never reads again."""
        connection, stalls = opening[number]
        try:
            head = connection.recv(512 if stalls else 1 << 16)
        except BlockingIOError:
            self._epoll.modify(number, select.EPOLLIN)
            connection.send(asked)
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"not a stream: {head!r}")
        del opening[number]
        if stalls:
            self._epoll.unregister(number)
            self._stalled.append(connection)
            return
        self._sockets[number] = connection
        if len(self._sockets) % every == 0:
            self._samples[number] = b""


def _open(port: int, index: int, *, small: bool) -> socket.socket:
    connection = socket.socket()
    connection.setblocking(False)
    if small:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _STALLED_BUFFER_BYTES)
    connection.bind((f"127.0.1.{1 + index // _PER_SOURCE}", 0))
    connection.connect_ex(("127.0.0.1", port))
    return connection


def _client(pipe: Connection, cores: set[int], sampled: int) -> None:
    os.sched_setaffinity(0, cores)
    raise_descriptor_limit()
    _Client(pipe, sampled).run()


def raise_descriptor_limit() -> None:
    """As many descriptors as this process may have."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
