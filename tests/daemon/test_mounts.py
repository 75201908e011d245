"""Which filesystem holds a path, and whether an absence on it is a deletion."""

import os
from pathlib import Path

import pytest

from ckptd.daemon.mounts import (
    Mount,
    MountTable,
    filesystem_id,
    mount_holding,
    mount_of,
    mounts_beneath,
    mounts_of_root,
    read_mounts,
)
from tests.daemon.real_mounts import mount, tmpfs, unmount

EXT4 = Mount(b"/", "254:0", b"/", "ext4", b"/dev/vda")


def nfs(path: bytes, *options: str, fstype: str = "nfs4") -> Mount:
    return Mount(path, "0:50", b"/", fstype, b"server:/export", options)


def test_mountinfo_is_read_with_its_escapes(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n"
        b"90 27 0:50 /sub /mnt/a\\040b\\134c rw,nosuid shared:5 master:1 - nfs4 server:/x\\040y rw,acregmax=30\n"
        b"garbage\n"
    )
    first, second = read_mounts(str(table))
    assert (first.path, first.device, first.fstype, first.is_network) == (b"/", "254:0", "ext4", False)
    assert (second.path, second.subtree, second.source) == (b"/mnt/a b\\c", b"/sub", b"server:/x y")
    assert second.is_network
    assert second.attribute_cache_s == 30


def test_the_machine_s_own_table_can_be_read() -> None:
    held = mount_holding(b"/proc/self", read_mounts())
    assert held is not None
    assert held.fstype == "proc"


@pytest.mark.parametrize(
    ("fstype", "network"),
    [
        *((local, False) for local in ("ext4", "tmpfs", "overlay", "fuseblk", "fuse.mergerfs")),
        *((remote, True) for remote in ("nfs", "nfs4", "cifs", "9p", "lustre", "fuse", "fuse.sshfs", "fuse.s3fs")),
    ],
)
def test_network_filesystems_are_told_apart(fstype: str, network: bool) -> None:
    assert nfs(b"/mnt", fstype=fstype).is_network is network


@pytest.mark.parametrize(
    ("mounted", "seconds"),
    [
        (EXT4, 0),
        (nfs(b"/m"), 60),
        (nfs(b"/m", "noac"), 0),
        (nfs(b"/m", "actimeo=5"), 5),
        (nfs(b"/m", "acregmax=10", "acdirmax=90"), 90),
    ],
)
def test_the_attribute_cache_is_that_of_the_options(mounted: Mount, seconds: float) -> None:
    assert mounted.attribute_cache_s == seconds


def test_the_deepest_and_latest_mount_holds_a_path() -> None:
    covered, covering = nfs(b"/data/a"), Mount(b"/data/a", "0:51", b"/", "tmpfs", b"tmpfs")
    table = (EXT4, covered, covering, nfs(b"/data/ab"))
    assert mount_holding(b"/data/a/x.ckpt", table) is covering
    assert mount_holding(b"/data/abc", table) is EXT4
    assert mount_holding(b"/data/ab", table) is table[3]
    assert mounts_beneath(b"/data", table) == {b"a": covering, b"ab": table[3]}
    assert mounts_beneath(b"/", table) == {b"data/a": covering, b"data/ab": table[3]}


def test_mount_of_takes_the_deepest_directory_and_no_mere_prefix_of_a_name() -> None:
    mounts = {b"": "root", b"a": "outer", b"a/b": "inner"}
    assert mount_of(b"a/b/c/x.ckpt", mounts) == (b"a/b", "inner")
    assert mount_of(b"a/bc/x.ckpt", mounts) == (b"a", "outer")
    assert mount_of(b"ab/x.ckpt", mounts) == (b"", "root")
    assert mount_of(b"x.ckpt", {b"a": "outer"}) is None


# ---- MountTable: deletion or not -------------------------------------------------------------------------------


def swept(*missing: bytes, met: dict[bytes, str], before: dict[bytes, str]) -> MountTable:
    table = MountTable(before)
    table.learn(met, missing, ())
    return table


def test_an_absence_on_the_filesystem_that_held_the_path_is_a_deletion() -> None:
    table = MountTable({b"": "root", b"disk": "nfs"})
    assert table.is_gone_from(b"disk/x.ckpt", "nfs")
    assert table.is_gone_from(b"x.ckpt", "root")


