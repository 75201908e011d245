"""Level `checksum`: an altered byte in any record is found and named, and nothing is claimed that was not verified."""

import io
import os
import subprocess
import zipfile
import zlib
from pathlib import Path

import blake3
import pytest
import safetensors.torch
import torch

from ckptd.validators import Inspection, Level, Seal, inspect_checkpoint, reader
from ckptd.validators.checks import checksum
from ckptd.validators.formats import torch_zip
from ckptd.validators.sharded.ranges import RangeReader
from tests.validators.checkpoint_files import codes, saved, small_checkpoint, state_dict


def _verified(directory: Path, data: bytes) -> Inspection:
    path = directory / "bytes.ckpt"
    path.write_bytes(data)
    return inspect_checkpoint(path, Level.CHECKSUM)


def _records(data: bytes) -> dict[str, tuple[int, int]]:
    """Name → where the contents begin, and their size."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
    starts = {}
    for info in infos:
        at = info.header_offset
        lengths = data[at + 26 : at + 30]
        skipped = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        starts[info.filename] = (at + 30 + skipped, info.compress_size)
    return starts


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def test_a_sound_file_is_verified_and_digested_whole(tmp_path: Path) -> None:
    data = small_checkpoint()
    inspection = _verified(tmp_path, data)
    assert inspection.is_valid
    assert inspection.level is Level.CHECKSUM
    assert inspection.digest == f"blake3:{blake3.blake3(data).hexdigest()}"
    plain = inspect_checkpoint(tmp_path / "bytes.ckpt")
    assert (plain.level, plain.digest, plain.tensors) == (Level.STRUCTURE, None, inspection.tensors)


def test_one_altered_bit_in_any_record_is_found_in_that_record(tmp_path: Path) -> None:
    data = small_checkpoint()
    for name, (begin, size) in _records(data).items():
        for position in {begin, begin + size // 2, begin + size - 1} if size else ():
            inspection = _verified(tmp_path, _flipped(data, position))
            assert codes(inspection) == {"archive.checksum_mismatch"}, (name, position)
            assert len(inspection.findings) == 1
            assert name.removeprefix("archive/") in inspection.findings[0].message


def test_damage_that_torch_loads_silently_is_found_with_the_tensor_it_hit(tmp_path: Path) -> None:
    data = small_checkpoint()
    begin, _ = _records(data)["archive/data/1"]
    damaged = _flipped(data, begin + 1)
    loaded = torch.load(io.BytesIO(damaged), weights_only=True)
    assert not torch.equal(loaded["state_dict"]["model.encoder.bias"], state_dict()["model.encoder.bias"])
    (found,) = _verified(tmp_path, damaged).findings
    assert "data/1" in found.message
    assert "state_dict.model.encoder.bias" in found.message
    assert "encoder.weight" not in found.message


def test_all_tensors_of_a_shared_and_of_a_sparse_record_are_named(tmp_path: Path) -> None:
    shared = torch.arange(8.0)
    sparse = torch.eye(3).to_sparse()
    data = saved({"state_dict": {"a": shared, "b": shared[2:], "s": sparse}})
    found = set()
    for name, (begin, size) in _records(data).items():
        if "/data/" in name and size:
            found.add(_verified(tmp_path, _flipped(data, begin)).findings[0].message)
    assert any("state_dict.a, state_dict.b" in message for message in found)
    assert sum("state_dict.s" in message for message in found) == 2


def test_swapped_and_zeroed_pages_in_a_large_record_are_found(tmp_path: Path) -> None:
    """Records longer than a piece are read in several; their pieces' borders hide nothing."""
    data = saved({"state_dict": {"w": torch.randn(3_000_000), "v": torch.randn(700_000)}})
    records = _records(data)
    assert _verified(tmp_path, data).is_valid
    begin, size = records["archive/data/0"]
    assert size > 8 * reader.PIECE_BYTES
    a, b = begin + 4096, begin + size - 8192
    swapped = data[:a] + data[b : b + 4096] + data[a + 4096 : b] + data[a : a + 4096] + data[b + 4096 :]
    assert len(swapped) == len(data)
    assert "state_dict.w" in (_verified(tmp_path, swapped).error_message or "")
    begin, size = records["archive/data/1"]
    zeroed = data[:begin] + bytes(4096) + data[begin + 4096 :]
    assert "state_dict.v" in (_verified(tmp_path, zeroed).error_message or "")
    for border in range(0, len(data), reader.PIECE_BYTES):
        touched = [name for name, (at, n) in records.items() if at <= border < at + n]
        assert codes(_verified(tmp_path, _flipped(data, border))) == {"archive.checksum_mismatch"} or not touched


