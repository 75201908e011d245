"""Settle, rule by rule: each case is a story of looks at given times, and the verdicts that must follow."""

import itertools

import pytest

from ckptd.daemon.settle import OFFLINE_LOOKS_PER_S, Look, LookKind, Phase, Settle, Verdict
from ckptd.validators.inspection import FileIdentity, Seal

WALL_S = 1_800_000_000.0
"""The wall clock at monotonic zero."""
LONG_AGO_S = -1000.0
"""As a file's time: well before the story begins."""


def file(modified_s: float, *, changed_s: float | None = None, size: int = 100, inode: int = 7) -> FileIdentity:
    """A file last written at `modified_s` (monotonic), with a ctime of `changed_s`, by default the same."""
    changed_s = modified_s if changed_s is None else changed_s
    return FileIdentity(inode, size, int((WALL_S + modified_s) * 1e9), int((WALL_S + changed_s) * 1e9))


def seen(identity: FileIdentity, seal: Seal, writer: bool | None = False) -> Look:
    return Look(LookKind.SEEN, identity, seal, writer)


GONE = Look(LookKind.GONE)
UNREACHABLE = Look(LookKind.UNREACHABLE)
UNCHANGED = Look(LookKind.UNCHANGED)


class Story:
    """One path, looked at whenever it is due."""

    def __init__(self, settle: Settle[str] | None = None, key: str = "a") -> None:
        self.settle = Settle[str]() if settle is None else settle
        self.key = key

    def hint(self, now: float) -> None:
        self.settle.hint(self.key, now)

    def look(self, now: float, look: Look) -> Verdict:
        assert self.settle.due(now, 10) == [self.key]
        return self.settle.looked(self.key, look, now, int((WALL_S + now) * 1e9))

    def hinted_look(self, now: float, look: Look) -> Verdict:
        self.hint(now)
        return self.look(now, look)

    @property
    def next_look(self) -> float | None:
        return self.settle.next_due()

    @property
    def is_forgotten(self) -> bool:
        return len(self.settle) == 0 and self.next_look is None and not sum(self.settle.phases().values())


@pytest.mark.parametrize(
    ("look", "verdict"),
    [
        pytest.param(seen(file(LONG_AGO_S), Seal.SEALED), Verdict.WHOLE, id="sealed, nobody writes"),
        pytest.param(seen(file(LONG_AGO_S), Seal.SEALED, None), Verdict.WHOLE, id="sealed, unknown writer, old"),
        pytest.param(seen(file(LONG_AGO_S), Seal.NONE), Verdict.WHOLE, id="without end mark, old"),
        pytest.param(seen(file(LONG_AGO_S), Seal.NONE, None), Verdict.WHOLE, id="without end mark, unknown writer"),
        pytest.param(seen(file(LONG_AGO_S), Seal.OPEN), Verdict.ABANDONED, id="incomplete and old"),
        pytest.param(
            seen(file(LONG_AGO_S, changed_s=-3), Seal.OPEN), Verdict.ABANDONED, id="incomplete, its old mtime restored"
        ),
        pytest.param(GONE, Verdict.REMOVE, id="gone"),
        pytest.param(UNCHANGED, Verdict.NOTHING, id="as the catalog has it"),
    ],
)
def test_one_look_settles_what_is_beyond_doubt(look: Look, verdict: Verdict) -> None:
    story = Story()
    assert story.hinted_look(0, look) is verdict
    assert story.is_forgotten


@pytest.mark.parametrize(
    ("look", "verdict"),
    [
        pytest.param(seen(file(LONG_AGO_S), Seal.SEALED, True), Verdict.WRITING, id="sealed, but held open to write"),
        pytest.param(seen(file(-1), Seal.SEALED, None), Verdict.NOTHING, id="sealed a second ago, unknown writer"),
        pytest.param(seen(file(-1), Seal.NONE), Verdict.WRITING, id="without end mark, a second old"),
        pytest.param(seen(file(LONG_AGO_S), Seal.NONE, True), Verdict.WRITING, id="without end mark, held open"),
        pytest.param(
            seen(file(LONG_AGO_S, changed_s=-1), Seal.NONE), Verdict.WRITING, id="without end mark, mtime set back"
        ),
        pytest.param(seen(file(-59), Seal.OPEN), Verdict.WRITING, id="incomplete for less than a minute"),
        pytest.param(seen(file(5000), Seal.OPEN), Verdict.WRITING, id="incomplete, mtime in the future"),
        pytest.param(seen(file(5000), Seal.NONE), Verdict.WRITING, id="without end mark, mtime in the future"),
        pytest.param(seen(file(LONG_AGO_S), Seal.OPEN, True), Verdict.WRITING, id="incomplete and old, yet held open"),
        pytest.param(UNREACHABLE, Verdict.OFFLINE, id="unreachable"),
    ],
)
def test_what_is_in_doubt_is_looked_at_again(look: Look, verdict: Verdict) -> None:
    story = Story()
    assert story.hinted_look(0, look) is verdict
    assert story.next_look is not None