def test_an_absence_on_another_filesystem_is_none() -> None:
    """Unmounted: the directory that is there now is on the filesystem above."""
    table = MountTable({b"": "root", b"disk": "nfs"})
    assert not table.is_gone_from(b"disk/x.ckpt", "root")
    assert not MountTable({b"": "nfs"}).is_gone_from(b"x.ckpt", "root")


def test_before_anything_is_known_an_absence_is_a_deletion() -> None:
    assert MountTable().is_gone_from(b"x.ckpt", "root")


def test_what_was_lost_with_a_mount_stays_offline_after_the_sweep_that_missed_it() -> None:
    table = swept(b"disk/x.ckpt", before={b"": "root", b"disk": "nfs"}, met={b"": "root"})
    assert not table.is_gone_from(b"disk/x.ckpt", "root")
    table.learn({b"": "root"}, [b"disk/x.ckpt"], ())
    assert not table.is_gone_from(b"disk/x.ckpt", "root")


def test_what_came_later_where_a_mount_was_lost_is_deleted_as_usual() -> None:
    table = swept(b"disk/x.ckpt", before={b"": "root", b"disk": "nfs"}, met={b"": "root"})
    assert table.is_gone_from(b"disk/new.ckpt", "root")


def test_what_is_hidden_by_a_new_mount_stays_offline() -> None:
    table = swept(b"disk/x.ckpt", before={b"": "root"}, met={b"": "root", b"disk": "nfs"})
    assert not table.is_gone_from(b"disk/x.ckpt", "nfs")
    assert table.is_gone_from(b"disk/new.ckpt", "nfs")


def test_another_disk_at_the_same_place_deletes_nothing() -> None:
    table = swept(b"disk/x.ckpt", before={b"": "root", b"disk": "nfs"}, met={b"": "root", b"disk": "other"})
    assert not table.is_gone_from(b"disk/x.ckpt", "other")


def test_a_disk_that_comes_back_without_the_file_deletes_it() -> None:
    before, lost = {b"": "root", b"disk": "nfs"}, {b"": "root"}
    table = swept(b"disk/x.ckpt", before=before, met=lost)
    table.learn(before, [b"disk/x.ckpt"], ())
    assert table.is_gone_from(b"disk/x.ckpt", "nfs")


def test_a_path_that_is_found_again_is_lost_no_more() -> None:
    table = swept(b"disk/x.ckpt", before={b"": "root", b"disk": "nfs"}, met={b"": "root"})
    table.learn({b"": "root"}, (), [b"disk/x.ckpt"])
    assert table.lost == {}
    assert table.is_gone_from(b"disk/x.ckpt", "root")


def test_accepting_the_mounts_deletes_what_is_missing() -> None:
    table = swept(b"disk/x.ckpt", before={b"": "root", b"disk": "nfs"}, met={b"": "root"})
    table.accept()
    assert table.is_gone_from(b"disk/x.ckpt", "root")


def test_changes_are_named_by_directory() -> None:
    table = MountTable({b"": "root", b"a": "1", b"b": "2"})
    assert table.changed({b"": "root", b"b": "3", b"c": "4"}) == {b"a", b"b", b"c"}
    assert MountTable().changed({b"": "root"}) == frozenset()


# ---- real ones -------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_mount_is_told_from_the_directory_beneath_it_and_from_another_instance(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    root = os.fsencode(tmp_path)
    plain = mounts_of_root(root, read_mounts())
    with tmpfs(disk):
        first = mounts_of_root(root, read_mounts())
    with tmpfs(disk):
        second = mounts_of_root(root, read_mounts())
    assert set(plain) == {b""}
    assert set(first) == set(second) == {b"", b"disk"}
    assert len({first[b""], first[b"disk"], second[b"disk"]}) == 3


@pytest.mark.root
def test_bind_mounts_of_two_directories_of_one_filesystem_differ(tmp_path: Path) -> None:
    for name in ("a", "b", "here"):
        (tmp_path / name).mkdir()
    ids = []
    for name in ("a", "b", "a"):
        mount("--bind", str(tmp_path / name), str(tmp_path / "here"))
        held = mount_holding(os.fsencode(tmp_path / "here" / "x"), read_mounts())
        unmount(tmp_path / "here")
        assert held is not None
        ids.append(filesystem_id(held))
    assert ids[0] == ids[2] != ids[1]
