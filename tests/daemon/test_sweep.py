"""The sweep on real trees: it suspects what differs from what is published, and nothing else."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ckptd.catalog.entry import Health
from ckptd.catalog.roots import Root
from ckptd.catalog.store import Catalog
from ckptd.daemon.sweep import sweep_root, sweep_unopened
from tests.daemon.real_mounts import mount, tmpfs, unmount
from tests.daemon.swept_trees import SweptTree

RUN = "exp/checkpoints"


@pytest.fixture
def tree(tmp_path: Path) -> SweptTree:
    root = tmp_path / "root"
    root.mkdir()
    tree = SweptTree(root)
    tree.write(f"{RUN}/a.ckpt", f"{RUN}/a.ckpt.metadata.yaml", f"{RUN}/b.ckpt", "exp/.hydra/config.yaml", "top.ckpt")
    return tree


def test_everything_is_suspect_to_an_empty_catalog(tree: SweptTree) -> None:
    report = tree.sweep()
    assert set(report.suspects) == {b"exp/checkpoints/a.ckpt", b"exp/checkpoints/b.ckpt", b"top.ckpt"}
    assert (report.checkpoints, report.directories, report.ok) == (3, 4, True)


def test_what_is_as_published_is_not_suspect(tree: SweptTree) -> None:
    report = tree.settle()
    assert (report.suspects, report.missing, report.checkpoints) == ((), (), 3)


@pytest.mark.parametrize(
    ("changed", "suspects"),
    [
        (f"{RUN}/a.ckpt", {b"exp/checkpoints/a.ckpt"}),
        (f"{RUN}/a.ckpt.metadata.yaml", {b"exp/checkpoints/a.ckpt"}),
        (f"{RUN}/b.metadata.yaml", {b"exp/checkpoints/b.ckpt"}),
        ("exp/.hydra/config.yaml", {b"exp/checkpoints/a.ckpt", b"exp/checkpoints/b.ckpt"}),
        (f"{RUN}/.FAILURE", {b"exp/checkpoints/a.ckpt", b"exp/checkpoints/b.ckpt"}),
        (f"{RUN}/new.ckpt", {b"exp/checkpoints/new.ckpt"}),
        ("unrelated.txt", set()),
    ],
)
def test_a_file_that_was_written_makes_its_checkpoints_suspect(
    tree: SweptTree, changed: str, suspects: set[bytes]
) -> None:
    tree.settle()
    tree.write(changed)
    assert set(tree.sweep().suspects) == suspects


def test_a_checkpoint_replaced_by_another_of_the_same_size_and_time_is_suspect(tree: SweptTree) -> None:
    tree.settle()
    old = tree.path / "top.ckpt"
    times = os.stat(old)
    other = tree.path / "other"
    other.write_bytes(os.urandom(times.st_size))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.rename(old)
    assert tree.sweep().suspects == (b"top.ckpt",)


def test_a_deleted_checkpoint_is_missing_and_suspect(tree: SweptTree) -> None:
    tree.settle()
    shutil.rmtree(tree.path / "exp")
    report = tree.sweep()
    assert set(report.missing) == set(report.suspects) == {b"exp/checkpoints/a.ckpt", b"exp/checkpoints/b.ckpt"}
    assert report.ok


@pytest.mark.parametrize("health", [Health.WRITING, Health.OFFLINE])
def test_what_is_not_settled_is_suspect_though_its_files_are_unchanged(tree: SweptTree, health: Health) -> None:
    """After a restart nobody else remembers that it is to be looked at."""
    tree.settle()
    tree.mark(b"top.ckpt", health)
    assert tree.sweep().suspects == (b"top.ckpt",)


def test_a_new_link_to_a_checkpoint_is_suspect_itself(tree: SweptTree) -> None:
    tree.settle()
    (tree.path / "best.ckpt").symlink_to("top.ckpt")
    assert tree.sweep().suspects == (b"best.ckpt",)


def test_the_sweep_of_a_subtree_compares_nothing_outside_it(tree: SweptTree) -> None:
    tree.settle()
    tree.write("exp2/x.ckpt", f"{RUN}/new.ckpt")
    (tree.path / RUN / "a.ckpt").unlink()
    (tree.path / "top.ckpt").unlink()
    report = tree.sweep(b"exp")
    assert set(report.suspects) == {b"exp/checkpoints/a.ckpt", b"exp/checkpoints/new.ckpt"}
    assert report.missing == (b"exp/checkpoints/a.ckpt",)


@pytest.mark.parametrize("subtree", [b"exp", b"exp/checkpoints", b"exp/checkpoints/a.ckpt"])
def test_a_subtree_that_is_gone_makes_what_was_in_it_suspect(tree: SweptTree, subtree: bytes) -> None:
    """A deleted path is hinted as file and as directory alike."""
    tree.settle()
    shutil.rmtree(tree.path / "exp")
    report = tree.sweep(subtree)
    assert b"exp/checkpoints/a.ckpt" in report.suspects
    assert b"top.ckpt" not in report.suspects


def test_leftovers_orphans_and_odd_things_are_reported(tree: SweptTree) -> None:
    tree.write("lost.ckpt.metadata.yaml")
    os.mkfifo(tree.path / "pipe.ckpt")
    (tree.path / "out.ckpt").symlink_to("/etc/passwd")
    report = tree.sweep()
    assert report.orphans == (b"lost.ckpt.metadata.yaml",)
    assert set(report.odd) == {b"pipe.ckpt"}
    assert report.skipped_links == 1


def test_names_that_are_not_utf8_are_ordinary(tree: SweptTree) -> None:
    os.mkdir(os.fsencode(tree.path) + b"/\xff")
    with open(os.fsencode(tree.path) + b"/\xff/\xfe\n.ckpt", "wb"):
        pass
    assert b"\xff/\xfe\n.ckpt" in tree.sweep().suspects
    assert tree.settle().suspects == ()


def test_a_sweep_that_is_stopped_proves_nothing_and_teaches_nothing(tree: SweptTree) -> None:
    report = tree.sweep(should_stop=lambda: True)
    assert not report.ok
    assert tree.mounts.known == {}


def test_a_root_that_cannot_be_opened_makes_everything_suspect_but_what_is_offline_already(tree: SweptTree) -> None:
    tree.settle()
    tree.mark(b"top.ckpt", Health.OFFLINE)
    report = sweep_unopened(tree.root, tree.catalog, OSError(errno.EIO, "Input/output error"))
    assert set(report.suspects) == {b"exp/checkpoints/a.ckpt", b"exp/checkpoints/b.ckpt"}
    assert len(report.missing) == 3
    assert not report.ok
    assert "Input/output error" in (report.error or "")


def test_a_root_that_was_removed_while_it_was_open_is_an_error_and_no_empty_tree(tmp_path: Path) -> None:
    tree = SweptTree(tmp_path / "root")
    tree.write("a.ckpt")
    tree.settle()
    root_fd = os.open(tree.path, os.O_RDONLY | os.O_DIRECTORY)
    shutil.rmtree(tree.path)
    try:
        report = sweep_root(tree.root, root_fd, tree.catalog, mounts=tree.mounts)
    finally:
        os.close(root_fd)
    assert not report.ok
    assert report.suspects == (b"a.ckpt",)


def test_a_root_that_was_replaced_on_the_same_disk_has_lost_its_files(tree: SweptTree) -> None:
    tree.settle()
    tree.path.rename(tree.path.with_name("old"))
    tree.path.mkdir()
    report = tree.sweep()
    assert len(report.suspects) == 3
    assert report.ok
    known = tree.mounts.known[b""]
    assert all(tree.mounts.is_gone_from(path, known) for path in report.missing)


# ---- permissions -----------------------------------------------------------------------------------------------

_AS_NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from ckptd.catalog.entry import Health
from tests.daemon.swept_trees import SweptTree
os.setgroups([]); os.setgid(65534); os.setuid(65534)
tree = SweptTree(Path(sys.argv[1]))
tree.settle()
os.chmod(tree.path / "mine", 0)
report = tree.sweep()
print(sorted(report.suspects), sorted(report.missing), sorted(report.unreachable), report.ok)
for path in report.missing:
    tree.mark(path, Health.OFFLINE)
print(sorted(tree.sweep().suspects))
os.chmod(tree.path / "mine", 0o755)
print(sorted(tree.sweep().suspects))
"""


