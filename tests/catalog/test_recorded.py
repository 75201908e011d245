"""The digest that a training recorded while saving, against the bytes as they are read."""

import os
import pathlib

import pytest
import torch
import yaml

from ckptd.catalog.describe import describe_checkpoint
from ckptd.catalog.description import Description, RecordedDigest
from ckptd.catalog.recorded import Agreement, agreement, compared
from ckptd.catalog.sidecar import Author, render
from ckptd.catalog.verification import Verification, apply, is_damaged
from ckptd.validators import Format, Level, inspect_checkpoint
from tests.catalog.verified_files import MONDAY, described, flip, verify
from tests.validators.checkpoint_files import saved, state_dict
from tests.validators.format_files import WRITERS


def without_checksums() -> bytes:
    """What torch.save writes where it was told to leave them out."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        return bytes(saved({"state_dict": state_dict()}))
    finally:
        torch.serialization.set_crc32_options(before)


def vouch(path: pathlib.Path, *, digest: str | None = None, by: str = "ckptd 1.0 lightning") -> pathlib.Path:
    """Write a sidecar as a training does that took the digest while it saved this file."""
    from ckptd.catalog.describe import sidecar_for

    digest = digest or inspect_checkpoint(path, Level.CHECKSUM).digest
    metadata = sidecar_for(describe_checkpoint(str(path)), digest=digest)
    sidecar = path.with_name(path.name + ".metadata.yaml")
    text = render(metadata, author=Author.TRAINING).decode()
    sidecar.write_text(text.replace(metadata.source.generated_by or "", by) + "user: {note: mine}\n")
    return sidecar


def shown(path: pathlib.Path) -> Description:
    """As the daemon shows it after its first verification."""
    return apply(described(path), verify(path))


def errors(description: Description) -> list[str]:
    return [found.code for found in description.findings if found.severity == "error"]


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "a.ckpt"
    path.write_bytes(without_checksums())
    return path


def damage(path: pathlib.Path) -> None:
    """One bit of the last tensor, time set back."""
    data = path.read_bytes()
    flip(path, data.rindex(state_dict()["model.head.weight"].numpy().tobytes()))


def test_without_a_recorded_digest_nothing_can_be_said_of_a_file_without_checksums(file: pathlib.Path) -> None:
    damage(file)
    assert errors(shown(file)) == []
    assert shown(file).inspection.level is Level.STRUCTURE


def test_a_flip_is_found_at_the_first_verification(file: pathlib.Path) -> None:
    vouch(file)
    damage(file)
    found = shown(file)
    assert errors(found) == ["archive.checksum_mismatch"]
    assert not found.inspection.is_valid
    assert "training recorded" in found.findings[0].message
    assert is_damaged(described(file), verify(file))


@pytest.mark.parametrize("kind", [*WRITERS, "zip without checksums"], ids=str)
def test_bytes_as_saved_are_verified_to_level_checksum_in_every_format(tmp_path: pathlib.Path, kind: str) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(WRITERS[Format(kind)](state_dict()) if kind in WRITERS else without_checksums())
    vouch(path)
    found = shown(path)
    assert found.inspection.level is Level.CHECKSUM
    assert errors(found) == []
    assert "archive.unverifiable" not in {one.code for one in (*found.findings, *found.inspection.findings)}


def test_a_copy_that_was_altered_and_a_file_that_was_written_anew_cannot_be_told_apart_and_are_a_warning(
    file: pathlib.Path,
) -> None:
    vouch(file)
    damage(file)
    os.utime(file, (MONDAY, MONDAY))
    found = shown(file)
    assert errors(found) == []
    assert "metadata.other_digest" in {one.code for one in found.findings}
    assert found.inspection.level is Level.STRUCTURE


def test_a_copy_is_proved_whatever_its_time(file: pathlib.Path) -> None:
    vouch(file)
    os.utime(file, (MONDAY, MONDAY))
    assert shown(file).inspection.level is Level.CHECKSUM


@pytest.mark.parametrize("by", ["ckptd", "ckptd 1.0"])
def test_a_digest_that_ckptd_read_from_the_disk_proves_nothing_of_the_saving(file: pathlib.Path, by: str) -> None:
    """Also where a person edited the sidecar since."""
    vouch(file, by=by)
    assert described(file).recorded is None
    assert shown(file).inspection.level is Level.STRUCTURE


def test_a_digest_of_another_kind_says_nothing(file: pathlib.Path) -> None:
    vouch(file, digest="sha256:" + 64 * "0")
    found = shown(file)
    assert errors(found) == []
    assert "metadata.other_digest" not in {one.code for one in found.findings}


def test_a_sidecar_that_comes_after_the_verification_proves_or_accuses_all_the_same(file: pathlib.Path) -> None:
    vouch(file).rename(file.with_name("kept"))
    damage(file)
    verification = verify(file)
    assert errors(apply(described(file), verification)) == []
    file.with_name("kept").rename(file.with_name("a.ckpt.metadata.yaml"))
    assert errors(apply(described(file), verification)) == ["archive.checksum_mismatch"]


def test_a_touched_file_stays_damaged_until_it_is_read_again(file: pathlib.Path) -> None:
    vouch(file)
    damage(file)
    verification = verify(file)
    file.chmod(0o600)
    assert errors(apply(described(file), verification)) == ["archive.checksum_mismatch"]


def test_a_record_that_fails_its_own_checksum_is_told_once(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(saved({"state_dict": state_dict()}))
    vouch(path)
    damage(path)
    found = [one for one in shown(path).findings if one.code == "archive.checksum_mismatch"]
    assert len(found) == 1
    assert "model.head.weight" in found[0].message


def test_a_stale_sidecar_accuses_nobody(file: pathlib.Path) -> None:
    sidecar = vouch(file)
    document = yaml.safe_load(sidecar.read_text())
    document["source"] |= {"size_bytes": 1, "digest": "blake3:" + 64 * "0"}
    sidecar.write_text(yaml.safe_dump(document))
    assert errors(shown(file)) == []


def test_reading_every_byte_here_and_now_compares_as_well(file: pathlib.Path) -> None:
    vouch(file)
    assert describe_checkpoint(str(file), level=Level.CHECKSUM).inspection.level is Level.CHECKSUM
    damage(file)
    assert errors(describe_checkpoint(str(file), level=Level.CHECKSUM)) == ["archive.checksum_mismatch"]


def test_nothing_known_is_no_agreement(file: pathlib.Path) -> None:
    description = described(file)
    identity = description.inspection.identity
    assert agreement(None, "blake3:1", identity) is Agreement.UNKNOWN
    assert agreement(RecordedDigest("blake3:1"), None, identity) is Agreement.UNKNOWN
    assert compared(description, "blake3:1") == description


def test_a_failed_reading_says_nothing_of_the_digest(file: pathlib.Path) -> None:
    vouch(file)
    description = described(file)
    verification = Verification(
        identity=description.inspection.identity, asked=Level.CHECKSUM, level=Level.STRUCTURE, verified_at=MONDAY
    )
    assert not is_damaged(description, verification)
    assert errors(apply(description, verification)) == []
