"""The event loop: asyncio's, in bounded steps, each of which is measured."""

import asyncio
import bisect
import collections
import enum
import gc
import math
import os
import select
import selectors
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

STALL_S = 0.02
"""A step that takes longer keeps everybody waiting: a stall."""
EVENTS_PER_STEP = 128
"""Sockets served in one step. epoll gives those that wait longest first; 10,000 that hang up together would otherwise
be one step of 300 ms."""
TICK_S = 0.05
"""How often the loop wakes up to see whether it can: a thread that keeps the interpreter to itself shows only so."""
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, STALL_S, 0.05, 0.1, 0.25, 1.0)
WINDOW_S, WINDOWS = 60.0, 5
"""The longest step is told of the last five minutes."""


class Phase(enum.StrEnum):
    """What a step was mostly about."""

    LIVE = "live"
    """Sending changes to listeners."""
    SNAPSHOT = "snapshot"
    """Sending snapshots to those who start."""
    PREPARE = "prepare"
    """Deciding a batch of changes."""
    PUBLISH = "publish"
    """Making a batch visible."""
    SCRAPE = "scrape"
    """Putting metrics and health together."""
    COLLECTOR = "collector"
    """Python's garbage collector."""
    WAITING = "waiting"
    """Nothing of the loop's own: other threads, or other processes, had the processor."""
    OTHER = "other"


class Steps(NamedTuple):
    """What was measured so far."""

    counts: tuple[int, ...]
    """Steps by the bucket they fall into; one more than `BUCKETS_S`."""
    total_s: float
    stalls: Mapping[Phase, int]
    longest_s: float
    """Of the last five minutes."""
    longest_cpu_s: float
    """Of the last five minutes: what a step computed, however long it waited for the processor meanwhile."""


class LoopMonitor:
    """How long the loop's steps take, and what the long ones were about. One for a loop; not thread-safe."""

    def __init__(self) -> None:
        self.is_exact = False
        """Every step is measured, see `new_event_loop`; else only what a tick now and then meets."""
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._total_s = 0.0
        self._stalls = dict.fromkeys(Phase, 0)
        self._longest = _Longest()
        self._longest_cpu = _Longest()
        self._phases: dict[Phase, float] = {}

    def phase(self, phase: Phase) -> "_Measured":
        """A context that says what the loop does; no `await` within."""
        return _Measured(self, phase)

    def took(self, phase: Phase, seconds: float) -> None:
        """Part of the step under way was about `phase`."""
        if seconds >= BUCKETS_S[0]:
            self._phases[phase] = self._phases.get(phase, 0.0) + seconds

    def step(self, seconds: float, cpu_s: float | None = None, otherwise: Phase = Phase.OTHER) -> None:
        """A step has ended; nothing else of the loop could run while it took so long.

        Args:
            seconds: from its beginning to its end.
            cpu_s: what its thread computed in that time, where that is known.
            otherwise: what it was about, if nothing was said of most of it.
        """
        self._total_s += seconds
        if seconds < BUCKETS_S[0]:
            self._counts[0] += 1
            return
        self._counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        if seconds > STALL_S:
            has_waited = cpu_s is not None and cpu_s * 2 < seconds
            self._stalls[Phase.WAITING if has_waited else self._blame(seconds, otherwise)] += 1
        self._phases.clear()
        now = time.monotonic()
        self._longest.note(seconds, now)
        self._longest_cpu.note(seconds if cpu_s is None else cpu_s, now)

    def steps(self) -> Steps:
        """What was measured so far."""
        now = time.monotonic()
        return Steps(
            tuple(self._counts),
            self._total_s,
            dict(self._stalls),
            self._longest.since(now),
            self._longest_cpu.since(now),
        )

    async def tick(self) -> None:
        """Wake up now and then, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            if not self.is_exact:
                self.step(max(0.0, loop.time() - due))

    def watch_collector(self) -> None:
        """Learn of every run of the garbage collector in this process, from now on."""
        began_at = 0.0

        def on_run(stage: str, _: dict[str, Any]) -> None:
            nonlocal began_at
            if stage == "start":
                began_at = time.perf_counter()
            else:
                self.took(Phase.COLLECTOR, time.perf_counter() - began_at)

        gc.callbacks.append(on_run)

    def _blame(self, seconds: float, otherwise: Phase) -> Phase:
        """What took most of the step, unless most of it is unknown."""
        phase = max(self._phases, key=self._phases.__getitem__, default=otherwise)
        return phase if self._phases.get(phase, 0.0) * 2 >= seconds else otherwise


class _Longest:
    """The longest of the last minutes, minute by minute."""

    def __init__(self) -> None:
        self._windows: collections.deque[tuple[float, float]] = collections.deque(maxlen=WINDOWS)

    def note(self, seconds: float, now: float) -> None:
        if self._windows and now - self._windows[-1][0] < WINDOW_S:
            at, longest_s = self._windows[-1]
            if seconds > longest_s:
                self._windows[-1] = (at, seconds)
        else:
            self._windows.append((now, seconds))

    def since(self, now: float) -> float:
        earliest = now - WINDOWS * WINDOW_S
        return max((seconds for at, seconds in self._windows if at >= earliest), default=0.0)


class _Measured:
    __slots__ = ("_began_at", "_monitor", "_phase")

    def __init__(self, monitor: LoopMonitor, phase: Phase) -> None:
        self._monitor = monitor
        self._phase = phase
        self._began_at = 0.0

    def __enter__(self) -> None:
        self._began_at = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._monitor.took(self._phase, time.perf_counter() - self._began_at)


class BoundedSelector(selectors.EpollSelector):
    """epoll that gives so many events at once, and tells how long it was before it was asked again: a loop's step."""

    def __init__(self, monitor: LoopMonitor) -> None:
        super().__init__()
        # A descriptor of its own: two objects that close the same number could close somebody else's file.
        self._bounded = select.epoll.fromfd(os.dup(self.fileno()))
        self._monitor = monitor
        self._woke_at = time.perf_counter()
        self._cpu_s = time.thread_time()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors.BaseSelector.select`."""
        asked_at, cpu_s = time.perf_counter(), time.thread_time()
        self._monitor.step(asked_at - self._woke_at, cpu_s - self._cpu_s)
        # Rounded up to milliseconds, as epoll does not wait for less, and a loop must not spin until it is time.
        wait_s = None if timeout is None else max(0.0, math.ceil(timeout * 1e3) * 1e-3)
        try:
            events = self._bounded.poll(wait_s, EVENTS_PER_STEP)
        except InterruptedError:
            events = []
        self._woke_at, self._cpu_s = time.perf_counter(), time.thread_time()
        if wait_s is not None and not events:
            overslept_s = self._woke_at - asked_at - wait_s
            if overslept_s >= BUCKETS_S[0]:
                self._monitor.step(overslept_s, 0.0)
        keys = self.get_map()
        return [(key, _ready(event) & key.events) for number, event in events if (key := keys.get(number)) is not None]

    def close(self) -> None:
        """See `selectors.BaseSelector.close`."""
        self._bounded.close()
        super().close()


def new_event_loop(monitor: LoopMonitor) -> asyncio.AbstractEventLoop:
    """asyncio's own loop, whose every step `monitor` sees."""
    monitor.is_exact = True
    return asyncio.SelectorEventLoop(BoundedSelector(monitor))


def _ready(event: int) -> int:
    """As `selectors.EpollSelector.select`: an error or a hang-up is told to readers and writers alike."""
    return (selectors.EVENT_WRITE if event & ~select.EPOLLIN else 0) | (
        selectors.EVENT_READ if event & ~select.EPOLLOUT else 0
    )
