"""Collectors: what the service, its live stream and its workers say of themselves at the time of a scrape."""

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ckptd.catalog.entry import Health
from ckptd.validators.findings import CATALOGUE
from ckptd.validators.inspection import Level, Safety

from .answers import Death
from .status import CatalogStatus, Status


class StreamCounts(msgspec.Struct):
    """What the live stream counts; read when Prometheus asks."""

    listeners: int = 0
    frames_sent: int = 0
    """Frames delivered; one may hold several changes."""
    bytes_sent: int = 0
    """Of those frames, compressed where the reader asked for it."""
    timed_out: int = 0
    turned_away: int = 0
    opened: int = 0
    """Streams begun since the start."""
    resumed: int = 0
    """Of those, the ones that went on from a cursor instead of a snapshot."""
    heartbeat_at: float = 0.0
    """When the last heartbeat was due and given; epoch seconds, 0 before the first."""


class RootEvents(msgspec.Struct, frozen=True):
    """What the watch of one root has seen since the start."""

    root: str
    events: int
    overflows: int
    """Times that events were, or may have been, lost without a word; a sweep follows each."""
    restarts: int


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What is waiting and what was done since the start; counters all, but for the queues."""

    queues: dict[str, int] = {}
    """Queue → how much waits in it."""
    workers_busy: int = 0
    """Files in the hands of a worker."""
    looks: int = 0
    unchanged: int = 0
    """Looks that found a file as it was published: the fast path."""
    described: int = 0
    """Looks after which a worker read the file: the slow path."""
    removed: int = 0
    worker_deaths: Mapping[Death, int] = {}
    """Files that were given up because their worker ended so."""
    zygote_restarts: int = 0
    sidecars_written: int = 0
    sidecars_skipped: int = 0
    roots: tuple[RootEvents, ...] = ()
    sweep_due_s: float = 0.0
    """How old `complete_as_of` may be when all is well, by the sweeps' own schedule."""


