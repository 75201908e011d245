"""Engine: everything between files and log; the trees, the pipeline with its workers, the sidecars, the verifier."""

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

import anyio
import structlog

from ckptd.catalog.entry import Record
from ckptd.catalog.roots import Root
from ckptd.catalog.state import State
from ckptd.catalog.store import Catalog
from ckptd.validators.inspection import Level

from .completeness import Completeness
from .filesystems import Filesystems
from .journal import Journal
from .kept_mounts import KeptMounts
from .key import Key
from .look import Viewer
from .metrics import Metrics
from .pipeline import Counts, Pipeline
from .recent_errors import RecentErrors
from .setting_types import SidecarName, Sidecars
from .settings import Settings
from .settle import Settle
from .sidecars import SidecarWriter
from .sweep import SweepReport
from .tree import Tree
from .verifier import Verifier
from .workers import WorkerPool
from .zygote_process import WEIGHTS_ZYGOTE_COMMAND, ZYGOTE_COMMAND, ZygoteProcess

BUSY_FROM = 64
"""With more paths waiting for a look, sidecars wait as well."""


class Engine:
    """Keeps the catalog current. `run` owns its parts; before that there are neither trees nor a pipeline."""

    def __init__(
        self,
        *,
        settings: Settings,
        roots: Sequence[Root],
        state: State,
        catalog: Catalog,
        journal: Journal,
        completeness: Completeness[Key],
        may_write: Callable[[Root], bool],
        errors: RecentErrors,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
        zygote: ZygoteProcess | None,
    ) -> None:
        """Args:
        may_write: whether this process is the one that writes into a root; called in a thread.
        zygote: one that was launched already with the settings' limits.
        """
        self._settings = settings
        self._roots = {root.name: root for root in roots}
        self._state = state
        self._catalog = catalog
        self._journal = journal
        self._completeness = completeness
        self._may_write = may_write
        self._errors = errors
        self._metrics = metrics
        self._log = log
        self._zygote = zygote
        self._mounts = KeptMounts(state, journal, roots, log)
        self._allowed_targets = tuple(os.path.realpath(os.fsencode(path)) for path in settings.follow_links)
        self.sidecars = self._make_sidecars()
        self.pipeline: Pipeline | None = None
        self.pool: WorkerPool | None = None
        self.background_pool: WorkerPool | None = None
        self.verifier: Verifier | None = None
        self.trees: dict[Root, Tree] = {}
        self.unswept: dict[str, str] = {}
        """Roots whose last sweep proves nothing, and why."""

    async def run(self, on_started: Callable[[], Awaitable[None]]) -> None:
        """Keep the catalog current until cancelled.

        Args:
            on_started: awaited once files are looked at; nothing is verified before it returns.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._journal.run)
            async with self._make_pool() as pool:
                pipeline = self.pipeline = self._make_pipeline(pool)
                self.trees = {root: self._make_tree(root, pipeline) for root in self._roots.values()}
                verifier = self.verifier = self._make_verifier(pipeline)
                tasks.start_soon(pipeline.run)
                tasks.start_soon(self.sidecars.run)
                tasks.start_soon(self.sidecars.consider_known, tuple(self._roots.values()))
                for tree in self.trees.values():
                    tasks.start_soon(tree.run)
                await on_started()
                tasks.start_soon(verifier.run)
                await anyio.sleep_forever()

    def close(self) -> None:
        """Begin nothing new; what is under way ends."""
        if self.pipeline is not None:
            self.pipeline.close()
        self.sidecars.close()

    async def sweep(self, *, full: bool) -> None:
        """Sweep every root now; returns when all that was found is published.

        Args:
            full: every checkpoint is read again, and what is mounted now is taken for what belongs there.
        """
        if full:
            self.sidecars.retry_refused()
        async with anyio.create_task_group() as sweeps:
            for tree in self.trees.values():
                sweeps.start_soon(functools.partial(tree.sweep_now, full=full))

    def read_again(self, records: Iterable[Record]) -> None:
        """Have checkpoints read again, whether or not they have changed."""
        assert self.pipeline is not None
        roots = self._roots
        keys = [Key(roots[each.entry.root], each.relative_path) for each in records if each.entry.root in roots]
        self.pipeline.hint(keys, must_read=True)

    @property
    def is_running(self) -> bool:
        """Whether files are looked at."""
        return self.pipeline is not None

    @property
    def pending(self) -> int:
        """Paths that need a look, or whose description is under way."""
        return 0 if self.pipeline is None else self.pipeline.pending

    @property
    def counts(self) -> Counts:
        """What the pipeline did since the start."""
        return Counts() if self.pipeline is None else self.pipeline.counts

    @property
    def sweep_due_s(self) -> float:
        """How old the last complete sweep may be when all is well, in seconds."""
        return max((tree.sweep_gap_s for tree in self.trees.values()), default=self._settings.sweep_min_s)

    def _is_busy(self) -> bool:
        return self.pipeline is not None and self.pipeline.waiting > BUSY_FROM

    def _looked(self, key: Key, sweeps_begun: int) -> None:
        self._completeness.looked(key, sweeps_begun)
        self.trees[key.root].looked()

    def _swept(self, report: SweepReport) -> None:
        self.unswept.pop(report.root.name, None)
        if report.error is not None:
            self.unswept[report.root.name] = report.error
        self._metrics.observe_sweep(report.seconds, ok=report.ok)

    # ---- its parts -----------------------------------------------------------------------------------------

    def _make_sidecars(self) -> SidecarWriter:
        settings = self._settings
        return SidecarWriter(
            catalog=self._catalog,
            journal=self._journal,
            describe=self._state.description,
            digest_of=self._journal.digest_of,
            may_write=self._may_write,
            is_busy=self._is_busy,
            enabled=settings.sidecars is Sidecars.AUTO,
            long_name=settings.sidecar_name is SidecarName.LONG,
            delay_s=settings.sidecar_delay_s,
            log=self._log,
        )

    @contextlib.asynccontextmanager
    async def _make_pool(self) -> AsyncIterator[WorkerPool]:
        settings = self._settings
        async with WorkerPool(
            workers=settings.workers,
            memory_mb=settings.worker_memory_mb,
            timeout_s=settings.worker_timeout_s,
            log=self._log,
            launched=self._zygote,
            architectures=settings.architectures,
        ) as pool:
            self.pool = pool
            yield pool

    def _make_pipeline(self, pool: WorkerPool) -> Pipeline:
        return Pipeline(
            catalog=self._catalog,
            journal=self._journal,
            pool=pool,
            sidecars=self.sidecars,
            viewers=self._make_viewers(),
            settle=Settle(quiet_s=self._settings.quiet_s, abandoned_s=self._settings.abandoned_s),
            sweeps_begun=lambda root: self._completeness.begun(root.name),
            on_looked=self._looked,
            on_problem=self._errors.note,
            metrics=self._metrics,
            log=self._log,
        )

    def _make_verifier(self, pipeline: Pipeline) -> Verifier:
        settings = self._settings
        return Verifier(
            catalog=self._catalog,
            state=self._state,
            journal=self._journal,
            pipeline=pipeline,
            viewers=self._make_viewers(),
            make_pool=self._make_background_pool,
            is_busy=self._is_busy,
            on_problem=self._errors.note,
            level=settings.verify,
            mb_per_s=settings.verify_mb_per_s,
            scrub_days=settings.scrub_days,
            metrics=self._metrics,
            log=self._log,
        )

    def _make_background_pool(self) -> WorkerPool:
        settings = self._settings
        self.background_pool = WorkerPool(
            workers=1,
            memory_mb=settings.worker_memory_mb,
            timeout_s=settings.worker_timeout_s,
            log=self._log,
            command=WEIGHTS_ZYGOTE_COMMAND if settings.verify is Level.WEIGHTS else ZYGOTE_COMMAND,
            background=True,
            architectures=settings.architectures,
        )
        return self.background_pool

    def _make_viewers(self) -> list[Viewer]:
        return [self._make_viewer(root) for root in self._roots.values()]

    def _make_viewer(self, root: Root) -> Viewer:
        filesystems = Filesystems()
        return Viewer(
            root=root,
            roots=tuple(self._roots.values()),
            suffixes=self._settings.suffixes,
            allowed_targets=self._allowed_targets,
            is_deletion=functools.partial(filesystems.is_deletion, self._mounts.of(root)),
            required_keys=self._settings.required_at(root.path),
            redaction=self._settings.redaction,
            is_directory=functools.partial(self._catalog.is_directory, root.name),
        )

    def _make_tree(self, root: Root, pipeline: Pipeline) -> Tree:
        return Tree(
            root,
            catalog=self._catalog,
            pipeline=pipeline,
            completeness=self._completeness,
            mounts=self._mounts.of(root),
            save_mounts=self._mounts.save,
            may_write=self._may_write,
            on_swept=self._swept,
            roots=tuple(self._roots.values()),
            allowed_targets=self._allowed_targets,
            settings=self._settings,
            log=self._log,
        )
