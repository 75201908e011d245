"""A directory with more names than a walk remembers: it is listed once, not once for each checkpoint in it."""

import collections
import os
import pathlib
from collections.abc import Sequence

import pytest

from ckptd.catalog import listed
from ckptd.catalog.experiment import DirectFiles
from ckptd.catalog.opening import file_identities
from ckptd.catalog.roots import Root
from ckptd.catalog.scan import Scan, scan_tree

CHECKPOINTS = 300


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[bytes]:
    """How often each directory was listed besides being walked; a walk remembers 100 names."""
    counted: collections.Counter[bytes] = collections.Counter()
    names = DirectFiles.names

    def count(self: DirectFiles, relative_directory: bytes) -> Sequence[bytes]:
        counted[relative_directory] += 1
        return names(self, relative_directory)

    monkeypatch.setattr(DirectFiles, "names", count)
    monkeypatch.setattr(listed, "NAMES_KEPT", 100)
    return counted


def walked(top: pathlib.Path) -> Scan:
    root_fd = os.open(top, os.O_RDONLY)
    try:
        return scan_tree(Root(os.fsencode(top)), root_fd)
    finally:
        os.close(root_fd)


def fill(directory: pathlib.Path, count: int = CHECKPOINTS) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (directory / f"{number}.ckpt").write_bytes(b"")


def two_runs(place: pathlib.Path) -> None:
    """Of several W&B runs the times of their files tell which one wrote a checkpoint: those are asked for each."""
    for name in ("run-20251011_004442-3kd8s0ab", "run-20251012_004442-3kd8s0ac"):
        files = place / "wandb" / name / "files"
        files.mkdir(parents=True)
        for each in ("config.yaml", "requirements.txt", "wandb-summary.json"):
            (files / each).write_text("{}")


def test_a_flat_directory_beside_the_files_of_its_runs_is_listed_once(
    tmp_path: pathlib.Path, listings: collections.Counter[bytes]
) -> None:
    """It was listed anew for each checkpoint: 100,000 with their sidecars would have taken hours."""
    fill(tmp_path)
    two_runs(tmp_path)
    scan = walked(tmp_path)
    assert scan.checkpoints == CHECKPOINTS
    assert listings[b""] <= 1, listings
    assert max(listings.values()) <= 3, listings


def test_a_large_directory_above_many_others_is_not_listed_for_each_of_them(
    tmp_path: pathlib.Path, listings: collections.Counter[bytes]
) -> None:
    run = tmp_path / "run"
    two_runs(run)
    for number in range(CHECKPOINTS):
        (run / f"sample{number}.png").write_bytes(b"")
    for fold in range(20):
        fill(run / f"checkpoints/fold{fold}", 3)
    scan = walked(tmp_path)
    assert scan.checkpoints == 60
    assert listings[b"run"] <= 1, listings


def test_what_is_forgotten_and_asked_for_again_is_the_same(
    tmp_path: pathlib.Path, listings: collections.Counter[bytes]
) -> None:
    for run in range(4):
        two_runs(tmp_path / f"run{run}")
        fill(tmp_path / f"run{run}/checkpoints", 120)
        (tmp_path / f"run{run}/checkpoints/0.ckpt.metadata.yaml").write_text("epoch: 1\n")
    root_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        found = scan_tree(Root(os.fsencode(tmp_path)), root_fd).found
        assert len(found) == 480
        files = DirectFiles(root_fd)
        assert sum(bool(each.identities.sidecars) for each in found) == 4
        for each in found[::37]:
            assert each.identities == file_identities(files, each.path, each.identities.file)
    finally:
        os.close(root_fd)
