"""The access log: one event for each request that is worth one; never an address, a query or a header."""

import structlog
from starlette.types import Scope

from ..logging import REQUEST_EVENT
from ..setting_types import AccessLogged
from .security import is_unix_socket

_CLIENTS = (
    ("ckptd", "ckptd"),
    ("prometheus", "prometheus"),
    ("curl", "curl"),
    ("wget", "curl"),
    ("python", "python"),
    ("mozilla", "browser"),
)
"""What a `User-Agent` begins with → the kind of client, the first that fits."""
_ERROR_FROM = 400
_FAILURE_FROM = 500


class AccessLog:
    """Writes what `access_log` asks for.

    Who asks is told by kind, not by address: the log is to show what goes wrong, not who reads what. Query values may
    be names that people search for, or a token in a link, so the route's template is all that is told of a path.
    """

    def __init__(self, logged: AccessLogged, log: structlog.stdlib.BoundLogger | None) -> None:
        self._log = None if logged is AccessLogged.OFF else log
        self._least = 0 if logged is AccessLogged.ALL else _ERROR_FROM

    def answered(self, scope: Scope, route: str, status: int, seconds: float, size_bytes: int | None = None) -> None:
        """A request was answered.

        Args:
            scope: of the request.
            route: its route's template.
            status: HTTP status code.
            seconds: from the request to the end of its answer.
            size_bytes: of the body as sent; None for a live stream.
        """
        if self._log is None or status < self._least:
            return
        write = self._log.warning if status >= _FAILURE_FROM else self._log.info
        write(
            REQUEST_EVENT,
            method=scope["method"] if len(scope["method"]) <= 16 else "other",
            route=route,
            status=status,
            duration_ms=round(seconds * 1000, 2),
            bytes=size_bytes,
            client=client_kind(scope),
            over="unix" if is_unix_socket(scope) else "tcp",
        )


def client_kind(scope: Scope) -> str:
    """What kind of program asks: `browser`, `curl`, `python`, `prometheus`, `ckptd` or `other`."""
    agent = next((value for name, value in scope["headers"] if name == b"user-agent"), b"").decode("latin-1").lower()
    return next((kind for start, kind in _CLIENTS if agent.startswith(start)), "other")
