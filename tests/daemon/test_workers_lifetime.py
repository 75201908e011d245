"""No process outlives the service, however it ends."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from .worker_jobs import REPOSITORY
from .worker_pools import at_work, is_running

_SERVICE = f"""
import sys
sys.path.insert(0, {REPOSITORY!r})
import pathlib
import anyio
from tests.daemon.worker_jobs import opened
from tests.daemon.worker_pools import make_pool

async def main(path):
    with opened(pathlib.Path(path), "wait") as (request, files):
        async with make_pool() as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(pool.describe, request, files)
            tasks.start_soon(pool.describe, request, files)
            print(pool.zygote_pid, flush=True)

anyio.run(main, sys.argv[1])
"""


def _until(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.005)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGINT])
def test_zygote_and_children_end_with_the_service(tmp_path: pathlib.Path, how: signal.Signals) -> None:
    service = subprocess.Popen(
        [sys.executable, "-I", "-c", _SERVICE, str(tmp_path / "a.ckpt")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert service.stdout is not None
        zygote = int(service.stdout.readline())
        _until(lambda: len(at_work(zygote)) == 2, "two children work")
        processes = [zygote, *at_work(zygote)]
        os.kill(service.pid, how)
        service.wait(20)
        _until(lambda: not any(map(is_running, processes)), f"{processes} end")
    finally:
        service.kill()
        service.wait(20)
        service.stdout.close()


def test_ctrl_c_in_a_terminal_reaches_the_service_alone(tmp_path: pathlib.Path) -> None:
    """The zygote has its own process group; else it would die while the service still drains."""
    service = subprocess.Popen(
        [sys.executable, "-I", "-c", _SERVICE, str(tmp_path / "a.ckpt")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, process_group=0,
    )  # fmt: skip
    try:
        assert service.stdout is not None
        zygote = int(service.stdout.readline())
        assert os.getpgid(zygote) != os.getpgid(service.pid)
    finally:
        service.kill()
        service.wait(20)
        service.stdout.close()
    _until(lambda: not is_running(zygote), "the zygote ends")
