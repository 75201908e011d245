"""Readers of the soak: those that ask and read, those that ask and never read, those that never end their request."""

import collections
import contextlib
import http.client
import json
import random
import select
import socket
import threading
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import quote

STALLED = 20
HALF = 10
CUT_OFF = (OSError, http.client.HTTPException, ValueError)
"""What a reader meets while the service is restarted."""
EXPECTED = frozenset({200, 304, 404, 410})
"""Statuses of good answers; a checkpoint may be gone between a list and the question for its detail."""
_SEARCHES = ("w0", "run3 epoch", "hostile", "no such thing", "epoch:3", "base exp1")


class Readers:
    """Threads that list, search, compare and ask for details, without a pause to speak of; over restarts."""

    def __init__(self, port: int, count: int, seed: int) -> None:
        self.answers: collections.Counter[int] = collections.Counter()
        self.wrong: list[str] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed + number),)) for number in range(count)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, dice: random.Random) -> None:
        ids: list[str] = []
        while not self._stop.wait(0.02):
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            with contextlib.suppress(*CUT_OFF):
                while not self._stop.wait(dice.uniform(0.01, 0.1)):
                    answer = self._ask(connection, _question(dice, ids))
                    ids = [entry["id"] for entry in answer.get("checkpoints", ())] or ids
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, path: str) -> dict[str, Any]:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        self.answers[response.status] += 1
        if response.status not in EXPECTED:
            self.wrong.append(f"{path}: {response.status} {body[:300].decode(errors='replace')}")
        answer = json.loads(body)
        return answer if response.status == 200 and isinstance(answer, dict) else {}


def _question(dice: random.Random, ids: list[str]) -> str:
    size, page = dice.choice((10, 100, 1000)), dice.randrange(1, 4)
    kinds: list[Callable[[], str]] = [
        lambda: f"/checkpoints?page_size={size}&page={page}",
        lambda: f"/checkpoints?page_size={size}&sort_by=epoch&sort_order=asc",
        lambda: f"/checkpoints?page_size=100&q={quote(dice.choice(_SEARCHES))}",
        lambda: "/checkpoints?page_size=100&include_invalid=true&health=invalid",
        lambda: "/health/checkpoints",
    ]
    if len(ids) > 1:
        first, second = dice.sample(ids, 2)
        kinds += [
            lambda: f"/checkpoints/{first}",
            lambda: f"/checkpoints/{first}/tensors",
            lambda: f"/checkpoints/compare?id={first}&id={second}",
        ]
    return dice.choice(kinds)()


class StalledReaders:
    """Sockets that are opened again whenever the service closes them."""

    def __init__(self, port: int) -> None:
        self.opened = 0
        events = f"GET /checkpoints/events?include_invalid=true HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        self._requests = [events] * STALLED + [events[:20]] * HALF
        self._sockets: dict[int, tuple[socket.socket, bytes]] = {}
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for connection, _ in self._sockets.values():
            connection.close()

    def _run(self) -> None:
        waiting = list(self._requests)
        while not self._stop.wait(0.5):
            waiting = [request for request in waiting if not self._open(request)]
            waiting += self._closed()

    def _open(self, request: bytes) -> bool:
        with contextlib.suppress(OSError):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(5)
            try:
                connection.connect(("127.0.0.1", self._port))
                connection.sendall(request)
            except OSError:
                connection.close()
                raise
            self._sockets[connection.fileno()] = (connection, request)
            self.opened += 1
            return True
        return False

    def _closed(self) -> list[bytes]:
        """Close what the other side has closed; returns what to ask for again."""
        poll = select.poll()
        for fd in self._sockets:
            poll.register(fd, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        requests = []
        for fd, _ in poll.poll(0):
            connection, request = self._sockets.pop(fd)
            connection.close()
            requests.append(request)
        return requests
