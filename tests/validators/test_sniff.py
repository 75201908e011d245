"""What is not a torch archive is named for what it is."""

import io
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
import torch

from ckptd.validators import Format, Safety, Seal
from tests.validators.checkpoint_files import inspect_bytes


def _tar(member: str = "a", **pax_headers: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(member)
        info.pax_headers = pax_headers
        archive.addfile(info, io.BytesIO())
    return buffer.getvalue()


def _torch_tar() -> bytes:
    """What torch 0.1.9 wrote: see `legacy_load` in torch/serialization.py, which reads it."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return 7 if value is marker else None

    marker = object()
    dumped = io.BytesIO()
    Pickler(dumped, 2).dump({"w": marker})
    storages = b"".join(pickle.dumps(part, 2) for part in (1, (5, "cpu", torch.FloatStorage)))
    storages += struct.pack("<q4f", 4, 1, 2, 3, 4) + pickle.dumps([], 2)
    tensors = pickle.dumps(1, 2) + pickle.dumps((7, 5, torch.FloatTensor), 2)
    tensors += struct.pack("<i4x", 2) + struct.pack("<5q", 2, 2, 2, 1, 0)
    parts = {
        "sys_info": pickle.dumps({"protocol_version": 1000, "little_endian": True}, 2),
        "pickle": dumped.getvalue(),
        "tensors": tensors,
        "storages": storages,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
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
    """Written as torch 0.1.9 did, and read by the torch of today."""
    data = _torch_tar()
    with open(tmp_path / "old.pt", "wb") as file:
        file.write(data)
    loaded = torch.load(tmp_path / "old.pt", weights_only=False)
    assert loaded["w"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    for kind in (data, _tar("sys_info"), _tar("pickle", comment="größer")):
        inspection = inspect_bytes(tmp_path, kind)
        assert inspection.format is Format.TORCH_TAR
        assert [finding.code for finding in inspection.findings] == ["format.unsupported"]
        assert "before version 0.1.10" in inspection.findings[0].message
        assert "weights_only=False" in inspection.findings[0].message
        assert inspection.safety is Safety.UNKNOWN
        assert inspection.seal is Seal.NONE


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_first_bytes_of_an_archive_are_an_archive_to_come(length: int, tmp_path: Path) -> None:
    assert inspect_bytes(tmp_path, b"PK\x03\x04"[:length]).seal is Seal.OPEN
