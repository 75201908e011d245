"""Service: one task group owns every task; start, run, drain. Everything but the sockets."""

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Self

import anyio
import anyio.to_thread
import structlog

from ckptd.catalog.description import Description
from ckptd.catalog.entry import CheckpointId, Record
from ckptd.catalog.matching import Lines
from ckptd.catalog.roots import Root, resolve_roots
from ckptd.catalog.state import State
from ckptd.catalog.store import Catalog
from ckptd.catalog.verification import apply

from .completeness import Completeness
from .engine import Engine
from .http.backend import RebuildMode
from .http.events import EventHub
from .index_export import IndexExport
from .journal import Journal
from .key import Key
from .memory import leave_alone_what_is_loaded
from .metrics import Metrics
from .progress import Progress
from .rebuilds import Rebuilds
from .recent_errors import RecentErrors
from .rereads import Rereads, judged_by
from .rootlock import RootLock
from .self_report import SelfReport
from .settings import Settings
from .status import Status
from .tally import Tally
from .zygote_process import ZygoteProcess

PROGRESS_S = 0.25
"""Time between two progress messages while many paths are pending."""
DRAIN_S = 4.0
"""How long a clean stop may take before what is left is cut off."""


class Service:
    """The catalog of some roots, kept current. Implements `http.backend.Backend`."""

    def __init__(
        self,
        settings: Settings,
        state: State,
        roots: Sequence[Root],
        log: structlog.stdlib.BoundLogger,
        zygote: ZygoteProcess | None = None,
    ) -> None:
        self.settings = settings
        self.roots = tuple(roots)
        self.metrics = Metrics()
        self._log = log
        self._state = state
        self._errors = RecentErrors(self.metrics)
        loaded = state.load()
        self.catalog = Catalog(loaded.instance)
        self.lines: Lines | None = state.texts
        self.catalog.load(loaded.records, loaded.tombstones, loaded.revision, loaded.floor)
        tally = Tally(self.catalog)
        self.catalog.on_publish(tally.publish)
        self.catalog.on_publish(self.metrics.count_changes)
        completeness: Completeness[Key] = Completeness(root.name for root in roots)
        self.hub = self._make_hub(completeness)
        self._journal = Journal(
            self.catalog, state, log, monitor=self.metrics.loop, on_commit=self.metrics.observe_commit
        )
        self._journal.undescribed = state.undescribed()
        self._locks = {root: RootLock(root) for root in roots}
        self._engine = Engine(
            settings=settings,
            roots=self.roots,
            state=state,
            catalog=self.catalog,
            journal=self._journal,
            completeness=completeness,
            may_write=self._may_write,
            errors=self._errors,
            metrics=self.metrics,
            log=log,
            zygote=zygote,
        )
        self._rebuilds = Rebuilds(self.catalog, self._engine, self.hub, self.metrics, log)
        self._rereads = Rereads(
            self.catalog, state, self._journal, self._engine, log, judged_by=judged_by(settings, self.roots)
        )
        self._index = IndexExport(
            self.catalog, self.roots, may_write=self._may_write, enabled=settings.export_index, log=log
        )
        self._report = SelfReport(
            settings=settings,
            roots=self.roots,
            catalog=self.catalog,
            tally=tally,
            completeness=completeness,
            journal=self._journal,
            engine=self._engine,
            rebuilds=self._rebuilds,
            rereads=self._rereads,
            errors=self._errors,
            metrics=self.metrics,
            texts=state.texts,
        )
        self.metrics.watch_work(self._report.work)
        self._state_notes = 0
        self._tell_state_notes()

    def _make_hub(self, completeness: Completeness[Key]) -> EventHub:
        settings = self.settings
        return EventHub(
            self.catalog,
            complete_as_of=completeness.overall,
            coalesce_ms=settings.coalesce_ms,
            heartbeat_s=settings.heartbeat_s,
            max_listeners=settings.max_listeners,
            send_timeout_s=settings.send_timeout_s,
            monitor=self.metrics.loop,
        )

    @classmethod
    def open(cls, settings: Settings, log: structlog.stdlib.BoundLogger, zygote: ZygoteProcess | None = None) -> Self:
        """Open the state and load what an earlier run knew. Blocks; nothing runs yet.

        Args:
            settings: see there.
            log: bind what belongs to the service.
            zygote: one that was launched already with the settings' limits.

        Raises:
            RootError: a root can never be watched.
            StateLocked: another process uses the state directory.
            StateError: the state directory cannot be used.
        """
        roots, warnings = resolve_roots(settings.roots)
        for warning in warnings:
            log.warning("roots", note=warning)
        state = State.open(settings.state_dir, boot_id=boot_id(), clock=time.time)
        try:
            return cls(settings, state, roots, log, zygote)
        except BaseException:
            state.close(clean=False)
            raise

    def close(self, *, clean: bool = True) -> None:
        """Close the state, after `running` has ended. A second call does nothing."""
        for lock in self._locks.values():
            lock.release()
        self._state.close(clean=clean and self._journal.durable)

    # ---- start, run, drain ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the catalog current while inside. The list is served from the start, as an earlier run knew it."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.hub.run)
            tasks.start_soon(self.metrics.loop.tick)
            try:
                with self._rebuilds.taken_up_in(tasks):
                    async with anyio.create_task_group() as engine:
                        engine.start_soon(self._keep_current)
                        engine.start_soon(self._upkeep)
                        yield
                        await self._drain()
                        engine.cancel_scope.cancel()
            finally:
                with anyio.CancelScope(shield=True, deadline=anyio.current_time() + DRAIN_S):
                    await self.hub.close()
            tasks.cancel_scope.cancel()

    async def _keep_current(self) -> None:
        await self._engine.run(functools.partial(self._started, began_at=time.perf_counter()))

    async def _started(self, *, began_at: float) -> None:
        leave_alone_what_is_loaded()
        await self._rereads.begin()
        self._rebuilds.begin_first(began_at)

    async def _upkeep(self) -> None:
        """What is done by the clock: progress, descriptions that are made again, the portable index."""
        progress = Progress()
        while True:
            await anyio.sleep(PROGRESS_S)
            if self._engine.is_running:
                told = progress.step(self._engine.pending)
                if told is not None:
                    self.hub.announce_progress(*told)
            await self._rereads.step()
            self._tell_state_notes()
            await self._index.export_if_due()

    def _tell_state_notes(self) -> None:
        notes = self._state.notes[self._state_notes :]
        self._state_notes += len(notes)
        for note in notes:
            self._log.warning("state", note=note)
            self._errors.note("state", self.settings.state_dir, note)

    async def _drain(self) -> None:
        """Let what is under way end, so that the state says all that was told."""
        with anyio.move_on_after(DRAIN_S):
            self._engine.close()
            await self._rereads.note_judged()
            await self._journal.drained()
            await self._index.export()

    def _may_write(self, root: Root) -> bool:
        return self._locks[root].held()

    # ---- Backend -------------------------------------------------------------------------------------------

    async def description(self, checkpoint_id: CheckpointId) -> Description | None:
        """What is known behind an entry, tensors and verification included; None where nothing is kept."""
        return await anyio.to_thread.run_sync(self._description, self.catalog.get(checkpoint_id), checkpoint_id)

    def _description(self, record: Record | None, checkpoint_id: CheckpointId) -> Description | None:
        """Runs in a thread."""
        description = self._state.full_description(checkpoint_id)
        if description is None or record is None:
            return description
        verification = self._journal.verification(record.entry.alias_of or checkpoint_id)
        if verification is None:
            return description
        return apply(description, verification, shards=record.identities.shards)

    def request_rebuild(self, mode: RebuildMode) -> str:
        """Start a rebuild, or join the one of the same mode that has not begun; returns its token.

        Raises:
            RuntimeError: the service is not running.
        """
        return self._rebuilds.request(mode)

    def status(self) -> Status:
        """A consistent picture of the service now."""
        return self._report.status()


def boot_id() -> str:
    """This boot's id; empty where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
