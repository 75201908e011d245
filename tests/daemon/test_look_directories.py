"""Looks at checkpoints that are directories: one checkpoint each, opened within bounds, and nothing inside another."""

import os
import pathlib
import shutil

import msgspec
import pytest

from ckptd.catalog.describe import describe_opened
from ckptd.catalog.description import Description
from ckptd.catalog.directories import list_directory
from ckptd.catalog.entry import Health, MetadataSource, Record, checkpoint_id, make_record
from ckptd.catalog.roots import Root
from ckptd.daemon.look import Sight, Viewer
from ckptd.daemon.settle import LookKind
from ckptd.validators.inspection import Format, Seal
from tests.catalog.checkpoint_directories import dcp_files, deepspeed_files, put, trainer_files

SUFFIXES = (".ckpt", ".pt", ".safetensors")


class Eye:
    """A viewer of one root, and what it has been told is listed."""

    def __init__(self, outputs: pathlib.Path, allowed: pathlib.Path) -> None:
        self.outputs = outputs
        self.root = Root(os.fsencode(outputs))
        self.listed: set[bytes] = set()
        self.viewer = Viewer(
            root=self.root,
            roots=[self.root],
            suffixes=SUFFIXES,
            allowed_targets=[os.fsencode(allowed)],
            is_deletion=lambda _path, _directory: True,
            is_directory=lambda path: path in self.listed,
        )

    def look(self, path: bytes, known: Record | None = None, *, must_read: bool = False) -> Sight:
        fd = os.open(self.outputs, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return self.viewer.look(fd, path, known, must_read=must_read)
        finally:
            os.close(fd)

    def kind(self, path: bytes, known: Record | None = None) -> LookKind:
        sight = self.look(path, known)
        if sight.opened is not None:
            sight.opened.close()
        return sight.kind

    def describe(self, path: bytes) -> tuple[Sight, Description]:
        sight = self.viewer.open_directory(path, self.look(path))
        assert sight.opened is not None
        try:
            return sight, describe_opened(sight.opened.request, sight.opened.files)
        finally:
            sight.opened.close()

    def record(self, path: bytes, health: Health = Health.VALID) -> Record:
        sight, description = self.describe(path)
        assert sight.identities is not None
        source = MetadataSource.NONE
        return make_record(self.root, path, description, health, identities=sight.identities, metadata_source=source)


@pytest.fixture
def eye(tmp_path: pathlib.Path) -> Eye:
    (tmp_path / "allowed").mkdir()
    outputs = tmp_path / "outputs"
    put(outputs / "run" / "step-1", dcp_files(1))
    put(outputs / "run" / "epoch=3.ckpt", deepspeed_files())
    put(outputs / "checkpoint-500", trainer_files())
    return Eye(outputs, tmp_path / "allowed")


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"run/step-1", Format.DCP),
        (b"run/epoch=3.ckpt", Format.DEEPSPEED),
        (b"checkpoint-500", Format.TRANSFORMERS),
    ],
)
def test_a_claimed_directory_is_seen_first_and_opened_then(eye: Eye, path: bytes, expected: Format) -> None:
    before = count_descriptors()
    seen = eye.look(path)
    assert (seen.kind, seen.opened) == (LookKind.SEEN, None)
    assert count_descriptors() == before
    sight, description = eye.describe(path)
    assert sight.identities == seen.identities
    assert (description.inspection.format, description.inspection.seal) == (expected, Seal.SEALED)
    assert sight.identities is not None
    assert description.inspection.identity == sight.identities.file
    assert description.inspection.checkpoint_path == os.fsdecode(eye.root.join(path))
    assert count_descriptors() == before


def test_a_hidden_directory_is_a_temporary_one(eye: Eye) -> None:
    put(eye.outputs / ".step-2.part", dcp_files(2) | {"inner.ckpt": b"x"})
    assert eye.kind(b".step-2.part") is LookKind.GONE
    assert eye.kind(b".step-2.part/.metadata") is LookKind.GONE
    assert eye.kind(b".step-2.part/inner.ckpt") is LookKind.GONE


@pytest.mark.parametrize("name", ["plain", "plain.ckpt", "checkpoint-600"])
def test_a_directory_that_no_format_claims_is_not_there(eye: Eye, name: str) -> None:
    put(eye.outputs / name, {"readme.txt": b"x"})
    assert eye.kind(os.fsencode(name)) is LookKind.GONE


@pytest.mark.parametrize(
    "path",
    [
        b"run/epoch=3.ckpt/checkpoint",
        b"run/epoch=3.ckpt/checkpoint/mp_rank_00_model_states.pt",
        b"checkpoint-500/model.safetensors",
        b"checkpoint-500/optimizer.pt",
        b"run/step-1/.metadata",
    ],
)
def test_what_is_inside_a_claimed_directory_is_not_there(eye: Eye, path: bytes) -> None:
    assert eye.kind(path) is LookKind.GONE


