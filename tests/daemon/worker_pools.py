"""Pools for tests: the real zygote and real children, with a log that can be read."""

import contextlib
import os
import pathlib
import re
from collections.abc import Callable, Sequence

import anyio

from ckptd.catalog.description import Description
from ckptd.daemon.workers import WorkerPool

from .worker_jobs import COMMAND, opened


class Recorded:
    """A log that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    warning = error = info


def make_pool(
    *,
    workers: int = 2,
    memory_mb: int = 128,
    timeout_s: float = 20,
    max_answer_mb: int = 8,
    command: Sequence[str] = COMMAND,
) -> WorkerPool:
    """A pool whose children run the jobs of `worker_jobs`, unless another command is given."""
    return WorkerPool(
        workers=workers,
        memory_mb=memory_mb,
        timeout_s=timeout_s,
        max_answer_mb=max_answer_mb,
        log=Recorded(),
        command=command,
    )


async def describe(pool: WorkerPool, path: pathlib.Path, text: str) -> Description:
    """Describe a file that says `text`."""
    with opened(path, text) as (request, files):
        return await pool.describe(request, files)


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    """Poll until `condition` holds; fails the test after the deadline."""
    with anyio.move_on_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - what other processes do sets no event here
            await anyio.sleep(0.005)
        return
    raise AssertionError(f"not within {timeout_s} s: {what}")


def children_of(pid: int) -> list[int]:
    """Process ids of the living children of a single-threaded process."""
    try:
        return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def at_work(zygote: int | None) -> list[int]:
    """Process ids of the children that were given files; those that wait for some may still open descriptors."""
    found = []
    for pid in children_of(zygote) if zygote is not None else []:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            limits = pathlib.Path(f"/proc/{pid}/limits").read_text()
            if re.search(r"^Max open files +0 ", limits, re.MULTILINE) and is_running(pid):
                found.append(pid)
    return found


def is_running(pid: int) -> bool:
    """Whether the process exists and is not just waiting to be collected."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descriptors_of(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
