"""A file is called sealed only when it is whole, damage to its structure is found, and waiting is told from broken."""

import io
import os
import struct
import threading
import zipfile
from pathlib import Path

import msgspec
import pytest
import torch

from ckptd.validators import Changed, Safety, Seal, Unreadable, inspect_checkpoint, inspect_opened
from ckptd.validators.inspection import TensorInfo
from tests.validators.checkpoint_files import codes, inspect_bytes, saved, small_checkpoint, state_dict
from tests.validators.hostile import checkpoint_around, state_dict_of, tensor_opcodes

END = struct.Struct("<4s4H2IH")


def _truncations(data: bytes, directory: Path, lengths: range) -> None:
    path = directory / "truncated.ckpt"
    path.write_bytes(data)
    for length in reversed(lengths):
        os.truncate(path, length)
        inspection = inspect_checkpoint(path)
        assert not inspection.is_valid, f"called valid with {length} of {len(data)} bytes"
        assert inspection.seal is not Seal.SEALED, f"called sealed with {length} of {len(data)} bytes"
        if length:
            assert inspection.seal is Seal.OPEN, f"{length} of {len(data)} bytes: {inspection.findings}"
            assert codes(inspection) == {"archive.incomplete"}


def test_a_file_truncated_at_any_byte_is_open_never_sealed(tmp_path: Path) -> None:
    data = small_checkpoint()
    _truncations(data, tmp_path, range(len(data)))


def test_an_archive_inside_a_tensor_does_not_seal_an_unfinished_file(tmp_path: Path) -> None:
    """At some length the file ends in the inner archive's own, perfectly good end record."""
    inner = small_checkpoint()
    data = saved({"state_dict": {"w": torch.frombuffer(bytearray(inner * 2), dtype=torch.uint8)}})
    assert data.count(b"PK\x05\x06") == 3
    assert inspect_bytes(tmp_path, data).is_valid
    ends = [i for i in range(len(data)) if data.startswith(b"PK\x05\x06", i)]
    for end in ends[:2]:
        _truncations(data[: end + 60], tmp_path, range(end - 30, end + 60))


@pytest.mark.slow
def test_a_large_file_truncated_around_each_boundary_is_open(tmp_path: Path) -> None:
    data = saved({"state_dict": {str(i): torch.zeros(100_000) for i in range(4)}})
    for begin in range(0, len(data), 100_003):
        _truncations(data[: begin + 40], tmp_path, range(begin, min(begin + 40, len(data))))


def test_a_growing_file_is_open_until_its_last_byte(tmp_path: Path) -> None:
    data = small_checkpoint()
    path = tmp_path / "growing.ckpt"
    with open(path, "wb", buffering=0) as file:
        for begin in range(0, len(data), 97):
            if begin:
                assert inspect_checkpoint(path).seal is Seal.OPEN
            file.write(data[begin : begin + 97])
        assert inspect_checkpoint(path).is_valid


def test_space_set_aside_and_not_yet_filled_is_not_sealed(tmp_path: Path) -> None:
    data = small_checkpoint()
    assert inspect_bytes(tmp_path, data[:500] + b"\0" * (len(data) - 500)).seal is Seal.OPEN
    assert inspect_bytes(tmp_path, b"\0" * len(data)).seal is Seal.NONE


def test_missing_bytes_before_the_end_record_are_a_truncation_for_good(tmp_path: Path) -> None:
    data = small_checkpoint()
    inspection = inspect_bytes(tmp_path, data[:400] + data[700:])
    assert codes(inspection) == {"archive.truncated"}
    assert inspection.seal is not Seal.SEALED


def test_trailing_bytes_are_found(tmp_path: Path) -> None:
    data = small_checkpoint()
    for extra in (b"\0", b"\0" * 5000, b"x" * 21):
        inspection = inspect_bytes(tmp_path, data + extra)
        assert codes(inspection) == {"archive.trailing_data"}
        assert inspection.seal is not Seal.SEALED


def test_two_joined_archives_are_found(tmp_path: Path) -> None:
    assert codes(inspect_bytes(tmp_path, small_checkpoint() * 2)) == {"archive.trailing_data"}


def test_a_comment_that_ends_where_the_file_ends_is_no_trailing_data(tmp_path: Path) -> None:
    data = small_checkpoint()
    commented = data[:-2] + struct.pack("<H", 5) + b"hello"
    assert inspect_bytes(tmp_path, commented).is_valid
    assert inspect_bytes(tmp_path, commented[:-1]).seal is Seal.OPEN


def _description(info: TensorInfo) -> TensorInfo:
    """Without the recorded checksum: that one may be what was damaged, and shows when the bytes are read."""
    return msgspec.structs.replace(info, storage_crc32=None)