def test_sealed_with_an_unknown_writer_is_whole_when_a_second_look_sees_the_same() -> None:
    story, same = Story(), seen(file(0), Seal.SEALED, None)
    assert story.hinted_look(0, same) is Verdict.NOTHING
    assert story.next_look == pytest.approx(0.05)
    assert story.look(0.05, same) is Verdict.WHOLE


def test_a_hint_does_not_shorten_the_second_look_at_a_file_with_an_unknown_writer() -> None:
    story, same = Story(), seen(file(0), Seal.SEALED, None)
    story.hinted_look(0, same)
    assert story.hinted_look(0.01, same) is Verdict.NOTHING
    assert story.next_look == pytest.approx(0.05)


def test_sealed_with_an_unknown_writer_that_changes_between_looks_is_being_written() -> None:
    story = Story()
    story.hinted_look(0, seen(file(0), Seal.SEALED, None))
    assert story.look(0.05, seen(file(0.04, size=200), Seal.SEALED, None)) is Verdict.WRITING
    assert story.look(0.1, seen(file(0.04, size=200), Seal.SEALED, None)) is Verdict.WHOLE


def test_a_sealed_file_is_taken_within_milliseconds_of_its_writer_closing_it() -> None:
    story = Story()
    held = seen(file(0), Seal.SEALED, True)
    assert story.hinted_look(0, held) is Verdict.WRITING
    assert story.next_look == pytest.approx(0.01)
    assert story.look(0.01, held) is Verdict.WRITING
    assert story.next_look == pytest.approx(0.06)
    assert story.look(0.061, seen(file(0), Seal.SEALED, False)) is Verdict.WHOLE


def test_a_sealed_file_that_somebody_merely_holds_open_is_whole_after_the_quiet_time() -> None:
    story, held, now = Story(), seen(file(LONG_AGO_S), Seal.SEALED, True), 0.0
    verdict = story.hinted_look(now, held)
    while verdict is Verdict.WRITING:
        assert story.next_look is not None
        now = story.next_look
        verdict = story.look(now, held)
    assert verdict is Verdict.WHOLE
    assert now == pytest.approx(2.0)


def test_a_sealed_file_that_keeps_changing_under_its_writer_is_never_whole() -> None:
    story = Story()
    for step in range(100):
        held = seen(file(step * 0.5, size=step), Seal.SEALED, True)
        assert story.hinted_look(step * 0.5, held) is Verdict.WRITING


def test_an_incomplete_file_is_looked_at_ever_more_rarely_then_given_up_then_forgotten() -> None:
    story, half, now = Story(), seen(file(0), Seal.OPEN), 0.0
    times = [now]
    verdict = story.hinted_look(now, half)
    while verdict is Verdict.WRITING:
        assert story.next_look is not None
        now = story.next_look
        times.append(now)
        verdict = story.look(now, half)
    assert verdict is Verdict.ABANDONED
    assert now == pytest.approx(60)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times[:-1])]
    assert gaps == pytest.approx(sorted(gaps))
    assert gaps[-1] < 3
    assert story.is_forgotten


def test_an_abandoned_file_comes_back_when_hinted() -> None:
    story = Story()
    assert story.hinted_look(0, seen(file(LONG_AGO_S), Seal.OPEN)) is Verdict.ABANDONED
    assert story.hinted_look(100, seen(file(100, size=200), Seal.OPEN)) is Verdict.WRITING
    assert story.hinted_look(101, seen(file(101, size=300), Seal.SEALED)) is Verdict.WHOLE


def test_an_incomplete_file_is_looked_at_at_once_when_hinted() -> None:
    story = Story()
    for now in (0.0, 1.0, 2.0, 10.0):
        story.hinted_look(now, seen(file(now, size=int(now)), Seal.OPEN))
    assert story.hinted_look(10.001, seen(file(10, size=20), Seal.SEALED)) is Verdict.WHOLE


def test_an_old_mtime_does_not_count_for_a_file_that_changed_under_our_eyes() -> None:
    """A copy through another filesystem sets mtime back while the file is still open, or a server's clock is behind."""
    story = Story()
    assert story.hinted_look(0, seen(file(0), Seal.OPEN)) is Verdict.WRITING
    assert story.hinted_look(1, seen(file(LONG_AGO_S, size=200), Seal.OPEN)) is Verdict.WRITING
    assert story.hinted_look(2, seen(file(LONG_AGO_S, size=200), Seal.NONE)) is Verdict.WRITING


