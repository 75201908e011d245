"""SelfReport: what the service says of itself, gathered from its parts; health, metrics and log are made from it."""

import collections
import time
from collections.abc import Sequence

import msgspec

from ckptd.catalog.roots import Root
from ckptd.catalog.store import Catalog
from ckptd.catalog.texts import Texts

from .collectors import RootEvents, Work
from .completeness import Completeness
from .engine import Engine
from .journal import Journal
from .key import Key
from .metrics import Metrics
from .rebuilds import Rebuilds
from .recent_errors import RecentErrors
from .rereads import Rereads
from .settings import Settings
from .settle import Phase
from .status import CatalogStatus, RootStatus, Status, VerifierStatus
from .tally import Tally
from .tree import root_status
from .verdict import judge_service


class SelfReport:
    """Asks the parts; keeps nothing but when the service started."""

    def __init__(
        self,
        *,
        settings: Settings,
        roots: Sequence[Root],
        catalog: Catalog,
        tally: Tally,
        completeness: Completeness[Key],
        journal: Journal,
        engine: Engine,
        rebuilds: Rebuilds,
        rereads: Rereads,
        errors: RecentErrors,
        metrics: Metrics,
        texts: Texts,
    ) -> None:
        self._settings = settings
        self._roots = roots
        self._catalog = catalog
        self._tally = tally
        self._completeness = completeness
        self._journal = journal
        self._engine = engine
        self._rebuilds = rebuilds
        self._rereads = rereads
        self._errors = errors
        self._metrics = metrics
        self._texts = texts
        self._started_at = time.time()

    def status(self) -> Status:
        """A consistent picture of the service now."""
        engine, tally, build = self._engine, self._tally, self._rebuilds.last
        status = Status(
            instance=self._catalog.instance,
            revision=self._catalog.revision,
            started_at=self._started_at,
            state=CatalogStatus.HEALTHY,
            complete_as_of=self._completeness.overall(),
            roots=self._root_statuses(),
            checkpoint_count=len(self._catalog),
            by_health={health.value: count for health, count in tally.by_health.items() if count},
            by_safety={safety.value: count for safety, count in tally.by_safety.items() if count},
            with_sidecar=tally.with_sidecar,
            with_state_metadata=tally.with_state_metadata,
            last_build_s=build.seconds,
            last_build_at=build.at,
            last_partial_build_at=self._rebuilds.partial_at,
            fast_path_count=build.known,
            slow_path_count=build.inspected,
            pending=engine.pending,
            search=self._search_status(),
            writing_sidecars=engine.sidecars.pending,
            skipped_sidecars=engine.sidecars.skipped,
            skipped_links=sum(tree.skipped_links for tree in engine.trees.values()),
            state_durable=self._journal.durable,
            cache_hit_rate=self._metrics.counts.cache_hit_rate,
            recent_errors=self._errors.latest(),
            worker_crashes=0 if engine.pool is None else engine.pool.crashes,
            sandbox="unknown" if engine.pool is None else engine.pool.sandbox,
            verification=self._verifier_status(),
        )
        return judge_service(status, self._settings, now=time.time(), sweep_due_s=engine.sweep_due_s)

    def work(self) -> Work:
        """What waits and what was done, for the metrics."""
        engine, counts = self._engine, self._engine.counts
        pools = [pool for pool in (engine.pool, engine.background_pool) if pool is not None]
        return Work(
            queues=self._queues(),
            workers_busy=sum(pool.in_flight for pool in pools),
            looks=counts.looks,
            unchanged=counts.unchanged,
            described=counts.described,
            removed=counts.removed,
            worker_deaths=sum((pool.deaths for pool in pools), collections.Counter()),
            zygote_restarts=sum(pool.zygote_restarts for pool in pools),
            sidecars_written=engine.sidecars.written,
            sidecars_skipped=engine.sidecars.skipped,
            roots=tuple(
                RootEvents(root.name, tree.watching.events, tree.watching.overflows, tree.watching.restarts)
                for root, tree in engine.trees.items()
            ),
            sweep_due_s=engine.sweep_due_s,
        )

    def _queues(self) -> dict[str, int]:
        pipeline, pool = self._engine.pipeline, self._engine.pool
        phases = dict.fromkeys(Phase, 0) if pipeline is None else pipeline.phases
        return {f"settle_{phase}": count for phase, count in phases.items()} | {
            "journal": self._journal.depth,
            "workers": 0 if pool is None else pool.queued,
            "sidecars": self._engine.sidecars.pending,
        }

    def _search_status(self) -> str:
        if not self._journal.durable:
            return "entries only, where they are new: the state, which holds all else, cannot be written"
        if self._rereads.judging:
            return "partial: hyper-parameters and configs are being gathered anew"
        if not self._texts.is_indexed:
            return "full, but slow: this build of SQLite has no FTS5"
        return "full"

    def _verifier_status(self) -> VerifierStatus:
        verifier = self._engine.verifier
        known = VerifierStatus(level=self._settings.verify.value) if verifier is None else verifier.status()
        return msgspec.structs.replace(
            known,
            by_level={level.value: count for level, count in self._tally.by_level.items() if count},
            by_finding={code: count for code, count in self._tally.by_finding.items() if count},
        )

    def _root_statuses(self) -> tuple[RootStatus, ...]:
        trees, can_write = self._engine.trees, self._engine.sidecars.can_write
        return tuple(
            root_status(trees[root], self._completeness, writable=can_write(root))
            if root in trees
            else RootStatus(path=root.name, online=True, watching=False, last_error="starting")
            for root in self._roots
        )
