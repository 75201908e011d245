"""Background pools: each job has its own time, and nobody else notices that there are any."""

import contextlib
import ctypes
import os
import pathlib
import platform
import signal
import sys
from collections.abc import Iterator

import anyio
import msgspec
import pytest
import torch

from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles
from ckptd.catalog.opening import past_the_cache, reopen_direct
from ckptd.daemon.answers import Death
from ckptd.daemon.workers import WorkerDied, WorkerPool, ZygoteError
from ckptd.daemon.zygote_process import WEIGHTS_ZYGOTE_COMMAND, ZYGOTE_COMMAND
from ckptd.validators import Level, inspect_checkpoint

from .worker_jobs import COMMAND, opened
from .worker_pools import Recorded, at_work, describe, is_running, make_pool, until

pytestmark = pytest.mark.anyio

_IDLE_CLASS = 3 << 13  # include/uapi/linux/ioprio.h
_SYS_IOPRIO_GET = {"x86_64": 252, "aarch64": 31}


def _background_pool(
    command: tuple[str, ...] = COMMAND, *, idle_s: float = 60, memory_mb: int = 256
) -> tuple[WorkerPool, Recorded]:
    log = Recorded()
    pool = WorkerPool(
        workers=1, memory_mb=memory_mb, timeout_s=20, log=log, command=command, background=True, idle_s=idle_s
    )
    return pool, log


@contextlib.contextmanager
def _request(path: pathlib.Path, level: Level) -> Iterator[tuple[DescribeRequest, OpenedFiles]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        request = DescribeRequest(checkpoint_path=str(path), relative_path=os.fsencode(path.name), level=level)
        yield request, OpenedFiles(checkpoint=fd, owner=os.geteuid())
    finally:
        os.close(fd)


async def test_a_job_may_ask_for_less_time_than_the_pool_gives(tmp_path: pathlib.Path) -> None:
    async with make_pool(timeout_s=50) as pool:
        with opened(tmp_path / "a", "hang") as (request, files), pytest.raises(WorkerDied) as died:
            await pool.describe(msgspec.structs.replace(request, timeout_s=0.2), files)
    assert died.value.how is Death.LIMIT_WALL


async def test_a_job_may_ask_for_more_time_than_the_pool_gives(tmp_path: pathlib.Path) -> None:
    """It is still at work when one that began after it, with the pool's own time, has been ended."""
    outcome: list[Description] = []
    path = tmp_path / "long"
    with opened(path, "wait") as (request, files):

        async def long() -> None:
            outcome.append(await pool.describe(msgspec.structs.replace(request, timeout_s=50), files))

        async with make_pool(timeout_s=1) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(long)
            await until(lambda: len(at_work(pool.zygote_pid)) == 1, "the long one is at work")
            with pytest.raises(WorkerDied):
                await describe(pool, tmp_path / "short", "hang")
            path.write_text("done")
    assert outcome[0].config == "waited"


async def test_the_zygote_comes_with_the_first_request_and_goes_when_there_are_no_more(tmp_path: pathlib.Path) -> None:
    pool, log = _background_pool(idle_s=0.05)
    async with pool:
        for turn in range(3):
            assert pool.zygote_pid is None
            assert (await describe(pool, tmp_path / "a", "descriptors")).config is not None
            zygote = pool.zygote_pid
            await until(lambda: pool.zygote_pid is None, f"the zygote ends, turn {turn}")
            if zygote is not None:
                await until(lambda zygote=zygote: not is_running(zygote), f"the process ends, turn {turn}")
        assert pool.crashes == 0
    assert log.events == []


async def test_a_zygote_at_work_is_not_sent_away(tmp_path: pathlib.Path) -> None:
    pool, log = _background_pool(idle_s=0.01)
    path = tmp_path / "long"
    outcome: list[Description] = []
    with opened(path, "wait") as (request, files):

        async def long() -> None:
            outcome.append(await pool.describe(request, files))

        async with pool, anyio.create_task_group() as tasks:
            tasks.start_soon(long)
            await until(lambda: len(at_work(pool.zygote_pid)) == 1, "it is at work")
            zygote = pool.zygote_pid
            await anyio.sleep(0.1)  # ten times as long as it may be idle; a wrong pool would end it at some point here
            path.write_text("done")
    assert outcome[0].config == "waited"
    assert zygote is not None
    assert log.events == []


async def test_a_zygote_that_was_killed_is_replaced_and_counted(tmp_path: pathlib.Path) -> None:
    pool, log = _background_pool()
    async with pool:
        await describe(pool, tmp_path / "a", "descriptors")
        assert pool.zygote_pid is not None
        first = pool.zygote_pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: pool.zygote_pid not in (None, first), "another one is there")
        await describe(pool, tmp_path / "b", "descriptors")
        assert pool.crashes == 1
    assert [event for event, _ in log.events] == ["the zygote ended; starting another"]


