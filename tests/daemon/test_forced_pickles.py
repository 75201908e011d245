"""Pickles that really run code, forced through on purpose: behind the walls they reach nothing."""

import os
import pathlib
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable

import anyio
import pytest

from ckptd.daemon.answers import Death
from ckptd.daemon.workers import WorkerDied, WorkerPool
from tests.daemon.forced_pickles import COMMAND, REPOSITORY, WEIGHTS_COMMAND, attacks, attacks_by_torch, call
from tests.daemon.worker_jobs import opened
from tests.daemon.worker_pools import make_pool

pytestmark = pytest.mark.anyio


async def _unpickled(pool: WorkerPool, path: pathlib.Path, data: bytes) -> object:
    with opened(path, "") as (request, files):
        await anyio.Path(path).write_bytes(data)
        return (await pool.describe(request, files)).config


@pytest.mark.parametrize(
    ("command", "more"),
    [
        pytest.param(COMMAND, lambda _: {}, id="lean"),
        pytest.param(WEIGHTS_COMMAND, attacks_by_torch, id="with torch", marks=pytest.mark.slow),
    ],
)
async def test_code_that_runs_in_a_child_reaches_nothing(
    tmp_path: pathlib.Path, command: tuple[str, ...], more: Callable[[pathlib.Path], dict[str, bytes]]
) -> None:
    """Each attack ends its child by SIGSYS; the file, the listeners, the daemon and its limits are as before."""
    canary, uds = tmp_path / "canary", tmp_path / "uds"
    canary.write_text("mine")
    canary.chmod(0o600)
    limits = {name: resource.getrlimit(name) for name in range(16)}
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(uds))
        unix.listen()
        tcp.setblocking(False)
        unix.setblocking(False)
        async with make_pool(workers=1, command=command) as pool:
            if pool.sandbox != "full":
                pytest.skip(f"no sandbox on this machine: {pool.sandbox}")
            assert await _unpickled(pool, tmp_path / "own.ckpt", call("builtins.sum", [1, 2])) == "3", "code runs"
            for name, data in (attacks(canary, os.getpid(), tcp.getsockname()[1], uds) | more(canary)).items():
                with pytest.raises(WorkerDied) as died:
                    await _unpickled(pool, tmp_path / "bad.ckpt", data)
                assert died.value.how is Death.FORBIDDEN, name
            assert await _unpickled(pool, tmp_path / "own.ckpt", call("builtins.sum", [1, 2])) == "3", "it goes on"
        for listener in (tcp, unix):
            with pytest.raises(BlockingIOError):
                listener.accept()
    assert sorted(os.listdir(tmp_path)) == ["bad.ckpt", "canary", "own.ckpt", "uds"]
    assert (canary.read_text(), canary.stat().st_mode & 0o777) == ("mine", 0o600)
    assert {name: resource.getrlimit(name) for name in range(16)} == limits
    assert os.getpriority(os.PRIO_PROCESS, 0) == priority


@pytest.mark.slow
@pytest.mark.parametrize("command", [COMMAND, WEIGHTS_COMMAND], ids=["lean", "with torch"])
async def test_no_memory_of_a_zygote_can_be_both_written_and_executed(command: tuple[str, ...]) -> None:
    """A child inherits it, and cannot make any: what takes it over finds no place for code of its own."""
    async with make_pool(workers=1, command=command) as pool:
        maps = await anyio.Path(f"/proc/{pool.zygote_pid}/maps").read_text()
        threads = os.listdir(f"/proc/{pool.zygote_pid}/task")
    assert ("libtorch" in maps) is (command is WEIGHTS_COMMAND)
    assert [line for line in maps.splitlines() if re.match(r"\S+ .wx", line)] == []
    assert len(threads) == 1, "Landlock holds the thread that asked for it"


def test_without_the_walls_the_same_pickles_do_harm(tmp_path: pathlib.Path) -> None:
    """Else the test above would prove nothing."""
    canary = tmp_path / "canary"
    harm = attacks(canary, 0, 1, tmp_path / "uds")
    for name in ("shell", "subprocess", "write", "execute", "unlink", "chmod"):
        canary.write_text("mine")
        canary.chmod(0o600)
        script = f"import sys, pickle; sys.path.insert(0, {REPOSITORY!r}); pickle.load(sys.stdin.buffer)"
        subprocess.run([sys.executable, "-c", script], input=harm[name], check=False, timeout=60)
        made = pathlib.Path(f"{canary}.made")
        assert made.exists() or not canary.exists() or canary.stat().st_mode & 0o777 == 0o777, name
        made.unlink(missing_ok=True)
