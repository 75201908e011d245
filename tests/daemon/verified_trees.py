"""A verifier on a real directory, catalog, state and pipeline; files are read in threads instead of processes."""

import contextlib
import errno
import os
import pathlib
import threading
import types
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import anyio
import anyio.to_thread
import structlog

from ckptd.catalog.describe import describe_opened
from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles
from ckptd.catalog.entry import CheckpointEntry
from ckptd.catalog.roots import Root
from ckptd.catalog.state import State, StateError
from ckptd.catalog.store import Catalog
from ckptd.daemon.completeness import Completeness
from ckptd.daemon.journal import Journal
from ckptd.daemon.key import Key
from ckptd.daemon.look import Viewer
from ckptd.daemon.metrics import Metrics
from ckptd.daemon.pipeline import Pipeline
from ckptd.daemon.settle import Settle
from ckptd.daemon.verifier import Verifier
from ckptd.validators import Level

DEADLINE_S = 60.0


class RefusingState:
    """A state whose disk is full while `full` is set."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.full = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def commit(self, *args: Any, **kwargs: Any) -> None:
        self._check()
        self._state.commit(*args, **kwargs)

    def rewrite(self, *args: Any) -> None:
        self._check()
        self._state.rewrite(*args)

    def _check(self) -> None:
        if self.full.is_set():
            raise StateError("state.sqlite3", OSError(errno.ENOSPC, "no space left on device"), action="written")


class ThreadPool:
    """Describes in threads. What a file does to its reader, and how long that takes, can be said beforehand."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, DescribeRequest]] = []
        self.problems: dict[str, Exception] = {}
        """By file name."""
        self.held: anyio.Event | None = None
        self.reading = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None: ...

    async def describe(self, request: DescribeRequest, files: OpenedFiles) -> Description:
        name = os.path.basename(request.checkpoint_path)
        self.asked.append((name, request))
        self.reading += 1
        try:
            if self.held is not None:
                await self.held.wait()
            if name in self.problems:
                raise self.problems[name]
            return await anyio.to_thread.run_sync(describe_opened, request, files)
        finally:
            self.reading -= 1

    def names(self) -> list[str]:
        """The files that were asked for, in order."""
        return [name for name, _ in self.asked]


class NoSidecars:
    """None are written."""

    def consider(self, *_: object, **__: object) -> None: ...

    async def checkpoint_gone(self, *_: object) -> None: ...


class Stage:
    """Everything between the files and the catalog, verification included."""

    def __init__(self, outputs: pathlib.Path, state: State, *, scrub_days: float = 0, level: Level = Level.CHECKSUM):
        self.outputs = outputs
        self.root = Root(str(outputs).encode())
        self.state = RefusingState(state)
        self.pool = ThreadPool()
        self.arrivals = ThreadPool()
        self.busy = False
        self.now = 0.0
        loaded = state.load()
        self.catalog = Catalog(loaded.instance)
        self.catalog.load(loaded.records, loaded.tombstones, loaded.revision, loaded.floor)
        completeness = Completeness[Key]([self.root.name])
        log = structlog.stdlib.get_logger()
        self.journal = Journal(self.catalog, self.state, log, clock=lambda: self.now)  # type: ignore[arg-type]
        viewer = Viewer(
            root=self.root,
            roots=[self.root],
            suffixes=(".ckpt",),
            allowed_targets=(),
            is_deletion=lambda *_: True,
            is_directory=lambda _: False,
        )
        self.metrics = Metrics()
        self.problems: list[tuple[str, str, str]] = []
        self.pipeline = Pipeline(
            catalog=self.catalog,
            journal=self.journal,
            pool=self.arrivals,  # type: ignore[arg-type]
            sidecars=NoSidecars(),  # type: ignore[arg-type]
            viewers=[viewer],
            settle=Settle(young_s=0.0, quiet_s=0.01),
            sweeps_begun=lambda root: completeness.begun(root.name),
            on_looked=lambda *_: None,
            on_problem=lambda *_: None,
            metrics=self.metrics,
            log=log,
        )
        self.verifier = Verifier(
            catalog=self.catalog,
            state=self.state,  # type: ignore[arg-type]
            journal=self.journal,
            pipeline=self.pipeline,
            viewers=[viewer],
            make_pool=lambda: self.pool,  # type: ignore[arg-type, return-value]
            is_busy=lambda: self.busy,
            on_problem=lambda *problem: self.problems.append(problem),
            level=level,
            mb_per_s=0,
            scrub_days=scrub_days,
            metrics=self.metrics,
            log=log,
        )

    def key(self, path: str) -> Key:
        return Key(self.root, os.fsencode(path))

    def entry(self, path: str) -> CheckpointEntry | None:
        record = self.catalog.get(self.key(path).id)
        return None if record is None else record.entry

    def state_of(self, path: str) -> tuple[str, str, set[str]] | None:
        """Health, level and finding codes."""
        entry = self.entry(path)
        return None if entry is None else (entry.health.value, entry.verified.value, codes(entry))

    async def look(self, *paths: str, must_read: bool = False) -> None:
        """Have paths looked at, and wait until what that means is published."""
        keys = [self.key(path) for path in paths]
        self.pipeline.hint(keys, must_read=must_read)
        await until(lambda: not any(map(self.pipeline.is_pending, keys)), "they were looked at")

    async def read_undescribed(self) -> None:
        """What the service does from time to time."""
        undescribed = self.journal.take_undescribed()
        paths = [record.entry.path for key in undescribed if (record := self.catalog.get(key)) is not None]
        await self.look(*paths, must_read=True)

    async def verified(self, *paths: str) -> None:
        """Wait until these are verified to the end."""
        await until(lambda: all((e := self.entry(p)) and e.verified is Level.CHECKSUM for p in paths), f"{paths}")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Everything runs while inside."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.journal.run)
            tasks.start_soon(self.pipeline.run)
            tasks.start_soon(self.verifier.run)
            yield self
            tasks.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def staged(directory: pathlib.Path, **options: Any) -> AsyncIterator[Stage]:
    """A stage on `directory`, with its state beside."""
    outputs = directory / "outputs"
    outputs.mkdir(exist_ok=True)
    state = State.open(str(directory / "state"), boot_id="boot", clock=lambda: 1.0)
    try:
        async with Stage(outputs, state, **options).running() as stage:
            yield stage
    finally:
        state.close()


def codes(entry: CheckpointEntry) -> set[str]:
    """What was found of the file itself."""
    return {ref.code for ref in entry.findings if not ref.code.startswith(("metadata.", "config."))}


async def until(probe: Callable[[], object], what: str) -> None:
    """Poll until it holds."""
    with anyio.move_on_after(DEADLINE_S):
        while not probe():  # noqa: ASYNC110 - what is waited for happens in threads as well
            await anyio.sleep(0.005)
        return
    raise AssertionError(f"not within {DEADLINE_S:g} s: {what}")
