"""Endpoint: one route as it is declared, for whoever serves it and for whoever documents it."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .parameter_types import Parameter
from .problems import ProblemError
from .responses import JSON

Handler = Callable[[Request], Awaitable[Response]]
EVENT_STREAM = "text/event-stream"
NO_CONTENT = ""
"""Media type of an answer without a body."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One way in which an endpoint answers; refusals are declared by their status alone."""

    description: str
    status: int = 200
    media_type: str = JSON
    model: str | None = None
    """Name in `models` of the type of the body, or of the data of each event of a stream; None: free text, or nothing.
    By name, because making the models takes longer than all the rest of the start, and only the description of the API
    needs them."""
    headers: tuple[str, ...] = ()
    """Names of `openapi.HEADERS` that are always there."""
    may_have: tuple[str, ...] = ()
    """Names of `openapi.HEADERS` that are there sometimes."""
    example: str | None = None
    """Name in `examples.json`."""
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names of endpoints that take an `id` → where in the body it is, as a JSON pointer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A path with its one method; HEAD (beside GET) and OPTIONS are answered everywhere."""

    path: str
    handler: Handler
    name: str
    """Unique; the `operationId` of generated clients."""
    summary: str
    answers: tuple[Answer, ...]
    method: str = "GET"
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[int, ...] = ()
    """Statuses of its own refusals, besides those that every endpoint has."""
    checks_query: bool = True
    """Parameters that are not declared, or cannot be used, are refused."""
    is_public: bool = False
    """Needs no token."""
    tag: str = "checkpoints"

    @property
    def methods(self) -> tuple[str, ...]:
        """All that it answers to."""
        return ("GET", "HEAD", "OPTIONS") if self.method == "GET" else ("OPTIONS", self.method)

    @property
    def allow(self) -> str:
        """The value of the header `Allow` (RFC 9110, 10.2.1)."""
        return ", ".join(self.methods)

    def route(self) -> Route:
        """The route that serves it."""

        async def handle(request: Request) -> Response:
            if request.method == "OPTIONS":
                self._check_path(request)
                return Response(status_code=204, headers={"Allow": self.allow, "Cache-Control": "no-store"})
            return await self.handler(request)

        return Route(self.path, handle, name=self.name, methods=list(self.methods))

    def _check_path(self, request: Request) -> None:
        for parameter in self.parameters:
            if parameter.location == "path":
                try:
                    parameter.read(request.path_params[parameter.name])
                except ValueError:
                    raise ProblemError(
                        404,
                        "there can be nothing at this path",
                        remedy=f"use {parameter.wanted}",
                        field=parameter.name,
                        value=request.path_params[parameter.name],
                    ) from None
