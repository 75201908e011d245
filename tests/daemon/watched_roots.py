"""A real root under a real watch: every hint is kept, and waited for with a deadline."""

import contextlib
from collections.abc import AsyncIterator, Callable

import anyio
import structlog

from ckptd.catalog.roots import Root
from ckptd.daemon.hints import Hints
from ckptd.daemon.watcher import WatcherState, watch_root

DEADLINE_S = 60.0


class Watched:
    """What a watch of one root has said so far."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.state = WatcherState()
        self.hints: list[Hints] = []

    def forget(self) -> None:
        """Count from here on."""
        self.hints.clear()

    @property
    def files(self) -> set[bytes]:
        return {path for hint in self.hints for path in hint.files}

    @property
    def directories(self) -> set[bytes]:
        return {path for hint in self.hints for path in hint.directories}

    @property
    def everything(self) -> int:
        """How often a sweep of everything was asked for."""
        return sum(hint.everything for hint in self.hints)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds.

        Raises:
            TimeoutError: it did not within the deadline.
        """
        with anyio.fail_after(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - conditions on files and threads set no event
                await anyio.sleep(0.005)

    async def until_watching(self) -> None:
        await self.until(lambda: self.state.watching and self.everything)
        self.forget()


@contextlib.asynccontextmanager
async def watched(path: bytes, *, poll_s: float = 15.0) -> AsyncIterator[Watched]:
    """Watch `path` while the context lasts."""
    seen = Watched(Root(path))
    log = structlog.wrap_logger(structlog.ReturnLogger(), wrapper_class=structlog.stdlib.BoundLogger)

    async def watch() -> None:
        await watch_root(seen.root, seen.hints.append, log=log, state=seen.state, poll_s=poll_s)

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        yield seen
        group.cancel_scope.cancel()
