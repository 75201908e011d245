"""Walking trees with checkpoints that are directories: each is one checkpoint, and nothing in it is another."""

import os
import pathlib
import shutil

import pytest

from ckptd.catalog.links import Link
from ckptd.catalog.opening import directory_identities
from ckptd.catalog.roots import Root
from ckptd.catalog.scan import Found, Scan, scan_tree
from tests.catalog.checkpoint_directories import dcp_files, deepspeed_files, put, trainer_files

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")


def scanned(root: pathlib.Path, **options: object) -> Scan:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return scan_tree(Root(os.fsencode(root)), fd, **options)  # type: ignore[arg-type]
    finally:
        os.close(fd)


def found_in(root: pathlib.Path, **options: object) -> dict[bytes, Found]:
    return {found.path: found for found in scanned(root, **options).found}


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "outputs"
    put(root / "run" / "step-1", dcp_files(1))
    put(root / "run" / "epoch=3.ckpt", deepspeed_files())
    put(root / "checkpoint-500", trainer_files())
    (root / "run" / "best.ckpt").write_bytes(b"x")
    return root


WHOLE = {b"run/step-1", b"run/epoch=3.ckpt", b"checkpoint-500", b"run/best.ckpt"}


@pytest.mark.parametrize("suffixes", [(".ckpt",), SUFFIXES, (".json",)])
def test_whatever_the_suffixes_a_claimed_directory_is_one_checkpoint(
    root: pathlib.Path, suffixes: tuple[str, ...]
) -> None:
    (root / "run" / "step-1" / "inner.ckpt").write_bytes(b"x")
    put(root / "run" / "step-1" / "deeper" / "step-2", dcp_files(2))
    scan = scanned(root, suffixes=suffixes)
    assert {found.path for found in scan.found} == (WHOLE if ".ckpt" in suffixes else WHOLE - {b"run/best.ckpt"})
    assert scan.odd == {}


def test_the_identities_are_those_of_opening_it(root: pathlib.Path) -> None:
    (root / "run" / "step-1.metadata.yaml").write_text("a: 1\n")
    (root / "run" / "config.yaml").write_text("a: 1\n")
    found = found_in(root)
    fd = os.open(root, os.O_RDONLY)
    try:
        for path in WHOLE - {b"run/best.ckpt"}:
            assert found[path].identities == directory_identities(fd, path)
    finally:
        os.close(fd)
    identities = found[b"run/step-1"].identities
    assert len(identities.sidecars) == 1
    assert identities.config is not None
    assert found[b"run/step-1"].device == os.stat(root).st_dev


def test_a_directory_with_a_checkpoints_name_that_is_none_yet_is_no_entry_and_is_named(root: pathlib.Path) -> None:
    (root / "run" / "epoch=4.ckpt").mkdir()
    (root / "checkpoint-600").mkdir()
    scan = scanned(root)
    assert {found.path for found in scan.found} == WHOLE
    assert scan.odd == {b"run/epoch=4.ckpt": "a directory"}


def test_a_hidden_directory_is_a_temporary_one(root: pathlib.Path) -> None:
    put(root / "run" / ".step-2.part", dcp_files(2) | {"inner.ckpt": b"x"})
    (root / "run" / "newest").symlink_to(".step-2.part")
    assert set(found_in(root)) == WHOLE


def test_a_step_of_deepspeed_is_found_by_latest_beside_it(tmp_path: pathlib.Path) -> None:
    names = {name.removeprefix("checkpoint/"): data for name, data in deepspeed_files().items() if "/" in name}
    put(tmp_path / "run" / "global_step7", names)
    assert set(found_in(tmp_path)) == {b"run/global_step7"}
    shutil.rmtree(tmp_path / "run" / "global_step7")
    put(tmp_path / "run" / "global_step7", {"of_another_version_states.pt": b"x"})
    assert set(found_in(tmp_path)) == set()
    (tmp_path / "run" / "latest").write_text("global_step7")
    assert set(found_in(tmp_path)) == {b"run/global_step7"}
    assert set(found_in(tmp_path, subtree=b"run/global_step7")) == {b"run/global_step7"}


