"""build_catalog: a whole tree in one call; a bad file is an entry, and nothing is written that was not asked for."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ckptd.catalog.builder import CatalogOptions, CatalogResult, build_catalog
from ckptd.catalog.describe import describe_opened
from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles
from ckptd.catalog.entry import CheckpointEntry, Health, MetadataSource
from ckptd.catalog.index import INDEX_NAME
from ckptd.validators.errors import Changed, Unreadable
from tests.catalog.odd_tree import LATIN, NEWLINE, build_odd_tree


def checkpoint(path: Path, epoch: int = 3, **more: object) -> Path:
    """A checkpoint as a plain training loop writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"model.weight": torch.ones(2, 3)}, "epoch": epoch, "global_step": 12, **more}, path)
    return path


def built(*roots: Path, **options: object) -> CatalogResult:
    return build_catalog(CatalogOptions(roots=tuple(map(str, roots)), **options))  # type: ignore[arg-type]


def by_path(result: CatalogResult) -> dict[str, CheckpointEntry]:
    entries = {entry.path: entry for entry in result.entries}
    assert len(entries) == len(result.entries)
    return entries


def codes(entry: CheckpointEntry) -> set[str]:
    return {found.code for found in entry.findings}


def files_in(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in sorted(root.rglob("*"))}


def test_a_tree_becomes_entries_newest_first_and_stays_as_it_was(tmp_path: Path) -> None:
    for n, name in enumerate(("old", "mid", "new")):
        os.utime(checkpoint(tmp_path / "exp" / "checkpoints" / f"{name}.ckpt", epoch=n), (1000 + n, 1000 + n))
    before = files_in(tmp_path)
    result = built(tmp_path)
    assert [(entry.path, entry.epoch) for entry in result.entries] == [
        (f"exp/checkpoints/{name}.ckpt", epoch) for name, epoch in (("new", 2), ("mid", 1), ("old", 0))
    ]
    entry = result.entries[0]
    assert (entry.health, entry.exp_name, entry.n_parameters, entry.global_step) == (Health.VALID, "exp", 6, 12)
    assert (result.slow_path_count, result.fast_path_count, result.invalid_count) == (3, 0, 0)
    assert (result.unreachable, result.warnings) == ({}, ())
    assert result.catalog_build_time_seconds > 0
    assert files_in(tmp_path) == before


def test_the_odd_tree_is_built_whole(tmp_path: Path) -> None:
    """FIFOs, sockets, loops, dangling links and odd names: none hangs it, none is lost, none is followed out."""
    root, _, _ = build_odd_tree(tmp_path)
    for name in ("best.ckpt", os.fsdecode(LATIN), os.fsdecode(NEWLINE)):
        checkpoint(root / "exp" / "checkpoints" / name)
    result = built(root)
    entries = by_path(result)
    assert set(entries) == {
        "exp/checkpoints/best.ckpt",
        "exp/checkpoints/caf\\xe9.ckpt",
        "exp/checkpoints/two\nlines.ckpt",
        "directory.ckpt/inner.ckpt",
        "links/last.ckpt",
        "links/absolute.ckpt",
        "links/dangling.ckpt",
        "links/self.ckpt",
    }
    best = entries["exp/checkpoints/best.ckpt"]
    assert best.health is Health.VALID
    for alias in ("links/last.ckpt", "links/absolute.ckpt"):
        assert (entries[alias].alias_of, entries[alias].health) == (best.id, Health.VALID)
        assert entries[alias].id != best.id
    for dangling in ("links/dangling.ckpt", "links/self.ckpt"):
        assert (codes(entries[dangling]) >= {"link.dangling"}, entries[dangling].health) == (True, Health.INVALID)
    assert entries["exp/checkpoints/caf\\xe9.ckpt"].path_base64
    assert entries["exp/checkpoints/caf\\xe9.ckpt"].health is Health.VALID
    assert result.skipped_links == 4
    assert sum("fifo.ckpt has a checkpoint's name but is a FIFO" in warning for warning in result.warnings) == 1


def test_links_into_allowed_directories_are_opened(tmp_path: Path) -> None:
    root, allowed, _ = build_odd_tree(tmp_path)
    checkpoint(allowed / "deep" / "far.ckpt", epoch=9)
    entries = by_path(built(root, follow_links=(str(allowed),)))
    for path in ("links/permitted.ckpt", "links/storage/deep/far.ckpt"):
        assert (entries[path].epoch, entries[path].health, entries[path].alias_of) == (9, Health.VALID, None)


