"""Killed or refused at any system call, writing the portable index leaves the old one or the new one, whole."""

import os
import sys
from pathlib import Path

import pytest

from ckptd.catalog.index import INDEX_NAME, VERSION, Experiment, Index, read_index, write_index
from ckptd.catalog.sidecar import clean_leftovers
from tests.catalog.crash_points import crash_points
from tests.catalog.metadata_files import opened, write

OLD, NEW = {"one": Experiment(["a.ckpt"])}, {"one": Experiment(["a.ckpt"]), "two": Experiment(["b.ckpt"] * 5000)}
WRITER = """
import os, sys, msgspec
from ckptd.catalog.index import Experiment, Index, write_index
new = msgspec.json.decode(open(sys.argv[2], "rb").read(), type=dict[str, Experiment])
try:
    write_index(os.open(sys.argv[1], os.O_PATH), Index("2.0", checkpoints=new))
except OSError:
    os._exit(3)
os._exit(0)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def reset(root: Path, before: dict[str, Experiment] | None) -> None:
    for name in os.listdir(root):
        (root / name).unlink()
    write(root / "a.ckpt", "checkpoint")
    if before is not None:
        with opened(root) as root_fd:
            assert write_index(root_fd, Index(VERSION, checkpoints=before))


def content(root: Path) -> dict[str, Experiment] | None:
    """What a reader finds; fails the test where the index is torn."""
    with opened(root) as root_fd:
        read = read_index(root_fd)
    assert read.index is not None or not read.is_there, read.reason
    return None if read.index is None else read.index.checkpoints


@pytest.fixture
def root(tmp_path: Path) -> Path:
    import msgspec

    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "new.json").write_bytes(msgspec.json.encode(NEW))
    return root


@pytest.mark.parametrize("before", [None, OLD], ids=["none", "old"])
def test_killed_at_any_call_the_index_is_the_old_one_or_the_new_one(
    root: Path, before: dict[str, Experiment] | None
) -> None:
    command = [sys.executable, "-c", WRITER, str(root), str(root.parent / "new.json")]
    codes = []
    for call, code in crash_points(command, root.parent / "log", "signal=KILL", reset=lambda: reset(root, before)):
        codes.append(code)
        assert content(root) in (before, NEW), call
        with opened(root) as root_fd:
            clean_leftovers(root_fd, b"")
        assert set(os.listdir(root)) <= {"a.ckpt", os.fsdecode(INDEX_NAME)}, call
        assert content(root) in (before, NEW), call
    assert len(codes) >= 4
    assert all(codes)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT", "EROFS"])
def test_refused_at_any_call_it_says_so_and_the_old_index_stays_whole(root: Path, error: str) -> None:
    command = [sys.executable, "-c", WRITER, str(root), str(root.parent / "new.json")]
    refused = 0
    for call, code in crash_points(command, root.parent / "log", f"error={error}", reset=lambda: reset(root, OLD)):
        assert code in (0, 3), call
        assert code == 3 or content(root) == NEW, call
        refused += code == 3
        assert content(root) in (OLD, NEW), call
        assert set(os.listdir(root)) == {"a.ckpt", os.fsdecode(INDEX_NAME)}, call
    assert refused >= 3
