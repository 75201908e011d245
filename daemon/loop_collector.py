"""LoopCollector: what Prometheus learns of the event loop."""

import itertools
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .loop import BUCKETS_S, LoopMonitor


class LoopCollector(Collector):
    """Reads a monitor when Prometheus asks."""

    def __init__(self, monitor: LoopMonitor) -> None:
        self._monitor = monitor

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        steps = self._monitor.steps()
        bounds = [*map(str, BUCKETS_S), "+Inf"]
        yield HistogramMetricFamily(
            "ckptd_event_loop_step_seconds",
            "How long a step of the event loop took; nothing else of the loop could run meanwhile.",
            buckets=list(zip(bounds, itertools.accumulate(steps.counts), strict=True)),
            sum_value=steps.total_s,
        )
        stalls = CounterMetricFamily(
            "ckptd_event_loop_stalls",
            "Steps of the event loop that took more than 20 ms, by what they were about.",
            labels=("phase",),
        )
        for phase, count in steps.stalls.items():
            stalls.add_metric((phase.value,), count)
        yield stalls
        yield GaugeMetricFamily(
            "ckptd_event_loop_longest_step_seconds", "The longest step of the last five minutes.", steps.longest_s
        )
