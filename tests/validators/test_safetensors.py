"""The rules of safetensors' own reader, and what it leaves to the JSON library."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from ckptd.validators import Inspection, Seal, inspect_checkpoint
from tests.validators.checkpoint_files import codes, inspect_bytes
from tests.validators.format_files import as_safetensors, weights

W = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
V = {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}


def _file(header: Any, data: bytes = b"\0" * 12) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(**changes: Any) -> dict[str, Any]:
    return {"w": W | changes, "v": V}


HOSTILE: dict[str, tuple[bytes, str]] = {
    "no JSON": (_file(b"{nonsense}  "), "archive.malformed"),
    "no UTF-8": (_file(b'{"\xff": 1}'), "archive.malformed"),
    "half a character": (_file(b'{"\\ud800": %s}' % json.dumps(W).encode(), b"\0" * 8), "archive.malformed"),
    "NaN": (_file(b'{"w": NaN}'), "archive.malformed"),
    "a list inside": (_file({"w": [1, 2]}), "archive.malformed"),
    "nested 60,000 deep": (_file(b'{"a":' * 60_000 + b"1" + b"}" * 60_000), "archive.malformed"),
    "a number of 9,000 digits": (_file(b'{"w": %s}' % (b"9" * 9000)), "archive.malformed"),
    "metadata that is no text": (_file({"__metadata__": {"epoch": 3}, "w": W, "v": V}), "archive.malformed"),
    "metadata that is a list": (_file({"__metadata__": [], "w": W, "v": V}), "archive.malformed"),
    "a negative side": (_file(_entry(shape=[-2])), "archive.malformed"),
    "a side that is true": (_file(_entry(shape=[True, 2])), "archive.malformed"),
    "a fractional side": (_file(_entry(shape=[2.0])), "archive.malformed"),
    "three offsets": (_file(_entry(data_offsets=[0, 8, 8])), "archive.malformed"),
    "no shape": (_file({"w": {"dtype": "F32", "data_offsets": [0, 12]}}), "archive.malformed"),
    "shape larger than extent": (_file(_entry(shape=[3])), "tensor.out_of_bounds"),
    "sides whose product overflows": (_file(_entry(shape=[2**32, 2**32])), "tensor.out_of_bounds"),
    "end before begin": (_file(_entry(data_offsets=[8, 0])), "tensor.out_of_bounds"),
    "an unknown type": (_file(_entry(dtype="F31")), "format.unsupported"),
    "an odd number of four bits": (_file(_entry(dtype="F4", shape=[4, 4, 1])), "format.unsupported"),
    "a type of six bits": (_file(_entry(dtype="F6_E2M3")), "format.unsupported"),
    "padding that is no space": (_file(json.dumps({"w": W, "v": V}).encode() + b" \n"), "archive.malformed"),
    "a hole": (_file({"w": W, "v": V | {"data_offsets": [12, 16]}}, b"\0" * 16), "archive.malformed"),
    "bytes before the first": (_file({"v": V}), "archive.malformed"),
    "an overlap": (_file({"w": W, "v": V | {"data_offsets": [4, 8]}}, b"\0" * 8), "archive.ambiguous"),
    "a name twice": (_file(b'{"w": %s, "w": %s}' % ((json.dumps(W).encode(),) * 2)), "archive.ambiguous"),
    "a field twice": (_file(b'{"w": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}'),
                      "archive.ambiguous"),
    "a name of 5,000 characters": (_file({"w" * 5000: W}, b"\0" * 8), "pickle.limits"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_header_that_breaks_the_rules_is_named_and_never_waited_for(kind: str, tmp_path: Path) -> None:
    data, code = HOSTILE[kind]
    inspection = inspect_bytes(tmp_path, data)
    assert codes(inspection) == {code}
    assert inspection.seal is Seal.NONE


LAXER = {"a name twice", "a name of 5,000 characters", "padding that is no space"}
"""What the reference reader lets pass, against the format's description."""


@pytest.mark.parametrize("kind", sorted(set(HOSTILE) - LAXER))
def test_the_reference_reader_refuses_what_is_refused_here(kind: str) -> None:
    with pytest.raises((safetensors.SafetensorError, KeyError)):
        safetensors.torch.load(HOSTILE[kind][0])


def test_the_base_of_the_hostile_files_is_sound(tmp_path: Path) -> None:
    data = _file({"w": W, "v": V})
    assert inspect_bytes(tmp_path, data).findings == ()
    assert set(safetensors.torch.load(data)) == {"w", "v"}


def test_tensors_may_come_in_any_order_and_the_header_be_padded(tmp_path: Path) -> None:
    data = _file(json.dumps({"v": V, "w": W}).encode() + b"   ")
    inspection = inspect_bytes(tmp_path, data)
    assert inspection.is_valid
    assert [info.name for info in inspection.tensors] == ["v", "w"]


def test_metadata_is_shown_as_hyper_parameters(tmp_path: Path) -> None:
    inspection = inspect_bytes(tmp_path, as_safetensors(weights()))
    assert inspection.hyper_parameters == {"format": "pt", "note": "größer"}


def test_a_file_without_tensors_has_no_state_dict(tmp_path: Path) -> None:
    inspection = inspect_bytes(tmp_path, _file({}, b""))
    assert codes(inspection) == {"state_dict.missing"}
    assert inspection.seal is Seal.SEALED


DTYPES = [torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64]
DTYPES += [torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
DTYPES += [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz]
DTYPES += [torch.float8_e8m0fnu, torch.float4_e2m1fn_x2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_described_as_the_reference_reader_loads_it(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    made = {"w": torch.zeros(4, 6 * dtype.itemsize, dtype=torch.uint8).view(dtype)}
    safetensors.torch.save_file(made, path)
    loaded = safetensors.torch.load_file(path)["w"]
    inspection = inspect_checkpoint(path)
    (info,) = inspection.tensors
    assert inspection.findings == ()
    assert (info.dtype, info.shape, info.stride) == (str(loaded.dtype).removeprefix("torch."), (4, 6), loaded.stride())
    assert (info.nbytes, inspection.n_parameters) == (loaded.nbytes, loaded.numel())


def test_every_dtype_of_the_reference_reader_that_torch_has_is_known(tmp_path: Path) -> None:
    """It names those that it knows when it refuses another."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(_file(_entry(dtype="F31")))
    with pytest.raises(safetensors.SafetensorError) as refused:
        safetensors.torch.load_file(path)
    known = set(re.findall("`([A-Z0-9_]+)`", str(refused.value))) - {"F31"}
    assert len(known) > 20
    for name in known - {"F6_E2M3", "F6_E3M2"}:
        found = codes(
            inspect_bytes(tmp_path, _file({"w": {"dtype": name, "shape": [0, 2], "data_offsets": [0, 0]}}, b""))
        )
        assert found == set(), name


def _header_of(size: int, tmp_path: Path) -> Inspection:
    return inspect_bytes(tmp_path, struct.pack("<Q", size) + b"{")


def test_a_header_longer_than_the_format_allows_is_no_safetensors_file(tmp_path: Path) -> None:
    assert _header_of(100_000_000, tmp_path).seal is Seal.OPEN
    assert codes(_header_of(100_000_001, tmp_path)) == {"format.unknown"}
