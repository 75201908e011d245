"""What left its place and was seen elsewhere is told as moved there, in whatever order the halves become known."""

import pathlib
from collections.abc import AsyncIterator

import anyio
import pytest

from ckptd.catalog.entry import CheckpointId, Identities
from ckptd.catalog.store import Catalog, Tombstone
from ckptd.daemon import moves
from ckptd.daemon.key import Key
from ckptd.daemon.moves import Moves, mark_of, mark_of_path
from ckptd.validators.inspection import FileIdentity
from ckptd.validators.reader import identity_of
from tests.daemon.staged_pipelines import DEADLINE_S, Stage, staged, until
from tests.service.checkpoints import checkpoint_bytes, rename_in

pytestmark = pytest.mark.anyio
A, B = CheckpointId("a"), CheckpointId("b")


@pytest.fixture
async def stage(tmp_path: pathlib.Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield stage


async def listed(stage: Stage, *names: str) -> list[Key]:
    """Checkpoints of these names, published."""
    for number, name in enumerate(names):
        rename_in(stage.outputs / name, checkpoint_bytes(number))
    keys = [stage.key(name) for name in names]
    stage.pipeline.hint(keys)
    await until(lambda: all(stage.catalog.get(key.id) for key in keys), "they are listed")
    return keys


def told_of(stage: Stage, key: Key) -> tuple[str, CheckpointId | None]:
    """What was told of an entry that is gone."""
    gone = stage.catalog.tombstone(key.id)
    assert gone is not None
    return gone.reason.value, gone.moved_to


def patient(monkeypatch: pytest.MonkeyPatch, grace_s: float, together_s: float) -> None:
    """Let deletions wait for so long: what is tested is what they wait for, not the time."""
    monkeypatch.setattr(moves, "GRACE_S", grace_s)
    monkeypatch.setattr(moves, "TOGETHER_S", together_s)


@pytest.mark.parametrize("same", [True, False], ids=["renamed", "number of a deleted file, given to another one"])
async def test_only_the_same_file_is_said_to_be_moved(stage: Stage, same: bool) -> None:
    """A training that deletes one checkpoint and writes the next often gets the same inode number again."""
    (old,) = await listed(stage, "a.ckpt")
    new = stage.key("b.ckpt")
    (stage.outputs / "a.ckpt").rename(stage.outputs / "b.ckpt")
    if not same:
        (stage.outputs / "b.ckpt").write_bytes(checkpoint_bytes(2, elements=24))
    stage.pipeline.hint([old, new])
    await until(lambda: stage.catalog.get(new.id) and not stage.catalog.get(old.id), "the other one is")
    assert told_of(stage, old) == (("moved", new.id) if same else ("removed", None))


async def test_the_second_half_of_a_move_may_come_later(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may come in two groups of events, and those of two roots always do. It was told as removed."""
    patient(monkeypatch, DEADLINE_S, 0.0)
    (old,) = await listed(stage, "a.ckpt")
    new = stage.key("b.ckpt")
    (stage.outputs / "a.ckpt").rename(stage.outputs / "b.ckpt")
    stage.pipeline.hint([old])
    await until(lambda: stage.pipeline._moves._sought, "a sign of it is waited for")
    assert stage.catalog.get(old.id) is not None
    stage.pipeline.hint([new])
    await until(lambda: stage.catalog.get(new.id) and not stage.catalog.get(old.id), "both are told")
    assert told_of(stage, old) == ("moved", new.id)


async def test_a_directory_of_hundreds_that_is_renamed_is_told_as_moved_one_by_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks are taken up by the dozen: the old names were told as removed before the first new one was looked at."""
    patient(monkeypatch, 0.0, 0.0)
    names = [f"{number}.ckpt" for number in range(200)]
    old = await listed(stage, *(f"old/{name}" for name in names))
    (stage.outputs / "old").rename(stage.outputs / "new")
    new = [stage.key(f"new/{name}") for name in names]
    # What a scan of both directories says.
    found = [mark_of(identity_of((stage.outputs / "new" / name).stat())) for name in names]
    stage.pipeline.sighted(zip(found, new, strict=True))
    stage.pipeline.hint([*old, *new])
    await until(lambda: not any(stage.catalog.get(key.id) for key in old), "the old ones are gone")
    assert [told_of(stage, key) for key in old] == [("moved", key.id) for key in new]


async def test_a_move_is_told_together_with_the_news_of_the_new_place_which_comes_first(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever keeps a copy has the file at one place or at both, never at none."""
    patient(monkeypatch, DEADLINE_S, DEADLINE_S)
    (old,) = await listed(stage, "a.ckpt")
    new = stage.key("b.ckpt")
    batches: list[list[tuple[bool, str]]] = []
    stage.catalog.on_publish(
        lambda batch: batches.append(
            [(isinstance(i, Tombstone), i.id if isinstance(i, Tombstone) else i.entry.id) for i in batch.items]
        )
    )
    (stage.outputs / "a.ckpt").rename(stage.outputs / "b.ckpt")
    stage.pipeline.hint([old, new])
    await until(lambda: stage.catalog.get(new.id) and not stage.catalog.get(old.id), "both are told")
    assert batches[0] == [(False, new.id), (True, old.id)]


async def test_a_deletion_that_waits_holds_up_no_other_look_and_is_told_in_the_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number}.ckpt" for number in range(250)]  # more than are looked at together
    keys = await listed(stage, *names)
    patient(monkeypatch, DEADLINE_S, 0.0)
    for name in names:
        (stage.outputs / name).unlink()
    stage.pipeline.hint(keys)
    await until(lambda: len(stage.pipeline._moves._sought) == len(keys), "all of them wait")
    (other,) = await listed(stage, "other.ckpt")
    assert stage.catalog.get(keys[0].id) is not None
    for event in [*stage.pipeline._moves._sought.values()]:
        event.set()  # as if the time were up
    await until(lambda: not any(stage.catalog.get(key.id) for key in keys), "all are gone")
    assert {told_of(stage, key) for key in keys} == {("removed", None)}
    assert stage.catalog.get(other.id) is not None
    await until(lambda: not stage.pipeline.pending and not stage.pipeline._in_flight, "nothing is left")
    assert not stage.pipeline._moves._sought


async def test_a_file_that_comes_back_while_its_deletion_waits_is_listed_in_the_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key,) = await listed(stage, "a.ckpt")
    patient(monkeypatch, DEADLINE_S, 0.0)
    (stage.outputs / "a.ckpt").unlink()
    stage.pipeline.hint([key])
    await until(lambda: stage.pipeline._moves._sought, "a sign of it is waited for")
    rename_in(stage.outputs / "a.ckpt", checkpoint_bytes(7, epoch=7))
    stage.pipeline.hint([key])
    for event in [*stage.pipeline._moves._sought.values()]:
        event.set()
    await until(lambda: (r := stage.catalog.get(key.id)) is not None and r.entry.epoch == 7, "the new one is listed")
    await until(lambda: not stage.pipeline.pending, "nothing is left to be looked at")
    assert stage.catalog.get(key.id) is not None


async def test_a_link_that_is_removed_was_not_moved_to_its_target(stage: Stage) -> None:
    (target,) = await listed(stage, "best.ckpt")
    (stage.outputs / "last.ckpt").symlink_to("best.ckpt")
    link = stage.key("last.ckpt")
    stage.pipeline.hint([link, target])
    await until(lambda: stage.catalog.get(link.id), "the link is listed")
    (stage.outputs / "last.ckpt").unlink()
    stage.pipeline.hint([target, link])
    await until(lambda: not stage.catalog.get(link.id), "it is gone")
    assert told_of(stage, link) == ("removed", None)


async def test_a_link_that_is_renamed_was_moved_and_its_target_stays(stage: Stage) -> None:
    await listed(stage, "best.ckpt")
    (stage.outputs / "last.ckpt").symlink_to("best.ckpt")
    old, new = stage.key("last.ckpt"), stage.key("latest.ckpt")
    stage.pipeline.hint([old])
    await until(lambda: stage.catalog.get(old.id), "the link is listed")
    (stage.outputs / "last.ckpt").rename(stage.outputs / "latest.ckpt")
    stage.pipeline.hint([old, new])
    await until(lambda: not stage.catalog.get(old.id), "it is gone")
    assert told_of(stage, old) == ("moved", new.id)


async def test_a_target_whose_link_was_just_seen_and_that_is_deleted_was_not_moved_to_the_link(stage: Stage) -> None:
    (target,) = await listed(stage, "best.ckpt")
    (stage.outputs / "last.ckpt").symlink_to("best.ckpt")
    link = stage.key("last.ckpt")
    stage.pipeline.hint([link])
    await until(lambda: stage.catalog.get(link.id), "the link is listed")
    (stage.outputs / "best.ckpt").unlink()
    stage.pipeline.hint([target])
    await until(lambda: not stage.catalog.get(target.id), "it is gone")
    assert told_of(stage, target) == ("removed", None)


# ---- what is remembered ----------------------------------------------------------------------------------------------


def identities(number: int) -> Identities:
    return Identities(FileIdentity(number, 2, 3, 4))


async def test_what_is_remembered_is_bounded_in_number_and_time() -> None:
    now = [100.0]
    seen = Moves(Catalog("testing"), clock=lambda: now[0])
    seen.seen((mark_of_path(identities(number)), B) for number in range(moves.KEPT + 5))
    assert len(seen) == moves.KEPT
    assert seen.place_of(identities(4), A) is None
    assert seen.place_of(identities(5), A) == B
    now[0] += moves.KEPT_S + 1
    assert seen.place_of(identities(5), A) is None
    seen.seen([(mark_of_path(identities(1)), B)])
    assert len(seen) == 1


async def test_only_the_last_place_counts_and_never_the_one_that_was_left() -> None:
    seen = Moves(Catalog("testing"))
    seen.seen([(mark_of_path(identities(1)), B), (mark_of_path(identities(1)), A)])
    assert seen.place_of(identities(1), A) is None
    assert seen.place_of(identities(1), B) == A


async def test_what_waits_in_vain_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch, 0.0, 0.0)
    seen = Moves(Catalog("testing"))
    await seen.seek(identities(1), A)
    seen.seen([(mark_of_path(identities(1)), B)])
    await seen.seek(identities(1), A)
    assert not seen._sought
    assert not seen._awaited


async def test_two_that_wait_for_the_same_file_are_both_told() -> None:
    """Two names of one file, deleted together."""
    seen = Moves(Catalog("testing"))
    ended: list[CheckpointId] = []

    async def seek(left: CheckpointId) -> None:
        await seen.seek(identities(1), left)
        ended.append(left)

    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(seek, A)
            tasks.start_soon(seek, B)
            await anyio.wait_all_tasks_blocked()
            seen.seen([(mark_of_path(identities(1)), CheckpointId("c"))])
            await anyio.wait_all_tasks_blocked()
            seen.publishing(CheckpointId("c"))
    assert sorted(ended) == [A, B]
