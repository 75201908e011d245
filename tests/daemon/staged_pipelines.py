"""A pipeline on a real directory and a real state, whose commits and answers can be held up."""

import contextlib
import pathlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.to_thread
import msgspec
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
from ckptd.validators.errors import Changed

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


@contextlib.asynccontextmanager
async def staged(directory: pathlib.Path) -> AsyncIterator[Stage]:
    """A stage in `directory` that runs while the context lasts."""
    outputs = directory / "outputs"
    outputs.mkdir()
    state = State.open(str(directory / "state"), boot_id="boot", clock=lambda: 1.0)
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