def test_a_file_without_an_end_mark_is_whole_once_it_was_quiet() -> None:
    story, quiet = Story(), seen(file(-0.5), Seal.NONE)
    assert story.hinted_look(0, quiet) is Verdict.WRITING
    assert story.next_look == pytest.approx(1.5)
    assert story.look(1.5, quiet) is Verdict.WHOLE


def test_a_file_without_an_end_mark_that_is_held_open_for_ever_is_whole_in_the_end() -> None:
    story, held, now = Story(), seen(file(0), Seal.NONE, True), 0.0
    while story.hinted_look(now, held) is Verdict.WRITING:
        now += 1
    assert now == pytest.approx(60)


def test_a_young_whole_file_is_read_once_more_when_it_is_older() -> None:
    """Two writes within one tick of the clock leave the same identity."""
    story, young = Story(), seen(file(9.5), Seal.SEALED)
    assert story.hinted_look(10, young) is Verdict.WHOLE
    assert story.next_look == pytest.approx(11.5)
    assert story.settle.must_read("a")
    assert story.look(11.5, young) is Verdict.WHOLE
    assert story.is_forgotten
    assert not story.settle.must_read("a")


def test_a_whole_file_with_a_time_in_the_future_is_read_once_more_and_not_for_ever() -> None:
    story, future = Story(), seen(file(9999), Seal.SEALED)
    assert story.hinted_look(0, future) is Verdict.WHOLE
    assert story.look(2, future) is Verdict.WHOLE
    assert story.is_forgotten


def test_a_hint_does_not_cancel_the_second_reading_of_a_young_file() -> None:
    story, young = Story(), seen(file(10), Seal.SEALED)
    story.hinted_look(10, young)
    assert story.hinted_look(10.5, young) is Verdict.WHOLE
    assert story.settle.must_read("a")
    assert story.next_look == pytest.approx(12)
    assert story.hinted_look(11, UNCHANGED) is Verdict.NOTHING
    assert story.next_look == pytest.approx(12)


def test_a_file_being_written_must_be_read_even_if_the_catalog_holds_its_identity() -> None:
    story = Story()
    story.hinted_look(0, seen(file(0), Seal.OPEN))
    assert story.settle.must_read("a")


def test_an_unreachable_path_stays_offline_and_is_retried_ever_more_rarely() -> None:
    story, now, gaps = Story(), 0.0, []
    assert story.hinted_look(now, UNREACHABLE) is Verdict.OFFLINE
    for _ in range(10):
        assert story.next_look is not None
        gaps.append(story.next_look - now)
        now = story.next_look
        assert story.look(now, UNREACHABLE) is Verdict.OFFLINE
    assert gaps == pytest.approx([1, 2, 4, 8, 16, 30, 30, 30, 30, 30])
    assert story.settle.phases()[Phase.OFFLINE] == 1


def test_a_path_that_is_reachable_again_is_settled_as_if_nothing_had_been() -> None:
    story = Story()
    story.hinted_look(0, UNREACHABLE)
    assert story.look(1, seen(file(LONG_AGO_S), Seal.SEALED)) is Verdict.WHOLE
    assert story.is_forgotten


def test_a_whole_disk_that_is_lost_does_not_keep_the_daemon_busy() -> None:
    settle, n = Settle[int](), 5000
    for key in range(n):
        settle.hint(key, 0)
    for key in settle.due(0, n):
        settle.looked(key, UNREACHABLE, 0, 0)
    looks, now = 0, 0.0
    while (due := settle.next_due()) is not None and due < 1000:
        now = max(now, due)
        for key in settle.due(now, n):
            looks += 1
            settle.looked(key, UNREACHABLE, now, 0)
    # The first round, while the disk is being lost, may be quicker.
    assert looks <= n + 1000 * OFFLINE_LOOKS_PER_S


def test_a_hint_during_a_look_makes_the_path_due_again_right_after() -> None:
    story = Story()
    story.hint(0)
    assert story.settle.due(0, 1) == ["a"]
    story.hint(0.5)
    story.hint(0.6)
    assert story.settle.due(0.7, 1) == []
    assert story.settle.looked("a", seen(file(LONG_AGO_S), Seal.SEALED), 1, int((WALL_S + 1) * 1e9)) is Verdict.WHOLE
    assert story.look(1, GONE) is Verdict.REMOVE
    assert story.is_forgotten


def test_hints_of_one_path_add_up_to_one_look() -> None:
    story = Story()
    for step in range(1000):
        story.hint(step / 1000)
    story.look(1, GONE)
    assert story.is_forgotten


