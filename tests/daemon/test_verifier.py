"""The background verifier: what it reads when, what becomes of its findings, and what never loses them."""

import errno
import os
import pathlib
import sqlite3

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.catalog.entry import CheckpointId
from ckptd.daemon import verifier
from ckptd.daemon.agenda import Agenda
from ckptd.daemon.answers import Death
from ckptd.daemon.workers import WorkerDied, ZygoteError
from ckptd.validators import Level
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.inspection import FileIdentity
from tests.catalog.verified_files import flip
from tests.daemon.verified_trees import staged, until
from tests.service.checkpoints import checkpoint_bytes, rename_in

anyio_test = pytest.mark.anyio
EIO = Unreadable("reading failed: Input/output error", errno.EIO)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times that pass before something is tried again."""
    monkeypatch.setattr("ckptd.daemon.reading.YOUNG_S", 0.0)
    monkeypatch.setattr(verifier, "AGAIN_S", 0.01)
    monkeypatch.setattr(verifier, "YIELD_S", 0.005)
    monkeypatch.setattr(verifier, "UNDESCRIBED_S", 0.01)


def damaged(seed: int = 0) -> bytes:
    """A checkpoint with a flipped bit in its largest tensor."""
    data = bytearray(checkpoint_bytes(seed))
    data[len(data) // 3] ^= 1
    return bytes(data)


# ---- the agenda ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-3, 3) | st.none()), max_size=60))
def test_the_newest_is_taken_first_and_each_once(steps: list[tuple[int, int | None]]) -> None:
    agenda = Agenda()
    waiting: dict[str, int] = {}
    for number, modified in steps:
        if modified is None:
            taken = agenda.take()
            assert (taken is None) == (not waiting)
            if taken is not None:
                newest = max(waiting.values())
                assert waiting.pop(taken.id) == newest
            continue
        key = CheckpointId(f"id-{number}")
        agenda.add(key, modified)
        waiting.setdefault(key, modified)
    assert len(agenda) == len(waiting)


def test_many_that_are_added_at_once_come_in_the_same_order() -> None:
    agenda = Agenda()
    agenda.add(CheckpointId("five"), 5)
    agenda.extend([(4, CheckpointId("four")), (5, CheckpointId("five")), (6, CheckpointId("six"))])
    taken = [agenda.take() for _ in range(4)]
    assert [one and one.id for one in taken] == ["six", "five", "four", None]


def test_old_ones_come_after_all_that_were_never_verified_and_are_told_apart() -> None:
    agenda = Agenda()
    agenda.scrub([(1.0, CheckpointId("old")), (2.0, CheckpointId("older"))])
    agenda.add(CheckpointId("new"), 1)
    taken = [one for _ in range(3) if (one := agenda.take())]
    assert [(one.id, one.again) for one in taken] == [("new", False), ("old", True), ("older", True)]
    assert agenda.scrubbed == (2.0, "older")
    agenda.scrub([])
    assert agenda.scrubbed == (0.0, "")


def test_what_is_put_off_rests_in_that_state_and_wakes_when_it_is_due() -> None:
    agenda = Agenda()
    before, after = FileIdentity(1, 2, 3, 4), FileIdentity(1, 2, 3, 5)
    key = CheckpointId("a")
    agenda.put_off(key, 10.0, before)
    assert agenda.rests(key, before)
    assert not agenda.rests(key, after)
    assert (agenda.wake(9.9), agenda.next_due(), len(agenda)) == ([], 10.0, 1)
    assert agenda.wake(10.0) == [key]
    assert not agenda.rests(key, before)


# ---- verification ----------------------------------------------------------------------------------------------


@anyio_test
async def test_new_checkpoints_are_verified_and_damage_in_a_tensor_makes_them_invalid(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path) as stage:
        rename_in(stage.outputs / "good.ckpt", checkpoint_bytes())
        rename_in(stage.outputs / "bad.ckpt", damaged())
        stage.busy = True
        await stage.look("good.ckpt", "bad.ckpt")
        assert stage.state_of("bad.ckpt") == ("valid", "structure", set())
        stage.busy = False
        await stage.verified("good.ckpt", "bad.ckpt")
        assert stage.state_of("good.ckpt") == ("valid", "checksum", set())
        assert stage.state_of("bad.ckpt") == ("invalid", "checksum", {"archive.checksum_mismatch"})
        assert [what for what, *_ in stage.problems] == ["checkpoint corrupt"]
        outcomes = stage.verifier.status().outcomes
        assert outcomes == {"good": 1, "corrupt": 1}


@anyio_test
async def test_the_newest_is_verified_first(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path) as stage:
        names = [f"{number}.ckpt" for number in range(8)]
        for number, name in enumerate(names):
            rename_in(stage.outputs / name, checkpoint_bytes(number))
            os.utime(stage.outputs / name, (1e9 + number, 1e9 + number))
        stage.busy = True
        await stage.look(*names)
        stage.busy = False
        await stage.verified(*names)
        assert stage.pool.names() == names[::-1]


@anyio_test
async def test_nothing_is_begun_while_checkpoints_wait_to_be_described(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path) as stage:
        stage.busy = True
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
        await stage.look("a.ckpt")
        for _ in range(20):  # turns of the verifier
            await anyio.sleep(verifier.YIELD_S)
        assert stage.pool.asked == []
        stage.busy = False
        await stage.verified("a.ckpt")


@anyio_test
async def test_a_big_verification_under_way_holds_up_no_arrival(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path) as stage:
        rename_in(stage.outputs / "big.ckpt", checkpoint_bytes())
        stage.pool.held = anyio.Event()
        await stage.look("big.ckpt")
        await until(lambda: stage.pool.reading, "it is being read")
        assert stage.verifier.status().verifying == str(stage.outputs / "big.ckpt")
        rename_in(stage.outputs / "new.ckpt", checkpoint_bytes(1))
        await stage.look("new.ckpt")
        assert stage.state_of("new.ckpt") == ("valid", "structure", set())
        stage.pool.held.set()
        await stage.verified("big.ckpt", "new.ckpt")


@anyio_test
async def test_a_new_run_goes_on_where_the_last_one_was(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path) as stage:
        for number in range(2):
            rename_in(stage.outputs / f"{number}.ckpt", checkpoint_bytes(number))
        await stage.look("0.ckpt")
        await stage.verified("0.ckpt")
        stage.busy = True
        await stage.look("1.ckpt")
    async with staged(tmp_path) as stage:
        await stage.verified("0.ckpt", "1.ckpt")
        assert stage.pool.names() == ["1.ckpt"]


@anyio_test
async def test_a_format_without_checksums_is_read_once_and_keeps_its_level(tmp_path: pathlib.Path) -> None:
    from tests.validators.checkpoint_files import state_dict
    from tests.validators.format_files import legacy

    async with staged(tmp_path) as stage:
        rename_in(stage.outputs / "a.ckpt", legacy(state_dict()))
        await stage.look("a.ckpt")
        await until(lambda: stage.state_of("a.ckpt") == ("valid", "structure", {"archive.unverifiable"}), "it was read")
        await stage.look("a.ckpt", must_read=True)
        assert stage.state_of("a.ckpt") == ("valid", "structure", {"archive.unverifiable"})
        rename_in(stage.outputs / "b.ckpt", checkpoint_bytes())
        await stage.look("b.ckpt")
        await stage.verified("b.ckpt")
    async with staged(tmp_path) as stage:
        rename_in(stage.outputs / "c.ckpt", checkpoint_bytes(1))
        await stage.look("c.ckpt")
        await stage.verified("c.ckpt")
        assert stage.pool.names() == ["c.ckpt"]


@anyio_test
async def test_an_alias_shows_what_is_known_of_its_target_and_is_not_read_itself(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path) as stage:
        rename_in(stage.outputs / "bad.ckpt", damaged())
        (stage.outputs / "early.ckpt").symlink_to("bad.ckpt")
        await stage.look("bad.ckpt", "early.ckpt")
        known = ("invalid", "checksum", {"archive.checksum_mismatch"})
        await until(lambda: stage.state_of("early.ckpt") == known, "the alias says the same")
        (stage.outputs / "late.ckpt").symlink_to("bad.ckpt")
        await stage.look("late.ckpt")
        assert stage.state_of("late.ckpt") == known
        assert stage.pool.names() == ["bad.ckpt"]


@anyio_test
async def test_neither_the_setting_nor_a_file_that_is_invalid_already_makes_it_read(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path, level=Level.STRUCTURE) as stage:
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
        await stage.look("a.ckpt")
        assert stage.verifier.status().queued == 0
    async with staged(tmp_path) as stage:
        rename_in(stage.outputs / "text.ckpt", b"<html>not found</html>" * 9)
        await stage.look("text.ckpt")
        await stage.verified("a.ckpt")
        assert stage.state_of("text.ckpt") == ("invalid", "structure", {"format.not_a_checkpoint"})
        assert stage.pool.names() == ["a.ckpt"]


# ---- scrubs ----------------------------------------------------------------------------------------------------


@anyio_test
async def test_a_scrub_reads_the_disk_and_finds_what_rotted(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path, scrub_days=1e-7) as stage:
        path = stage.outputs / "a.ckpt"
        rename_in(path, checkpoint_bytes())
        await stage.look("a.ckpt")
        await until(lambda: len(stage.pool.asked) > 2, "it was read again")
        assert [request.fresh for _, request in stage.pool.asked[:3]] == [False, True, True]
        flip(path, len(checkpoint_bytes()) // 3)
        await stage.look("a.ckpt")
        rotten = ("invalid", "checksum", {"archive.bit_rot", "archive.checksum_mismatch"})
        await until(lambda: stage.state_of("a.ckpt") == rotten, "the rot was found")
        flip(path, len(checkpoint_bytes()) // 3)
        await stage.look("a.ckpt")
        await until(lambda: stage.state_of("a.ckpt") == ("valid", "checksum", set()), "it reads well again")


@anyio_test
async def test_every_old_one_is_scrubbed_and_none_is_twice_before_the_others_are_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "SCRUB_PAGE", 2)
    async with staged(tmp_path) as stage:
        names = {f"{number}.ckpt" for number in range(5)}
        for name in names:
            rename_in(stage.outputs / name, checkpoint_bytes())
        await stage.look(*names)
        await stage.verified(*names)
    async with staged(tmp_path, scrub_days=1e-7) as stage:
        await until(lambda: len(stage.pool.asked) >= 10, "two passes")
        assert set(stage.pool.names()[:5]) == set(stage.pool.names()[5:10]) == names


# ---- files and machines that fail ------------------------------------------------------------------------------


@anyio_test
async def test_a_file_that_ends_its_reader_is_blamed_once_until_it_changes(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path, scrub_days=1e-7) as stage:
        stage.pool.problems["a.ckpt"] = WorkerDied(Death.CRASHED, "SIGSEGV")
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
        await stage.look("a.ckpt")
        crashed = ("invalid", "structure", {"worker.crashed"})
        await until(lambda: stage.state_of("a.ckpt") == crashed, "it is blamed")
        rename_in(stage.outputs / "b.ckpt", checkpoint_bytes(1))
        await stage.look("b.ckpt")
        await until(lambda: stage.pool.names().count("b.ckpt") > 2, "others are scrubbed")
        assert stage.pool.names().count("a.ckpt") == 1
        del stage.pool.problems["a.ckpt"]
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes(2))
        await stage.look("a.ckpt")
        await stage.verified("a.ckpt")


@anyio_test
@pytest.mark.parametrize("second", ["well", "dies again"])
async def test_what_ended_its_reader_is_read_once_more_on_demand_and_only_once(
    tmp_path: pathlib.Path, second: str
) -> None:
    """It stayed condemned for ever, though the process may have been killed by a bug that is mended since."""
    crashed = ("invalid", "structure", {"worker.crashed"})
    async with staged(tmp_path) as stage:
        stage.pool.problems["a.ckpt"] = WorkerDied(Death.CRASHED, "SIGSEGV")
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
        rename_in(stage.outputs / "b.ckpt", checkpoint_bytes(1))
        await stage.look("a.ckpt", "b.ckpt")
        await until(lambda: stage.state_of("a.ckpt") == crashed, "it is blamed")
        await stage.verified("b.ckpt")
    async with staged(tmp_path) as stage:
        if second == "dies again":
            stage.pool.problems["a.ckpt"] = WorkerDied(Death.CRASHED, "SIGSEGV")
        stage.verifier.try_again(stage.catalog)
        await until(lambda: stage.pool.names() == ["a.ckpt"], "it is read, and what was read well is not")
        expected = crashed if second == "dies again" else ("valid", "checksum", set())
        await until(lambda: stage.state_of("a.ckpt") == expected, f"it is {expected}")
        rename_in(stage.outputs / "c.ckpt", checkpoint_bytes(2))
        await stage.look("a.ckpt", "c.ckpt", must_read=True)
        await stage.verified("c.ckpt")
        assert stage.pool.names() == ["a.ckpt", "c.ckpt"]


@anyio_test
async def test_a_disk_that_fails_is_told_and_tried_again_and_after_a_restart_as_well(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread = ("invalid", "structure", {"file.unreadable"})
    async with staged(tmp_path) as stage:
        stage.pool.problems["a.ckpt"] = EIO
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
        await stage.look("a.ckpt")
        await until(lambda: stage.state_of("a.ckpt") == unread, "it is told")
        await stage.look("a.ckpt", must_read=True)
        assert stage.state_of("a.ckpt") == unread
    monkeypatch.setattr(verifier, "RETRY_S", 0.05)
    async with staged(tmp_path) as stage:
        stage.pool.problems["a.ckpt"] = EIO
        await until(lambda: len(stage.pool.asked) > 2, "it is tried again")
        assert stage.state_of("a.ckpt") == unread
        del stage.pool.problems["a.ckpt"]
        await until(lambda: stage.state_of("a.ckpt") == ("valid", "checksum", set()), "the disk answers")


@anyio_test
@pytest.mark.parametrize(
    "problem",
    [
        WorkerDied(Death.LIMIT_WALL, "SIGALRM"),
        WorkerDied(Death.KILLED, "SIGKILL"),
        WorkerDied(Death.LIMIT_MEMORY, "memory ran out"),
        Unreadable("no descriptors left for a worker", errno.EMFILE),
        RuntimeError("nobody thought of this"),
    ],
    ids=str,
)
async def test_what_says_nothing_of_the_file_changes_nothing_and_is_tried_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    monkeypatch.setattr(verifier, "RETRY_S", 0.05)
    async with staged(tmp_path) as stage:
        stage.pool.problems["a.ckpt"] = problem
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
        await stage.look("a.ckpt")
        await until(lambda: len(stage.pool.asked) > 1, "it is tried again")
        assert stage.state_of("a.ckpt") == ("valid", "structure", set())
        del stage.pool.problems["a.ckpt"]
        await stage.verified("a.ckpt")
        assert stage.problems


@anyio_test
async def test_without_a_process_that_reads_health_says_why_and_it_goes_on_later(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "NO_POOL_S", 0.02)
    async with staged(tmp_path) as stage:
        stage.pool.problems["a.ckpt"] = ZygoteError("torch is missing")
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
        await stage.look("a.ckpt")
        await until(lambda: stage.verifier.status().problem == "torch is missing", "it says why")
        del stage.pool.problems["a.ckpt"]
        await stage.verified("a.ckpt")
        await until(lambda: stage.verifier.status().problem is None, "nothing is wrong any more")


@anyio_test
async def test_a_description_that_was_lost_is_made_anew_first(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path) as stage:
        stage.busy = True
        rename_in(stage.outputs / "a.ckpt", damaged())
        await stage.look("a.ckpt")
    connection = sqlite3.connect(tmp_path / "state/state.sqlite3")
    connection.execute("UPDATE descriptions SET summary = x'00'")
    connection.commit()
    connection.close()
    async with staged(tmp_path) as stage:
        await until(lambda: stage.journal.undescribed, "it is missed")
        await stage.read_undescribed()
        await stage.verified("a.ckpt")
        assert stage.state_of("a.ckpt") == ("invalid", "checksum", {"archive.checksum_mismatch"})


# ---- changes meanwhile -----------------------------------------------------------------------------------------


@anyio_test
async def test_a_file_that_is_replaced_while_it_is_read_is_read_anew(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path) as stage:
        rename_in(stage.outputs / "a.ckpt", damaged())
        stage.pool.held = anyio.Event()
        await stage.look("a.ckpt")
        await until(lambda: stage.pool.reading, "it is being read")
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes(1))
        await stage.look("a.ckpt")
        stage.pool.held.set()
        await stage.verified("a.ckpt")
        assert stage.state_of("a.ckpt") == ("valid", "checksum", set())
        assert stage.pool.names() == ["a.ckpt", "a.ckpt"]


@anyio_test
async def test_a_file_that_changes_while_it_is_read_is_looked_at(tmp_path: pathlib.Path) -> None:
    """Its event was lost: the one who reads it tells."""
    async with staged(tmp_path) as stage:
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
        stage.pool.problems["a.ckpt"] = Changed("the file was modified while it was read")
        stage.pool.held = anyio.Event()
        await stage.look("a.ckpt")
        await until(lambda: stage.pool.reading, "it is being read")
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes(1, epoch=9))
        stage.pool.held.set()
        await until(lambda: (entry := stage.entry("a.ckpt")) and entry.epoch == 9, "the new file is described")


@anyio_test
async def test_news_of_its_sidecar_while_a_file_is_read_is_not_lost_and_loses_nothing(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path) as stage:
        rename_in(stage.outputs / "a.ckpt", damaged())
        stage.pool.held = anyio.Event()
        await stage.look("a.ckpt")
        await until(lambda: stage.pool.reading, "it is being read")
        (stage.outputs / "a.ckpt.metadata.yaml").write_text("exp_name: mine\n")
        await stage.look("a.ckpt")
        stage.pool.held.set()
        await stage.verified("a.ckpt")
        entry = stage.entry("a.ckpt")
        assert entry is not None
        assert entry.exp_name == "mine"
        assert stage.state_of("a.ckpt") == ("invalid", "checksum", {"archive.checksum_mismatch"})


@anyio_test
@pytest.mark.parametrize("contents", ["good", "damaged"])
async def test_a_new_sidecar_or_a_full_rebuild_takes_nothing_from_a_verification(
    tmp_path: pathlib.Path, contents: str
) -> None:
    async with staged(tmp_path) as stage:
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes() if contents == "good" else damaged())
        await stage.look("a.ckpt")
        await stage.verified("a.ckpt")
        known = stage.state_of("a.ckpt")
        (stage.outputs / "a.ckpt.metadata.yaml").write_text("exp_name: mine\n")
        await stage.look("a.ckpt")
        assert stage.state_of("a.ckpt") == known
        await stage.look("a.ckpt", must_read=True)
        assert stage.state_of("a.ckpt") == known
        assert stage.pool.names() == ["a.ckpt"]
    async with staged(tmp_path) as stage:
        await stage.look("a.ckpt", must_read=True)
        assert stage.state_of("a.ckpt") == known


@anyio_test
async def test_another_file_under_the_name_begins_anew(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path) as stage:
        rename_in(stage.outputs / "a.ckpt", damaged())
        await stage.look("a.ckpt")
        await stage.verified("a.ckpt")
        stage.busy = True
        rename_in(stage.outputs / "a.ckpt", checkpoint_bytes(1))
        await stage.look("a.ckpt")
        assert stage.state_of("a.ckpt") == ("valid", "structure", set())


@anyio_test
async def test_what_was_found_is_not_lost_by_a_full_disk(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path) as stage:
        rename_in(stage.outputs / "a.ckpt", damaged())
        stage.pool.held = anyio.Event()
        await stage.look("a.ckpt")
        await until(lambda: stage.pool.reading, "it is being read")
        stage.state.full.set()
        stage.pool.held.set()
        await stage.verified("a.ckpt")
        known = stage.state_of("a.ckpt")
        assert not stage.journal.durable
        rename_in(stage.outputs / "b.ckpt", checkpoint_bytes())
        await stage.look("a.ckpt", "b.ckpt", must_read=True)
        assert stage.state_of("a.ckpt") == known
        assert stage.pool.names() == ["a.ckpt"]  # what cannot be kept is not begun
        stage.state.full.clear()
        stage.now = 100.0
        await stage.look("b.ckpt", must_read=True)
        await stage.read_undescribed()
        await stage.verified("b.ckpt")
    async with staged(tmp_path) as stage:
        await stage.look("a.ckpt", must_read=True)
        assert stage.state_of("a.ckpt") == known
        assert stage.pool.names() == []
