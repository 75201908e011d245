"""The soak: everything at once, for minutes or hours, and at every point of quiet the catalog must equal the tree.

Writers, a person with links and rm, readers, readers that never read, live clients with a shadow of the catalog;
beneath them restarts of every kind and faults. The service is restarted in the first half only, so that the growth of
memory and descriptors over the second half is that of one process. That half begins with more changes than the catalog
remembers, so that what memory does from there on is no memory being filled.
"""

import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # writers and shadow clients are part of the tests

from report import Row, percentile, print_report
from soak_checks import ABANDONED_S, Found, Usage, check, say_wrong, usage_of
from soak_churn import Churn, fill, pass_through
from soak_faults import Faults
from soak_readers import Readers, StalledReaders

from tests.daemon.real_mounts import mount, unmount
from tests.service.campaigns import SETTINGS, Contents, Shadow
from tests.service.daemons import Daemon, eventually

SHADOWS, READERS = 3, 2
DISK_BYTES = 512 << 20
GROWTH = 0.05
"""Of memory over the second half, as a share: caches fill, and what was deleted is remembered for a while."""
ENTRY_KB = 3.5
"""What an entry may take: the tree itself grows during the soak (350 MB for 100,000, see the budgets)."""
MORE_DESCRIPTORS, MORE_SOCKETS = 3, 30
"""Readers that never read are cut off and come back at any time, 30 of them."""
_PROBE = Path(__file__).with_name("soak_probe.py")


class Scale(NamedTuple):
    """How much there is of everything."""

    base: int = 1000
    """Checkpoints that stay as they are; at every point of quiet all are read anew, to compare."""
    probes: int = 20
    faults: int = 2
    """In a round."""
    calm_s: float = 3.0
    """Of churn in every round without a fault."""
    rounds: int = 3
    """At least."""
    passing: int = 10_500
    """Checkpoints that come and go between the halves: more than the deletions that the catalog remembers (10,000), and
    with them more changes than its log of the past holds (20,000). From then on memory must not grow with changes."""


QUICK = Scale(base=100, probes=5, faults=1, calm_s=0.5, passing=0)
"""For a test: on busy cores a round of the other takes a minute. What is remembered is still filling up at its end."""


class Line(NamedTuple):
    """What was seen in one round."""

    minute: float
    entries: int
    revision: int
    usage: Usage
    list_ms: list[float]
    rename_ms: list[float]
    restarts: int
    faults: int
    found: Found
    log_bytes: int


def run(*, quick: bool, minutes: float, seed: int, directory: str | None) -> None:
    """Print a line a round while it lasts, and the verdict at the end."""
    minutes = min(minutes, 2) if quick else minutes
    with tempfile.TemporaryDirectory(prefix="ckptd-soak-", dir=directory) as name, _disk(Path(name)) as (place, disk):
        os.environ["PYTHONFAULTHANDLER"] = "1"  # of the service, should it not end
        soak = _Soak(Path(name), place, disk, seed, QUICK if quick else Scale())
        rows = soak.run(minutes * 60)
    print_report(f"soak, {minutes:g} minutes, seed {seed}", rows)


@contextlib.contextmanager
def _disk(directory: Path) -> Iterator[tuple[Path, Path | None]]:
    """A place for tree and state: a filesystem of its own, which may be filled, where that is permitted."""
    if os.geteuid() != 0:
        yield directory, None
        return
    image, place = directory / "disk.img", directory / "disk"
    with open(image, "wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-m", "0", "-N", "131072", str(image)], check=True)
    place.mkdir()
    try:
        mount("-o", "loop", str(image), str(place))
    except subprocess.CalledProcessError:
        yield directory, None  # a container without loop devices
        return
    try:
        yield place, place
    finally:
        unmount(place)


