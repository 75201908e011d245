"""Killed or refused at any system call, a sidecar write leaves the old file or the new one, and a stranger's always."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.catalog.description import CheckpointMetadata
from ckptd.catalog.sidecar import clean_leftovers, remove_sidecar, render, write_sidecar
from tests.catalog.crash_points import crash_points
from tests.catalog.metadata_files import opened, write

OURS = render(CheckpointMetadata(exp_name="one"))
NEWER = render(CheckpointMetadata(exp_name="two"))
STRANGERS = b"exp_name: written by hand\n"
NAME = "best.ckpt.metadata.yaml"

WRITER = """
import os, sys
from ckptd.catalog.sidecar import remove_sidecar, write_sidecar
root, job = sys.argv[1:]
root_fd = os.open(root, os.O_PATH)
path = b"best.ckpt.metadata.yaml"
try:
    if job == "remove":
        remove_sidecar(root_fd, path)
    else:
        data = open(root + "/../newer", "rb").read()
        write_sidecar(root_fd, path, data, like=os.stat(root), replace_ours=job == "replace")
except OSError as error:
    assert error.filename == path.decode(), error
    os._exit(3)
os._exit(0)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def crashes(root: Path, job: str, before: bytes | None, what: str) -> Iterator[tuple[str, int]]:
    """Run the job once for each of its system calls, with `what` injected there; yields the call and the exit code."""
    write(root.parent / "newer", NEWER)
    command = [sys.executable, "-c", WRITER, str(root), job]
    yield from crash_points(command, root.parent / "log", what, reset=lambda: reset(root, before))


def reset(root: Path, before: bytes | None) -> None:
    for name in os.listdir(root):
        (root / name).unlink()
    write(root / "best.ckpt", "checkpoint")
    if before is not None:
        write(root / NAME, before)


def content(root: Path) -> bytes | None:
    try:
        return (root / NAME).read_bytes()
    except FileNotFoundError:
        return None


@pytest.mark.parametrize(
    ("job", "before", "allowed"),
    [
        ("write", None, {None, NEWER}),
        ("replace", None, {None, NEWER}),
        ("replace", OURS, {OURS, NEWER}),
        ("remove", OURS, {OURS, None}),
    ],
)
def test_killed_at_any_call_it_is_the_old_file_or_the_new_one(
    tmp_path: Path, job: str, before: bytes | None, allowed: set[bytes | None]
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    killed = 0
    for call, code in crashes(root, job, before, "signal=KILL"):
        killed += code != 0
        assert content(root) in allowed, call
        with opened(root) as root_fd:
            clean_leftovers(root_fd, b"")
        assert set(os.listdir(root)) <= {"best.ckpt", NAME}, call
        assert content(root) in allowed, call
    assert killed


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EINTR"])
@pytest.mark.parametrize(("job", "before"), [("write", None), ("replace", OURS)])
def test_refused_at_any_call_it_says_so_and_loses_nothing(
    tmp_path: Path, job: str, before: bytes | None, error: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for call, code in crashes(root, job, before, f"error={error}"):
        assert code in (0, 3), call
        assert content(root) in (before, NEWER), call
        if not call.startswith("unlink"):
            assert set(os.listdir(root)) <= {"best.ckpt", NAME}, call


@pytest.mark.parametrize("job", ["write", "replace", "remove"])
def test_a_strangers_file_survives_a_kill_at_any_call(tmp_path: Path, job: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert content(root) is None
    write(root.parent / "newer", NEWER)
    reset(root, STRANGERS)
    subprocess.run([sys.executable, "-c", WRITER, str(root), job], check=False)
    assert content(root) == STRANGERS
    assert set(os.listdir(root)) == {"best.ckpt", NAME}


def test_strangers_who_write_all_the_time_never_lose_a_file(tmp_path: Path) -> None:
    """Each of their files is, at the end, where they put it, or was taken away by themselves."""
    root = tmp_path
    write(root / "best.ckpt", "")
    lost: list[bytes] = []
    done = threading.Event()

    def stranger() -> None:
        for number in range(1500):
            mine = STRANGERS + b"# %d\n" % number
            write(root / "mine", mine).replace(root / NAME)
            if content(root) != mine:
                # It may be on its way back to its place just now: the writer puts it back before it returns.
                seen = rounds[0]
                while rounds[0] < seen + 2:
                    os.sched_yield()
                if content(root) != mine:
                    lost.append(mine)
            (root / NAME).unlink(missing_ok=True)
        done.set()

    rounds = [0]
    thread = threading.Thread(target=stranger)
    thread.start()
    status = os.stat(root / "best.ckpt")
    with opened(root) as root_fd:
        while not done.is_set():
            for step in (False, True):
                with contextlib.suppress(FileExistsError):
                    write_sidecar(root_fd, NAME.encode(), OURS, like=status, replace_ours=step)
            remove_sidecar(root_fd, NAME.encode())
            rounds[0] += 1
    thread.join()
    assert lost == []
