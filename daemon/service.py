"""Service: one task group owns every task; start, run, drain. Everything but the sockets."""

import collections
import contextlib
import functools
import gc
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Self

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import msgspec
import structlog

from ckptd.catalog.description import Description
from ckptd.catalog.entry import CheckpointId, Health, Record
from ckptd.catalog.index import index_of, write_index
from ckptd.catalog.matching import Lines
from ckptd.catalog.redaction import REDACTION_VERSION
from ckptd.catalog.roots import Root, resolve_roots
from ckptd.catalog.search_text import TEXT_VERSION
from ckptd.catalog.state import State, StateError
from ckptd.catalog.store import Batch, Catalog, Tombstone
from ckptd.catalog.verification import apply
from ckptd.validators.architectures import table_digest
from ckptd.validators.inspection import FileIdentity, Level

from . import second_tries
from .collectors import VERSION
from .completeness import Completeness
from .filesystems import Filesystems
from .http.backend import RebuildMode
from .http.events import EventHub
from .journal import Journal
from .key import Key
from .look import Viewer
from .metrics import Metrics, RootEvents, Work
from .mounts import MountTable
from .pipeline import Counts, Pipeline
from .progress import Progress
from .rootlock import RootLock
from .settings import Settings, SidecarName, Sidecars
from .settle import Phase, Settle
from .sidecars import SidecarWriter
from .status import CatalogStatus, RecentError, RootStatus, Status, VerifierStatus
from .sweep import SweepReport
from .tally import Tally
from .tree import Tree, root_status
from .verdict import judge_service
from .verifier import Verifier
from .workers import WorkerPool
from .zygote_process import WEIGHTS_ZYGOTE_COMMAND, ZYGOTE_COMMAND, ZygoteProcess

RECENT_ERRORS = 50
JUDGED_BY = "judged_by"
"""Under this the state keeps the digest of what was asked of every checkpoint."""
INDEX_DELAY_S = 5.0
"""The portable index is written at most this often."""
INDEX_SHARE = 0.05
"""Nor may writing it take more than this share of the time: in a large tree under change it waits longer."""
PROGRESS_S = 0.25
"""Time between two progress messages while many paths are pending."""
BUSY_FROM = 64
"""With more paths waiting for a look, sidecars wait as well."""
DRAIN_S = 4.0
"""How long a clean stop may take before what is left is cut off."""


