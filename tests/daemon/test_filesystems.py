"""An absence is a deletion only on the filesystem that held the file; bind mounts of one device are told apart."""

import concurrent.futures
import os
import pathlib
import subprocess

import pytest

from ckptd.daemon.filesystems import Filesystems
from ckptd.daemon.mounts import MountTable, mounts_of_root, read_mounts


def _known(root: pathlib.Path) -> MountTable:
    return MountTable(mounts_of_root(os.fsencode(root), read_mounts()))


def test_what_is_absent_from_the_filesystem_that_held_it_is_deleted(tmp_path: pathlib.Path) -> None:
    assert Filesystems().is_deletion(_known(tmp_path), b"a.ckpt", os.fsencode(tmp_path))


def test_where_nothing_is_known_an_absence_is_a_deletion(tmp_path: pathlib.Path) -> None:
    assert Filesystems().is_deletion(MountTable(), b"a.ckpt", os.fsencode(tmp_path))


def test_many_threads_may_ask_at_once(tmp_path: pathlib.Path) -> None:
    """A directory with thousands of checkpoints goes: hundreds of looks, in all threads there are."""
    filesystems, known = Filesystems(), _known(tmp_path)

    def ask(_: int) -> bool:
        return all(filesystems.is_deletion(known, b"a.ckpt", os.fsencode(tmp_path)) for _ in range(200))

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(64)))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_an_unmounted_bind_mount_of_the_same_device_is_no_deletion_at_once(tmp_path: pathlib.Path) -> None:
    data, root = tmp_path / "data", tmp_path / "outputs"
    data.mkdir()
    root.mkdir()
    subprocess.run(["mount", "--bind", data, root], check=True)
    filesystems = Filesystems()
    try:
        known = _known(root)
        assert filesystems.is_deletion(known, b"a.ckpt", os.fsencode(root))
    finally:
        subprocess.run(["umount", root], check=True)
    assert not filesystems.is_deletion(known, b"a.ckpt", os.fsencode(root))
    subprocess.run(["mount", "--bind", data, root], check=True)
    try:
        assert filesystems.is_deletion(known, b"a.ckpt", os.fsencode(root))
    finally:
        subprocess.run(["umount", root], check=True)