def _free_port() -> int:
    """Clients come back to the same address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class _Soak:
    def __init__(self, work: Path, place: Path, disk: Path | None, seed: int, scale: Scale) -> None:
        self._scale = scale
        self._dice = random.Random(seed)
        self._seed = seed
        self._work = work
        self._root = place / "outputs"
        self._contents = Contents(work / "contents")
        fill(self._root / "base", self._contents, scale.base)
        settings = {**SETTINGS, "abandoned_s": ABANDONED_S, "worker_memory_mb": 256, "worker_timeout_s": 5}
        self._port = _free_port()
        self._daemon = Daemon(self._root, place / "state", port=self._port, **settings)
        self._daemon.log_file = work / "log"  # what is logged must not be lost with the room on the disk
        self._daemon.port_file = work / "port"
        self._faults = Faults(self._daemon, self._root, self._dice, disk=disk)
        self._lines: list[Line] = []
        self._lost = 0
        self._first_of_half: int | None = None

    def run(self, duration_s: float) -> list[Row]:
        begun = time.monotonic()
        (self._work / "logs").mkdir()
        print(_HEADER, flush=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._daemon)
            churn = stack.enter_context(Churn(self._root, self._contents, self._work / "logs", self._seed))
            shadows = [stack.enter_context(Shadow(self._daemon)) for _ in range(SHADOWS)]
            readers = stack.enter_context(Readers(self._port, READERS, self._seed))
            stalled = stack.enter_context(StalledReaders(self._port))
            while (passed_s := time.monotonic() - begun) < duration_s or len(self._lines) < self._scale.rounds:
                restarting = passed_s < duration_s / 2 or not self._lines
                if not restarting and self._first_of_half is None:
                    self._begin_second_half()
                self._round(churn, shadows, begun, restarting=restarting)
            exit_code, stopped_s = self._end()
        log = self._daemon.log()
        tracebacks = [line for line in log.splitlines() if "Traceback (most recent call last)" in line]
        for line in tracebacks[:3]:
            print(f"in the log: {line[:4000]}", file=sys.stderr)
        return self._verdict(readers, stalled, shadows, churn, exit_code, stopped_s, tracebacks)

    def _begin_second_half(self) -> None:
        """Fill what the service remembers of the past."""
        before = self._daemon.health()["revision"]
        begin = time.monotonic()
        pass_through(self._root / "passing", self._contents, self._daemon, self._scale.passing)
        changes = self._daemon.health()["revision"] - before
        print(
            f"  {self._scale.passing:,} came and went in {time.monotonic() - begin:.0f} s: {changes:,} changes",
            flush=True,
        )
        self._first_of_half = len(self._lines)

    def _round(self, churn: Churn, shadows: list[Shadow], begun: float, *, restarting: bool) -> None:
        churn.resume()
        if restarting:
            self._faults.restart()
        for _ in range(self._scale.faults):
            self._faults.fault()
        time.sleep(self._scale.calm_s)  # not a wait for anything: so long it is used as it is most days
        probed = self._probe()
        churn.pause()
        minute = (time.monotonic() - begun) / 60
        found = check(self._daemon, self._root, shadows, churn.owned.history(), self._contents)
        say_wrong(minute, *found)
        health = self._daemon.health()
        line = Line(
            *(minute, health["checkpoint_count"], health["revision"], usage_of(self._daemon.pid)),
            *(probed["list_ms"], probed["rename_ms"], self._faults.restarts, self._faults.faults, found),
            self._daemon.log_file.stat().st_size,
        )
        self._lines.append(line)
        print(_shown(line), flush=True)

    def _probe(self) -> dict[str, list[float]]:
        eventually(self._daemon.is_up, "it answers")
        template = self._contents.directory / "000.ckpt"
        command = [sys.executable, "-S", str(_PROBE), str(self._port), str(self._root / "probe"), str(template)]
        done = subprocess.run([*command, str(self._scale.probes)], capture_output=True, text=True, check=False)
        if done.returncode:
            self._faults.wrong.append(f"the probe failed: {done.stderr[-500:]}")
            return {"list_ms": [], "rename_ms": []}
        answer = json.loads(done.stdout)
        self._lost += answer["lost"]
        return {"list_ms": answer["list_ms"], "rename_ms": answer["rename_ms"]}

    def _end(self) -> tuple[int, float]:
        begin = time.monotonic()
        try:
            return self._daemon.stop(), time.monotonic() - begin
        except subprocess.TimeoutExpired:  # what each thread is at goes to its log, by faulthandler
            self._daemon.signal(signal.SIGABRT)
            code = self._daemon.process.wait() if self._daemon.process is not None else -1
            print(f"it did not end by SIGTERM:\n{self._daemon.log()[-8000:]}", file=sys.stderr)
            return code, time.monotonic() - begin

    def _verdict(
        self,
        readers: Readers,
        stalled: StalledReaders,
        shadows: list[Shadow],
        churn: Churn,
        exit_code: int,
        stopped_s: float,
        tracebacks: list[str],
    ) -> list[Row]:
        found = [line.found for line in self._lines]
        say_wrong(self._lines[-1].minute, self._faults.wrong, readers.wrong, tracebacks)
        answers = sum(readers.answers.values())
        reached, resumed, resets = (
            sum(getattr(shadow, name) for shadow in shadows) for name in ("connections", "resumed", "resets")
        )
        return [
            _none("differences between the catalog and the tree", sum(len(each.differences) for each in found)),
            _none("lost or untrue changes at live clients", sum(len(each.shadows) for each in found) + self._lost),
            _none("sidecars torn, missing or left over", sum(len(each.files) for each in found)),
            _none(f"wrong among {answers:,} answers", len(readers.wrong)),
            _none("faults that it did not outlive", len(self._faults.wrong)),
            _none("tracebacks in the log", len(tracebacks)),
            _none("exit code after SIGTERM", exit_code),
            Row("SIGTERM with everybody connected", f"{stopped_s:.1f} s", "5 s", "ok" if stopped_s <= 5 else "MISSED"),
            *self._growth(),
            _latency("list of 100", [each for line in self._lines for each in line.list_ms]),
            _latency("rename to event", [each for line in self._lines for each in line.rename_ms]),
            Row("log", f"{self._lines[-1].log_bytes / 1024 / self._lines[-1].minute:.0f} KB a minute"),
            Row("points of quiet", f"{len(self._lines)}"),
            Row("rounds of operations", f"{churn.rounds:,}, revision {self._lines[-1].revision:,}"),
            Row("live clients", f"{reached} connections, {resumed} resumed, {resets} resets"),
            Row("readers that never read", f"{stalled.opened} opened"),
            Row("restarts and faults", ", ".join(f"{n} {name}" for name, n in sorted(self._faults.counts.items()))),
        ]

    def _growth(self) -> list[Row]:
        """How memory and descriptors went over the second half, along a straight line through what was measured."""
        lines = [] if self._first_of_half is None else self._lines[self._first_of_half :]
        if len(lines) < 2:
            return []
        minutes = [line.minute for line in lines]
        span = minutes[-1] - minutes[0]
        memory_mb = span * _slope(minutes, [line.usage.rss_mb for line in lines])
        first, last = lines[0], lines[-1]
        entries = last.entries - first.entries
        allowed_mb = first.usage.rss_mb * GROWTH + max(0, entries) * ENTRY_KB / 1024
        per_change = memory_mb * 2**20 / max(1, last.revision - first.revision)
        return [
            Row(
                f"memory over the last {span:.1f} minutes",
                f"{first.usage.rss_mb:.1f} → {last.usage.rss_mb:.1f} MB, {per_change:+.0f} B a change, "
                f"{entries:+} entries",
                f"{allowed_mb:+.1f} MB",
                "ok" if memory_mb <= allowed_mb else "MISSED",
            ),
            _more("descriptors", minutes, [line.usage.descriptors for line in lines], MORE_DESCRIPTORS),
            _more("sockets", minutes, [line.usage.sockets for line in lines], MORE_SOCKETS),
        ]


_HEADER = (
    "minute  entries  revision  RSS MB  children MB  fds  sockets  threads  list p50/p99 ms  rename→event p50/p99 ms  "
    "restarts  faults  differences  clients  files"
)


def _shown(line: Line) -> str:
    usage, found = line.usage, line.found
    return (
        f"{line.minute:6.1f}  {line.entries:7}  {line.revision:8}  {usage.rss_mb:6.1f}  {usage.children_mb:11.1f}  "
        f"{usage.descriptors:3}  {usage.sockets:7}  {usage.threads:7}  {_percentiles(line.list_ms):>15}  "
        f"{_percentiles(line.rename_ms):>23}  {line.restarts:8}  {line.faults:6}  {len(found.differences):11}  "
        f"{len(found.shadows):7}  {len(found.files):5}"
    )


def _percentiles(values: Sequence[float]) -> str:
    return f"{percentile(values, 0.5):.1f}/{percentile(values, 0.99):.1f}" if values else "-"


def _none(what: str, count: int) -> Row:
    return Row(what, str(count), "0", "MISSED" if count else "ok")


def _more(what: str, minutes: Sequence[float], counts: Sequence[int], allowed: int) -> Row:
    span = minutes[-1] - minutes[0]
    verdict = "ok" if span * _slope(minutes, counts) <= allowed else "MISSED"
    return Row(f"{what} over the last {span:.1f} minutes", f"{counts[0]} → {counts[-1]}", f"+{allowed}", verdict)


def _latency(what: str, values: Sequence[float]) -> Row:
    return Row(f"{what}, p50/p99 of {len(values):,}", f"{_percentiles(values)} ms")


def _slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line of least squares, per unit of time."""
    return statistics.linear_regression(times, values).slope