class Build(msgspec.Struct):
    """The last time that the whole picture was made."""

    seconds: float | None = None
    at: float | None = None
    known: int = 0
    inspected: int = 0


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
        self._started_at = time.time()
        self._log = log
        self._state = state
        self._zygote = zygote
        self._errors: collections.deque[RecentError] = collections.deque(maxlen=RECENT_ERRORS)
        loaded = state.load()
        self.catalog = Catalog(loaded.instance)
        self.lines: Lines | None = state.texts
        self.catalog.load(loaded.records, loaded.tombstones, loaded.revision, loaded.floor)
        self._tally = Tally(self.catalog)
        self.catalog.on_publish(self._tally.publish)
        self.catalog.on_publish(self.metrics.count_changes)
        self.metrics.watch_work(self._work)
        self._completeness: Completeness[Key] = Completeness(root.name for root in roots)
        self.hub = EventHub(
            self.catalog,
            complete_as_of=self._completeness.overall,
            coalesce_ms=settings.coalesce_ms,
            heartbeat_s=settings.heartbeat_s,
            max_listeners=settings.max_listeners,
            send_timeout_s=settings.send_timeout_s,
            monitor=self.metrics.loop,
        )
        self._journal = Journal(
            self.catalog, state, log, monitor=self.metrics.loop, on_commit=self.metrics.observe_commit
        )
        self._locks = {root: RootLock(root) for root in roots}
        self._mounts = {root: self._load_mounts(root) for root in roots}
        self._saved_mounts: dict[Root, str] = {}
        self._allowed_targets = tuple(os.path.realpath(os.fsencode(path)) for path in settings.follow_links)
        self._sidecars = SidecarWriter(
            catalog=self.catalog,
            journal=self._journal,
            describe=state.description,
            digest_of=self._digest_of,
            may_write=lambda root: self._locks[root].held(),
            is_busy=self._is_busy,
            enabled=settings.sidecars is Sidecars.AUTO,
            long_name=settings.sidecar_name is SidecarName.LONG,
            delay_s=settings.sidecar_delay_s,
            log=log,
        )
        self._pipeline: Pipeline | None = None
        self._pool: WorkerPool | None = None
        self._background_pool: WorkerPool | None = None
        self._verifier: Verifier | None = None
        self._trees: dict[Root, Tree] = {}
        self._build = Build()
        self._rebuilds: dict[RebuildMode, str] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._unindexed = {root.name for root in roots}
        self._judged_by = judged_by(settings, self.roots)
        self._judging = False
        self._journal.undescribed = state.undescribed()
        self.catalog.on_publish(self._note_unindexed)
        self._state_notes = 0
        self._tell_state_notes()

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

    # ---- running -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the catalog current while inside. The list is served from the start, as an earlier run knew it."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self.hub.run)
            tasks.start_soon(self.metrics.loop.tick)
            engine = anyio.create_task_group()
            try:
                async with engine:
                    engine.start_soon(self._keep_current)
                    engine.start_soon(self._upkeep)
                    yield
                    await self._drain()
                    engine.cancel_scope.cancel()
            finally:
                self._tasks = None
                with anyio.CancelScope(shield=True, deadline=anyio.current_time() + DRAIN_S):
                    await self.hub.close()
            tasks.cancel_scope.cancel()

    async def _keep_current(self) -> None:
        """Everything between the files and the log."""
        began_at = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._journal.run)
            async with self._make_pool() as pool:
                pipeline = self._pipeline = self._make_pipeline(pool)
                self._trees = {root: self._make_tree(root, pipeline) for root in self.roots}
                verifier = self._verifier = self._make_verifier(pipeline)
                tasks.start_soon(pipeline.run)
                tasks.start_soon(self._sidecars.run)
                tasks.start_soon(self._sidecars.consider_known, self.roots)
                for tree in self._trees.values():
                    tasks.start_soon(tree.run)
                _settle_memory()
                await self._judge_again()
                await self._first_build(began_at)
                tasks.start_soon(verifier.run)
                await anyio.sleep_forever()

    async def _drain(self) -> None:
        """Let what is under way end, so that the state says all that was told."""
        with anyio.move_on_after(DRAIN_S):
            if self._pipeline is not None:
                self._pipeline.close()
            self._sidecars.close()
            await self._note_judged()
            await self._journal.drained()
            await self._export_index()

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

    def _digest_of(self, checkpoint_id: CheckpointId, file: FileIdentity) -> str | None:
        """Runs in a thread."""
        verification = self._journal.verification(checkpoint_id)
        known = verification is not None and verification.is_good and verification.identity == file
        return verification.digest if verification is not None and known else None

    def request_rebuild(self, mode: RebuildMode) -> str:
        """Start a rebuild, or join the one of the same mode that has not begun; returns its token."""
        token = self._rebuilds.get(mode)
        if token is None:
            token = self._rebuilds[mode] = secrets.token_hex(8)
            self.metrics.rebuilds.labels(mode.value).inc()
            if self._tasks is None:
                raise RuntimeError("the service is not running")
            self._tasks.start_soon(self._rebuild, mode, token)
        return token

    def status(self) -> Status:
        """A consistent picture of the service now."""
        pipeline, pool = self._pipeline, self._pool
        status = Status(
            instance=self.catalog.instance,
            revision=self.catalog.revision,
            started_at=self._started_at,
            state=CatalogStatus.HEALTHY,
            complete_as_of=self._completeness.overall(),
            roots=self._root_statuses(),
            checkpoint_count=len(self.catalog),
            by_health={health.value: count for health, count in self._tally.by_health.items() if count},
            by_safety={safety.value: count for safety, count in self._tally.by_safety.items() if count},
            with_sidecar=self._tally.with_sidecar,
            with_state_metadata=self._tally.with_state_metadata,
            last_build_s=self._build.seconds,
            last_build_at=self._build.at,
            fast_path_count=self._build.known,
            slow_path_count=self._build.inspected,
            pending=0 if pipeline is None else pipeline.pending,
            search=self._search_status(),
            writing_sidecars=self._sidecars.pending,
            skipped_sidecars=self._sidecars.skipped,
            skipped_links=sum(tree.skipped_links for tree in self._trees.values()),
            state_durable=self._journal.durable,
            cache_hit_rate=self.metrics.counts.cache_hit_rate,
            recent_errors=tuple(self._errors),
            worker_crashes=0 if pool is None else pool.crashes,
            sandbox="unknown" if pool is None else pool.sandbox,
            verification=self._verifier_status(),
        )
        return judge_service(status, self.settings, now=time.time(), sweep_due_s=self._sweep_due_s)

    @property
    def _sweep_due_s(self) -> float:
        """How old the last complete sweep may be when all is well."""
        return max((tree.sweep_gap_s for tree in self._trees.values()), default=self.settings.sweep_min_s)

    def _work(self) -> Work:
        """What waits and what was done, for the metrics."""
        counts = Counts() if self._pipeline is None else self._pipeline.counts
        pools = [pool for pool in (self._pool, self._background_pool) if pool is not None]
        return Work(
            queues=self._queues(),
            workers_busy=sum(pool.in_flight for pool in pools),
            looks=counts.looks,
            unchanged=counts.unchanged,
            described=counts.described,
            removed=counts.removed,
            worker_deaths=sum((pool.deaths for pool in pools), collections.Counter()),
            zygote_restarts=sum(pool.zygote_restarts for pool in pools),
            sidecars_written=self._sidecars.written,
            sidecars_skipped=self._sidecars.skipped,
            roots=tuple(
                RootEvents(root.name, tree.watching.events, tree.watching.overflows, tree.watching.restarts)
                for root, tree in self._trees.items()
            ),
            sweep_due_s=self._sweep_due_s,
        )

    def _queues(self) -> dict[str, int]:
        phases = dict.fromkeys(Phase, 0) if self._pipeline is None else self._pipeline.phases
        return {f"settle_{phase}": count for phase, count in phases.items()} | {
            "journal": self._journal.depth,
            "workers": 0 if self._pool is None else self._pool.queued,
            "sidecars": self._sidecars.pending,
        }

    def _search_status(self) -> str:
        if not self._journal.durable:
            return "entries only, where they are new: the state, which holds all else, cannot be written"
        if self._judging:
            return "partial: hyper-parameters and configs are being gathered anew"
        if not self._state.texts.is_indexed:
            return "full, but slow: this build of SQLite has no FTS5"
        return "full"

    def _verifier_status(self) -> VerifierStatus:
        known = VerifierStatus(level=self.settings.verify.value)
        return msgspec.structs.replace(
            known if self._verifier is None else self._verifier.status(),
            by_level={level.value: count for level, count in self._tally.by_level.items() if count},
            by_finding={code: count for code, count in self._tally.by_finding.items() if count},
        )

    def _root_statuses(self) -> tuple[RootStatus, ...]:
        return tuple(
            root_status(self._trees[root], self._completeness, writable=self._sidecars.can_write(root))
            if root in self._trees
            else RootStatus(path=root.name, online=True, watching=False, last_error="starting")
            for root in self.roots
        )

    # ---- builds --------------------------------------------------------------------------------------------

    async def _first_build(self, began_at: float) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(self._build_and_tell, began_at, False)

    async def _rebuild(self, mode: RebuildMode, token: str) -> None:
        # Requests of the same moment share one rebuild; whoever comes once it has begun gets the next one.
        await anyio.lowlevel.checkpoint()
        del self._rebuilds[mode]
        began_at = time.perf_counter()
        await self._build_and_tell(began_at, mode is RebuildMode.FULL)
        self.metrics.rebuild_seconds.labels(mode.value).observe(time.perf_counter() - began_at)
        self.hub.announce_rebuilt(token, self.catalog.revision)

    async def _build_and_tell(self, began_at: float, full: bool) -> None:
        described = self._described
        if full:
            self._sidecars.retry_refused()
        async with anyio.create_task_group() as sweeps:
            for tree in self._trees.values():
                sweeps.start_soon(functools.partial(tree.sweep_now, full=full))
        inspected = min(self._described - described, len(self.catalog))
        self._build = Build(
            seconds=time.perf_counter() - began_at,
            at=time.time(),
            known=len(self.catalog) - inspected,
            inspected=inspected,
        )
        self._log.info(
            f"catalog built: {len(self.catalog)} entries ({self._build.known} known, {inspected} inspected) "
            f"in {self._build.seconds:.2f} s"
        )

    async def _judge_again(self) -> None:
        """Have everything described again, in the background, where other questions are asked than at the last run."""
        if self._pipeline is None:
            return
        if await anyio.to_thread.run_sync(self._state.get_meta, JUDGED_BY) == self._judged_by:
            return
        self._judging = True
        if not len(self.catalog):
            await self._keep_judged_by()
            return
        self._log.info("what is required, recognised or redacted has changed: every checkpoint is described again")
        # By way of the undescribed: what a description says can change where nothing of the entry does.
        self._journal.undescribed.update(record.entry.id for record in self.catalog)
        self._read_undescribed()

    async def _note_judged(self) -> None:
        """Keep in the state that everything is judged by what is asked now, once it is."""
        if self._pipeline is None or self._pipeline.pending or self._journal.undescribed:
            return
        if self._judging:
            await self._keep_judged_by()

    async def _keep_judged_by(self) -> None:
        if not self._journal.durable:
            return
        try:
            await self._journal.write(lambda: self._state.set_meta(JUDGED_BY, self._judged_by))
            self._judging = False
        except StateError as error:
            self._log.warning("what the checkpoints were judged by could not be kept", error=str(error))

    def _is_busy(self) -> bool:
        return self._pipeline is not None and self._pipeline.waiting > BUSY_FROM

    @property
    def _described(self) -> int:
        return 0 if self._pipeline is None else self._pipeline.counts.described

    # ---- upkeep --------------------------------------------------------------------------------------------

    async def _upkeep(self) -> None:
        """What is done by the clock: progress, descriptions that were lost, the portable index."""
        index_at = anyio.current_time() + INDEX_DELAY_S
        crashed_at = anyio.current_time()
        progress = Progress()
        while True:
            await anyio.sleep(PROGRESS_S)
            if self._pipeline is not None:
                told = progress.step(self._pipeline.pending)
                if told is not None:
                    self.hub.announce_progress(*told)
            self._read_undescribed()
            await self._note_judged()
            self._tell_state_notes()
            if self._pipeline is not None and anyio.current_time() >= crashed_at:
                await self._retry_crashed()
                crashed_at = anyio.current_time() + second_tries.CHECK_S
            if anyio.current_time() >= index_at:
                began_at = anyio.current_time()
                await self._export_index()
                took_s = anyio.current_time() - began_at
                index_at = anyio.current_time() + max(INDEX_DELAY_S, took_s / INDEX_SHARE)

    def _tell_state_notes(self) -> None:
        notes = self._state.notes[self._state_notes :]
        self._state_notes += len(notes)
        for note in notes:
            self._log.warning("state", note=note)
            self._problem("state", self.settings.state_dir, note)

    def _read_undescribed(self) -> None:
        """Read again what was described while the state could not be written."""
        if not self._journal.undescribed or not self._journal.durable or self._pipeline is None:
            return
        ids = self._journal.take_undescribed()
        records = [record for checkpoint_id in ids if (record := self.catalog.get(checkpoint_id)) is not None]
        self._pipeline.hint(self._keys(records), must_read=True)

    async def _retry_crashed(self) -> None:
        """Read again what ended a worker, where a day has passed since, or another ckptd did it."""
        if self._pipeline is None:
            return
        kept, now = await anyio.to_thread.run_sync(self._state.get_meta, second_tries.TRIED), time.time()
        if not second_tries.is_due(kept, VERSION, now):
            return
        try:
            # Kept before they are read: should they end this process as well, the next one leaves them alone.
            await self._journal.write(
                lambda: self._state.set_meta(second_tries.TRIED, second_tries.tried(VERSION, now))
            )
        except StateError:
            return  # told by the journal; asked again in a minute
        records = second_tries.crashed(self.catalog)
        if records:
            self._log.info("what ended a worker is tried again", checkpoints=len(records))
            self._pipeline.hint(self._keys(records), must_read=True)

    def _keys(self, records: Iterable[Record]) -> list[Key]:
        by_name = {root.name: root for root in self.roots}
        return [Key(by_name[r.entry.root], r.relative_path) for r in records if r.entry.root in by_name]

    async def _export_index(self) -> None:
        if not self.settings.export_index:
            return
        due, self._unindexed = self._unindexed, set()
        for root in self.roots:
            if root.name in due:
                await anyio.to_thread.run_sync(self._write_index, root, list(self.catalog))

    def _write_index(self, root: Root, everything: Sequence[Record]) -> None:
        """Runs in a thread."""
        records = [record for record in everything if record.entry.root == root.name]
        if records and all(record.entry.health is Health.OFFLINE for record in records):
            return  # its disk is unmounted: what can be written to now is the bare directory beneath
        if not self._locks[root].held():
            return
        try:
            root_fd = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                write_index(root_fd, index_of(records, root_fd))
            finally:
                os.close(root_fd)
        except OSError as error:
            self._log.warning("the portable index was not written", root=root.name, error=error.strerror)

    def _note_unindexed(self, batch: Batch) -> None:
        for item in batch.items:
            if not isinstance(item, Tombstone):
                self._unindexed.add(item.entry.root)
            else:
                self._unindexed.update(root.name for root in self.roots)

    # ---- parts ---------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _make_pool(self) -> AsyncIterator[WorkerPool]:
        settings = self.settings
        async with WorkerPool(
            workers=settings.workers,
            memory_mb=settings.worker_memory_mb,
            timeout_s=settings.worker_timeout_s,
            log=self._log,
            launched=self._zygote,
            architectures=settings.architectures,
        ) as pool:
            self._pool = pool
            yield pool

    def _make_pipeline(self, pool: WorkerPool) -> Pipeline:
        return Pipeline(
            catalog=self.catalog,
            journal=self._journal,
            pool=pool,
            sidecars=self._sidecars,
            viewers=[self._make_viewer(root) for root in self.roots],
            settle=Settle(quiet_s=self.settings.quiet_s, abandoned_s=self.settings.abandoned_s),
            sweeps_begun=lambda root: self._completeness.begun(root.name),
            on_looked=self._looked,
            on_problem=self._problem,
            metrics=self.metrics,
            log=self._log,
        )

    def _make_verifier(self, pipeline: Pipeline) -> Verifier:
        settings = self.settings
        return Verifier(
            catalog=self.catalog,
            state=self._state,
            journal=self._journal,
            pipeline=pipeline,
            viewers=[self._make_viewer(root) for root in self.roots],
            make_pool=self._make_background_pool,
            is_busy=self._is_busy,
            on_problem=self._problem,
            level=settings.verify,
            mb_per_s=settings.verify_mb_per_s,
            scrub_days=settings.scrub_days,
            metrics=self.metrics,
            log=self._log,
        )

    def _make_background_pool(self) -> WorkerPool:
        settings = self.settings
        self._background_pool = WorkerPool(
            workers=1,
            memory_mb=settings.worker_memory_mb,
            timeout_s=settings.worker_timeout_s,
            log=self._log,
            command=WEIGHTS_ZYGOTE_COMMAND if settings.verify is Level.WEIGHTS else ZYGOTE_COMMAND,
            background=True,
            architectures=settings.architectures,
        )
        return self._background_pool

    def _make_viewer(self, root: Root) -> Viewer:
        filesystems = Filesystems()
        mounts = self._mounts[root]
        return Viewer(
            root=root,
            roots=self.roots,
            suffixes=self.settings.suffixes,
            allowed_targets=self._allowed_targets,
            is_deletion=functools.partial(filesystems.is_deletion, mounts),
            required_keys=self.settings.required_at(root.path),
            redaction=self.settings.redaction,
            is_directory=functools.partial(self.catalog.is_directory, root.name),
        )

    def _make_tree(self, root: Root, pipeline: Pipeline) -> Tree:
        return Tree(
            root,
            catalog=self.catalog,
            pipeline=pipeline,
            completeness=self._completeness,
            mounts=self._mounts[root],
            save_mounts=self._save_mounts,
            may_write=lambda root: self._locks[root].held(),
            on_swept=self._swept,
            roots=self.roots,
            allowed_targets=self._allowed_targets,
            settings=self.settings,
            log=self._log,
        )

    def _load_mounts(self, root: Root) -> MountTable:
        kept = self._state.get_meta(f"mounts:{root.name}")
        return MountTable() if kept is None else MountTable.parse(kept)

    async def _save_mounts(self, root: Root, mounts: MountTable) -> None:
        text = mounts.render()
        if self._saved_mounts.get(root) == text:
            return
        try:
            await self._journal.write(lambda: self._state.set_meta(f"mounts:{root.name}", text))
            self._saved_mounts[root] = text
        except StateError as error:
            self._log.warning("what is mounted could not be kept in the state", error=str(error))

    def _looked(self, key: Key, sweeps_begun: int) -> None:
        self._completeness.looked(key, sweeps_begun)
        self._trees[key.root].looked()

    def _swept(self, report: SweepReport) -> None:
        self.metrics.observe_sweep(report.seconds, ok=report.ok)

    def _problem(self, what: str, path: str, message: str) -> None:
        self.metrics.count_problem(what)
        self._errors.append(RecentError(at=time.time(), what=what, path=path, message=message))


def judged_by(settings: Settings, roots: Sequence[Root]) -> str:
    """A digest of what is asked of checkpoints besides what is in them: the architectures known, the keys required,
    what is redacted; and of how what is searched is put together."""
    required = {root.name: settings.required_at(root.path) for root in roots}
    asked = [table_digest(settings.architectures), required, TEXT_VERSION, REDACTION_VERSION, settings.redaction]
    return hashlib.blake2b(msgspec.json.encode(asked, order="sorted"), digest_size=16).hexdigest()


def boot_id() -> str:
    """This boot's id; empty where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _settle_memory() -> None:
    """What was loaded stays: keeping the collector out of it more than halves its longest pauses (measured)."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
