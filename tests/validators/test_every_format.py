"""One suite for every format: whole, growing, cut, damaged, followed by something else, or another kind of file."""

import io
import random
import tarfile
from pathlib import Path

import msgspec
import pytest

from ckptd.validators import Format, Inspection, Level, Seal, inspect_checkpoint
from tests.validators.checkpoint_files import codes
from tests.validators.format_cases import CASES, Case
from tests.validators.torch_facts import assert_agree, described_tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

every_format = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
with_checksums = pytest.mark.parametrize("case", [c for c in CASES if c.has_checksums], ids=lambda case: case.name)
without_checksums = pytest.mark.parametrize(
    "case", [c for c in CASES if not c.has_checksums], ids=lambda case: case.name
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "epoch-05.ckpt"


def _bytes(case: Case, path: Path) -> bytes:
    case.write(path)
    return path.read_bytes()


def _travels(inspection: Inspection) -> bool:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(inspection), type=Inspection) == inspection


@every_format
def test_a_whole_file_is_valid_and_described_as_its_own_library_loads_it(case: Case, path: Path) -> None:
    case.write(path)
    inspection = inspect_checkpoint(path)
    assert inspection.is_valid
    assert codes(inspection) == case.findings
    assert (inspection.format, inspection.seal, inspection.safety) == (case.format, Seal.SEALED, case.safety)
    loaded = case.load(path)
    assert_agree(described_tensors(inspection), loaded)
    assert inspection.n_parameters == sum(tensor.numel() for tensor in loaded.values())
    assert inspection.weights_bytes == sum(tensor.nbytes for tensor in loaded.values())
    assert inspection.has_state_dict
    assert _travels(inspection)


@every_format
@pytest.mark.parametrize("level", [Level.CHECKSUM, Level.WEIGHTS])
def test_a_whole_file_is_valid_at_every_level(case: Case, level: Level, path: Path) -> None:
    case.write(path)
    inspection = inspect_checkpoint(path, level)
    assert inspection.is_valid, inspection.findings
    assert inspection.digest is not None


@every_format
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors", ""])
def test_a_format_is_recognised_by_its_contents_whatever_its_suffix(case: Case, suffix: str, tmp_path: Path) -> None:
    case.write(tmp_path / f"file{suffix}")
    assert inspect_checkpoint(tmp_path / f"file{suffix}").format is case.format


@every_format
def test_a_prefix_is_never_valid_and_always_may_still_grow(case: Case, path: Path) -> None:
    data = _bytes(case, path)
    step = max(1, len(data) // 700)
    for length in (*range(len(data) - 1, len(data) - 40, -1), *range(len(data) - 40, -1, -step)):
        with open(path, "r+b") as file:
            file.truncate(length)
        inspection = inspect_checkpoint(path)
        assert not inspection.is_valid, length
        assert inspection.seal is not Seal.SEALED, length
        if length >= case.open_from:
            assert inspection.seal is case.cut_seal, (length, inspection.findings)
            assert codes(inspection) == {"archive.incomplete"}, length


@every_format
def test_a_file_that_grows_in_pieces_is_whole_only_with_its_last_byte(case: Case, path: Path, tmp_path: Path) -> None:
    data = _bytes(case, path)
    growing = tmp_path / "growing.ckpt"
    with open(growing, "wb", buffering=0) as file:
        for begin in range(0, len(data), 997):
            assert not inspect_checkpoint(growing).is_valid
            file.write(data[begin : begin + 997])
    assert inspect_checkpoint(growing).is_valid


@every_format
@pytest.mark.parametrize("extra", [b"\0", b"x" * 5000, b"\0" * 70_000])
def test_bytes_behind_the_end_are_found(case: Case, extra: bytes, path: Path) -> None:
    path.write_bytes(_bytes(case, path) + extra)
    inspection = inspect_checkpoint(path)
    assert not inspection.is_valid
    # Zeros as long as an archive's longest end look like an archive whose end is still to be written.
    assert codes(inspection) - case.findings <= {"archive.trailing_data", "archive.incomplete"}


@every_format
def test_two_files_in_one_are_not_taken_for_either(case: Case, path: Path) -> None:
    data = _bytes(case, path)
    path.write_bytes(data + data)
    assert not inspect_checkpoint(path).is_valid


@with_checksums
def test_every_flipped_bit_that_changes_what_is_loaded_is_found(case: Case, path: Path) -> None:
    """The padding between records is neither loaded nor covered by a checksum."""
    data = _bytes(case, path)
    before = inspect_checkpoint(path, Level.CHECKSUM)
    source = random.Random(7)
    unseen = 0
    for position in source.sample(range(len(data)), 400):
        flipped = bytearray(data)
        flipped[position] ^= 1 << source.randrange(8)
        path.write_bytes(flipped)
        after = inspect_checkpoint(path, Level.CHECKSUM)
        assert _travels(after)
        if after.is_valid:
            unseen += 1
            assert after.tensors == before.tensors, position
            assert after.content_id == before.content_id, position
            assert after.digest != before.digest, position
    assert unseen < 400


@without_checksums
def test_without_checksums_a_flipped_bit_shows_in_the_digest(case: Case, path: Path) -> None:
    data = _bytes(case, path)
    before = inspect_checkpoint(path, Level.CHECKSUM)
    assert "archive.unverifiable" in codes(before)
    assert before.level is Level.STRUCTURE
    source = random.Random(7)
    for position in source.sample(range(len(data) - len(data) // 4, len(data)), 40):
        flipped = bytearray(data)
        flipped[position] ^= 1 << source.randrange(8)
        path.write_bytes(flipped)
        after = inspect_checkpoint(path, Level.CHECKSUM)
        assert _travels(after)
        assert after.digest != before.digest


FOREIGN: dict[str, bytes] = {
    "empty": b"",
    "zeros": b"\0" * 5000,
    "html": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "json": b'{"error": "not found"}',
    "noise": bytes((i * 137 + 200) % 256 for i in range(999)),
    "tar": b"",
}


def _tar(path: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(path, "inner.ckpt")
    return buffer.getvalue()


@every_format
@pytest.mark.parametrize("kind", FOREIGN)
def test_something_else_that_takes_a_files_place_is_not_taken_for_it(case: Case, kind: str, path: Path) -> None:
    case.write(path)
    before = inspect_checkpoint(path)
    path.write_bytes(_tar(path) if kind == "tar" else FOREIGN[kind])
    inspection = inspect_checkpoint(path)
    assert not inspection.is_valid
    assert inspection.format is Format.UNKNOWN
    assert all(code.startswith("format.") for code in codes(inspection))
    assert inspection.tensors == ()
    assert inspection.identity != before.identity


@every_format
def test_a_copy_is_the_same_checkpoint(case: Case, path: Path, tmp_path: Path) -> None:
    data = _bytes(case, path)
    copy = tmp_path / "another name.pt"
    copy.write_bytes(data)
    first, second = inspect_checkpoint(path, Level.CHECKSUM), inspect_checkpoint(copy, Level.CHECKSUM)
    assert second.is_valid
    assert (first.archive_id, first.content_id, first.digest) == (second.archive_id, second.content_id, second.digest)
