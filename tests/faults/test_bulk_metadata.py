"""`ckptd metadata` on disks that are full or refuse: one line for a cause, nothing half, and it goes on afterwards."""

import os
import pathlib
import subprocess

import pytest

from tests.daemon.bulk_trees import left, temporary_files
from tests.daemon.command_line import CKPTD, environment, save
from tests.daemon.real_mounts import mount, unmount
from tests.faults.test_disk import filled

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(200)]

COUNT = 40


def bulk(home: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As root without the right to override file modes."""
    command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", CKPTD, "metadata", "tree", *arguments]
    return subprocess.run(
        command, cwd=home, env=environment(home), capture_output=True, text=True, check=False, timeout=90
    )


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "tree"


def fill(tree: pathlib.Path) -> None:
    data = save(tree / "seed.ckpt").read_bytes()
    (tree / "seed.ckpt").unlink()
    for number in range(COUNT):
        place = tree / f"run{number % 4}"
        place.mkdir(exist_ok=True)
        (place / f"{number}.ckpt").write_bytes(data)


def complaints(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stderr.splitlines() if "not written" in line]


def test_directories_that_refuse_are_one_line_and_the_others_are_written(tree: pathlib.Path) -> None:
    tree.mkdir()
    fill(tree)
    for number in (0, 1):
        (tree / f"run{number}").chmod(0o555)
    run = bulk(tree.parent)
    assert run.returncode == 3
    (line,) = complaints(run)
    assert line.startswith(f"ckptd: {COUNT // 2} sidecars not written: Permission denied, in tree/run0 and 1 more")
    assert "\tfailed\t" not in run.stdout
    assert len(left(tree)) == COUNT // 2
    for number in (0, 1):
        (tree / f"run{number}").chmod(0o755)
    assert bulk(tree.parent).returncode == 0
    assert len(left(tree)) == COUNT


def test_a_full_disk_is_one_line_leaves_nothing_half_and_the_rest_follows(tree: pathlib.Path) -> None:
    image = tree.parent / "disk.img"
    with open(image, "wb") as file:
        os.truncate(file.fileno(), 8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-N", str(3 * COUNT + 40), str(image)], check=True)
    tree.mkdir()
    mount("-o", "loop", str(image), str(tree))
    try:
        fill(tree)
        with filled(tree):
            run = bulk(tree.parent)
            assert run.returncode == 3
            (line,) = complaints(run)
            assert "No space left on device" in line
            assert not temporary_files(tree)
            written = [name for name in left(tree) if name.endswith(".yaml")]
            assert all((tree / name).read_bytes().startswith(b"# checkpoint metadata") for name in written)
            assert len(written) < COUNT
        taken = []
        while os.statvfs(tree).f_favail > COUNT // 2:  # half of them find an inode, the others do not
            taken.append(tree / f"taken{len(taken)}")
            taken[-1].touch()
        run = bulk(tree.parent)
        half = [name for name in left(tree) if name.endswith(".yaml")]
        assert (run.returncode, len(complaints(run))) == (3, 1)
        assert len(written) < len(half) < COUNT
        for path in taken:
            path.unlink()
        assert bulk(tree.parent).returncode == 0
        assert len([name for name in left(tree) if name.endswith(".yaml")]) == COUNT
    finally:
        unmount(tree)


def test_a_read_only_disk_is_one_line_and_a_dry_run_works_there(tree: pathlib.Path) -> None:
    tree.mkdir()
    mount("-t", "tmpfs", "tmpfs", str(tree))
    try:
        fill(tree)
        mount("-o", "remount,ro", str(tree))
        run = bulk(tree.parent)
        assert run.returncode == 3
        (line,) = complaints(run)
        assert f"{COUNT} sidecars not written: Read-only file system" in line
        dry = bulk(tree.parent, "--dry-run")
        assert dry.returncode == 0, dry.stderr
        assert f"{COUNT} would write" in dry.stderr
    finally:
        unmount(tree)
