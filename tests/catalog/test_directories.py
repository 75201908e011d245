"""Checkpoint directories: which ones there are, what they consist of, and opening them whole or not at all."""

import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ckptd.catalog import directories, opening
from ckptd.catalog.builder import CatalogOptions, build_catalog
from ckptd.catalog.describe import describe_checkpoint
from ckptd.catalog.directories import Claims, checkpoint_directory, list_beneath
from ckptd.catalog.experiment import Companions
from ckptd.catalog.opening import OPENED_PARTS, UnreadablePart, directory_identities, open_checkpoint
from ckptd.catalog.roots import RootError, resolve_roots
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.formats.sharded import claim
from ckptd.validators.inspection import Format
from tests.catalog.checkpoint_directories import Files, dcp_files, deepspeed_files, put, size_of, trainer_files

LONG_AGO_S = 1_500_000_000


@contextmanager
def opened(path: pathlib.Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def close(descriptors: tuple[int, ...]) -> None:
    for fd in descriptors:
        os.close(fd)


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def whole(tmp_path: pathlib.Path) -> pathlib.Path:
    return put(tmp_path / "root" / "run" / "step-1", dcp_files(1))


# ---- what a directory consists of ------------------------------------------------------------------------------


def test_regular_files_down_to_two_levels_are_its_files_sorted_by_name(whole: pathlib.Path) -> None:
    (whole / "a" / "deep").mkdir(parents=True)
    (whole / "a" / "rank.pt").write_bytes(b"12")
    (whole / "a" / "deep" / "unseen.pt").write_bytes(b"123")
    (whole / "link.pt").symlink_to(".metadata")
    (whole / "linked").symlink_to("a")
    os.mkfifo(whole / "fifo.pt")
    with opened(whole.parent) as fd:
        listing = list_beneath(fd, b"step-1")
    names = [file.name for file in listing.files]
    assert names == [b".metadata", b"__0_0.distcp", b"__0_1.distcp", b"__0_2.distcp", b"a/rank.pt"]
    assert listing.identity.size == size_of(dcp_files(1)) + 2
    assert listing.identity.inode == whole.stat().st_ino


def test_a_directory_is_as_new_as_the_newest_of_its_files(whole: pathlib.Path) -> None:
    for path in (*whole.iterdir(), whole):
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    os.utime(whole / "__0_1.distcp", (LONG_AGO_S, LONG_AGO_S + 60))
    with opened(whole.parent) as fd:
        assert list_beneath(fd, b"step-1").identity.mtime_ns == (LONG_AGO_S + 60) * 10**9


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "__0_1.distcp").unlink(),
        lambda path: (path / "another").write_bytes(b""),
        lambda path: os.utime(path / ".metadata", (1, 1)),
        lambda path: (path / "__0_1.distcp").rename(path / "__0_9.distcp"),
        lambda path: shutil.copy(path / ".metadata", path / "__0_1.distcp"),
    ],
    ids=["removed", "added", "touched", "renamed", "overwritten"],
)
def test_every_change_of_a_file_changes_what_identifies_the_directory(
    whole: pathlib.Path, change: Callable[[pathlib.Path], object]
) -> None:
    with opened(whole.parent) as fd:
        before = directory_identities(fd, b"step-1")
        change(whole)
        assert directory_identities(fd, b"step-1") != before


# ---- which directories are checkpoints -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "files", "claimed"),
    [
        ("step-1", dcp_files(1), Format.DCP),
        ("checkpoint-500", trainer_files(), Format.TRANSFORMERS),
        ("best", trainer_files(), None),
        ("x.ckpt", deepspeed_files(), Format.DEEPSPEED),
        ("x.ckpt", {"weights.bin": b"1"}, None),
    ],
)
def test_a_directory_that_somebody_names_is_claimed_by_its_name_and_its_names(
    tmp_path: pathlib.Path, name: str, files: Files, claimed: Format | None
) -> None:
    path = put(tmp_path / name, files)
    assert checkpoint_directory(os.fsencode(path)) is claimed
    assert checkpoint_directory(os.fsencode(path / next(iter(files)))) is None
    assert checkpoint_directory(os.fsencode(tmp_path / "nothing" / "here")) is None


def test_the_directory_that_holds_a_path_is_the_outermost_one(tmp_path: pathlib.Path) -> None:
    put(tmp_path / "run" / "x.ckpt", deepspeed_files())
    claims = Claims()
    with opened(tmp_path) as fd:
        assert claims.holder(fd, b"run/x.ckpt/checkpoint/mp_rank_00_model_states.pt") == b"run/x.ckpt"
        assert claims.holder(fd, b"run/x.ckpt/checkpoint") == b"run/x.ckpt"
        assert claims.holder(fd, b"run/x.ckpt") is None
        assert claims.holder(fd, b"nowhere/at/all") is None
        assert not claims.is_checkpoint(fd, b"run/x.ckpt/checkpoint")
        assert claims.is_checkpoint(fd, b"run/x.ckpt")
        assert claims.format_of(fd, b"") is None


