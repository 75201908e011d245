"""Metrics: what Prometheus may know, made once for a service and handed down; every label set is bounded."""

import enum
from collections.abc import Callable, Iterable

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from ckptd.catalog.store import Batch, Tombstone

from .collectors import RootEvents, StatusCollector, StreamCollector, StreamCounts, Work, WorkCollector
from .loop import LoopMonitor
from .loop_collector import LoopCollector
from .status import Status

__all__ = ["CacheUse", "DescribeOutcome", "Metrics", "RequestCounts", "RootEvents", "StreamCounts", "Work"]

_REQUEST_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_DESCRIBE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
_VERIFY_BUCKETS_S = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0)
_SWEEP_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_REBUILD_BUCKETS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0, 3600.0)
_COMMIT_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"})
_PROBLEMS = frozenset(
    {
        "checkpoint corrupt",
        "checkpoint not verified",
        "checkpoint unreadable",
        "internal error",
        "state",
        "worker died",
    }
)
"""What the operator's list of recent errors is known to hold; anything else counts as `other`."""


class CacheUse(enum.StrEnum):
    """How an answer that could have been a 304 came about."""

    NOT_MODIFIED = "not_modified"
    """The client had it already: a hit."""
    MODIFIED = "modified"
    """The client had an older one."""
    UNCONDITIONAL = "unconditional"
    """The client did not say what it had."""


class DescribeOutcome(enum.StrEnum):
    """How a description at arrival ended."""

    VALID = "valid"
    INVALID = "invalid"
    INCOMPLETE = "incomplete"
    """It is being written."""
    CHANGED = "changed"
    """It was modified meanwhile; another look follows."""
    UNREADABLE = "unreadable"
    WORKER_DIED = "worker_died"


class RequestCounts(msgspec.Struct):
    """What was answered since the start, as health shows it."""

    answered: int = 0
    failed: int = 0
    """Of those, the ones with a status of 500 or more."""
    seconds: float = 0.0
    """That they took together."""
    not_modified: int = 0
    cacheable: int = 0
    """Answers that carry an `ETag`, 304 or not."""

    @property
    def cache_hit_rate(self) -> float | None:
        """Share of 304 among them; None before the first."""
        return self.not_modified / self.cacheable if self.cacheable else None


