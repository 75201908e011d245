"""Health: liveness for supervisors, the catalog's health for people and scripts, metrics for Prometheus."""

from typing import Any

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..loop import Phase
from ..status import RootStatus, Status
from ..tokens import Right
from .backend import Backend
from .problems import rfc3339
from .security import AccessPolicy

_NO_STORE = {"Cache-Control": "no-store"}


class HealthRoutes:
    """`/health`, `/health/checkpoints` and `/metrics`."""

    def __init__(self, backend: Backend, access: AccessPolicy) -> None:
        self._access = access
        self._backend = backend
        self._metrics = backend.metrics

    async def live(self, _: Request) -> Response:
        """The process answers. Tells nothing else: it is open to everyone."""
        return Response(b'{"status":"ok"}', headers=_NO_STORE, media_type="application/json")

    async def checkpoints(self, request: Request) -> Response:
        """How far the catalog can be trusted, and why. Always 200: the answer is in the body."""
        with self._metrics.loop.phase(Phase.SCRAPE):
            own = {"may_rebuild": self._access.right_of(request.scope) is Right.CHANGE}
            body = msgspec.json.encode(health_of(self._backend.status()) | own)
        return Response(body, headers=_NO_STORE, media_type="application/json")

    async def metrics(self, _: Request) -> Response:
        """The metrics in Prometheus' text format."""
        with self._metrics.loop.phase(Phase.SCRAPE):
            self._metrics.take()
        body = await anyio.to_thread.run_sync(self._metrics.exposition)
        return Response(body, headers=_NO_STORE, media_type=self._metrics.media_type)


def health_of(status: Status) -> dict[str, Any]:
    """What `/health/checkpoints` shows of a status; times as RFC 3339."""
    shown = msgspec.to_builtins(status)
    assert isinstance(shown, dict)
    shown["catalog_status"] = shown.pop("state")
    shown["metadata_coverage"] = round(status.metadata_coverage, 4)
    shown["last_build_time_seconds"] = shown["last_build_time"] = shown.pop("last_build_s")
    for field in ("started_at", "complete_as_of", "last_build_at", "last_partial_build_at"):
        shown[field] = rfc3339(getattr(status, field))
    if status.verification is not None:
        shown["verification"]["oldest_verified_at"] = rfc3339(status.verification.oldest_verified_at)
    shown["roots"] = [_root(root) for root in status.roots]
    shown["recent_errors"] = [msgspec.to_builtins(e) | {"at": rfc3339(e.at)} for e in status.recent_errors]
    first = ("catalog_status", "reasons", "checkpoint_count", "metadata_coverage", "complete_as_of")
    return {name: shown[name] for name in first} | shown


def _root(root: RootStatus) -> dict[str, Any]:
    times = {field: rfc3339(getattr(root, field)) for field in ("complete_as_of", "sweep_started_at")}
    return dict(msgspec.to_builtins(root)) | times
