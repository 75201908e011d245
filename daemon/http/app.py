"""The application: routes, who gets in, and the live stream ahead of everything that would slow it down."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .access_log import AccessLog
from .backend import Backend
from .endpoints import EVENTS_PATH, endpoints, heartbeat_header
from .filters import Filters
from .listener import Asked
from .observed import Observed
from .page_files import PageFiles
from .parameter_types import check_query
from .parameters import parse_events
from .problems import ProblemError
from .responses import offers_gzip
from .security import AccessPolicy
from .sign_in import sign_in_page

Lifespan = Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]


def build_app(
    backend: Backend,
    access: AccessPolicy,
    *,
    lifespan: Lifespan | None = None,
    log: structlog.stdlib.BoundLogger | None = None,
    page: PageFiles | None = None,
) -> "CatalogApp":
    """Put the application together. `hub.run()` is the service's to start, and `hub.close()` to call.

    Args:
        backend: the service.
        access: who gets in.
        lifespan: of the application.
        log: for the access log; without one there is none.
        page: what `load_page` read; without it, `/` says so and names the endpoints.
    """
    backend.metrics.watch(backend.status, lambda: backend.hub.counts)
    return CatalogApp(backend, access, lifespan, log, page)


class CatalogApp(Starlette):
    """Every request is checked first; the live stream then goes straight to the hub, the rest to the routes."""

    def __init__(
        self,
        backend: Backend,
        access: AccessPolicy,
        lifespan: Lifespan | None,
        log: structlog.stdlib.BoundLogger | None,
        page: PageFiles | None,
    ) -> None:
        self.endpoints = endpoints(backend, access, page)
        routes = [endpoint.route() for endpoint in self.endpoints]
        handlers: dict[Any, Any] = {ProblemError: _problem, HTTPException: _http_problem, Exception: _internal_error}
        super().__init__(routes=routes, exception_handlers=handlers, lifespan=lifespan)
        self.router.redirect_slashes = False
        self._access = access
        self._page = page
        self._hub = backend.hub
        self._heartbeat = heartbeat_header(backend.settings)
        self._filters = Filters(backend.lines)
        self._metrics = backend.metrics
        self._access_log = AccessLog(backend.settings.access_log, log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        path = route_path(scope)
        try:
            early = self._admit(scope, path)
            if path != "/":  # which reads none: what is wrong with its own state is the page's to say
                check_query(scope["query_string"])
            if early is None and path == EVENTS_PATH and scope["method"] == "GET":
                await self._live(scope, receive, send)
                return
        except ProblemError as problem:
            early = sign_in_page(problem, scope, path, self._page) or problem.response()
        await self._answer(early or super().__call__, scope, receive, send)

    def _admit(self, scope: Scope, path: str) -> Response | None:
        if self._access.is_preflight(scope):
            headers = {"Access-Control-Allow-Methods": "GET, HEAD, POST", "Cache-Control": "no-store"}
            return Response(status_code=204, headers=headers)
        signed_in = self._access.sign_in(scope, path)
        if signed_in is None:
            self._access.check(scope, path)
        return signed_in

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = time.perf_counter()
        try:
            asked = await self._asked(scope)
            await self._hub.serve(asked, receive, send, [*self._access.response_headers(scope), self._heartbeat])
        finally:
            self._access_log.answered(scope, EVENTS_PATH, 200, time.perf_counter() - started_at)

    async def _asked(self, scope: Scope) -> Asked:
        """What a listener wants. Nothing else of its request is kept as long as it listens."""
        parameters = QueryParams(scope["query_string"])
        headers = dict(scope["headers"])
        return Asked(
            await self._filters.view(parse_events(parameters)),
            headers.get(b"last-event-id", b"").decode("latin-1") or parameters.get("last_event_id"),
            offers_gzip(headers.get(b"accept-encoding", b"").decode("latin-1")),
        )

    async def _answer(self, app: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """Let `app` answer, with the headers that every answer has, and measure it."""
        answer = Observed(scope, send, self._access.response_headers(scope))
        try:
            await app(scope, receive, answer.send)
        finally:
            answer.tell(self._metrics, self._access_log, EVENTS_PATH if route_path(scope) == EVENTS_PATH else None)


def route_path(scope: Scope) -> str:
    """The path beneath where this application is mounted."""
    path: str = scope["path"]
    root_path: str = scope.get("root_path", "")
    if root_path and (path == root_path or path.startswith(root_path + "/")):
        return path[len(root_path) :] or "/"
    return path


async def _problem(_: Request, problem: ProblemError) -> Response:
    return problem.response()


async def _http_problem(request: Request, error: HTTPException) -> Response:
    """What Starlette itself refuses: unknown paths and methods."""
    if error.status_code == 404:
        detail, remedy, field, value = (
            "there is nothing at this path",
            "see / for the endpoints",
            "path",
            request.url.path,
        )
    else:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))  # of a set
        error.headers = {"Allow": allowed}
        remedy = f"use {allowed}" if allowed else "see / for the endpoints"
        detail, field, value = f"{request.url.path}: {error.detail.lower()}", "method", request.method
    problem = ProblemError(
        error.status_code, detail, remedy=remedy, field=field, value=value, headers=dict(error.headers or {})
    )
    return problem.response()


async def _internal_error(_: Request, __: Exception) -> Response:
    # Starlette raises the error again afterwards, so that the server logs it with its traceback.
    problem = ProblemError(500, "the daemon failed to answer", remedy="its log says why; please report it")
    return problem.response()