class _Taken(Collector):
    """What a collector said when it was last asked."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._families: list[Metric] = []

    def take(self) -> None:
        self._families = list(self._collector.collect())

    def collect(self) -> Iterable[Metric]:
        return self._families


class Metrics:
    """All metrics of one service, in a registry of its own."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.counts = RequestCounts()
        ProcessCollector(registry=self.registry)
        self._requests = self._histogram(
            "ckptd_http_request_duration_seconds",
            "Time from a request to the end of its answer; live streams are not counted.",
            _REQUEST_BUCKETS_S,
            ("route", "method", "status"),
        )
        self._response_bytes = self._counter(
            "ckptd_http_response_bytes", "Bytes of answers' bodies, as sent; live streams are not counted."
        )
        self._cache = self._counter(
            "ckptd_http_cacheable_requests", "Answers that carry an ETag, by whether they were a 304.", ("outcome",)
        )
        self._describe = self._histogram(
            "ckptd_describe_duration_seconds",
            "Time from opening a checkpoint to its description at arrival.",
            _DESCRIBE_BUCKETS_S,
            ("outcome",),
        )
        self.verify_seconds = self._histogram(
            "ckptd_verify_duration_seconds",
            "Time that the background verification of a checkpoint took.",
            _VERIFY_BUCKETS_S,
            ("level", "outcome"),
        )
        self.verified = self._counter(
            "ckptd_verified", "Checkpoints verified in the background, by how that ended.", ("level", "outcome")
        )
        self.verified_bytes = self._counter("ckptd_verified_bytes", "Bytes read by the background verification.")
        self._sweep = self._histogram(
            "ckptd_sweep_duration_seconds", "Time that a sweep of one root took.", _SWEEP_BUCKETS_S
        )
        self._sweeps = self._counter("ckptd_sweeps", "Sweeps of a root, by how they ended.", ("outcome",))
        self.rebuilds = self._counter("ckptd_rebuilds", "Rebuilds that were begun.", ("mode",))
        self.rebuild_seconds = self._histogram(
            "ckptd_rebuild_duration_seconds",
            "Time from the request for a rebuild to its end.",
            _REBUILD_BUCKETS_S,
            ("mode",),
        )
        self._commit = self._histogram(
            "ckptd_state_commit_duration_seconds",
            "Time that a commit to the state took.",
            _COMMIT_BUCKETS_S,
            ("outcome",),
        )
        self._changes = self._counter("ckptd_changes", "Changes published to the catalog's log.", ("type",))
        self._problems = self._counter("ckptd_problems", "Entries of the list of recent errors, by kind.", ("kind",))
        self.loop = LoopMonitor()
        self._taken: list[_Taken] = []
        self._register(LoopCollector(self.loop))

    def watch(self, status: Callable[[], Status], stream: Callable[[], StreamCounts]) -> None:
        """Show, from now on, what `status` and `stream` say at the time of a scrape."""
        self._register(StatusCollector(status))
        self._register(StreamCollector(stream))

    def watch_work(self, work: Callable[[], Work]) -> None:
        """Show, from now on, what `work` says at the time of a scrape."""
        self._register(WorkCollector(work))

    # ---- what happens --------------------------------------------------------------------------------------

    def observe_request(
        self,
        route: str,
        method: str,
        status: int,
        seconds: float,
        *,
        size_bytes: int = 0,
        cache: CacheUse | None = None,
    ) -> None:
        """Count one answered request.

        Args:
            route: a route's template, never a path that a client sent.
            method: any; unusual ones are counted together.
            status: HTTP status code.
            seconds: from the request to the end of its answer.
            size_bytes: of the answer's body.
            cache: for an answer that carries an `ETag`.
        """
        known_method = method if method in _METHODS else "other"
        self._requests.labels(route, known_method, f"{status // 100}xx").observe(seconds)
        self._response_bytes.inc(size_bytes)
        self.counts.answered += 1
        self.counts.failed += status >= 500
        self.counts.seconds += seconds
        if cache is not None:
            self._cache.labels(cache.value).inc()
            self.counts.cacheable += 1
            self.counts.not_modified += cache is CacheUse.NOT_MODIFIED

    def observe_description(self, outcome: DescribeOutcome, seconds: float) -> None:
        """Count one description at arrival."""
        self._describe.labels(outcome.value).observe(seconds)

    def observe_sweep(self, seconds: float, *, ok: bool) -> None:
        """Count one sweep of a root; `ok`: it ended without error."""
        self._sweep.observe(seconds)
        self._sweeps.labels("ok" if ok else "failed").inc()

    def observe_commit(self, seconds: float, ok: bool) -> None:
        """Count one commit to the state; `ok`: it is on disk."""
        self._commit.labels("ok" if ok else "failed").observe(seconds)

    def count_changes(self, batch: Batch) -> None:
        """Count what a published batch says."""
        deleted = sum(isinstance(item, Tombstone) for item in batch.items)
        self._changes.labels("delete").inc(deleted)
        self._changes.labels("upsert").inc(len(batch.items) - deleted)

    def count_problem(self, what: str) -> None:
        """Count an entry of the list of recent errors."""
        self._problems.labels(what.replace(" ", "_") if what in _PROBLEMS else "other").inc()

    # ---- scrapes -------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Ask the parts of the service how they stand. On the loop's thread, a millisecond; `exposition` shows it."""
        for taken in self._taken:
            taken.take()

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format, as of the last `take`. In any thread: it takes 20 ms and more."""
        return generate_latest(self.registry)

    def _register(self, collector: Collector) -> None:
        taken = _Taken(collector)
        self._taken.append(taken)
        self.registry.register(taken)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)