def test_no_flipped_bit_outside_the_tensors_goes_unnoticed_or_harms(tmp_path: Path) -> None:
    """Either a finding, or a description equal to the original's (padding, times, version numbers)."""
    data = saved({"state_dict": {"w": torch.ones(2)}, "epoch": 3})
    described = [_description(info) for info in inspect_bytes(tmp_path, data).tensors]
    harmless = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        inspection = inspect_bytes(tmp_path, bytes(flipped))
        if inspection.is_valid:
            harmless += 1
            assert [_description(info) for info in inspection.tensors] == described, position
            assert inspection.epoch == 3, position
            assert inspection.safety is Safety.SAFE
    assert 0 < harmless < len(data)


def test_a_flipped_bit_in_the_pickle_is_a_checksum_mismatch(tmp_path: Path) -> None:
    data = bytearray(small_checkpoint())
    data[data.index(b"state_dict")] ^= 1
    inspection = inspect_bytes(tmp_path, bytes(data))
    assert codes(inspection) == {"archive.checksum_mismatch"}
    assert inspection.tensors == ()


def test_an_archive_without_checksums_is_unverifiable_not_corrupt(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        data = small_checkpoint()
    finally:
        torch.serialization.set_crc32_options(True)
    inspection = inspect_bytes(tmp_path, data)
    assert codes(inspection) == {"archive.unverifiable"}
    assert inspection.is_valid
    assert inspection.content_id is None


def _rezipped(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, contents in entries:
            archive.writestr(name, contents)
    return buffer.getvalue()


def _entries(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def test_a_checkpoint_packed_again_by_another_tool_is_described_alike(tmp_path: Path) -> None:
    entries = _entries(small_checkpoint())
    expected = inspect_bytes(tmp_path, small_checkpoint())
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        inspection = inspect_bytes(tmp_path, _rezipped(entries, compression))
        assert inspection.is_valid, inspection.findings
        assert inspection.tensors == expected.tensors
        assert inspection.content_id == expected.content_id


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("double", ["archive/data.pkl", "archive/DATA.pkl", "ARCHIVE/data/0"])
def test_a_name_that_is_there_twice_is_ambiguous(double: str, tmp_path: Path) -> None:
    entries = [*_entries(small_checkpoint()), (double, b"other")]
    assert codes(inspect_bytes(tmp_path, _rezipped(entries))) == {"archive.ambiguous"}


def _patched(data: bytes, needle: bytes, offset: int, value: bytes, occurrence: int = 0) -> bytes:
    """`data` with `value` put `offset` bytes behind the given occurrence of `needle`."""
    position = -1
    for _ in range(occurrence + 1):
        position = data.index(needle, position + 1)
    return data[: position + offset] + value + data[position + offset + len(value) :]


CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
DAMAGE = {
    "encrypted": (CENTRAL, 8, b"\x09\x08", "archive.ambiguous"),
    "patch data": (CENTRAL, 8, b"\x28\x08", "archive.ambiguous"),
    "unknown compression": (CENTRAL, 10, b"\x0c\x00", "archive.malformed"),
    "two sizes of a stored record": (CENTRAL, 24, b"\x01\x00\x00\x00", "archive.malformed"),
    "another disk": (CENTRAL, 34, b"\x01\x00", "archive.malformed"),
    "header elsewhere": (CENTRAL, 42, b"\x01\x00\x00\x00", "archive.ambiguous"),
    "header behind the directory": (CENTRAL, 42, b"\x00\x00\x00\x7f", "archive.ambiguous"),
    "other name in the header": (LOCAL, 30, b"b", "archive.ambiguous"),
    "no signature": (LOCAL, 3, b"\x05", "format.unknown"),
    "other flags in the header": (LOCAL, 6, b"\x00\x00", "archive.ambiguous"),
    "shifted contents": (LOCAL, 28, b"\x13\x00", "archive.malformed"),
    "name longer than its entry": (CENTRAL, 28, b"\xff\xff", "archive.ambiguous"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_contradictions_in_the_archive_are_found(kind: str, tmp_path: Path) -> None:
    needle, offset, value, code = DAMAGE[kind]
    damaged = _patched(small_checkpoint(), needle, offset, value)
    assert code in codes(inspect_bytes(tmp_path, damaged))


def test_overlapping_records_are_ambiguous(tmp_path: Path) -> None:
    """Two entries whose bytes are the same: the header of the second is pointed at the first's."""
    data = checkpoint_around(state_dict_of(tensor_opcodes()), {"data/0": b"\0" * 16})
    central = data.index(CENTRAL)
    second = data.index(CENTRAL, central + 1)
    damaged = data[: second + 42] + data[central + 42 : central + 46] + data[second + 46 :]
    assert codes(inspect_bytes(tmp_path, damaged)) <= {"archive.ambiguous", "archive.malformed"}
    assert not inspect_bytes(tmp_path, damaged).is_valid


def test_a_hole_between_records_is_found(tmp_path: Path) -> None:
    data = checkpoint_around(state_dict_of(tensor_opcodes()), {"data/0": b"\0" * 16})
    hole = b"hidden bytes"
    directory = data.index(CENTRAL)
    fields = list(END.unpack(data[-END.size :]))
    fields[6] += len(hole)
    damaged = data[:directory] + hole + data[directory : -END.size] + END.pack(*fields)
    assert codes(inspect_bytes(tmp_path, damaged)) == {"archive.malformed"}


def test_end_records_that_name_different_directories_are_ambiguous(tmp_path: Path) -> None:
    data = small_checkpoint()
    fields = list(END.unpack(data[-END.size :]))
    fields[6] += 1
    assert codes(inspect_bytes(tmp_path, data[: -END.size] + END.pack(*fields))) == {"archive.ambiguous"}


def test_a_zip_file_that_is_no_checkpoint_is_called_so(tmp_path: Path) -> None:
    assert codes(inspect_bytes(tmp_path, _rezipped([("readme.txt", b"hello")]))) == {"format.unknown"}


def test_a_torchscript_program_is_recognised(tmp_path: Path) -> None:
    entries = [("m/data.pkl", b"\x80\x02N."), ("m/code/a.py", b"def f(): pass"), ("m/constants.pkl", b"\x80\x02).")]
    inspection = inspect_bytes(tmp_path, _rezipped(entries))
    assert inspection.format == "torchscript"
    assert codes(inspection) == {"torchscript.program", "pickle.malformed"}


def test_a_file_of_more_than_4_gigabytes_is_read_by_its_64_bit_fields(tmp_path: Path) -> None:
    """A sparse file: 4.1 GB of one tensor that occupy no space."""
    path = tmp_path / "large.ckpt"
    with torch.serialization.skip_data():
        huge = torch.empty(4_400_000_000, dtype=torch.uint8)  # never touched, so it costs no memory
        torch.save({"state_dict": {"w": huge, "after": torch.ones(3)}}, path)
    inspection = inspect_checkpoint(path)
    assert inspection.findings == ()
    assert [info.nbytes for info in inspection.tensors] == [4_400_000_000, 12]
    os.truncate(path, path.stat().st_size - 1)
    assert inspect_checkpoint(path).seal is Seal.OPEN


def _inspect_often(fd: int) -> None:
    for _ in range(10_000):
        inspect_opened(fd, "changing.ckpt")


def test_a_file_that_changes_meanwhile_describes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "changing.ckpt"
    path.write_bytes(small_checkpoint())
    stop = threading.Event()
    ticks = iter(range(10**9))

    def touch() -> None:
        while not stop.is_set():
            os.utime(path, ns=(next(ticks), next(ticks)))

    toucher = threading.Thread(target=touch)
    toucher.start()
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(Changed):
            _inspect_often(fd)
    finally:
        stop.set()
        toucher.join()
        os.close(fd)


def test_what_is_no_regular_file_is_unreadable_and_never_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.ckpt"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, tmp_path / "missing.ckpt"):
        with pytest.raises(Unreadable):
            inspect_checkpoint(path)


def test_the_reading_of_a_large_file_stays_below_one_percent(tmp_path: Path) -> None:
    from ckptd.validators.formats import torch_zip
    from ckptd.validators.reader import FileReader

    path = tmp_path / "large.ckpt"
    torch.save({"state_dict": {str(i): torch.zeros(250_000) for i in range(24)}}, path)
    fd = os.open(path, os.O_RDONLY)
    try:
        reader = FileReader(fd)
        source = torch_zip.Source(reader)
        archive = torch_zip.read_archive(source, torch_zip.find_directory(source))
        archive.read(archive.positions["large/data.pkl"])
        assert reader.bytes_read < reader.size // 100
    finally:
        os.close(fd)


def test_missing_data_of_a_tensor_is_found(tmp_path: Path) -> None:
    entries = [entry for entry in _entries(saved({"state_dict": state_dict()})) if not entry[0].endswith("data/1")]
    inspection = inspect_bytes(tmp_path, _rezipped(entries))
    assert codes(inspection) == {"tensor.missing_storage"}
    assert "model.encoder.bias" in (inspection.error_message or "")