class StatusCollector(Collector):
    """The status, and what is counted in it."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        status = self._status()
        yield _by_label("ckptd_checkpoints", "Checkpoints listed.", "health", _all(Health, status.by_health))
        states = {state.value: state is status.state for state in CatalogStatus}
        yield _by_label("ckptd_status", "1 for the status that holds.", "status", states)
        online = {root.path: root.online for root in status.roots}
        yield _by_label("ckptd_root_online", "1 if a root can be listed.", "root", online)
        watching = {root.path: root.watching for root in status.roots}
        yield _by_label("ckptd_root_watching", "1 if events of a root arrive.", "root", watching)
        built = {"fast": status.fast_path_count, "slow": status.slow_path_count}
        text = "Checkpoints of the last build, by whether the file had to be read (slow)."
        yield _by_label("ckptd_build_checkpoints", text, "path", built)
        yield from _verification(status)
        yield from _status_gauges(status)
        yield CounterMetricFamily(
            "ckptd_worker_crashes", "Worker processes that died on a file.", status.worker_crashes
        )
        build = GaugeMetricFamily("ckptd_build_info", "1; the labels say what runs.", labels=("version", "python"))
        build.add_metric((VERSION, platform.python_version()), 1)
        yield build


class StreamCollector(Collector):
    """The live stream."""

    def __init__(self, stream: Callable[[], StreamCounts]) -> None:
        self._stream = stream

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        stream = self._stream()
        yield GaugeMetricFamily("ckptd_stream_listeners", "Open live streams.", stream.listeners)
        yield GaugeMetricFamily(
            "ckptd_stream_heartbeat_timestamp_seconds",
            "When the last heartbeat was given; 0 before the first.",
            stream.heartbeat_at,
        )
        for name, text, value in (
            ("ckptd_stream_opened", "Live streams begun.", stream.opened),
            ("ckptd_stream_resumed", "Live streams that went on from a cursor, without a snapshot.", stream.resumed),
            ("ckptd_stream_frames", "Frames delivered to live streams.", stream.frames_sent),
            ("ckptd_stream_bytes", "Bytes delivered to live streams.", stream.bytes_sent),
            ("ckptd_stream_timeouts", "Live streams cut off because their reader took nothing.", stream.timed_out),
            ("ckptd_stream_turned_away", "Live streams refused because there were too many.", stream.turned_away),
        ):
            yield CounterMetricFamily(name, text, value)


class WorkCollector(Collector):
    """Queues, looks, workers, watches."""

    def __init__(self, work: Callable[[], Work]) -> None:
        self._work = work

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        work = self._work()
        yield _by_label("ckptd_queue_depth", "How much waits, by queue.", "queue", work.queues)
        yield GaugeMetricFamily("ckptd_workers_busy", "Files in the hands of a worker.", work.workers_busy)
        yield GaugeMetricFamily(
            "ckptd_sweep_due_seconds", "How old the last complete sweep may be when all is well.", work.sweep_due_s
        )
        text = "Files given up because of how their worker ended."
        yield _counter_by_label("ckptd_worker_deaths", text, "how", _all(Death, work.worker_deaths))
        for name, text, value in (
            ("ckptd_looks", "Looks at a path that may have changed.", work.looks),
            ("ckptd_looks_unchanged", "Looks that found a file as it was known: the fast path.", work.unchanged),
            ("ckptd_described", "Files read by a worker at arrival: the slow path.", work.described),
            ("ckptd_removed", "Checkpoints that were found gone.", work.removed),
            ("ckptd_zygote_restarts", "Times that the process above the workers ended unasked.", work.zygote_restarts),
            ("ckptd_sidecars_written", "Sidecars written.", work.sidecars_written),
            ("ckptd_sidecars_skipped", "Sidecars that could not be written where they belong.", work.sidecars_skipped),
        ):
            yield CounterMetricFamily(name, text, value)
        for name, text, counts in (
            ("ckptd_watcher_events", "File system events received.", {r.root: r.events for r in work.roots}),
            (
                "ckptd_watcher_overflows",
                "Times that events were or may have been lost; a sweep follows.",
                {r.root: r.overflows for r in work.roots},
            ),
            (
                "ckptd_watcher_restarts",
                "Times that a watch was started anew.",
                {r.root: r.restarts for r in work.roots},
            ),
        ):
            yield _counter_by_label(name, text, "root", counts)


def _verification(status: Status) -> Iterable[Metric]:
    verification = status.verification
    by_level = {} if verification is None else verification.by_level
    by_finding = {} if verification is None else verification.by_finding
    text = "Checkpoints by how far they are verified."
    yield _by_label("ckptd_checkpoints_verified", text, "level", _all(Level, by_level))
    text = "Checkpoints by what loading them in full could do."
    yield _by_label("ckptd_checkpoints_safety", text, "safety", _all(Safety, status.by_safety))
    found = {code: by_finding.get(code, 0) for code in CATALOGUE}
    yield _by_label("ckptd_findings", "Checkpoints by what was found.", "code", found)
    queued = 0 if verification is None else verification.queued
    yield GaugeMetricFamily("ckptd_verify_queue", "Checkpoints that wait to be verified.", queued)
    oldest = None if verification is None else verification.oldest_verified_at
    age = 0.0 if oldest is None else max(0.0, time.time() - oldest)
    yield GaugeMetricFamily("ckptd_scrub_age_seconds", "Age of the oldest verification; 0 if there is none.", age)


def _status_gauges(status: Status) -> Iterable[Metric]:
    complete_as_of = status.complete_as_of or 0.0
    lag_s = max(0.0, time.time() - (status.complete_as_of or status.started_at))
    for name, text, value in (
        ("ckptd_revision", "Revision of the catalog's log.", status.revision),
        ("ckptd_metadata_coverage_ratio", "Share of valid checkpoints with metadata.", status.metadata_coverage),
        ("ckptd_metadata_sidecars", "Valid checkpoints whose metadata lies beside them.", status.with_sidecar),
        ("ckptd_complete_as_of_timestamp_seconds", "Up to when the catalog is complete; 0: unknown.", complete_as_of),
        ("ckptd_sweep_lag_seconds", "Age of the last complete sweep; before the first, since the start.", lag_s),
        ("ckptd_start_timestamp_seconds", "When the service started.", status.started_at),
        ("ckptd_build_seconds", "Time that the last full picture took.", status.last_build_s or 0.0),
        ("ckptd_pending_paths", "Paths that need a look.", status.pending),
        ("ckptd_state_durable", "1 if the state can be written.", float(status.state_durable)),
    ):
        yield GaugeMetricFamily(name, text, value)


def _all(members: Iterable[str], counts: Mapping[str, float] | Mapping[Death, int]) -> dict[str, float]:
    """A value for every member, so that a series is there before it first counts."""
    known: dict[str, float] = {str(key): value for key, value in counts.items()}
    return {str(member): known.get(str(member), 0.0) for member in members}


def _by_label(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), float(value))
    return family


def _counter_by_label(name: str, text: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), float(value))
    return family


def _version() -> str:
    try:
        return metadata.version("ckptd")
    except metadata.PackageNotFoundError:
        return "unknown"


VERSION = _version()
"""Read once, before there is a loop that would wait for the disk."""