def test_a_link_into_another_root_is_an_alias_of_its_entry(tmp_path: Path) -> None:
    root, allowed, _ = build_odd_tree(tmp_path)
    checkpoint(allowed / "deep" / "far.ckpt")
    result = built(root, allowed)
    far = next(entry for entry in result.entries if entry.root == str(allowed))
    alias = next(entry for entry in result.entries if entry.path == "links/permitted.ckpt")
    assert alias.alias_of == far.id


def test_a_bad_file_hides_no_good_one(tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "good.ckpt")
    whole = good.read_bytes()
    (tmp_path / "text.ckpt").write_text("<!doctype html><title>Sign in</title>")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "abandoned.ckpt").write_bytes(whole[:-200])
    (tmp_path / "growing.ckpt").write_bytes(whole[:-200])
    long_ago = time.time() - 3600
    for name in ("text", "empty", "abandoned"):
        os.utime(tmp_path / f"{name}.ckpt", (long_ago, long_ago))
    result = built(tmp_path)
    healths = {path: entry.health for path, entry in by_path(result).items()}
    assert healths == {
        "good.ckpt": Health.VALID,
        "text.ckpt": Health.INVALID,
        "empty.ckpt": Health.INVALID,
        "abandoned.ckpt": Health.INVALID,
        "growing.ckpt": Health.WRITING,
    }
    assert result.invalid_count == 3


