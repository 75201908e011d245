"""When a sweep is due, and what it proves."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.daemon.completeness import SOON_CPU, Completeness, SweepSchedule, Ticket


def swept(schedule: SweepSchedule, *, end: float, cpu_s: float) -> SweepSchedule:
    schedule.began()
    schedule.ended(end, cpu_s)
    return schedule


def test_the_first_sweep_is_due_at_the_start() -> None:
    assert SweepSchedule().due_at() == 0


def test_a_cheap_sweep_is_repeated_after_the_least_time() -> None:
    assert swept(SweepSchedule(min_s=10, cpu=0.02), end=100, cpu_s=0.1).due_at() == 110


def test_a_costly_sweep_takes_no_more_than_its_share_of_a_core() -> None:
    assert swept(SweepSchedule(min_s=10, cpu=0.02), end=100, cpu_s=2).due_at() == pytest.approx(200)


def test_a_request_brings_the_next_sweep_forward() -> None:
    schedule = swept(SweepSchedule(), end=100, cpu_s=0.001)
    schedule.request(105)
    assert schedule.due_at() == 105


def test_requests_add_up_to_one_sweep() -> None:
    schedule = swept(SweepSchedule(), end=100, cpu_s=0.001)
    for tenths in range(20):
        schedule.request(101 + tenths / 10)
    assert schedule.due_at() == 101
    swept(schedule, end=103, cpu_s=0.001)
    assert not schedule.is_requested
    assert schedule.due_at() == 113


def test_a_request_during_a_sweep_is_met_by_the_next_one() -> None:
    schedule = SweepSchedule()
    schedule.began()
    assert schedule.due_at() is None
    schedule.request(1)
    schedule.ended(2, 0.01)
    due_at = schedule.due_at()
    assert due_at is not None
    assert 2 < due_at < 3


@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=20))
def test_however_often_sweeps_are_asked_for_they_are_bounded(costs_s: list[float]) -> None:
    schedule, now, spent_s = SweepSchedule(), 0.0, 0.0
    for cost_s in costs_s:
        schedule.request(now)
        due_at = schedule.due_at()
        assert due_at is not None
        now = max(now, due_at) + cost_s
        spent_s += cost_s
        swept(schedule, end=now, cpu_s=cost_s)
    due_at = schedule.due_at()
    assert due_at is not None
    assert spent_s <= SOON_CPU * due_at + max(costs_s)


A = "/roots/a"
B = "/roots/b"


def begin(completeness: Completeness[str], root: str, at: float, *suspects: str, ok: bool | None = True) -> Ticket[str]:
    ticket = completeness.begin(root, at)
    ticket.expects(suspects)
    if ok is not None:
        ticket.ended(ok)
    return ticket


def test_nothing_is_complete_before_every_root_was_swept() -> None:
    completeness = Completeness[str]([A, B])
    assert completeness.overall() is None
    begin(completeness, A, 100)
    assert completeness.complete_as_of(A) == 100
    assert completeness.overall() is None
    begin(completeness, B, 50)
    assert completeness.overall() == 50


def test_without_roots_nothing_is_complete() -> None:
    assert Completeness[str]([]).overall() is None


def test_a_sweep_is_no_proof_before_its_suspects_were_looked_at() -> None:
    completeness = Completeness[str]([A])
    begin(completeness, A, 100, "x", "y")
    completeness.looked("x")
    completeness.looked("x")
    completeness.looked("unrelated")
    assert completeness.overall() is None
    completeness.looked("y")
    assert completeness.overall() == 100


def test_a_sweep_is_no_proof_before_it_ended() -> None:
    completeness = Completeness[str]([A])
    ticket = begin(completeness, A, 100, "x", ok=None)
    completeness.looked("x")
    assert completeness.overall() is None
    ticket.ended(True)
    assert completeness.overall() == 100


def test_a_sweep_that_failed_proves_nothing_and_is_forgotten() -> None:
    completeness = Completeness[str]([A])
    begin(completeness, A, 100)
    begin(completeness, A, 200, "x", ok=False)
    completeness.looked("x")
    assert completeness.overall() == 100
    assert not completeness._awaited


def test_a_look_that_began_before_a_sweep_counts_for_the_sweeps_before_it_alone() -> None:
    """It may have seen what was there before; and looks that last longer than sweeps are apart must count at all."""
    completeness = Completeness[str]([A])
    begin(completeness, A, 100, "x")
    begun = completeness.begun(A)
    begin(completeness, A, 200, "x")
    completeness.looked("x", begun)
    assert completeness.overall() == 100
    completeness.looked("x", completeness.begun(A))
    assert completeness.overall() == 200
    assert not completeness._awaited


def test_a_suspect_that_is_told_twice_needs_one_look() -> None:
    completeness = Completeness[str]([A])
    ticket = completeness.begin(A, 100)
    ticket.expects(["x"])
    ticket.expects(["x", "y"])
    ticket.ended(True)
    completeness.looked("x")
    assert completeness.overall() is None
    completeness.looked("y")
    assert completeness.overall() == 100


def test_a_later_proof_stands_though_an_earlier_sweep_is_proved_after_it() -> None:
    completeness = Completeness[str]([A])
    begin(completeness, A, 100, "slow")
    begin(completeness, A, 200)
    assert completeness.overall() == 200
    completeness.looked("slow")
    assert completeness.overall() == 200
    assert not completeness._awaited


def test_after_the_wall_clock_was_set_back_nothing_is_claimed_of_the_future() -> None:
    completeness: Completeness[str] = Completeness(["/a"])
    completeness.begin("/a", 1_000_000.0).ended(True)
    late = completeness.begin("/a", 1_000_010.0)
    set_back = completeness.begin("/a", 500.0)
    set_back.ended(True)
    assert completeness.overall() == 500.0
    assert completeness.is_met(late)
    late.ended(True)
    assert completeness.overall() == 500.0


def test_one_look_may_complete_several_sweeps() -> None:
    completeness = Completeness[str]([A, B])
    begin(completeness, A, 100, "x")
    begin(completeness, A, 200, "x")
    begin(completeness, B, 150, "x")
    completeness.looked("x")
    assert (completeness.complete_as_of(A), completeness.complete_as_of(B)) == (200, 150)


def test_the_attribute_cache_of_a_network_filesystem_is_taken_off() -> None:
    completeness = Completeness[str]([A, B])
    completeness.set_attribute_cache(A, 60)
    begin(completeness, A, 100)
    begin(completeness, B, 90)
    assert completeness.overall() == 40
    assert completeness.proved(A) == 100


def test_sweeps_whose_suspects_are_never_looked_at_do_not_add_up() -> None:
    completeness = Completeness[str]([A])
    for at in range(1000):
        begin(completeness, A, float(at), "hanging", f"gone-{at}")
    assert len(completeness._tickets[A]) < 10
    assert len(completeness._awaited) < 20
    completeness.looked("hanging")
    for at in range(1000):
        completeness.looked(f"gone-{at}")
    assert completeness.overall() == 999
    assert not completeness._awaited


@given(st.data())
def test_what_is_proved_never_goes_back_and_never_outruns_the_sweeps(data: st.DataObject) -> None:
    completeness, running, proved, now = Completeness[str]([A]), [], -1.0, 0.0
    keys = st.sampled_from(["x", "y", "z"])
    steps: list[Callable[[], None]] = [
        lambda: running.append(completeness.begin(A, now)),
        lambda: running and running[-1].expects(data.draw(st.lists(keys, max_size=3))),
        lambda: running and running.pop().ended(data.draw(st.booleans())),
        lambda: completeness.looked(data.draw(keys)),
    ]  # type: ignore[list-item]
    for _ in range(data.draw(st.integers(1, 40))):
        now += 1
        data.draw(st.sampled_from(steps))()
        known = completeness.overall()
        assert known is None or proved <= known <= now
        proved = proved if known is None else known