def test_a_subtree_inside_a_claimed_directory_stands_for_that_directory(root: pathlib.Path) -> None:
    for subtree in (b"run/epoch=3.ckpt", b"run/epoch=3.ckpt/checkpoint", b"run/step-1/.metadata"):
        assert list(found_in(root, subtree=subtree)) == [b"/".join(subtree.split(b"/")[:2])]


def test_the_root_itself_is_never_claimed(tmp_path: pathlib.Path) -> None:
    """It cannot be one at start; one that becomes one is a tree like any other."""
    put(tmp_path, dcp_files(1))
    put(tmp_path / "step-1", dcp_files(1))
    assert set(found_in(tmp_path)) == {b"step-1"}


def test_a_link_to_a_claimed_directory_is_one_more_name_of_it_whatever_its_name(root: pathlib.Path) -> None:
    (root / "last.ckpt").symlink_to("run/step-1")
    (root / "newest").symlink_to(root / "checkpoint-500")
    (root / "plain").symlink_to("run")
    found = found_in(root)
    assert set(found) == WHOLE | {b"last.ckpt", b"newest"}
    assert found[b"newest"].link == Link(os.fsencode(root), b"checkpoint-500")
    last, target = found[b"last.ckpt"].identities, found[b"run/step-1"].identities
    assert (last.file, last.shards) == (target.file, target.shards)
    assert last.link is not None
    assert last.link.inode == os.lstat(root / "last.ckpt").st_ino
    for name in (b"last.ckpt", b"newest"):
        assert found_in(root, subtree=name)[name] == found[name]


def test_a_link_whose_directory_is_gone_is_dangling_where_it_has_a_checkpoints_name(root: pathlib.Path) -> None:
    (root / "last.ckpt").symlink_to("run/step-1")
    (root / "newest").symlink_to("run/step-1")
    shutil.rmtree(root / "run" / "step-1")
    found = found_in(root)
    assert set(found) == (WHOLE | {b"last.ckpt"}) - {b"run/step-1"}
    assert found[b"last.ckpt"].link == Link(None, None)


def test_a_link_into_a_claimed_directory_does_not_make_its_parts_checkpoints(root: pathlib.Path) -> None:
    (root / "rank-files").symlink_to("run/epoch=3.ckpt/checkpoint")
    assert set(found_in(root)) == WHOLE


def test_claimed_directories_outside_are_listed_where_links_may_lead(
    root: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    outside = tmp_path / "storage"
    put(outside / "deep" / "step-9", dcp_files(2))
    (root / "far").symlink_to(outside / "deep" / "step-9")
    (root / "storage").symlink_to(outside)
    refused = scanned(root)
    assert {found.path for found in refused.found} == WHOLE
    assert refused.skipped_links == 2
    found = found_in(root, follow_links=[os.fsencode(outside)])
    assert set(found) == WHOLE | {b"far", b"storage/deep/step-9"}
    assert found[b"far"].link == Link(os.fsencode(outside), b"deep/step-9")
    assert found[b"storage/deep/step-9"].identities.shards == found[b"far"].identities.shards


def test_a_sidecar_beside_a_directory_is_an_orphan_once_the_directory_is_gone(root: pathlib.Path) -> None:
    (root / "checkpoint-500.metadata.yaml").write_text("a: 1\n")
    (root / "run" / "epoch=3.metadata.yaml").write_text("a: 1\n")
    assert scanned(root).orphans == []
    shutil.rmtree(root / "checkpoint-500")
    shutil.rmtree(root / "run" / "epoch=3.ckpt")
    assert set(scanned(root).orphans) == {b"checkpoint-500.metadata.yaml", b"run/epoch=3.metadata.yaml"}
