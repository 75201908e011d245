"""What happens while an outcome is on its way: no look is overtaken by an older one, and no sweep counts one."""

import os
import pathlib
from collections.abc import AsyncIterator

import anyio
import anyio.to_thread
import pytest
import structlog

from ckptd.daemon.workers import WorkerPool
from tests.daemon.staged_pipelines import Stage, staged, until
from tests.service.checkpoints import checkpoint_bytes, rename_in

pytestmark = [pytest.mark.anyio, pytest.mark.campaign]


@pytest.fixture
async def stage(tmp_path: pathlib.Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield stage


async def test_a_file_that_is_deleted_while_its_first_news_is_committed_is_not_listed(stage: Stage) -> None:
    """The look that finds it gone must not conclude from the list that there is nothing to remove."""
    key = stage.key("a.ckpt")
    rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
    stage.state.hold()
    stage.pipeline.hint([key])
    await until(stage.state.committing.is_set, "its news is being committed")
    (stage.outputs / "a.ckpt").unlink()
    stage.pipeline.hint([key])
    await until(lambda: stage.pipeline.counts.looks == 2 and not stage.pipeline.pending, "it was looked at again")
    stage.state.release()
    await until(lambda: len(stage.looked) == 2, "both outcomes are published")
    assert stage.catalog.get(key.id) is None


async def test_a_sweep_that_begins_while_older_news_is_committed_proves_nothing_before_a_new_look(stage: Stage) -> None:
    """It compares the tree with a list in which that news is missing: it cannot see that it is out of date."""
    key = stage.key("a.ckpt")
    rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
    stage.state.hold()
    stage.pipeline.hint([key])
    await until(stage.state.committing.is_set, "its news is being committed")
    (stage.outputs / "a.ckpt").unlink()  # and the event of it is lost
    stage.sweep()
    assert stage.completeness.overall() is None
    stage.state.release()
    await until(lambda: stage.completeness.overall() == 100.0, "the sweep is a proof")
    assert stage.catalog.get(key.id) is None


async def test_a_look_that_was_under_way_at_the_beginning_of_a_sweep_and_says_nothing_does_not_hold_it_up(
    stage: Stage,
) -> None:
    key = stage.key("a.ckpt")
    rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
    held = stage.pool.held = anyio.Event()
    stage.pipeline.hint([key])
    await until(lambda: stage.pool.asked == 1, "it is being described")
    stage.sweep(key)
    held.set()
    await until(lambda: stage.completeness.overall() == 100.0, "the sweep is a proof")
    assert stage.catalog.get(key.id) is not None


async def test_a_look_that_was_under_way_at_the_beginning_of_a_sweep_proves_nothing(stage: Stage) -> None:
    key = stage.key("a.ckpt")
    rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
    held = stage.pool.held = anyio.Event()
    stage.pipeline.hint([key])
    await until(lambda: stage.pool.asked == 1, "it is being described")
    (stage.outputs / "a.ckpt").unlink()
    stage.sweep()
    assert stage.completeness.overall() is None
    held.set()
    await until(lambda: stage.completeness.overall() == 100.0, "the sweep is a proof")
    assert stage.catalog.get(key.id) is None


async def test_a_look_that_breaks_costs_no_other_one_and_is_tried_again(stage: Stage) -> None:
    """Whatever goes wrong with one path, in the thread that looks as well."""
    rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
    good, broken = stage.key("a.ckpt"), stage.key("broken.ckpt")
    stage.pipeline.hint([broken, good])
    await until(lambda: stage.catalog.get(good.id) is not None, "the other one is listed")
    rename_in(stage.outputs / "broken.ckpt", checkpoint_bytes())
    stage.pipeline.hint([broken])
    await until(lambda: stage.catalog.get(broken.id) is not None, "it is listed once it can be looked at")


async def test_an_answer_about_another_file_is_refused_and_the_file_is_asked_about_again(stage: Stage) -> None:
    """Nobody is ever told of one file what another one holds, whatever went wrong on the way."""
    key = stage.key("a.ckpt")
    rename_in(stage.outputs / "a.ckpt", checkpoint_bytes(1))
    rename_in(stage.outputs / "other.ckpt", checkpoint_bytes(epoch=4))
    other = os.open(stage.outputs / "other.ckpt", os.O_RDONLY)
    try:
        stage.pool.mistaken_for = other
        stage.pipeline.hint([key])
        await until(lambda: stage.catalog.get(key.id) is not None, "it is listed")
    finally:
        os.close(other)
    record = stage.catalog.get(key.id)
    assert record is not None
    assert record.identities.file.inode == (stage.outputs / "a.ckpt").stat().st_ino
    assert record.entry.epoch == 3
    assert [what for what, _, _ in stage.problems] == ["an answer about another file was refused"]


async def test_a_file_that_is_moved_away_and_overwritten_before_it_is_read_is_not_told_of_its_old_place(
    stage: Stage,
) -> None:
    """Its descriptor follows it, and reads what the old place never held."""
    key, here, there = stage.key("a.ckpt"), stage.outputs / "a.ckpt", stage.outputs / "b.ckpt"
    rename_in(here, checkpoint_bytes())

    def move_and_overwrite() -> None:
        here.rename(there)
        there.write_bytes(checkpoint_bytes(epoch=4))

    told: list[int | None] = []
    stage.catalog.on_publish(lambda batch: told.extend(item.entry.epoch for item in batch.items))
    stage.pool.before = move_and_overwrite
    stage.pipeline.hint([key])
    await until(lambda: stage.pipeline.counts.looks >= 2 and not stage.pipeline.pending, "it was looked at again")
    assert stage.catalog.get(key.id) is None
    assert told == []


async def test_a_file_that_is_overwritten_in_its_place_before_it_is_read_is_told_as_it_was_read(stage: Stage) -> None:
    key, here = stage.key("a.ckpt"), stage.outputs / "a.ckpt"
    rename_in(here, checkpoint_bytes())
    stage.pool.before = lambda: here.write_bytes(checkpoint_bytes(epoch=4))
    stage.pipeline.hint([key])
    await until(lambda: stage.catalog.get(key.id) is not None, "it is listed")
    record = stage.catalog.get(key.id)
    assert record is not None
    assert record.entry.epoch == 4


async def test_a_look_that_meets_a_pool_that_has_ended_is_no_problem_of_its_file(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service stops; what it had not read the next run reads. A traceback for each file would hide a real one."""
    ended = WorkerPool(workers=1, memory_mb=64, timeout_s=1.0, log=structlog.stdlib.get_logger())
    key = stage.key("a.ckpt")
    rename_in(stage.outputs / "a.ckpt", checkpoint_bytes())
    monkeypatch.setattr(stage.pool, "describe", ended.describe)
    stage.pipeline.hint([key])
    await until(lambda: stage.pipeline.counts.looks == 1 and not stage.pipeline._in_flight, "the look has ended")
    assert not stage.problems
    assert stage.pipeline.is_pending(key)