def test_a_file_of_any_name_is_not_there_once_the_directory_around_it_is_listed(eye: Eye) -> None:
    """Before that nobody lists the directory for its sake: it may hold 100,000 files."""
    put(eye.outputs / "run" / "step-1" / "deeper", {"other.ckpt": b"x"})
    assert eye.kind(b"run/step-1/deeper/other.ckpt") is LookKind.SEEN
    eye.listed.add(b"run/step-1")
    assert eye.kind(b"run/step-1/deeper/other.ckpt") is LookKind.GONE
    for path in (eye.outputs / "run" / "step-1").glob("*.distcp"):
        path.unlink()
    (eye.outputs / "run" / "step-1" / ".metadata").unlink()
    assert eye.kind(b"run/step-1/deeper/other.ckpt") is LookKind.SEEN


def test_an_unchanged_directory_is_not_opened_again(eye: Eye) -> None:
    record = eye.record(b"run/step-1")
    assert eye.kind(b"run/step-1", record) is LookKind.UNCHANGED
    assert eye.look(b"run/step-1", record, must_read=True).kind is LookKind.SEEN
    writing = msgspec.structs.replace(record, entry=msgspec.structs.replace(record.entry, health=Health.WRITING))
    assert eye.kind(b"run/step-1", writing) is LookKind.SEEN
    (eye.outputs / "run" / "step-1" / "meta.pt").write_bytes(b"")
    assert eye.kind(b"run/step-1", record) is LookKind.SEEN


def test_whoever_writes_to_any_of_its_files_is_a_writer(eye: Eye) -> None:
    with open(eye.outputs / "run" / "step-1" / "__0_1.distcp", "ab"):
        sight, _ = eye.describe(b"run/step-1")
        assert sight.opened is not None
        assert sight.opened.writer is True
    sight, _ = eye.describe(b"run/step-1")
    assert sight.opened is not None
    assert sight.opened.writer is False


def test_a_directory_that_changes_all_the_time_is_being_written(eye: Eye, monkeypatch: pytest.MonkeyPatch) -> None:
    def growing(fd: int) -> object:
        listing = list_directory(fd)
        with open(eye.outputs / "run" / "step-1" / "__0_0.distcp", "ab") as file:
            file.write(b"more")
        return listing

    monkeypatch.setattr("ckptd.catalog.opening.list_directory", growing)
    sight = eye.viewer.open_directory(b"run/step-1", eye.look(b"run/step-1"))
    assert (sight.kind, sight.opened, sight.seal, sight.code) == (
        LookKind.SEEN,
        None,
        Seal.OPEN,
        "shards.incomplete",
    )
    assert sight.place is None


def test_a_directory_that_is_gone_or_no_checkpoint_any_more_when_it_is_opened_is_gone(eye: Eye) -> None:
    seen = eye.look(b"run/step-1")
    shutil.rmtree(eye.outputs / "run" / "step-1")
    assert eye.viewer.open_directory(b"run/step-1", seen).kind is LookKind.GONE
    (eye.outputs / "run" / "step-1").mkdir()
    assert eye.viewer.open_directory(b"run/step-1", seen).kind is LookKind.GONE


# ---- links -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["last.ckpt", "newest"])
def test_a_link_to_a_claimed_directory_is_an_alias(eye: Eye, name: str) -> None:
    (eye.outputs / name).symlink_to("checkpoint-500")
    sight, description = eye.describe(os.fsencode(name))
    assert sight.alias_of == checkpoint_id(eye.root.name, b"checkpoint-500")
    assert sight.identities is not None
    assert sight.identities.link is not None
    assert sight.identities.shards == eye.record(b"checkpoint-500").identities.shards
    # The name that counts for the format is the directory's own.
    assert (description.inspection.format, description.inspection.is_valid) == (Format.TRANSFORMERS, True)
    assert description.inspection.checkpoint_path == os.fspath(eye.outputs / name)


def test_a_link_without_a_checkpoints_name_is_there_for_a_claimed_directory_only(eye: Eye) -> None:
    (eye.outputs / "to_plain").symlink_to("run")
    (eye.outputs / "to_file").symlink_to("checkpoint-500/model.safetensors")
    (eye.outputs / "to_part").symlink_to("run/epoch=3.ckpt/checkpoint")
    (eye.outputs / "dangling").symlink_to("nowhere")
    for name in (b"to_plain", b"to_file", b"to_part", b"dangling"):
        assert eye.kind(name) is LookKind.GONE
    (eye.outputs / "dangling.ckpt").symlink_to("nowhere")
    assert eye.look(b"dangling.ckpt").code == "link.dangling"


def test_a_claimed_directory_outside_is_seen_through_the_links_that_may_lead_there(
    eye: Eye, tmp_path: pathlib.Path
) -> None:
    put(tmp_path / "allowed" / "deep" / "step-2", dcp_files(2))
    put(tmp_path / "elsewhere" / "step-3", dcp_files(2))
    (eye.outputs / "far").symlink_to(tmp_path / "allowed" / "deep" / "step-2")
    (eye.outputs / "storage").symlink_to(tmp_path / "allowed")
    (eye.outputs / "forbidden").symlink_to(tmp_path / "elsewhere" / "step-3")
    for path in (b"far", b"storage/deep/step-2"):
        sight, description = eye.describe(path)
        assert (sight.alias_of, description.inspection.is_valid) == (None, True)
    forbidden = eye.look(b"forbidden")
    assert (forbidden.kind, forbidden.skipped_link) == (LookKind.GONE, True)
    assert eye.kind(b"storage/deep/step-2/.metadata") is LookKind.GONE
