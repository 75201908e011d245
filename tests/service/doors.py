"""Doors: the ways by which a reader reaches the same service: sockets, a proxy, an application that mounts it."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from tests.service.contract import contract
from tests.service.daemons import DEADLINE_S


@dataclasses.dataclass
class Door:
    """One way in."""

    url: str
    """Of the catalog, prefix included."""
    outputs: pathlib.Path
    """What is watched."""
    stop: Callable[[], None]
    """Begin the end of the service, as its operator would."""
    prefix: str = ""
    uds: pathlib.Path | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    """What a reader has to send to be let in."""
    kept: tuple[str, ...] = ()
    """Headers, in lower case, that whatever stands before the service keeps for itself."""

    def client(self, **options: Any) -> httpx.Client:
        """A client that is let in."""
        transport = httpx.HTTPTransport(uds=str(self.uds)) if self.uds is not None else None
        headers = self.headers | options.pop("headers", {})
        return httpx.Client(transport=transport, headers=headers, timeout=DEADLINE_S, trust_env=False, **options)

    def get(self, path: str, **parameters: str) -> httpx.Response:
        """One answer."""
        with self.client() as http:
            return http.get(self.url + path, params=parameters)

    def check(self, answer: httpx.Response) -> None:
        """Fail where an answer is not as /openapi.json describes it."""
        url, headers, body = str(answer.request.url), answer.headers, answer.content
        contract().check(answer.request.method, url, answer.status_code, headers, body, self.prefix, self.kept)

    @contextlib.contextmanager
    def listen(self, headers: dict[str, str] | None = None, **parameters: str) -> Iterator["Listening"]:
        """Open a live stream."""
        asked = {"Accept-Encoding": "identity"} | (headers or {})
        with (
            self.client() as http,
            http.stream("GET", f"{self.url}/checkpoints/events", params=parameters, headers=asked) as response,
        ):
            yield Listening(response)


class Listening:
    """A live stream as `EventSource` would read it."""

    def __init__(self, response: httpx.Response) -> None:
        assert response.status_code == 200, response.read()
        self.response = response
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self._lines = response.iter_lines()

    def next(self) -> dict[str, Any] | None:
        """The data of the next event; None when the stream has ended."""
        data: list[str] = []
        for line in self._lines:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line and data:
                return dict(json.loads("\n".join(data)))
            if field == "data":
                data.append(value)
            elif field == "id":
                self.last_event_id = value
            elif field == "retry":
                self.retry_ms = int(value)
        return None

    def until(self, kind: str) -> list[dict[str, Any]]:
        """All events up to and including the next of that type."""
        events: list[dict[str, Any]] = []
        while not events or events[-1]["type"] != kind:
            event = self.next()
            assert event is not None, f"the stream ended before {kind}: {events}"
            events.append(event)
        return events