def test_an_archive_without_checksums_is_digested_and_not_called_verified(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        data = small_checkpoint()
    finally:
        torch.serialization.set_crc32_options(True)
    inspection = _verified(tmp_path, data)
    assert codes(inspection) == {"archive.unverifiable"}
    assert inspection.is_valid
    assert inspection.level is Level.STRUCTURE
    assert inspection.digest is not None
    begin, _ = _records(data)["archive/data/0"]
    assert _verified(tmp_path, _flipped(data, begin)).digest != inspection.digest


def _punched(path: Path, begin: int, size: int) -> bool:
    """Take a range of a file away, so that it reads as zeros; False where the file system cannot."""
    command = ["fallocate", "--punch-hole", "--offset", str(begin), "--length", str(size), str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("kind", ["legacy", "safetensors", "zip without checksums"])
def test_holes_in_tensors_are_told_where_no_checksum_can_tell(kind: str, tmp_path: Path) -> None:
    state = {"first": torch.randn(300_000), "second": torch.randn(300_000)}
    path = tmp_path / "sparse.ckpt"
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.serialization.set_crc32_options(kind == "legacy")
        try:
            torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=kind != "legacy")
        finally:
            torch.serialization.set_crc32_options(True)
    assert codes(inspect_checkpoint(path, Level.CHECKSUM)) == {"archive.unverifiable"}
    begin = path.read_bytes().index(state["second"][:100].numpy().tobytes())
    if not _punched(path, -(-begin // 4096) * 4096, 8192):
        pytest.skip("this file system makes no holes")
    inspection = inspect_checkpoint(path, Level.CHECKSUM)
    assert codes(inspection) == {"archive.unverifiable", "archive.holes"}
    (message,) = (found.message for found in inspection.findings if found.code == "archive.holes")
    assert "second" in message
    assert "first" not in message
    assert inspection.is_valid


def test_a_hole_in_a_record_with_a_checksum_is_an_altered_record(tmp_path: Path) -> None:
    path = tmp_path / "sparse.ckpt"
    torch.save({"state_dict": {"w": torch.randn(300_000)}}, path)
    if not _punched(path, 65536, 8192):
        pytest.skip("this file system makes no holes")
    assert codes(inspect_checkpoint(path, Level.CHECKSUM)) == {"archive.checksum_mismatch"}


def test_zeros_that_were_saved_sparsely_are_sound(tmp_path: Path) -> None:
    path = tmp_path / "sparse.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(300_000)}}, path)
    subprocess.run(["cp", "--sparse=always", path, tmp_path / "copy.ckpt"], check=True)
    inspection = inspect_checkpoint(tmp_path / "copy.ckpt", Level.CHECKSUM)
    assert inspection.findings == ()
    assert inspection.level is Level.CHECKSUM


def test_bytes_between_the_records_belong_to_somebody(tmp_path: Path) -> None:
    """A gap is an error already at level structure: the data of two archives cannot lie in one unseen."""
    data = small_checkpoint()
    begin, size = _records(data)["archive/data/0"]
    for level in (Level.STRUCTURE, Level.CHECKSUM):
        path = tmp_path / "gap.ckpt"
        path.write_bytes(data[: begin + size] + bytes(64) + data[begin + size :])
        assert not inspect_checkpoint(path, level).is_valid


def test_a_range_of_a_file_is_verified_as_a_file(tmp_path: Path) -> None:
    """Shards of torch.distributed.checkpoint hold archives one after the other."""
    data = saved({"state_dict": {"w": torch.randn(400_000)}})
    for whole, sound in ((data, True), (_flipped(data, len(data) // 2), False)):
        path = tmp_path / "joined"
        path.write_bytes(b"x" * 1001 + whole + b"y" * 99)
        fd = os.open(path, os.O_RDONLY)
        try:
            source = torch_zip.Source(RangeReader(reader.FileReader(fd), 1001, len(whole)))
            archive = torch_zip.read_archive(source, torch_zip.find_directory(source))
            verification = checksum.verify_archive(archive)
        finally:
            os.close(fd)
        assert verification.digest == f"blake3:{blake3.blake3(whole).hexdigest()}"
        assert (verification.mismatched == ()) is sound


def test_many_altered_records_are_counted_not_listed(tmp_path: Path) -> None:
    data = saved({"state_dict": {f"w{i}": torch.randn(3) for i in range(50)}})
    damaged = bytearray(data)
    for name, (begin, _) in _records(data).items():
        if "/data/" in name:
            damaged[begin] ^= 1
    findings = _verified(tmp_path, bytes(damaged)).findings
    assert len(findings) == 10
    assert findings[-1].message == "and 41 more like these"


def _deflated(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def test_compressed_records_are_verified_by_what_they_expand_to(tmp_path: Path) -> None:
    data = _deflated(saved({"state_dict": {"zeros": torch.zeros(2_000_000), "w": torch.randn(500)}}))
    assert _verified(tmp_path, data).findings == ()
    begin, size = _records(data)["archive/data/1"]
    for position in range(begin, begin + size, max(1, size // 40)):
        inspection = _verified(tmp_path, _flipped(data, position))
        assert codes(inspection) == {"archive.checksum_mismatch"}, position
        assert "state_dict.w" in (inspection.error_message or "")


def test_the_name_of_the_level_stays_when_the_file_is_not_whole(tmp_path: Path) -> None:
    inspection = _verified(tmp_path, small_checkpoint()[:-1])
    assert inspection.seal is Seal.OPEN
    assert inspection.level is Level.STRUCTURE
    assert inspection.digest is None


def test_the_fast_checksum_agrees_with_zlib() -> None:
    data = bytes(range(256)) * 5000
    assert checksum.crc32(memoryview(data)[3:], 7) == zlib.crc32(data[3:], 7)


def test_nothing_is_inspected_at_level_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inspects nothing"):
        inspect_checkpoint(tmp_path / "any.ckpt", Level.NONE)