def test_an_old_directory_is_listed_once_and_a_changed_one_again(
    whole: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    def counted(name: bytes, names: list[bytes], parent_has_latest: bool) -> Format | None:
        asked.append(name)
        return claim(name, names, parent_has_latest)

    monkeypatch.setattr(directories, "claim", counted)
    monkeypatch.setattr(directories, "_YOUNG_NS", -(10**18))
    claims = Claims()
    with opened(whole.parent) as fd:
        assert [claims.format_of(fd, b"step-1") for _ in range(3)] == [Format.DCP] * 3
        assert asked == [b"step-1"]
        for path in list(whole.iterdir()):
            path.unlink()
        assert claims.format_of(fd, b"step-1") is None
        assert asked == [b"step-1"] * 2


def test_a_young_directory_is_listed_each_time(whole: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time may stand still while its names change."""
    claims = Claims()
    with opened(whole.parent) as fd:
        assert claims.format_of(fd, b"step-1") is Format.DCP
        times = os.stat(whole)
        for path in list(whole.iterdir()):
            path.unlink()
        os.utime(whole, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert claims.format_of(fd, b"step-1") is None


# ---- opening ---------------------------------------------------------------------------------------------------


def test_what_is_opened_has_the_identities_that_a_listing_tells(whole: pathlib.Path) -> None:
    with opened(whole.parent) as fd:
        request, files, identities = open_checkpoint(fd, b"step-1", Companions())
        close(files.all())
        assert identities == directory_identities(fd, b"step-1")
    assert [shard.name for shard in request.shards] == sorted(map(os.fsencode, dcp_files(1)))
    assert len(files.shards) == 4
    assert request.directory_name == "step-1"


def test_of_very_many_files_those_that_say_most_are_opened(whole: pathlib.Path) -> None:
    for number in range(OPENED_PARTS + 40):
        (whole / f"__1_{number}.distcp").write_bytes(b"x")
    with opened(whole.parent) as fd:
        request, files, _ = open_checkpoint(fd, b"step-1", Companions())
        close(files.all())
    assert len(files.shards) == OPENED_PARTS == sum(shard.opened for shard in request.shards)
    assert len(request.shards) == OPENED_PARTS + 44
    assert next(shard for shard in request.shards if shard.name == b".metadata").opened


def test_a_directory_that_no_format_claims_is_not_opened(tmp_path: pathlib.Path) -> None:
    (tmp_path / "plain.ckpt").mkdir()
    before = count_descriptors()
    with opened(tmp_path) as fd, pytest.raises(IsADirectoryError):
        open_checkpoint(fd, b"plain.ckpt", Companions())
    assert count_descriptors() == before


def test_a_directory_whose_files_change_while_they_are_opened_is_being_written(
    whole: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def growing(fd: int) -> directories.Listing:
        listing = directories.list_directory(fd)
        with open(whole / "__0_0.distcp", "ab") as file:
            file.write(b"more")
        return listing

    monkeypatch.setattr(opening, "list_directory", growing)
    before = count_descriptors()
    with opened(whole.parent) as fd, pytest.raises(Changed):
        open_checkpoint(fd, b"step-1", Companions())
    assert count_descriptors() == before


def test_a_file_that_came_while_others_were_opened_is_taken_at_the_second_attempt(
    whole: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once_more(fd: int) -> directories.Listing:
        listing = directories.list_directory(fd)
        (whole / "meta.pt").touch()
        os.utime(whole / "meta.pt", (1, 1))
        monkeypatch.setattr(opening, "list_directory", directories.list_directory)
        return listing

    monkeypatch.setattr(opening, "list_directory", once_more)
    with opened(whole.parent) as fd:
        request, files, _ = open_checkpoint(fd, b"step-1", Companions())
        close(files.all())
    assert b"meta.pt" in [shard.name for shard in request.shards]


def test_a_part_that_may_not_be_opened_is_named(whole: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may open everything, so the refusal is played."""

    def refusing(root_fd: int, path: bytes, *, follow_links: bool = True) -> int:
        if path == b"__0_1.distcp":
            raise PermissionError(13, "Permission denied", os.fsdecode(path))
        return original(root_fd, path, follow_links=follow_links)

    original = opening.open_beneath
    monkeypatch.setattr(opening, "open_beneath", refusing)
    before = count_descriptors()
    with opened(whole.parent) as fd, pytest.raises(UnreadablePart, match=r"__0_1\.distcp"):
        open_checkpoint(fd, b"step-1", Companions())
    assert count_descriptors() == before


def test_a_part_that_is_a_link_out_of_the_directory_is_no_part(whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (whole / "__0_7.distcp").symlink_to(tmp_path / "secret")
    with opened(whole.parent) as fd:
        request, files, _ = open_checkpoint(fd, b"step-1", Companions())
        close(files.all())
    assert b"__0_7.distcp" not in [shard.name for shard in request.shards]


# ---- describing and building -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("step-1", dcp_files(1), Format.DCP),
        ("checkpoint-500", trainer_files(), Format.TRANSFORMERS),
        ("x.ckpt", deepspeed_files(), Format.DEEPSPEED),
    ],
)
def test_a_directory_and_a_link_to_it_are_described_alike(
    tmp_path: pathlib.Path, name: str, files: Files, expected: Format
) -> None:
    path = put(tmp_path / name, files)
    (tmp_path / "latest-one").symlink_to(name)
    direct, linked = describe_checkpoint(str(path)), describe_checkpoint(str(tmp_path / "latest-one"))
    for description in (direct, linked):
        inspection = description.inspection
        assert (inspection.format, inspection.is_valid) == (expected, True)
        assert {shard.name for shard in inspection.shards} == set(files)
        assert inspection.identity.size == size_of(files)
    assert linked.inspection.checkpoint_path == str(tmp_path / "latest-one")


def test_a_plain_directory_cannot_be_described(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Unreadable, match="no checkpoint"):
        describe_checkpoint(str(tmp_path))


def test_a_build_lists_directories_as_one_checkpoint_each_and_writes_their_metadata_beside_them(
    tmp_path: pathlib.Path,
) -> None:
    root = tmp_path / "outputs"
    put(root / "run" / "checkpoint-500", trainer_files())
    put(root / "run" / "step-1", dcp_files(1))
    (root / "run" / "last").symlink_to("step-1")
    (root / "run" / "config.yaml").write_text("exp_name: tiny\n")
    options = CatalogOptions(
        roots=(str(root),), suffixes=(".ckpt", ".pt", ".safetensors"), write_sidecars=True, write_index=True
    )
    inside = {path: path.stat().st_mtime_ns for path in (root / "run").glob("*/*")}
    first = {entry.path: entry for entry in build_catalog(options).entries}
    assert {path: entry.format for path, entry in first.items()} == {
        "run/checkpoint-500": "transformers",
        "run/step-1": "dcp",
        "run/last": "dcp",
    }
    assert first["run/last"].alias_of == first["run/step-1"].id
    assert first["run/step-1"].size_bytes == size_of(dcp_files(1))
    assert first["run/checkpoint-500"].exp_name == "tiny"
    assert sorted(path.name for path in (root / "run").glob("*.metadata.yaml")) == [
        "checkpoint-500.metadata.yaml",
        "step-1.metadata.yaml",
    ]
    assert (root / "run" / "step-1.metadata.yaml").stat().st_mode & 0o111 == 0
    assert {path: path.stat().st_mtime_ns for path in (root / "run").glob("*/*")} == inside
    fast = CatalogOptions(roots=(str(root),), trust_sidecars=True, use_index=True)
    second = build_catalog(fast)
    assert {entry.path for entry in second.entries} == set(first)
    assert (second.fast_path_count, second.slow_path_count, second.warnings) == (3, 0, ())


def test_an_index_that_names_what_is_no_checkpoint_any_more_is_not_followed(tmp_path: pathlib.Path) -> None:
    put(tmp_path / "run" / "step-1", dcp_files(1))
    build_catalog(CatalogOptions(roots=(str(tmp_path),), write_index=True))
    for path in (tmp_path / "run" / "step-1").iterdir():
        path.unlink()
    result = build_catalog(CatalogOptions(roots=(str(tmp_path),), use_index=True))
    assert result.entries == []
    assert "no checkpoint's path" in result.warnings[0]


def test_a_directory_that_is_written_all_the_time_is_listed_as_that(whole: pathlib.Path) -> None:
    def never_the_same(request: object, files: object) -> object:
        raise Changed("it changed")

    result = build_catalog(CatalogOptions(roots=(str(whole.parent),)), describe=never_the_same)  # type: ignore[arg-type]
    (entry,) = result.entries
    assert (entry.path, entry.health.value, entry.findings[0].code) == ("step-1", "writing", "shards.incomplete")


def test_a_checkpoint_directory_is_refused_as_a_root_with_the_name_of_what_holds_it(whole: pathlib.Path) -> None:
    with pytest.raises(RootError, match=r"itself a checkpoint \(dcp\).*/root/run'"):
        resolve_roots([str(whole)])
    assert resolve_roots([str(whole.parent)])[0]
