"""What happens while an outcome is on its way: no look is overtaken by an older one, and no sweep counts one."""

import os
import pathlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
import structlog

from ckptd.catalog.describe import describe_opened
from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles
from ckptd.catalog.entry import CheckpointId
from ckptd.catalog.roots import Root
from ckptd.catalog.state import State
from ckptd.catalog.store import Catalog
from ckptd.catalog.verification import Verification
from ckptd.daemon.completeness import Completeness
from ckptd.daemon.journal import Journal
from ckptd.daemon.key import Key
from ckptd.daemon.look import Viewer
from ckptd.daemon.metrics import Metrics
from ckptd.daemon.pipeline import Pipeline
from ckptd.daemon.settle import Settle
from ckptd.daemon.workers import WorkerPool
from ckptd.validators.errors import Changed
from tests.service.checkpoints import checkpoint_bytes, rename_in

pytestmark = [pytest.mark.anyio, pytest.mark.campaign]
DEADLINE_S = 60.0


class HeldState:
    """A state whose commits wait while it is held."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._free = threading.Event()
        self._free.set()
        self.committing = threading.Event()

    def hold(self) -> None:
        self.committing.clear()
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def commit(self, *args: Any, **kwargs: Any) -> None:
        self.committing.set()
        assert self._free.wait(DEADLINE_S)
        self._state.commit(*args, **kwargs)

    def verification(self, checkpoint_id: CheckpointId) -> Verification | None:
        return self._state.verification(checkpoint_id)


class Pool:
    """Describes in a thread; while it is held, answers wait, and then the file has changed meanwhile."""

    def __init__(self) -> None:
        self.held: anyio.Event | None = None
        self.mistaken_for: int | None = None
        """The next answer is about the file of this descriptor."""
        self.before: Callable[[], object] | None = None
        """Happens once, after a file was opened and before it is read."""
        self.asked = 0

    async def describe(self, request: DescribeRequest, files: OpenedFiles) -> Description:
        self.asked += 1
        if self.held is not None:
            await self.held.wait()
            self.held = None
            raise Changed(request.checkpoint_path)
        if self.before is not None:
            before, self.before = self.before, None
            await anyio.to_thread.run_sync(before)
        if self.mistaken_for is not None:
            files, self.mistaken_for = msgspec.structs.replace(files, checkpoint=self.mistaken_for), None
        return await anyio.to_thread.run_sync(describe_opened, request, files)


class NoSidecars:
    """None are written."""

    def consider(self, *_: object, **__: object) -> None: ...

    async def checkpoint_gone(self, *_: object) -> None: ...


class Stage:
    """A pipeline on a real directory and a real state."""

    def __init__(self, outputs: pathlib.Path, state: State) -> None:
        self.root = Root(str(outputs).encode())
        self.outputs = outputs
        self.state = HeldState(state)
        self.pool = Pool()
        self.catalog = Catalog(state.load().instance)
        self.completeness = Completeness[Key]([self.root.name])
        self.looked: list[Key] = []
        self.problems: list[tuple[str, str, str]] = []
        log = structlog.stdlib.get_logger()
        self.journal = Journal(self.catalog, self.state, log)  # type: ignore[arg-type]
        self.pipeline = Pipeline(
            catalog=self.catalog,
            journal=self.journal,
            pool=self.pool,  # type: ignore[arg-type]
            sidecars=NoSidecars(),  # type: ignore[arg-type]
            viewers=[
                Viewer(
                    root=self.root,
                    roots=[self.root],
                    suffixes=(".ckpt",),
                    allowed_targets=(),
                    is_deletion=self._is_deletion,
                )
            ],
            settle=Settle(young_s=0.0),
            sweeps_begun=lambda root: self.completeness.begun(root.name),
            on_looked=self._on_looked,
            on_problem=lambda *what: self.problems.append(what),
            metrics=Metrics(),
            log=log,
        )

    def _is_deletion(self, path: bytes, _directory: bytes) -> bool:
        if path == b"broken.ckpt":
            raise RuntimeError("nobody thought of this")
        return True

    def _on_looked(self, key: Key, begun: int) -> None:
        self.looked.append(key)
        self.completeness.looked(key, begun)

    def key(self, path: str) -> Key:
        return Key(self.root, path.encode())

    def sweep(self, *suspects: Key) -> None:
        """What a tree does when a sweep begins, and when it ends."""
        ticket = self.completeness.begin(self.root.name, 100.0)
        ticket.expects(self.pipeline.repeat_looks_under_way(self.root))
        ticket.expects(suspects)
        self.pipeline.hint(suspects)
        ticket.ended(True)


@pytest.fixture
async def stage(tmp_path: pathlib.Path) -> AsyncIterator[Stage]:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    state = State.open(str(tmp_path / "state"), boot_id="boot", clock=lambda: 1.0)
    try:
        stage = Stage(outputs, state)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stage.journal.run)
            tasks.start_soon(stage.pipeline.run)
            yield stage
            tasks.cancel_scope.cancel()
    finally:
        state.close()


async def until(probe: Any, what: str) -> None:
    with anyio.move_on_after(DEADLINE_S):
        while not probe():  # noqa: ASYNC110 - what is waited for happens in threads as well
            await anyio.sleep(0.005)
        return
    raise AssertionError(f"not within {DEADLINE_S:g} s: {what}")


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


@pytest.mark.parametrize("same", [True, False], ids=["renamed", "number of a deleted file, given to another one"])
async def test_only_the_same_file_is_said_to_be_moved(stage: Stage, same: bool) -> None:
    """A training that deletes one checkpoint and writes the next often gets the same inode number again."""
    rename_in(stage.outputs / "a.ckpt", checkpoint_bytes(1))
    old, new = stage.key("a.ckpt"), stage.key("b.ckpt")
    stage.pipeline.hint([old])
    await until(lambda: stage.catalog.get(old.id), "it is listed")
    (stage.outputs / "a.ckpt").rename(stage.outputs / "b.ckpt")
    if not same:
        (stage.outputs / "b.ckpt").write_bytes(checkpoint_bytes(2, elements=24))
    stage.pipeline.hint([old, new])
    await until(lambda: stage.catalog.get(new.id) and not stage.catalog.get(old.id), "the other one is")
    gone = stage.catalog.tombstone(old.id)
    assert gone is not None
    assert (gone.reason.value, gone.moved_to) == (("moved", new.id) if same else ("removed", None))