def test_a_file_that_changes_while_it_is_read_is_looked_at_again(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.ckpt")
    looks: list[str] = []

    def changing(request: DescribeRequest, files: OpenedFiles) -> Description:
        looks.append(request.checkpoint_path)
        if len(looks) < 3:
            raise Changed("the file was modified while it was read")
        return describe_opened(request, files)

    result = build_catalog(CatalogOptions(roots=(str(tmp_path),)), describe=changing)
    assert looks == [str(tmp_path / "a.ckpt")] * 3
    assert result.entries[0].health is Health.VALID


def test_a_file_that_never_stops_changing_is_being_written(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.ckpt")

    def changing(request: DescribeRequest, files: OpenedFiles) -> Description:
        raise Changed("the file was modified while it was read")

    result = build_catalog(CatalogOptions(roots=(str(tmp_path),)), describe=changing)
    assert result.entries[0].health is Health.WRITING


def test_a_disk_that_refuses_to_read_makes_a_finding(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.ckpt")

    def failing(request: DescribeRequest, files: OpenedFiles) -> Description:
        raise Unreadable("reading at byte 0 failed: Input/output error", 5)

    result = build_catalog(CatalogOptions(roots=(str(tmp_path),)), describe=failing)
    assert (codes(result.entries[0]) >= {"file.unreadable"}, result.entries[0].health) == (True, Health.INVALID)


def test_no_descriptor_stays_open_whatever_happens(tmp_path: Path) -> None:
    root, allowed, _ = build_odd_tree(tmp_path)
    checkpoint(allowed / "deep" / "far.ckpt")
    before = os.listdir("/proc/self/fd")
    built(root, follow_links=(str(allowed),), write_sidecars=True, write_index=True)
    built(root, use_index=True)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_root_that_is_not_there_is_unreachable_and_others_are_built(tmp_path: Path) -> None:
    checkpoint(tmp_path / "here" / "a.ckpt")
    result = built(tmp_path / "nowhere", tmp_path / "here")
    assert result.unreachable == {str(tmp_path / "nowhere"): "No such file or directory"}
    assert [entry.path for entry in result.entries] == ["a.ckpt"]


def test_sidecars_are_written_where_asked_and_stand_in_for_reading_next_time(tmp_path: Path) -> None:
    checkpoint(tmp_path / "exp" / "a.ckpt", epoch=5)
    (tmp_path / "exp" / "bad.ckpt").write_text("no checkpoint")
    (tmp_path / "exp" / "alias.ckpt").symlink_to("a.ckpt")
    first = built(tmp_path, write_sidecars=True)
    assert first.sidecars_written == 1
    assert sorted(path.name for path in tmp_path.rglob("*.metadata.yaml")) == ["a.ckpt.metadata.yaml"]
    entry = by_path(first)["exp/a.ckpt"]
    assert (entry.metadata_source, entry.has_metadata) == (MetadataSource.DAEMON, True)
    assert "metadata.missing" not in codes(entry)
    again = built(tmp_path, write_sidecars=True, trust_sidecars=True)
    assert again.sidecars_written == 0
    assert again.fast_path_count >= 1
    known = by_path(again)["exp/a.ckpt"]
    assert (known.epoch, known.health, known.id) == (5, Health.VALID, entry.id)
    first_record = next(record for record in first.records if record.entry.id == entry.id)
    second_record = next(record for record in again.records if record.entry.id == entry.id)
    assert first_record.identities == second_record.identities, "what was written is what is found"


def test_a_persons_sidecar_is_never_touched(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.ckpt")
    mine = tmp_path / "a.ckpt.metadata.yaml"
    mine.write_text("schema_version: '1.0'\nexp_name: mine\nmetrics:\n  hmean: 0.5\n")
    before = files_in(tmp_path)
    result = built(tmp_path, write_sidecars=True)
    assert files_in(tmp_path) == before
    assert (result.entries[0].exp_name, result.entries[0].metadata_source) == ("mine", MetadataSource.SIDECAR)


def test_an_overwritten_checkpoint_gets_a_new_sidecar_in_place_of_ours(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", epoch=1)
    built(tmp_path, write_sidecars=True)
    checkpoint(path, epoch=2, extra=torch.zeros(100))
    result = built(tmp_path, write_sidecars=True, trust_sidecars=True)
    assert result.sidecars_written == 1
    assert result.entries[0].epoch == 2
    assert "epoch: 2" in (tmp_path / "a.ckpt.metadata.yaml").read_text()


def test_the_index_stands_in_for_the_walk(tmp_path: Path) -> None:
    checkpoint(tmp_path / "exp" / "a.ckpt")
    written = built(tmp_path, write_index=True)
    checkpoint(tmp_path / "exp" / "later.ckpt")
    indexed = built(tmp_path, use_index=True)
    assert [entry.path for entry in indexed.entries] == ["exp/a.ckpt"]
    assert by_path(indexed) == by_path(written)
    shutil.rmtree(tmp_path / "exp")
    assert built(tmp_path, use_index=True).entries == []


def test_a_missing_or_torn_index_means_a_walk(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.ckpt")
    for content in (None, b'{"version'):
        if content is not None:
            (tmp_path / os.fsdecode(INDEX_NAME)).write_bytes(content)
        result = built(tmp_path, use_index=True)
        assert [entry.path for entry in result.entries] == ["a.ckpt"]
        assert "the tree is walked instead" in result.warnings[0]


def test_an_index_cannot_lead_out_of_the_root(tmp_path: Path) -> None:
    checkpoint(tmp_path / "secret.ckpt")
    root = tmp_path / "root"
    checkpoint(root / "a.ckpt")
    (root / "out").symlink_to(tmp_path)
    listed = [
        "a.ckpt",
        "../secret.ckpt",
        str(tmp_path / "secret.ckpt"),
        "x/../../secret.ckpt",
        "",
        "a",
        "out/secret.ckpt",
    ]
    (root / os.fsdecode(INDEX_NAME)).write_text(
        f'{{"version": "2.0", "checkpoints": {{"": {{"checkpoints": {listed!r}}}}}}}'.replace("'", '"')
    )
    result = built(root, use_index=True)
    assert {entry.path for entry in result.entries if entry.health is Health.VALID} == {"a.ckpt"}
    assert {entry.path for entry in result.entries} <= {"a.ckpt", "out/secret.ckpt"}
    assert len(result.warnings) == 5


@pytest.mark.root
def test_what_may_not_be_read_is_an_entry_with_a_finding_and_unwritable_trees_are_warnings(tmp_path: Path) -> None:
    """In a process without root's rights."""
    checkpoint(tmp_path / "closed.ckpt").chmod(0o000)
    checkpoint(tmp_path / "open.ckpt").chmod(0o644)
    checkpoint(tmp_path / "hidden" / "a.ckpt")
    (tmp_path / "hidden").chmod(0o000)
    warm_up = checkpoint(tmp_path.parent / f"{tmp_path.name}-warm-up" / "a.ckpt").parent
    (warm_up / "dangling.ckpt").symlink_to("nowhere")
    for directory in (tmp_path, *tmp_path.parents):
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    script = f"""
import os
from ckptd.catalog.builder import CatalogOptions, build_catalog
# The interpreter may be where only root can read: everything is imported before the rights are given up.
build_catalog(CatalogOptions(roots=({str(warm_up)!r},), write_sidecars=True, write_index=True))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
result = build_catalog(CatalogOptions(roots=({str(tmp_path)!r},), write_sidecars=True, write_index=True))
for entry in sorted(result.entries, key=lambda entry: entry.path):
    print(entry.path, entry.health, "file.unreadable" in [found.code for found in entry.findings])
print(result.unreachable)
print(len(result.warnings), all("was not written: Permission denied" in text for text in result.warnings))
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == [
        "closed.ckpt invalid True",
        "open.ckpt valid False",
        str({str(tmp_path / "hidden"): "Permission denied"}),
        "2 True",
    ]


def test_progress_is_told_for_each_checkpoint(tmp_path: Path) -> None:
    for n in range(3):
        checkpoint(tmp_path / f"{n}.ckpt")
    told: list[tuple[int, int | None]] = []
    build_catalog(CatalogOptions(roots=(str(tmp_path),)), on_progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
