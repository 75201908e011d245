"""Walking a tree: everything is found, nothing outside is, and what could not be asked is said."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptd.catalog.experiment import DirectFiles, find_companions
from ckptd.catalog.listed import ListedFiles
from ckptd.catalog.opening import open_checkpoint
from ckptd.catalog.roots import Root
from ckptd.catalog.scan import NOTED, Found, Scan, scan_tree
from ckptd.catalog.temporary import swap_name, temporary_name
from tests.catalog.odd_tree import LATIN, NEWLINE, build_odd_tree


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def scanned(root: Path, **options: object) -> Scan:
    with opened(root) as fd:
        return scan_tree(Root(os.fsencode(root)), fd, **options)  # type: ignore[arg-type]


def paths(scan: Scan) -> set[bytes]:
    listed = [found.path for found in scan.found]
    assert len(listed) == len(set(listed)) == scan.checkpoints
    return set(listed)


INSIDE = {
    b"exp/checkpoints/best.ckpt",
    b"exp/checkpoints/" + LATIN,
    b"exp/checkpoints/" + NEWLINE,
    b"directory.ckpt/inner.ckpt",
    b"links/last.ckpt",
    b"links/absolute.ckpt",
    b"links/dangling.ckpt",
    b"links/self.ckpt",
}


def test_all_checkpoints_and_no_stranger_are_found(tmp_path: Path) -> None:
    root, _, _ = build_odd_tree(tmp_path)
    scan = scanned(root)
    assert paths(scan) == INSIDE
    assert scan.skipped_links == 4, "out.ckpt, permitted.ckpt, out and storage"
    assert scan.unreachable == {}
    assert scan.orphans == [b"exp/checkpoints/gone.ckpt.metadata.yaml"]


def test_what_has_a_checkpoints_name_and_is_none_is_named(tmp_path: Path) -> None:
    root, _, _ = build_odd_tree(tmp_path)
    assert scanned(root).odd == {
        b"fifo.ckpt": "a FIFO",
        b"socket.ckpt": "a socket",
        b"directory.ckpt": "a directory",
        b"links/to_fifo.ckpt": "a link to a FIFO",
    }


def test_links_out_of_the_root_are_followed_where_that_is_allowed_and_loops_end(tmp_path: Path) -> None:
    root, allowed, _ = build_odd_tree(tmp_path)
    scan = scanned(root, follow_links=[os.fsencode(allowed)])
    assert paths(scan) == INSIDE | {b"links/permitted.ckpt", b"links/storage/deep/far.ckpt"}
    assert scan.skipped_links == 3, "out.ckpt, out, and the loop"
    by_path = {found.path: found for found in scan.found}
    link = by_path[b"links/permitted.ckpt"].link
    assert link is not None
    assert (link.base, link.target) == (os.fsencode(allowed), b"deep/far.ckpt")
    assert by_path[b"links/storage/deep/far.ckpt"].link is None


def test_aliases_know_their_target_and_dangling_links_that_they_have_none(tmp_path: Path) -> None:
    root, _, _ = build_odd_tree(tmp_path)
    by_path = {found.path: found for found in scanned(root).found}
    original = by_path[b"exp/checkpoints/best.ckpt"]
    assert original.link is None
    assert original.identities.link is None
    for name in (b"links/last.ckpt", b"links/absolute.ckpt"):
        alias = by_path[name]
        assert alias.link is not None
        assert (alias.link.base, alias.link.target) == (os.fsencode(root), original.path)
        assert alias.identities.file == original.identities.file
        assert alias.identities.sidecars == original.identities.sidecars
        assert alias.identities.link is not None
        assert alias.identities.link.inode == os.lstat(root / os.fsdecode(name)).st_ino
    for name in (b"links/dangling.ckpt", b"links/self.ckpt"):
        link = by_path[name].link
        assert link is not None
        assert link.dangling


def test_a_link_into_another_root_is_an_alias_of_that_root(tmp_path: Path) -> None:
    root, allowed, _ = build_odd_tree(tmp_path)
    roots = [Root(os.fsencode(root)), Root(os.fsencode(allowed))]
    scan = scanned(root, roots=roots)
    found = next(found for found in scan.found if found.path == b"links/permitted.ckpt")
    assert found.link is not None
    assert found.link.base == roots[1].path
    assert b"links/storage/deep/far.ckpt" not in paths(scan), "it is listed in its own root"


def test_identities_equal_those_of_opening(tmp_path: Path) -> None:
    """Otherwise every sweep would find everything changed."""
    root, _, _ = build_odd_tree(tmp_path)
    (root / "exp" / ".hydra").mkdir()
    (root / "exp" / ".hydra" / "config.yaml").symlink_to("../config.yaml")
    (root / "exp" / "checkpoints" / "best.metadata.yaml").symlink_to("best.ckpt.metadata.yaml")
    (root / "exp" / "checkpoints" / "best.config.json").write_text("{}")
    (root / "exp" / ".FAILURE").write_text("")
    with opened(root) as fd:
        regular = [found for found in scanned(root).found if found.link is None]
        assert len(regular) == 4
        for found in regular:
            _, files, identities = open_checkpoint(fd, found.path, find_companions(DirectFiles(fd), found.path))
            for opened_fd in files.all():
                os.close(opened_fd)
            assert found.identities == identities
        best = next(found for found in regular if found.path.endswith(b"/best.ckpt"))
        assert len(best.identities.sidecars) == 2
        assert best.identities.config is not None
        assert best.identities.run_failed


LAYOUTS = [
    ["a.ckpt", "a.ckpt.metadata.yaml", "a.metadata.json", "config.yaml"],
    ["exp/checkpoints/a.ckpt", "exp/.hydra/config.yaml", ".hydra/config.yaml", "exp/.FAILURE"],
    ["exp/checkpoints/a.ckpt", ".hydra/config.yaml", "exp/checkpoints/a.resolved.config.json"],
    [
        "exp/checkpoints/sub/a.ckpt",
        "exp/wandb/run-20251011_004442-3kd8s0ab/files/config.yaml",
        "exp/wandb/run-20251010_004442-3kd8s0ab/files/config.yaml",
    ],
    ["exp/hparams.yaml", "exp/checkpoints/epoch=1-val/hmean=0.5.ckpt", "exp/checkpoints/epoch=1-val/.FAILURE"],
    ["exp/a.ckpt", "exp/a.config.yml", "exp/a.metadata.yaml/not_a_file", "exp/config.yaml/not_a_file"],
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_walks_memory_finds_the_companions_that_the_disk_shows(tmp_path: Path, layout: list[str]) -> None:
    for name in layout:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    with opened(tmp_path) as fd:
        path = next(name for name in layout if name.endswith(".ckpt")).encode()
        expected = find_companions(DirectFiles(fd), path)
        assert ListedFiles(fd).companions(path) == expected
        assert find_companions(ListedFiles(fd), path) == expected
        assert expected.config or expected.sidecars


def test_companions_behind_a_directory_link_are_found_as_the_disk_shows_them(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "config.yaml").write_text("")
    (tmp_path / "exp" / "checkpoints").mkdir(parents=True)
    (tmp_path / "exp" / "checkpoints" / "a.ckpt").write_text("")
    (tmp_path / "exp" / ".hydra").symlink_to("../store")
    with opened(tmp_path) as fd:
        direct = find_companions(DirectFiles(fd), b"exp/checkpoints/a.ckpt")
        assert ListedFiles(fd).companions(b"exp/checkpoints/a.ckpt") == direct


def test_a_subtree_is_walked_under_its_full_names(tmp_path: Path) -> None:
    root, _, _ = build_odd_tree(tmp_path)
    assert paths(scanned(root, subtree=b"exp")) == {path for path in INSIDE if path.startswith(b"exp/")}
    assert paths(scanned(root, subtree=b"links/inside")) == set(), "it is listed where it really is"
    for nothing in (b"exp/never", b"exp/checkpoints/best.ckpt", b"exp/checkpoints/best.ckpt/below"):
        scan = scanned(root, subtree=nothing)
        assert (paths(scan), scan.unreachable) == (set(), {})


@pytest.fixture
def deep_tree(tmp_path: Path) -> Iterator[Path]:
    """1100 directories within one another; removed here, because pytest's own cleaning recurses."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=fd)
        there = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = there
    os.close(fd)
    yield tmp_path
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_a_deep_tree_needs_no_recursion(deep_tree: Path) -> None:
    deepest = b"d/" * 1100
    with opened(deep_tree) as fd:
        os.close(os.open(deepest + b"deep.ckpt", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    assert paths(scanned(deep_tree)) == {deepest + b"deep.ckpt"}
    assert paths(scanned(deep_tree, subtree=deepest.rstrip(b"/"))) == {deepest + b"deep.ckpt"}


def test_directories_whose_paths_are_too_long_to_be_named_are_said_to_be_so(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=fd)
        there = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = there
    os.close(fd)
    scan = scanned(tmp_path)
    assert list(scan.odd.values()) == ["a directory whose path is longer than the system allows (4095 bytes)"]
    assert scan.unreachable == {}
    assert scan.directories == 17


def test_a_root_that_was_removed_is_unreachable_not_empty(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with opened(root) as fd:
        root.rmdir()
        scan = scan_tree(Root(os.fsencode(root)), fd)
    assert list(scan.unreachable) == [b""]


def test_too_few_descriptors_are_an_error_and_not_an_empty_directory(tmp_path: Path) -> None:
    """In a process of its own, whose limit can be lowered."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.ckpt").write_text("")
    script = f"""
import os, resource
from ckptd.catalog.roots import Root
from ckptd.catalog.scan import scan_tree
fd = os.open({str(tmp_path)!r}, os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, fd + 1))
scan = scan_tree(Root({os.fsencode(tmp_path)!r}), fd)
print({{key: error.strerror for key, error in scan.unreachable.items()}}, scan.checkpoints)
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout == "{b'': 'Too many open files'} 0\n"


def test_a_walk_can_be_stopped_and_tells_how_far_it_is(tmp_path: Path) -> None:
    for n in range(600):
        (tmp_path / f"d{n}").mkdir()
    (tmp_path / "d1" / "a.ckpt").write_text("")
    told: list[tuple[int, int]] = []
    scan = scanned(tmp_path, on_progress=lambda directories, checkpoints: told.append((directories, checkpoints)))
    assert not scan.stopped
    assert [directories for directories, _ in told] == [256, 512]
    stopped = scanned(tmp_path, should_stop=lambda: True)
    assert stopped.stopped
    assert stopped.directories < 5


def test_checkpoints_can_be_taken_one_by_one_instead_of_collected(tmp_path: Path) -> None:
    root, _, _ = build_odd_tree(tmp_path)
    taken: list[Found] = []
    scan = scanned(root, on_found=taken.append)
    assert scan.found == []
    assert {found.path for found in taken} == INSIDE
    assert scan.checkpoints == len(INSIDE)


def test_leftovers_and_orphans_are_listed_up_to_a_bound(tmp_path: Path) -> None:
    ours = [name(b"a.ckpt.metadata.yaml") for name in (temporary_name, swap_name)]
    for name in ours:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    (tmp_path / "other.tmp").write_text("")
    for n in range(NOTED + 5):
        (tmp_path / f"{n}.ckpt.metadata.yaml").write_text("")
    (tmp_path / "short.ckpt").write_text("")
    (tmp_path / "short.metadata.yaml").write_text("")
    scan = scanned(tmp_path)
    assert sorted(scan.leftovers) == sorted(ours)
    assert len(scan.orphans) == NOTED
    assert b"short.metadata.yaml" not in scan.orphans


def test_other_suffixes_are_found_where_they_are_asked_for(tmp_path: Path) -> None:
    for name in ("a.ckpt", "b.pt", "c.safetensors", "d.txt"):
        (tmp_path / name).write_text("")
    assert paths(scanned(tmp_path, suffixes=(".pt", ".safetensors"))) == {b"b.pt", b"c.safetensors"}


@pytest.mark.root
def test_filesystems_in_the_tree_are_told_apart(tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt" / "disk"
    mountpoint.mkdir(parents=True)
    assert list(scanned(tmp_path).mounts) == [b""]
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(mountpoint)], check=True)
    try:
        (mountpoint / "a.ckpt").write_text("")
        scan = scanned(tmp_path)
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)
    assert set(scan.mounts) == {b"", b"mnt/disk"}
    assert scan.mounts[b""].device != scan.mounts[b"mnt/disk"].device
    assert scan.found[0].device == scan.mounts[b"mnt/disk"].device


@pytest.mark.root
def test_directories_that_may_not_be_listed_are_named_with_the_reason(tmp_path: Path) -> None:
    """In a process without root's rights."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a.ckpt").write_text("")
    (tmp_path / "blind").mkdir()
    (tmp_path / "blind" / "b.ckpt").write_text("")
    (tmp_path / "open.ckpt").write_text("")
    for directory in (tmp_path, *tmp_path.parents):
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    (tmp_path / "closed").chmod(0o000)
    (tmp_path / "blind").chmod(0o744)  # names can be listed, files cannot be looked at
    script = f"""
import os
from ckptd.catalog.roots import Root
from ckptd.catalog.scan import scan_tree
fd = os.open({str(tmp_path)!r}, os.O_RDONLY)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
scan = scan_tree(Root({os.fsencode(tmp_path)!r}), fd)
print(sorted((key, error.strerror) for key, error in scan.unreachable.items()), [f.path for f in scan.found])
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    denied = "Permission denied"
    assert answer.stdout == f"{[(b'blind/b.ckpt', denied), (b'closed', denied)]} [b'open.ckpt']\n"
