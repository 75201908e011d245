"""Observed: one answer on its way out; what it says of itself, for the metrics and the access log."""

import time
from collections.abc import Iterable, MutableMapping
from typing import Any

from starlette.routing import Route
from starlette.types import Scope, Send

from ..metrics import CacheUse, Metrics
from .access_log import AccessLog

NO_ROUTE = "other"
"""Stands for every path that leads nowhere, and for requests that were refused before one was looked for."""


class Observed:
    """Sends an answer with the headers that every answer has, and sees what passes."""

    def __init__(self, scope: Scope, send: Send, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.scope = scope
        self.status: int | None = None
        """HTTP status; None while nothing was answered."""
        self.size_bytes = 0
        self._started_at = time.perf_counter()
        self._send = send
        self._headers = tuple(headers)
        self._has_etag = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {name for name, _ in message["headers"]}
            self._has_etag = b"etag" in own
            common = (header for header in self._headers if header[0] == b"vary" or header[0] not in own)
            message["headers"] = [*message["headers"], *common]
        elif message["type"] == "http.response.body" and self.scope["method"] != "HEAD":
            self.size_bytes += len(message.get("body", b""))
        await self._send(message)

    @property
    def seconds(self) -> float:
        """Since the request."""
        return time.perf_counter() - self._started_at

    @property
    def cache_use(self) -> CacheUse | None:
        """How it stands to the client's copy; None where there can be none."""
        if not self._has_etag or self.status not in (200, 304):
            return None
        if self.status == 304:
            return CacheUse.NOT_MODIFIED
        conditional = any(name == b"if-none-match" for name, _ in self.scope["headers"])
        return CacheUse.MODIFIED if conditional else CacheUse.UNCONDITIONAL

    def tell(self, metrics: Metrics, log: AccessLog, route: str | None = None) -> None:
        """Count it and log it, now that it has ended.

        Args:
            metrics: see there.
            log: see there.
            route: its route's template, where none of the application's routes was asked.
        """
        if self.status is None:
            return  # cut off, as at the end of a drain: whatever fails is answered
        found = self.scope.get("route")
        route = route or (found.path if isinstance(found, Route) else NO_ROUTE)
        seconds, method = self.seconds, self.scope["method"]
        metrics.observe_request(route, method, self.status, seconds, size_bytes=self.size_bytes, cache=self.cache_use)
        log.answered(self.scope, route, self.status, seconds, self.size_bytes)
