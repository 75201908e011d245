"""The worker pool and checkpoints of many files: all are told of, as many as can be are opened, none is left open."""

import contextlib
import os
import pathlib
from collections.abc import AsyncIterator

import anyio
import anyio.to_thread
import pytest

from ckptd.catalog.describe import describe_opened
from ckptd.catalog.description import DescribeRequest, OpenedFiles
from ckptd.catalog.experiment import Companions
from ckptd.catalog.opening import OPENED_PARTS, open_checkpoint
from ckptd.daemon.workers import WorkerPool
from ckptd.daemon.zygote_process import ZYGOTE_COMMAND
from ckptd.validators.errors import Changed
from tests.catalog.checkpoint_directories import dcp_files, deepspeed_files, put, trainer_files
from tests.daemon.worker_pools import descriptors_of, make_pool, until

pytestmark = pytest.mark.anyio

MANY = 1500
"""Their list alone is larger than a message may be."""


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    async with make_pool(command=ZYGOTE_COMMAND) as pool:
        yield pool


@contextlib.asynccontextmanager
async def opened(path: pathlib.Path) -> AsyncIterator[tuple[DescribeRequest, OpenedFiles]]:
    request, files = await anyio.to_thread.run_sync(_open, path)
    try:
        yield request, files
    finally:
        for fd in files.all():
            os.close(fd)


def _open(path: pathlib.Path) -> tuple[DescribeRequest, OpenedFiles]:
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        request, files, _ = open_checkpoint(parent, os.fsencode(path.name), Companions())
    finally:
        os.close(parent)
    return request, files


@pytest.mark.parametrize(
    ("name", "files"),
    [("step-1", dcp_files(1)), ("checkpoint-500", trainer_files()), ("x.ckpt", deepspeed_files())],
    ids=["dcp", "transformers", "deepspeed"],
)
async def test_a_child_says_of_a_directory_what_is_said_in_process(
    pool: WorkerPool, tmp_path: pathlib.Path, name: str, files: dict[str, bytes]
) -> None:
    async with opened(put(tmp_path / name, files)) as (request, descriptors):
        described = await pool.describe(request, descriptors)
        assert described == await anyio.to_thread.run_sync(describe_opened, request, descriptors)
    assert described.inspection.is_valid


async def test_more_files_than_fit_into_a_message_or_may_be_opened_are_all_known(
    pool: WorkerPool, tmp_path: pathlib.Path
) -> None:
    directory = put(tmp_path / "step-1", dcp_files(1))
    for number in range(MANY):
        (directory / f"a-name-that-is-rather-long-{number:05}.log").write_bytes(b"x")
    before = descriptors_of(os.getpid())
    async with opened(directory) as (request, files):
        assert len(files.shards) == OPENED_PARTS
        inspection = (await pool.describe(request, files)).inspection
    assert len(inspection.shards) == MANY + 4
    assert inspection.is_valid
    await until(lambda: descriptors_of(os.getpid()) == before, "nothing is left open")


async def test_many_directories_at_once_are_described_each_with_its_own_files(
    pool: WorkerPool, tmp_path: pathlib.Path
) -> None:
    """A message takes the descriptors of one or two of them."""
    for number in range(8):
        directory = put(tmp_path / f"step-{number}", dcp_files(1 + number % 2))
        for extra in range(100):
            (directory / f"{extra}.log").write_bytes(b"x")
    epochs: dict[int, int | None] = {}

    async def describe(number: int) -> None:
        async with opened(tmp_path / f"step-{number}") as (request, files):
            epochs[number] = (await pool.describe(request, files)).inspection.epoch

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(describe, number)
    assert epochs == {number: 1 + number % 2 for number in range(8)}


async def test_a_file_that_changed_since_it_was_opened_is_told(pool: WorkerPool, tmp_path: pathlib.Path) -> None:
    directory = put(tmp_path / "step-1", dcp_files(1))
    async with opened(directory) as (request, files):
        os.truncate(directory / "__0_1.distcp", 10)
        with pytest.raises(Changed):
            await pool.describe(request, files)
    async with opened(directory) as (request, files):
        (directory / "another.distcp").write_bytes(b"")
        # A file that came meanwhile is not part of what was opened; the directory's own time tells at the next look.
        assert (await pool.describe(request, files)).inspection.shards[0].name == ".metadata"
