"""One event to thousands of listeners: ours beside nchan (nginx) and sse-starlette with queues, in one run."""

import os
import time
from pathlib import Path
from typing import NamedTuple

from load_client import Received, Request, Swarm, raise_descriptor_limit
from report import Row, against, percentile, print_report
from stream_servers import Factory, StreamServer, ckptd, has_nchan, nchan, sse_starlette

RATE = 50.0
"""Events each second."""
CPU_RATIO, RIVAL_CPU_RATIO = 1.2, 0.5
"""At 1,000 listeners: CPU for a delivery, relative to nchan's and to sse-starlette's."""
NCHAN_RATIO, QUEUES_RATIO = 4.0, 10.0
"""At 10,000: deliveries each second, relative to theirs."""
P99_BUDGET_MS = 200.0
IDLE_BUDGET_KB = 12.0
SOAK_S, SOAK_QUICK_S = 300, 30
SOAK_LISTENERS, SOAK_STALLED = 9_000, 1_000
_WARM_UP_S = 3.0


class Measured(NamedTuple):
    """One server with one number of listeners."""

    connects_per_s: float
    idle_kb: float
    received: Received
    cpu_s: float

    @property
    def cpu_us(self) -> float:
        """For one delivery."""
        return self.cpu_s / max(1, self.received.deliveries) * 1e6

    @property
    def per_s(self) -> float:
        """Deliveries each second."""
        return self.received.deliveries / self.received.seconds

    def latency_ms(self, share: float) -> float:
        """A percentile of the sampled listeners' latencies."""
        return percentile(self.received.latencies_ms, share) if self.received.latencies_ms else float("inf")


def run(*, quick: bool, soak: bool = False) -> None:
    """Print what a delivery costs, how late it is, and how many there are; or how ten thousand fare for minutes."""
    raise_descriptor_limit()
    if soak:
        _soak(SOAK_QUICK_S if quick else SOAK_S)
        return
    rows: list[Row] = []
    for listeners in (100, 1_000) if quick else (1_000, 10_000):
        measured = {name: _measure(factory, listeners, 4.0 if quick else 12.0) for name, factory in _servers().items()}
        rows += _report(listeners, measured)
    print_report("fanout", rows)


def _servers() -> dict[str, Factory]:
    servers: dict[str, Factory] = {"ckptd": ckptd, "sse-starlette + queues": sse_starlette}
    if has_nchan():
        return servers | {"nchan": nchan}
    print("nchan is not installed (Debian: apt install libnginx-mod-nchan): measured without it")
    return servers


def _measure(factory: Factory, listeners: int, seconds: float) -> Measured:
    server_cores, client_cores = cores()
    with factory(server_cores, client_cores, 0) as server, Swarm(client_cores) as swarm:
        before_kb = memory_kb(server.pids)
        connect_s = swarm.connect(Request(server.port, server.path), listeners)
        time.sleep(1)
        idle_kb = (memory_kb(server.pids) - before_kb) / listeners
        received, cpu_s = window(server, swarm, seconds)
        if received.closed:
            print(f"{factory.__name__} closed {received.closed} connections")
        return Measured(listeners / connect_s, idle_kb, received, cpu_s)


def window(server: StreamServer, swarm: Swarm, seconds: float, rate: float = RATE) -> tuple[Received, float]:
    """Publish for a while; what came of it between warming up and the end, and the server's CPU seconds."""
    server.publish(rate)
    warm_up()
    swarm.start()
    cpu_s = _cpu_s(server.pids)
    time.sleep(seconds)
    received = swarm.stop()
    cpu_s = _cpu_s(server.pids) - cpu_s
    server.publish(0)
    return received, cpu_s


def _report(listeners: int, measured: dict[str, Measured]) -> list[Row]:
    rows = []
    for name, one in measured.items():
        what = f"{listeners:,} x {name}"
        client = one.received.cpu_s / one.received.seconds
        rows += [
            Row(f"{what}: CPU for a delivery", f"{one.cpu_us:.1f} us (client: {client:.0%} of a core)"),
            Row(f"{what}: latency p50, p99", f"{one.latency_ms(0.5):.1f}, {one.latency_ms(0.99):.1f} ms"),
            Row(f"{what}: delivered each second", f"{one.per_s:,.0f} of {listeners * RATE:,.0f}"),
            Row(f"{what}: idle listener, connects", f"{one.idle_kb:.1f} KB, {one.connects_per_s:,.0f}/s"),
        ]
    return rows + (_ratios_1k(measured) if listeners <= 1_000 else _ratios_10k(measured))