def test_an_aborted_look_is_tried_again_and_tells_nothing() -> None:
    story = Story()
    story.hint(0)
    assert story.settle.due(0, 1) == ["a"]
    story.settle.abort("a", 1, 0.5)
    assert story.next_look == pytest.approx(1.5)
    assert story.settle.due(1.4, 1) == []
    assert story.look(1.5, GONE) is Verdict.REMOVE


def test_a_look_that_nobody_asked_for_is_refused() -> None:
    story = Story()
    story.hint(0)
    with pytest.raises(KeyError):
        story.settle.looked("a", GONE, 0, 0)
    with pytest.raises(KeyError):
        story.settle.abort("a", 0, 1)


def test_a_path_under_constant_hints_does_not_starve_the_others() -> None:
    settle, looked = Settle[str](), []
    settle.hint("quiet", 0.0)
    for step in range(1, 50):
        now = step / 100
        settle.hint("busy", now)
        for key in settle.due(now, 1):
            looked.append(key)
            settle.hint("busy", now)
            settle.looked(key, seen(file(now, size=step), Seal.OPEN), now, int((WALL_S + now) * 1e9))
    assert looked[0] == "quiet"
    assert looked.count("busy") > 20


def test_status_says_what_waits_and_for_how_long() -> None:
    settle = Settle[str]()
    settle.hint("a", 1)
    settle.hint("b", 2)
    assert settle.overdue_s(4) == 3
    assert settle.due(4, 1) == ["a"]
    assert (len(settle), settle.looking, "a" in settle, "c" in settle) == (2, 1, True, False)
    assert settle.overdue_s(4) == 2
    assert settle.longest_look_s(9) == 5
    settle.looked("a", seen(file(9, size=3), Seal.OPEN), 9, int((WALL_S + 9) * 1e9))
    assert settle.longest_look_s(9) == 0
    assert settle.phases() == {Phase.NEW: 1, Phase.WRITING: 1, Phase.CONFIRMING: 0, Phase.OFFLINE: 0}


def test_places_left_behind_by_hints_do_not_add_up() -> None:
    settle = Settle[str]()
    for step in range(20_000):
        now = step / 10_000
        settle.hint("a", now)
        assert settle.due(now, 1) == ["a"]
        settle.looked("a", seen(file(now, size=step), Seal.OPEN), now, int((WALL_S + now) * 1e9))
    assert len(settle._heap) < 200


def test_a_hundred_thousand_paths_pass_through() -> None:
    """The time-out of the suite is the bound: a linear search per operation would take hours."""
    settle, n, verdicts = Settle[int](), 100_000, 0
    for key in range(n):
        settle.hint(key, 0)
    while keys := settle.due(0, 64):
        for key in keys:
            verdicts += settle.looked(key, seen(file(LONG_AGO_S), Seal.SEALED), 0, int(WALL_S * 1e9)) is Verdict.WHOLE
    assert verdicts == n
    assert len(settle) == 0


def test_what_a_slow_look_saw_is_as_old_as_its_beginning() -> None:
    """The file was a moment old when it was seen; that the look took three seconds makes it no quieter."""
    story = Story()
    story.hint(0)
    assert story.settle.due(0, 1) == ["a"]
    slow = seen(file(-0.1), Seal.NONE)
    assert story.settle.looked("a", slow, 3, int((WALL_S + 3) * 1e9)) is Verdict.WRITING
    assert story.look(5, slow) is Verdict.WHOLE


def test_a_sweep_has_every_look_under_way_repeated() -> None:
    """Else what such a look saw before the sweep would be published after the sweep compared, and stand."""
    story = Story()
    story.hint(0)
    assert story.settle.due(0, 1) == ["a"]
    assert story.settle.hint_under_way(0.5) == ["a"]
    assert story.settle.looked("a", seen(file(LONG_AGO_S), Seal.SEALED), 1, int((WALL_S + 1) * 1e9)) is Verdict.WHOLE
    assert story.look(1, GONE) is Verdict.REMOVE


def test_a_young_file_that_is_replaced_by_a_younger_one_is_read_once_more_for_that_one() -> None:
    story = Story()
    story.hinted_look(10, seen(file(10), Seal.SEALED))
    assert story.hinted_look(11, seen(file(11, inode=8), Seal.SEALED)) is Verdict.WHOLE
    assert story.next_look == pytest.approx(13)


def test_the_time_that_a_second_look_takes_is_no_time_of_quiet() -> None:
    story, same = Story(), seen(file(0), Seal.SEALED, None)
    story.hinted_look(0, same)
    story.hint(0.01)
    assert story.settle.due(0.01, 1) == ["a"]
    assert story.settle.looked("a", same, 1, int((WALL_S + 1) * 1e9)) is Verdict.NOTHING
