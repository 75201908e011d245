"""Opening and writing while a directory is exchanged for a link out of the root, again and again: nothing escapes."""

import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptd.catalog import roots
from ckptd.catalog.experiment import Companions
from ckptd.catalog.opening import open_checkpoint
from ckptd.catalog.renaming import exchange
from ckptd.catalog.roots import open_beneath
from ckptd.catalog.sidecar import write_sidecar

DEADLINE_S = 60.0
AT_LEAST = 300
"""Attempts, however early both outcomes were seen."""


def _exchange_for_ever(root: str) -> None:
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    while os.getppid() != 1:
        exchange(root_fd, b"run", b"link")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """`run` holds our checkpoint, `link` leads to a directory outside that holds another; a process swaps them."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "run").mkdir(parents=True)
    outside.mkdir()
    for directory, text in ((root / "run", "inside"), (outside, "outside")):
        for name in ("a.ckpt", "config.yaml"):
            (directory / name).write_text(text)
    (root / "link").symlink_to(outside)
    with contextlib.closing(_directory(root)) as root_fd:
        if not exchange(root_fd.fd, b"run", b"link"):
            pytest.skip("this filesystem cannot exchange two names")
    swapper = multiprocessing.get_context("spawn").Process(target=_exchange_for_ever, args=(str(root),), daemon=True)
    swapper.start()
    yield root
    swapper.kill()
    swapper.join()


class _directory:  # noqa: N801 - a small context manager
    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY)

    def close(self) -> None:
        os.close(self.fd)


def _until_both(attempt: Callable[[], bool]) -> None:
    """Repeat until it went well, and was refused, at least once each."""
    end = time.monotonic() + DEADLINE_S
    seen: set[bool] = set()
    count = 0
    while len(seen) < 2 or count < AT_LEAST:
        assert time.monotonic() < end, f"after {count} attempts only {seen} was seen"
        try:
            seen.add(attempt())
        except OSError:
            seen.add(False)
        count += 1


@pytest.mark.campaign
@pytest.mark.parametrize("has_openat2", [True, False])
def test_what_is_opened_lies_inside_whatever_is_exchanged_meanwhile(
    has_openat2: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_openat2:
        monkeypatch.setattr(roots, "_has_openat2", lambda: False)
    companions = Companions(sidecars=(), config=b"run/config.yaml")
    with contextlib.closing(_directory(root)) as root_fd:

        def attempt() -> bool:
            _, files, _ = open_checkpoint(root_fd.fd, b"run/a.ckpt", companions)
            try:
                assert {os.pread(fd, 100, 0) for fd in files.all()} == {b"inside"}
            finally:
                for fd in files.all():
                    os.close(fd)
            return True

        _until_both(attempt)


@pytest.mark.campaign
def test_a_sidecar_is_written_inside_whatever_is_exchanged_meanwhile(root: Path) -> None:
    like = os.stat(root)
    names = iter(range(1_000_000))
    with contextlib.closing(_directory(root)) as root_fd:

        def attempt() -> bool:
            write_sidecar(root_fd.fd, b"run/%d.metadata.yaml" % next(names), b"text", like=like)
            return True

        _until_both(attempt)
    assert sorted(os.listdir(root.parent / "outside")) == ["a.ckpt", "config.yaml"]


@pytest.mark.parametrize("make", ["fifo", "socket", "device", "directory"])
def test_what_is_no_file_is_refused_at_once(make: str, tmp_path: Path) -> None:
    """A FIFO without a writer would be waited for."""
    path = tmp_path / "x.ckpt"
    with contextlib.ExitStack() as stack:
        if make == "fifo":
            os.mkfifo(path)
        elif make == "socket":
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
        elif make == "directory":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        root_fd = stack.enter_context(contextlib.closing(_directory(tmp_path))).fd
        with pytest.raises(OSError, match=r"x\.ckpt"):
            os.close(open_beneath(root_fd, b"x.ckpt"))


def test_a_hard_link_is_a_file_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_text("same")
    os.link(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    with contextlib.closing(_directory(tmp_path)) as root_fd:
        fd = open_beneath(root_fd.fd, b"b.ckpt")
        try:
            assert os.pread(fd, 10, 0) == b"same"
        finally:
            os.close(fd)