def _ratios_1k(measured: dict[str, Measured]) -> list[Row]:
    ours, queues, nchan = measured["ckptd"], measured["sse-starlette + queues"], measured.get("nchan")
    rows = [_row("CPU for a delivery / sse-starlette's", ours.cpu_us / queues.cpu_us, RIVAL_CPU_RATIO)]
    if nchan is not None:
        rows += [
            _row("CPU for a delivery / nchan's", ours.cpu_us / nchan.cpu_us, CPU_RATIO),
            _row("p50 / nchan's", ours.latency_ms(0.5) / nchan.latency_ms(0.5), 1.0),
        ]
    return rows


def _ratios_10k(measured: dict[str, Measured]) -> list[Row]:
    ours, queues, nchan = measured["ckptd"], measured["sse-starlette + queues"], measured.get("nchan")
    p99 = ours.latency_ms(0.99)
    rows = [
        _row("deliveries / sse-starlette's", ours.per_s / queues.per_s, QUEUES_RATIO, at_least=True),
        Row("p99", f"{p99:.1f} ms", f"{P99_BUDGET_MS:g} ms", against(p99, P99_BUDGET_MS)),
        Row("idle listener", f"{ours.idle_kb:.1f} KB", f"{IDLE_BUDGET_KB:g} KB", against(ours.idle_kb, IDLE_BUDGET_KB)),
    ]
    if nchan is not None:
        rows.append(_row("deliveries / nchan's", ours.per_s / nchan.per_s, NCHAN_RATIO, at_least=True))
    return rows


def _row(what: str, ratio: float, budget: float, *, at_least: bool = False) -> Row:
    sign = ">=" if at_least else "<="
    return Row(what, f"{ratio:.2f} x", f"{sign} {budget:g} x", against(ratio, budget, at_least=at_least))


# ---- soak ------------------------------------------------------------------------------------------------------


def _soak(seconds: float) -> None:
    """10,000 listeners of which a tenth never reads; memory and latency at the beginning and at the end."""
    server_cores, client_cores = cores()
    rows: list[Row] = []
    with ckptd(server_cores, client_cores) as server, Swarm(client_cores) as swarm:
        swarm.connect(Request(server.port, server.path), SOAK_LISTENERS)
        quiet, _ = window(server, swarm, min(20.0, seconds / 3))
        rows.append(_soak_row("9,000 that read, before the others come", quiet, server))
        parts = 5
        for part in range(1, parts + 1):
            # Those of the part before have been cut off, or hang up now: there are as many at any time.
            swarm.connect(Request(server.port, server.path), 0, SOAK_STALLED)
            received, _ = window(server, swarm, seconds / parts - _WARM_UP_S)
            rows.append(_soak_row(f"with {SOAK_STALLED:,} that never read, part {part} of {parts}", received, server))
        counts, steps = server.ask("counts"), server.ask("steps")
    rows.append(Row("cut off for not reading", f"{counts.timed_out}"))
    rows.append(Row("steps over 20 ms", f"{sum(steps.stalls.values())}, longest {steps.longest_s * 1e3:.0f} ms"))
    print_report(f"fanout --soak, {seconds:.0f} s", rows)


def _soak_row(what: str, received: Received, server: StreamServer) -> Row:
    p50, p99 = percentile(received.latencies_ms, 0.5), percentile(received.latencies_ms, 0.99)
    memory = f"RSS {memory_kb(server.pids) / 1024:.0f} MB, kernel {kernel_mb():.0f} MB"
    per_s = received.deliveries / received.seconds
    measured = f"p50 {p50:.0f}, p99 {p99:.0f} ms; {per_s:,.0f}/s; {memory}; closed {received.closed}"
    return Row(what, measured, f"p99 {P99_BUDGET_MS:g} ms", against(p99, P99_BUDGET_MS))


def warm_up() -> None:
    """Let what was just begun settle."""
    time.sleep(_WARM_UP_S)


def cores() -> tuple[set[int], set[int]]:
    """For the server and for the client: one each, where there are two."""
    available = sorted(os.sched_getaffinity(0))
    return {available[0]}, {available[-1]}


def _cpu_s(pids: list[int]) -> float:
    """User and system time so far, to the nanosecond."""
    threads = [path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(path.read_text(encoding="ascii").split()[0]) for path in threads) / 1e9


def memory_kb(pids: list[int]) -> float:
    """Resident memory."""
    return sum(
        float(line.split()[1])
        for pid in pids
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        if line.startswith("VmRSS:")
    )


def kernel_mb() -> float:
    """Memory of all TCP sockets of the machine."""
    line = next(x for x in Path("/proc/net/sockstat").read_text(encoding="ascii").splitlines() if x.startswith("TCP:"))
    return int(line.split()[-1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