async def test_whoever_asks_is_told_that_no_zygote_starts_and_may_ask_again(tmp_path: pathlib.Path) -> None:
    flag = tmp_path / "can start"
    code = f"import os, sys\nif not os.path.exists({str(flag)!r}): sys.exit('something is missing')\n{COMMAND[-1]}"
    pool, _ = _background_pool((*COMMAND[:-1], code))
    async with pool:
        for _ in range(2):
            with pytest.raises(ZygoteError, match="something is missing"):
                await describe(pool, tmp_path / "a", "descriptors")
        flag.touch()
        assert (await describe(pool, tmp_path / "a", "descriptors")).config is not None


async def test_children_have_the_lowest_priority_of_processor_and_disk(tmp_path: pathlib.Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    pool, _ = _background_pool()
    path = tmp_path / "long"
    with opened(path, "wait") as (request, files):
        async with pool, anyio.create_task_group() as tasks:
            tasks.start_soon(pool.describe, request, files)
            await until(lambda: len(at_work(pool.zygote_pid)) == 1, "it is at work")
            (child,) = at_work(pool.zygote_pid)
            nice = os.getpriority(os.PRIO_PROCESS, child)
            io_class = libc.syscall(_SYS_IOPRIO_GET[platform.machine()], 1, child)
            path.write_text("done")
    assert nice == 19
    assert io_class == _IDLE_CLASS


@pytest.fixture
def checkpoint(tmp_path: pathlib.Path) -> pathlib.Path:
    """A checkpoint of several pieces with one number that is none, and tensors of every floating type."""
    state = {"w": torch.randn(1000, 1500)}
    state["w"][3, 4] = float("nan")
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2)
    rest = (torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu)
    for dtype in (*dtypes, *rest):
        state[str(dtype)] = torch.arange(8192, dtype=torch.int32).to(torch.uint8).view(dtype)
    state["view"] = torch.full((300, 300), float("inf"))[:, ::3]
    torch.save({"state_dict": state}, tmp_path / "values.ckpt")
    return tmp_path / "values.ckpt"


@pytest.mark.parametrize("fresh", [False, True])
async def test_every_byte_is_verified_behind_the_walls(checkpoint: pathlib.Path, *, fresh: bool) -> None:
    """Within a bandwidth, past the page cache, and from the disk itself."""
    pool, _ = _background_pool(ZYGOTE_COMMAND)
    with _request(checkpoint, Level.CHECKSUM) as (request, files):
        async with pool:
            with past_the_cache(files) if fresh else contextlib.nullcontext(files) as these:
                asked = msgspec.structs.replace(request, fresh=fresh, mb_per_s=200, timeout_s=50)
                inspection = (await pool.describe(asked, these)).inspection
    assert inspection == inspect_checkpoint(checkpoint, Level.CHECKSUM)
    assert inspection.level is Level.CHECKSUM


async def test_values_are_looked_at_by_torch_behind_the_same_walls(checkpoint: pathlib.Path) -> None:
    pool, log = _background_pool(WEIGHTS_ZYGOTE_COMMAND)
    async with pool:
        for level in (Level.WEIGHTS, Level.CHECKSUM):
            with _request(checkpoint, level) as (request, files):
                inspection = (await pool.describe(request, files)).inspection
            assert inspection == inspect_checkpoint(checkpoint, level)
        assert len(os.listdir(f"/proc/{pool.zygote_pid}/task")) == 1, "threads would be lost at the fork"
        async with make_pool() as lean:
            assert pool.sandbox == lean.sandbox
    assert log.events == []


async def test_torch_is_asked_for_where_it_is_missing(tmp_path: pathlib.Path, checkpoint: pathlib.Path) -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = None; "
        "runpy.run_module('ckptd.daemon.weights_zygote', run_name='__main__', alter_sys=False)"
    )
    pool, _ = _background_pool((sys.executable, "-I", "-W", "ignore", "-c", code))
    async with pool:
        with (
            _request(checkpoint, Level.WEIGHTS) as (request, files),
            pytest.raises(ZygoteError, match=r"pip install 'ckptd\[torch\]'"),
        ):
            await pool.describe(request, files)


async def test_asking_the_lean_pool_for_weights_is_one_files_problem(checkpoint: pathlib.Path) -> None:
    """It has no torch and cannot import it behind the walls; the pool goes on."""
    async with make_pool(command=ZYGOTE_COMMAND, memory_mb=512) as pool:
        with _request(checkpoint, Level.WEIGHTS) as (request, files):
            with pytest.raises(WorkerDied):
                await pool.describe(request, files)
            description = await pool.describe(msgspec.structs.replace(request, level=Level.STRUCTURE), files)
    assert description.inspection.is_valid


def test_only_files_that_can_be_read_past_the_cache_are_replaced(checkpoint: pathlib.Path) -> None:
    reading, writing = os.pipe()
    directory = os.open(checkpoint.parent, os.O_RDONLY)
    fd = os.open(checkpoint, os.O_RDONLY)
    try:
        assert reopen_direct(reading) is None
        before = len(os.listdir("/proc/self/fd"))
        with past_the_cache(OpenedFiles(checkpoint=directory, shards=(fd,))) as files:
            assert files.checkpoint == directory
            for original, other in zip((fd,), files.shards, strict=True):
                assert os.path.sameopenfile(original, other)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        for each in (reading, writing, directory, fd):
            os.close(each)
