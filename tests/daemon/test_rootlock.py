"""One writer per root, also when the root is re-made."""

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import threading

from ckptd.catalog.roots import Root
from ckptd.daemon.rootlock import RootLock


def _root(path: pathlib.Path) -> Root:
    return Root(os.fsencode(path))


def test_the_second_holder_is_refused_until_the_first_gives_it_back(tmp_path: pathlib.Path) -> None:
    first, second = RootLock(_root(tmp_path)), RootLock(_root(tmp_path))
    assert first.held()
    assert not second.held()
    assert first.held()
    first.release()
    assert second.held()
    second.release()


def test_a_lock_of_a_dead_process_is_no_lock(tmp_path: pathlib.Path) -> None:
    code = (
        "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(fd, fcntl.LOCK_EX);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        assert process.stdout.readline() == b"locked\n"
        lock = RootLock(_root(tmp_path))
        assert not lock.held()
        process.kill()
        process.wait()
    assert lock.held()
    lock.release()


def test_a_root_that_is_re_made_is_locked_anew(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "outputs"
    lock = RootLock(_root(path))
    assert not lock.held()
    path.mkdir()
    assert lock.held()
    path.rename(tmp_path / "old")
    assert not lock.held()
    path.mkdir()
    assert lock.held()
    stranger = RootLock(_root(path))
    assert not stranger.held()
    lock.release()


def test_threads_that_ask_at_the_same_time_are_one_holder(tmp_path: pathlib.Path) -> None:
    """A process must never take its own lock for a stranger's: its sidecars would wait for ten minutes."""
    threads = 16
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in range(100):
            lock, start = RootLock(_root(tmp_path)), threading.Barrier(threads)
            answers = [pool.submit(_held_at, lock, start) for _ in range(threads)]
            assert [answer.result() for answer in answers] == [True] * threads
            lock.release()


def _held_at(lock: RootLock, start: threading.Barrier) -> bool:
    start.wait()
    return lock.held()