@pytest.mark.root
def test_what_lies_in_a_directory_that_may_not_be_read_is_suspect_once_and_again_when_it_may() -> None:
    """Root reads everything: the sweep is run by another user, in a directory that this user may enter."""
    base = Path(f"/tmp/ckptd-sweep-{os.getpid()}")
    try:
        for name in ("mine/a.ckpt", "b.ckpt"):
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            (base / name).write_bytes(b"x")
        for path in (base, base / "mine"):
            os.chown(path, 65534, 65534)
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, str(base), str(Path(__file__).parents[2])],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(base)
    assert done.returncode == 0, done.stderr
    refused, offline, back = done.stdout.splitlines()
    assert refused == "[b'mine/a.ckpt'] [b'mine/a.ckpt'] [b'mine'] True"
    assert offline == "[]"
    assert back == "[b'mine/a.ckpt']"


# ---- mounts ----------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_what_was_on_a_disk_that_is_gone_is_missing_but_not_deleted(tree: SweptTree) -> None:
    disk = tree.path / "disk"
    disk.mkdir()
    with tmpfs(disk):
        tree.write("disk/x.ckpt")
        assert tree.settle().suspects == ()
        unmount(disk)
        tree.write("disk/later.ckpt")
        here = tree.mounts.known[b""]
        report = tree.sweep()
    assert report.vanished_mounts == (b"disk",)
    assert report.missing == (b"disk/x.ckpt",)
    assert set(report.suspects) == {b"disk/x.ckpt", b"disk/later.ckpt"}
    assert not tree.mounts.is_gone_from(b"disk/x.ckpt", here)
    assert tree.mounts.is_gone_from(b"disk/later.ckpt", here)


