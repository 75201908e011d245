"""Metrics: what Prometheus may know, made once for a service and handed down; every label set is bounded."""

import time
from collections.abc import Callable, Iterable, Mapping

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from ckptd.catalog.entry import Health

from .loop import LoopMonitor
from .loop_collector import LoopCollector
from .status import CatalogStatus, Status

_REQUEST_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_DESCRIBE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
_SWEEP_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"})


class StreamCounts(msgspec.Struct):
    """What the live stream counts; read when Prometheus asks."""

    listeners: int = 0
    frames_sent: int = 0
    """Frames delivered; one may hold several changes."""
    timed_out: int = 0
    turned_away: int = 0


class Metrics:
    """All metrics of one service, in a registry of its own."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Histogram(
            "ckptd_http_request_duration_seconds",
            "Time from a request to the end of its answer; live streams are not counted.",
            ("route", "method", "status"),
            registry=self.registry,
            buckets=_REQUEST_BUCKETS_S,
        )
        self.describe_seconds = Histogram(
            "ckptd_describe_duration_seconds",
            "Time from opening a checkpoint to its description.",
            registry=self.registry,
            buckets=_DESCRIBE_BUCKETS_S,
        )
        self.sweep_seconds = Histogram(
            "ckptd_sweep_duration_seconds",
            "Time that a sweep of one root took.",
            registry=self.registry,
            buckets=_SWEEP_BUCKETS_S,
        )
        self.verified = Counter(
            "ckptd_verified",
            "Checkpoints verified in the background, by how that ended.",
            ("level", "outcome"),
            registry=self.registry,
        )
        self.verified_bytes = Counter(
            "ckptd_verified_bytes", "Bytes read by the background verification.", registry=self.registry
        )
        self.rebuilds = Counter("ckptd_rebuilds", "Rebuilds that were asked for.", ("mode",), registry=self.registry)
        self.loop = LoopMonitor()
        self.registry.register(LoopCollector(self.loop))

    def watch(self, status: Callable[[], Status], stream: Callable[[], StreamCounts]) -> None:
        """Show, from now on, what `status` and `stream` say at the time of a scrape."""
        self.registry.register(_StatusCollector(status, stream))

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request. `route` is a route's template, never a path that a client sent."""
        known_method = method if method in _METHODS else "other"
        self._requests.labels(route, known_method, f"{status // 100}xx").observe(seconds)

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class _StatusCollector(Collector):
    def __init__(self, status: Callable[[], Status], stream: Callable[[], StreamCounts]) -> None:
        self._status = status
        self._stream = stream

    def describe(self) -> Iterable[Metric]:
        return ()  # without it, registering would already ask a service that is only being made

    def collect(self) -> Iterable[Metric]:
        status, stream = self._status(), self._stream()
        yield _by_label("ckptd_checkpoints", "Checkpoints listed.", "health", _by_health(status))
        yield _by_label(
            "ckptd_status",
            "1 for the status that holds.",
            "status",
            {s.value: s is status.state for s in CatalogStatus},
        )
        yield _by_label(
            "ckptd_root_online", "1 if a root can be listed.", "root", {r.path: r.online for r in status.roots}
        )
        yield _by_label(
            "ckptd_root_watching", "1 if events of a root arrive.", "root", {r.path: r.watching for r in status.roots}
        )
        yield from _verification(status)
        for name, text, value in _gauges(status, stream):
            yield GaugeMetricFamily(name, text, value)
        for name, text, value in _counters(status, stream):
            yield CounterMetricFamily(name, text, value)


def _by_health(status: Status) -> dict[str, float]:
    return {health.value: float(status.by_health.get(health.value, 0)) for health in Health}


def _verification(status: Status) -> Iterable[Metric]:
    verification = status.verification
    if verification is None:
        return
    yield _by_label(
        "ckptd_checkpoints_verified", "Checkpoints by how far they are verified.", "level", verification.by_level
    )
    yield _by_label("ckptd_findings", "Checkpoints by what was found.", "code", verification.by_finding)
    yield GaugeMetricFamily("ckptd_verify_queue", "Checkpoints that wait to be verified.", verification.queued)
    oldest = verification.oldest_verified_at
    age = 0.0 if oldest is None else max(0.0, time.time() - oldest)
    yield GaugeMetricFamily("ckptd_scrub_age_seconds", "Age of the oldest verification; 0 if there is none.", age)


def _gauges(status: Status, stream: StreamCounts) -> list[tuple[str, str, float]]:
    return [
        ("ckptd_revision", "Revision of the catalog's log.", status.revision),
        ("ckptd_metadata_coverage_ratio", "Share of valid checkpoints with metadata.", status.metadata_coverage),
        ("ckptd_metadata_sidecars", "Valid checkpoints whose metadata lies beside them.", status.with_sidecar),
        ("ckptd_complete_as_of_timestamp_seconds", "Up to when the catalog is complete.", status.complete_as_of or 0.0),
        ("ckptd_start_timestamp_seconds", "When the service started.", status.started_at),
        ("ckptd_build_seconds", "Time that the first full picture took.", status.last_build_s or 0.0),
        ("ckptd_pending_paths", "Paths that need a look.", status.pending),
        ("ckptd_state_durable", "1 if the state can be written.", float(status.state_durable)),
        ("ckptd_stream_listeners", "Open live streams.", stream.listeners),
    ]


def _counters(status: Status, stream: StreamCounts) -> list[tuple[str, str, float]]:
    return [
        ("ckptd_worker_crashes", "Worker processes that died on a file.", status.worker_crashes),
        ("ckptd_stream_frames", "Frames delivered to live streams.", stream.frames_sent),
        ("ckptd_stream_timeouts", "Live streams cut off because their reader took nothing.", stream.timed_out),
        ("ckptd_stream_turned_away", "Live streams refused because there were too many.", stream.turned_away),
    ]


def _by_label(name: str, text: str, label: str, values: Mapping[str, float] | Mapping[str, bool]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((str(key),), float(value))
    return family
