"""Two hundred clients take the whole catalog while others listen: what the listeners feel, and what it costs."""

import threading
import time

from bench_fanout import cores, kernel_mb, memory_kb, warm_up, window
from load_client import Received, Request, Swarm, raise_descriptor_limit
from report import Row, against, percentile, print_report
from stream_servers import StreamServer, ckptd

LISTENERS = 100
DELAY_BUDGET_MS = 10.0
"""By so much may the live p99 rise."""
STALL_MS = 20.0
BATCHES = (64, 512)
"""Changes published in one step; the journal commits at most 512 at once."""


def run(*, quick: bool) -> None:
    """Print the live latency in quiet and during the storm, plain and compressed; and what steps the loop took."""
    raise_descriptor_limit()
    entries, clients = (10_000, 20) if quick else (100_000, 200)
    server_cores, client_cores = cores()
    with (
        ckptd(server_cores, client_cores, entries) as server,
        Swarm(client_cores, sampled=LISTENERS) as listeners,
        Swarm(client_cores) as takers,
    ):
        listeners.connect(Request(server.port, f"{server.path}?last_event_id=benchmark.{entries}.0"), LISTENERS)
        server.ask("forget")
        quiet, _ = window(server, listeners, 4.0 if quick else 10.0)
        quiet_ms = percentile(quiet.latencies_ms, 0.99)
        rows = [
            Row(
                f"{LISTENERS} listeners in quiet: p50, p99",
                f"{percentile(quiet.latencies_ms, 0.5):.1f}, {quiet_ms:.1f} ms",
            ),
            Row("memory with the catalog loaded", f"{memory_kb(server.pids) / 1024:.0f} MB"),
        ]
        for gzip in (True, False):
            rows += _storm(server, listeners, takers, clients, entries, gzip, quiet_ms)
        rows += _publishing(server)
        rows += _steps(server)
    print_report(f"snapshot of {entries:,} entries by {clients} clients", rows)


def _storm(
    server: StreamServer, listeners: Swarm, takers: Swarm, clients: int, entries: int, gzip: bool, quiet_ms: float
) -> list[Row]:
    peak = _Peak(server)
    server.publish(50.0)
    warm_up()
    listeners.start()
    with peak:
        seconds, size_bytes = takers.take_snapshots(Request(server.port, server.path, gzip), clients)
    received: Received = listeners.stop()
    server.publish(0)
    p50, p99 = percentile(received.latencies_ms, 0.5), percentile(received.latencies_ms, 0.99)
    what = f"{'gzip' if gzip else 'plain'}, {clients} x {size_bytes / clients / 1e6:.1f} MB"
    delay_ms = p99 - quiet_ms
    return [
        Row(f"{what}: all done in", f"{seconds:.1f} s, {size_bytes / seconds / 1e6:,.0f} MB/s"),
        Row(f"{what}: live p50, p99", f"{p50:.1f}, {p99:.1f} ms"),
        Row(
            f"{what}: p99 above the quiet one",
            f"{delay_ms:.1f} ms",
            f"{DELAY_BUDGET_MS:g} ms",
            against(max(0.0, delay_ms), DELAY_BUDGET_MS),
        ),
        Row(f"{what}: peak memory", f"process {peak.process_mb:.0f} MB, socket buffers {peak.kernel_mb:.0f} MB"),
    ]


def _publishing(server: StreamServer) -> list[Row]:
    rows = []
    for size in BATCHES:
        began_at = time.perf_counter()
        server.ask(str(size))
        rows.append(
            Row(f"a batch of {size} changes prepared and published", f"{(time.perf_counter() - began_at) * 1e3:.0f} ms")
        )
    return rows


def _steps(server: StreamServer) -> list[Row]:
    time.sleep(0.5)
    steps = server.ask("steps")
    stalls = ", ".join(f"{count} {phase}" for phase, count in steps.stalls.items() if count) or "none"
    longest_ms = steps.longest_cpu_s * 1e3
    return [
        Row(
            "longest step of the loop, its CPU",
            f"{longest_ms:.1f} ms",
            f"{STALL_MS:g} ms",
            against(longest_ms, STALL_MS),
        ),
        Row("longest step of the loop, as it was", f"{steps.longest_s * 1e3:.1f} ms"),
        Row(f"steps over {STALL_MS:g} ms", stalls),
    ]


class _Peak:
    """The highest memory seen while inside."""

    def __init__(self, server: StreamServer) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.process_mb = self.kernel_mb = 0.0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.process_mb = max(self.process_mb, memory_kb(self._server.pids) / 1024)
            self.kernel_mb = max(self.kernel_mb, kernel_mb())