@pytest.mark.root
def test_what_is_known_to_be_offline_is_not_suspected_by_every_sweep(tree: SweptTree) -> None:
    disk = tree.path / "disk"
    disk.mkdir()
    with tmpfs(disk):
        tree.write("disk/x.ckpt")
        tree.settle()
        unmount(disk)
        assert tree.sweep().suspects == (b"disk/x.ckpt",)
        tree.mark(b"disk/x.ckpt", Health.OFFLINE)
        assert tree.sweep().suspects == ()


@pytest.mark.root
def test_a_disk_that_comes_back_makes_its_checkpoints_suspect(tree: SweptTree) -> None:
    store, disk = tree.path.parent / "store", tree.path / "disk"
    store.mkdir()
    disk.mkdir()
    mount("--bind", str(store), str(disk))
    tree.write("disk/x.ckpt", "disk/y.ckpt")
    tree.settle()
    unmount(disk)
    assert set(tree.sweep().suspects) == {b"disk/x.ckpt", b"disk/y.ckpt"}
    for path in (b"disk/x.ckpt", b"disk/y.ckpt"):
        tree.mark(path, Health.OFFLINE)
    (store / "y.ckpt").unlink()
    mount("--bind", str(store), str(disk))
    try:
        report = tree.sweep()
        on_disk = tree.mounts.known[b"disk"]
    finally:
        unmount(disk)
    assert set(report.suspects) == {b"disk/x.ckpt", b"disk/y.ckpt"}
    assert report.missing == (b"disk/y.ckpt",)
    assert tree.mounts.is_gone_from(b"disk/y.ckpt", on_disk)
    assert tree.mounts.lost == {b"disk/y.ckpt": on_disk}


@pytest.mark.root
def test_a_root_whose_own_disk_is_gone_loses_nothing(tmp_path: Path) -> None:
    """The empty directory beneath the mount is there, readable, and not the tree."""
    root = tmp_path / "root"
    root.mkdir()
    with tmpfs(root):
        tree = SweptTree(root)
        tree.write("x.ckpt")
        tree.settle()
        unmount(root)
        report = tree.sweep()
    assert report.vanished_mounts == (b"",)
    assert report.missing == (b"x.ckpt",)
    assert not tree.mounts.is_gone_from(b"x.ckpt", tree.mounts.known[b""])


@pytest.mark.root
def test_mounts_that_change_during_a_sweep_make_it_prove_nothing(tree: SweptTree) -> None:
    disk = tree.path / "disk"
    disk.mkdir()
    asked = []

    def mount_meanwhile() -> bool:
        if not asked:
            mount("-t", "tmpfs", "tmpfs", str(disk))
        asked.append(True)
        return False

    try:
        report = tree.sweep(should_stop=mount_meanwhile)
    finally:
        unmount(disk)
    assert not report.ok
    assert "mounts" in (report.error or "")


def test_a_catalog_of_another_root_is_not_compared(tree: SweptTree, tmp_path: Path) -> None:
    tree.settle()
    other = sweep_unopened(Root(os.fsencode(tmp_path / "other")), tree.catalog, OSError(errno.EIO, "x"))
    assert other.missing == ()
    assert sweep_unopened(tree.root, Catalog("empty"), OSError(errno.EIO, "x")).missing == ()
