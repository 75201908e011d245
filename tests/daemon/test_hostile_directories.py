"""Checkpoint directories with hostile metadata through the real pool: a finding in bounded time, nothing else lost."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import msgspec
import pytest

from ckptd.catalog.description import DescribeRequest, OpenedFiles
from ckptd.catalog.experiment import Companions
from ckptd.catalog.opening import open_checkpoint
from ckptd.daemon.workers import WorkerDied, WorkerPool, finding_for
from ckptd.daemon.zygote_process import ZYGOTE_COMMAND
from ckptd.validators import Format, Level, Safety
from ckptd.validators.findings import Severity

from ..validators.directory_files import save_dcp, save_lightning_deepspeed
from ..validators.hostile import KILLERS, hostile_pickles
from .worker_pools import make_pool

pytestmark = pytest.mark.anyio


@contextlib.contextmanager
def opened(directory: pathlib.Path, level: Level) -> Iterator[tuple[DescribeRequest, OpenedFiles]]:
    """A checkpoint directory as a look opens it."""
    root = os.open(directory.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        request, files, _ = open_checkpoint(root, os.fsencode(directory.name), Companions())
        try:
            yield msgspec.structs.replace(request, level=level), files
        finally:
            for fd in files.all():
                os.close(fd)
    finally:
        os.close(root)


def make_real_pool() -> WorkerPool:
    return make_pool(workers=1, memory_mb=256, timeout_s=2, command=ZYGOTE_COMMAND)


@pytest.mark.parametrize("level", [Level.STRUCTURE, Level.CHECKSUM])
async def test_directories_are_read_behind_the_sandbox(tmp_path: pathlib.Path, level: Level) -> None:
    save_dcp(str(tmp_path / "step-1"))
    save_lightning_deepspeed(str(tmp_path / "epoch=2.ckpt"))
    async with make_real_pool() as pool:
        for name, format_ in (("step-1", Format.DCP), ("epoch=2.ckpt", Format.DEEPSPEED)):
            with opened(tmp_path / name, level) as (request, files):
                description = await pool.describe(request, files)
            assert description.inspection.format is format_
            assert description.inspection.is_valid, description.findings
            assert description.inspection.level is level


@pytest.mark.slow
async def test_every_hostile_metadata_ends_as_a_finding(tmp_path: pathlib.Path) -> None:
    save_dcp(str(tmp_path / "step-1"))
    save_dcp(str(tmp_path / "good"))
    async with make_real_pool() as pool:
        for name, data in hostile_pickles().items():
            (tmp_path / "step-1" / ".metadata").write_bytes(data)
            with opened(tmp_path / "step-1", Level.CHECKSUM) as (request, files):
                description, died = None, None
                try:
                    description = await pool.describe(request, files)
                except WorkerDied as error:
                    died = error
            if description is None:
                assert name in KILLERS
                assert died is not None
                assert finding_for(died).severity is Severity.ERROR
            else:
                assert not description.inspection.is_valid, name
                assert description.inspection.safety is not Safety.SAFE, name
        with opened(tmp_path / "good", Level.CHECKSUM) as (request, files):
            assert (await pool.describe(request, files)).inspection.is_valid
