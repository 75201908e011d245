"""A thousand browsers: each keeps one live stream, and comes back as EventSource does when it ends."""

import collections
import contextlib
import random
import selectors
import socket
import time
from collections.abc import Callable
from typing import Self

from tests.daemon.stream_clients import ClientState, Message
from tests.service.daemons import DEADLINE_S

RECONNECT_S = 0.5
"""Where no `retry:` was said, or nobody answers."""


class Browser:
    """One EventSource: its state goes on over all its connections."""

    def __init__(self, port: Callable[[], int]) -> None:
        self._port = port
        self.state = ClientState()
        self.connection: socket.socket | None = None
        self.due = 0.0
        """When it connects next; monotonic."""
        self.retry_s = RECONNECT_S
        self.retries: list[int] = []
        """Every `retry:` that it was told, in milliseconds."""
        self.statuses: collections.Counter[int] = collections.Counter()
        self.cut_off = 0
        """Streams that ended without a `bye`."""
        self.kinds: collections.Counter[str] = collections.Counter()
        self.is_greeted = False
        """The stream that is open now has begun."""
        self._head = b""
        self._rest = b""
        self._is_over = False

    def connect(self, selector: selectors.BaseSelector) -> None:
        """Ask; a server that is not there is tried again later."""
        connection = socket.socket()
        connection.settimeout(DEADLINE_S)
        try:
            connection.connect(("127.0.0.1", self._port()))
        except (ConnectionError, ValueError, OSError):
            connection.close()
            self.due = time.monotonic() + self.retry_s
            return
        cursor = self.state.parser.last_event_id
        known = f"Last-Event-ID: {cursor}\r\n" if cursor else ""
        connection.sendall(f"GET /checkpoints/events HTTP/1.1\r\nHost: 127.0.0.1\r\n{known}\r\n".encode())
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ, self)
        self.connection, self._head, self._rest = connection, b"", b""
        self.state.said_bye = self.is_greeted = False

    def read(self, selector: selectors.BaseSelector) -> None:
        """Take what has come; a stream that ended is opened again after the time that the server said."""
        assert self.connection is not None
        try:
            data = self.connection.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        over = not data
        for message in self._messages(data):
            self.kinds[message.type] += 1
            self.is_greeted = True
            if message.retry is not None:
                self.retries.append(message.retry)
                self.retry_s = message.retry / 1000
        if over or self._is_over:
            self.cut_off += not self.state.said_bye
            self.close(selector)

    def close(self, selector: selectors.BaseSelector) -> None:
        """Hang up, and come back."""
        assert self.connection is not None
        selector.unregister(self.connection)
        self.connection.close()
        self.connection = None
        self.is_greeted = False
        self.state.parser.interrupted()
        self.due = time.monotonic() + self.retry_s

    def _messages(self, data: bytes) -> list[Message]:
        self._is_over = False
        self._rest += data
        if not self._head:
            head, mark, rest = self._rest.partition(b"\r\n\r\n")
            if not mark:
                return []
            self._head, self._rest = head, rest
            self.statuses[int(head[9:12])] += 1
        body = b""
        while True:  # chunked, RFC 9112, 7.1
            size, mark, rest = self._rest.partition(b"\r\n")
            if not mark or len(rest) < int(size, 16) + 2:
                return self.state.feed(body)
            length = int(size, 16)
            body += rest[:length]
            self._rest = rest[length + 2 :]
            if not length:
                self._is_over = True
                return self.state.feed(body)


class Swarm:
    """Browsers in one loop."""

    def __init__(self, count: int, port: Callable[[], int]) -> None:
        self._selector = selectors.DefaultSelector()
        self.browsers = [Browser(port) for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for browser in self.browsers:
            if browser.connection is not None:
                browser.close(self._selector)
        self._selector.close()

    def run_until(self, condition: Callable[[], bool], what: str) -> None:
        """Let them connect and read until something holds."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            now = time.monotonic()
            assert now < end, f"not within {DEADLINE_S:g} s: {what}"
            for browser in self.browsers:
                if browser.connection is None and browser.due <= now:
                    browser.connect(self._selector)
            for key, _ in self._selector.select(0.02):
                key.data.read(self._selector)

    def all_have(self, path: str) -> Callable[[], bool]:
        """Whether everybody listens, and shows a checkpoint at this path."""

        def holds() -> bool:
            return all(
                browser.is_greeted
                and browser.state.whole
                and any(entry["path"] == path for entry in browser.state.entries.values())
                for browser in self.browsers
            )

        return holds

    def disconnect_all(self) -> None:
        """All at once, in the middle of whatever comes, and back at once."""
        for browser in self.browsers:
            if browser.connection is not None:
                with contextlib.suppress(OSError):
                    browser.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                browser.close(self._selector)
                browser.due = 0.0
        random.shuffle(self.browsers)
