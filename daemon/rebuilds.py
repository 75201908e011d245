"""Rebuilds: the whole picture made anew, at start and when somebody asks."""

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping

import anyio.abc
import anyio.lowlevel
import msgspec
import structlog

from ckptd.catalog.store import Catalog
from ckptd.validators.text import counted

from .engine import Engine
from .http.backend import RebuildMode
from .http.events import EventHub
from .metrics import Metrics


class Build(msgspec.Struct, frozen=True):
    """The last time that the whole picture was made, every root included."""

    seconds: float | None = None
    at: float | None = None
    """Epoch seconds."""
    known: int = 0
    inspected: int = 0


class Rebuilds:
    """Requests of the same moment share one."""

    def __init__(
        self,
        catalog: Catalog,
        engine: Engine,
        hub: EventHub,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._catalog = catalog
        self._engine = engine
        self._hub = hub
        self._metrics = metrics
        self._log = log
        self._requested: dict[RebuildMode, str] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self.last = Build()
        self.partial_at: float | None = None
        """When the latest build ended, if it could not read every root; epoch seconds."""

    @contextlib.contextmanager
    def taken_up_in(self, tasks: anyio.abc.TaskGroup) -> Iterator[None]:
        """Requests are taken up, in these tasks, while inside."""
        self._tasks = tasks
        try:
            yield
        finally:
            self._tasks = None

    def begin_first(self, began_at: float) -> None:
        """Make the picture for the first time.

        Args:
            began_at: when the start began; `time.perf_counter`.
        """
        self._running().start_soon(self._build_and_tell, began_at, False)

    def request(self, mode: RebuildMode) -> str:
        """Start a rebuild, or join the one of the same mode that has not begun; returns its token."""
        token = self._requested.get(mode)
        if token is None:
            tasks = self._running()
            token = self._requested[mode] = secrets.token_hex(8)
            self._metrics.rebuilds.labels(mode.value).inc()
            tasks.start_soon(self._rebuild, mode, token)
        return token

    def _running(self) -> anyio.abc.TaskGroup:
        if self._tasks is None:
            raise RuntimeError("the service is not running")
        return self._tasks

    async def _rebuild(self, mode: RebuildMode, token: str) -> None:
        # Requests of the same moment share one rebuild; whoever comes once it has begun gets the next one.
        await anyio.lowlevel.checkpoint()
        del self._requested[mode]
        began_at = time.perf_counter()
        await self._build_and_tell(began_at, mode is RebuildMode.FULL)
        self._metrics.rebuild_seconds.labels(mode.value).observe(time.perf_counter() - began_at)
        self._hub.announce_rebuilt(token, self._catalog.revision)

    async def _build_and_tell(self, began_at: float, full: bool) -> None:
        described = self._engine.counts.described
        await self._engine.sweep(full=full)
        total = len(self._catalog)
        inspected = min(self._engine.counts.described - described, total)
        build = Build(time.perf_counter() - began_at, time.time(), known=total - inspected, inspected=inspected)
        unswept = self._engine.unswept
        if unswept:
            self.partial_at = build.at
        else:
            self.last, self.partial_at = build, None
        self._tell(build, total, unswept)

    def _tell(self, build: Build, total: int, unswept: Mapping[str, str]) -> None:
        entries = counted(total, "entry", "entries")
        what = f"{entries} ({build.known} known, {build.inspected} inspected) in {build.seconds:.2f} s"
        if not unswept:
            self._log.info(f"catalog built: {what}")
            return
        self._log.warning(
            f"catalog built in part: {what}",
            roots_not_read=dict(sorted(unswept.items())),
            remedy="what was known of these stays listed; they are tried again by themselves, see /health/checkpoints",
        )
