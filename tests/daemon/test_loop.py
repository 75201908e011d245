"""The event loop: every step is measured, the long ones say what they were about, none serves thousands at once."""

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ckptd.daemon import loop as event_loop
from ckptd.daemon.loop import STALL_S, BoundedSelector, LoopMonitor, Phase, new_event_loop
from ckptd.daemon.loop_collector import LoopCollector

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with nothing else to do: a step computes for as long as it takes."""
    monkeypatch.setattr(event_loop.time, "thread_time", time.perf_counter)


def run(monitor: LoopMonitor, work: Coroutine[Any, Any, None]) -> None:
    loop = new_event_loop(monitor)
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


def busy(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@pytest.mark.usefixtures("alone")
def test_a_long_step_is_a_stall_of_the_phase_that_took_most_of_it() -> None:
    monitor = LoopMonitor()

    async def work() -> None:
        with monitor.phase(Phase.PUBLISH):
            busy(3 * STALL_S)
        with monitor.phase(Phase.LIVE):
            busy(STALL_S / 2)
        await asyncio.sleep(0)
        busy(2 * STALL_S)
        with monitor.phase(Phase.SNAPSHOT):
            busy(STALL_S / 4)
        await asyncio.sleep(0)

    run(monitor, work())
    steps = monitor.steps()
    assert steps.stalls[Phase.PUBLISH] >= 1
    assert steps.stalls[Phase.OTHER] >= 1, "most of it is not accounted for"
    assert steps.stalls[Phase.LIVE] == steps.stalls[Phase.SNAPSHOT] == 0
    assert steps.longest_s >= 3 * STALL_S
    assert steps.total_s >= 5 * STALL_S


@pytest.mark.usefixtures("alone")
def test_a_step_is_not_blamed_for_what_an_earlier_one_was_about() -> None:
    monitor = LoopMonitor()

    async def work() -> None:
        with monitor.phase(Phase.PUBLISH):
            busy(2 * STALL_S)
        await asyncio.sleep(0)
        busy(2 * STALL_S)
        await asyncio.sleep(0)

    run(monitor, work())
    assert monitor.steps().stalls[Phase.OTHER] >= 1


@pytest.mark.usefixtures("alone")
def test_the_garbage_collector_is_found_out() -> None:
    monitor = LoopMonitor()
    callbacks = list(gc.callbacks)
    garbage: list[Any] = []

    async def work() -> None:
        for _ in range(1_000_000):
            garbage.append([garbage])
        await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)

    monitor.watch_collector()
    try:
        run(monitor, work())
    finally:
        gc.callbacks[:] = callbacks
    assert monitor.steps().stalls[Phase.COLLECTOR] >= 1


def test_a_thread_that_keeps_the_interpreter_is_seen() -> None:
    """`sum` of a range is one call that never lets go."""
    monitor = LoopMonitor()

    async def work() -> None:
        tick = asyncio.ensure_future(monitor.tick())
        hog = threading.Thread(target=lambda: sum(range(20_000_000)))
        hog.start()
        for _ in range(2_000):
            await asyncio.sleep(0.005)
            if not hog.is_alive():
                break
        tick.cancel()

    run(monitor, work())
    assert sum(monitor.steps().stalls.values()) >= 1


def test_a_step_that_only_waited_for_the_processor_is_told_apart() -> None:
    monitor = LoopMonitor()

    async def work() -> None:
        with monitor.phase(Phase.PUBLISH):
            time.sleep(2 * STALL_S)  # noqa: ASYNC251 - on purpose
        await asyncio.sleep(0)

    run(monitor, work())
    steps = monitor.steps()
    assert steps.stalls[Phase.WAITING] >= 1
    assert steps.stalls[Phase.PUBLISH] == 0
    assert steps.longest_cpu_s < STALL_S <= steps.longest_s


def test_without_its_own_loop_the_tick_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a host application, whose loop is not ours."""
    monkeypatch.setattr(event_loop, "TICK_S", 0.001)
    monitor = LoopMonitor()

    async def work() -> None:
        tick = asyncio.ensure_future(monitor.tick())
        await asyncio.sleep(0.01)
        busy(2 * STALL_S)
        await asyncio.sleep(0.01)
        tick.cancel()

    asyncio.run(work())
    assert monitor.steps().longest_s >= STALL_S
    assert monitor.steps().stalls[Phase.OTHER] >= 1


def test_the_longest_step_is_forgotten_after_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monitor = LoopMonitor()
    monitor.step(0.5)
    for minute in range(1, 5):
        now = 1000.0 + 60 * minute
        monitor.step(0.1 + minute / 100)
        assert monitor.steps().longest_s == 0.5
    now = 1000.0 + 301
    assert monitor.steps().longest_s == 0.14


def test_one_step_serves_a_bounded_number_of_sockets_and_leaves_none_out() -> None:
    monitor = LoopMonitor()
    selector = BoundedSelector(monitor)
    pairs = [socket.socketpair() for _ in range(event_loop.EVENTS_PER_STEP * 2 + 10)]
    try:
        for ours, theirs in pairs:
            selector.register(ours, event_loop.selectors.EVENT_READ)
            theirs.send(b"x")
        seen: set[int] = set()
        for _ in range(3):
            ready = selector.select(0)
            assert 0 < len(ready) <= event_loop.EVENTS_PER_STEP
            seen |= {key.fd for key, _ in ready}
        assert seen == {ours.fileno() for ours, _ in pairs}, "those that wait longest come first"
    finally:
        selector.close()
        for pair in pairs:
            for end in pair:
                end.close()


def test_the_selector_tells_readers_and_writers_of_a_hang_up() -> None:
    selector = BoundedSelector(LoopMonitor())
    ours, theirs = socket.socketpair()
    theirs.close()
    try:
        both = event_loop.selectors.EVENT_READ | event_loop.selectors.EVENT_WRITE
        selector.register(ours, both)
        assert [events for _, events in selector.select(1)] == [both]
        assert selector.select(None), "waiting for ever is waiting for an event"
        selector.unregister(ours)
        assert selector.select(0) == []
    finally:
        selector.close()
        ours.close()


def test_prometheus_is_told_of_steps_stalls_and_the_longest() -> None:
    monitor = LoopMonitor()
    for seconds in (0.0001, 0.004, 0.03, 2.0):
        monitor.step(seconds)
    registry = CollectorRegistry()
    registry.register(LoopCollector(monitor))
    text = generate_latest(registry).decode()
    assert 'ckptd_event_loop_step_seconds_bucket{le="0.001"} 1.0' in text
    assert 'ckptd_event_loop_step_seconds_bucket{le="0.02"} 2.0' in text
    assert 'ckptd_event_loop_step_seconds_bucket{le="+Inf"} 4.0' in text
    assert "ckptd_event_loop_step_seconds_count 4.0" in text
    assert 'ckptd_event_loop_stalls_total{phase="other"} 2.0' in text
    assert "ckptd_event_loop_longest_step_seconds 2.0" in text
