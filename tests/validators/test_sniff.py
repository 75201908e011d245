"""What is not a torch archive is named for what it is."""

import io
import pickle
import tarfile
import zlib
from pathlib import Path

import pytest

from ckptd.validators import Format, Safety, Seal
from tests.validators.checkpoint_files import inspect_bytes


def _tar(member: str = "a") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(member), io.BytesIO())
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FILES = {
    "empty": (b"", "format.not_a_checkpoint", "empty"),
    "zeros": (b"\0" * 9000, "format.not_a_checkpoint", "zeros"),
    "html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "format.not_a_checkpoint", "HTML"),
    "xml": (b'<?xml version="1.0"?><Error/>', "format.not_a_checkpoint", "XML"),
    "lfs": (LFS, "format.not_a_checkpoint", "Git LFS"),
    "json": (b'{"message": "not found"}', "format.not_a_checkpoint", "JSON"),
    "text": ("löschen\n".encode() * 2000, "format.not_a_checkpoint", "text"),
    "pickle": (pickle.dumps({"a": 1}), "format.unsupported", "pickle"),
    "gzip": (b"\x1f\x8b" + zlib.compress(b"x"), "format.unsupported", "gzip"),
    "tar": (_tar(), "format.unsupported", "tar"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(range(200)), "format.unsupported", "HDF5"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x031.8" + bytes(range(200)), "format.unsupported", "ONNX"),
    "noise": (bytes((i * 137 + 200) % 256 for i in range(999)), "format.unknown", "c8 51"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_foreign_file_is_named(kind: str, tmp_path: Path) -> None:
    data, code, word = FILES[kind]
    inspection = inspect_bytes(tmp_path, data)
    (finding,) = inspection.findings
    assert finding.code == code
    assert word in finding.message
    assert inspection.seal is Seal.NONE
    assert not inspection.is_valid


def test_the_tar_files_of_the_first_torch_are_recognised(tmp_path: Path) -> None:
    inspection = inspect_bytes(tmp_path, _tar("sys_info"))
    assert inspection.format is Format.TORCH_LEGACY
    assert [finding.code for finding in inspection.findings] == ["format.unsupported"]
    assert "first versions of torch.save" in inspection.findings[0].message
    assert inspection.safety is Safety.UNKNOWN


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_first_bytes_of_an_archive_are_an_archive_to_come(length: int, tmp_path: Path) -> None:
    assert inspect_bytes(tmp_path, b"PK\x03\x04"[:length]).seal is Seal.OPEN
