"""Values of small tensors are read from the file as torch reads them, whatever their type, view and byte order."""

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptd.validators import inspect_checkpoint
from tests.validators.checkpoint_files import inspect_bytes, saved, state_dict
from tests.validators.hostile import checkpoint_around

pytestmark = [
    pytest.mark.filterwarnings("ignore:ComplexHalf:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse:UserWarning"),
]

REALS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]
REALS += [torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int64, torch.int32, torch.int16, torch.int8]
REALS += [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float8_e8m0fnu]
NOT_SWAPPED = [torch.uint16, torch.uint32, torch.uint64, torch.complex32]
"""torch turns the bytes of a storage round by its type, and storages of these have none: it loads wrong values
from another machine's file."""
COMPLEX = [torch.complex32, torch.complex64, torch.complex128]


def _shown(value: Any, directory: Path) -> Any:
    """What an inspection shows of a value among the hyper-parameters."""
    checkpoint = {"state_dict": state_dict(), "hyper_parameters": {"value": value}}
    inspection = inspect_bytes(directory, saved(checkpoint))
    assert inspection.is_valid
    assert inspection.hyper_parameters is not None
    return inspection.hyper_parameters["value"]


def _said(tensor: torch.Tensor) -> Any:
    """What torch says of the same."""
    if tensor.dim():
        return [_said(part) for part in tensor]
    value = tensor.to(torch.float64).item() if tensor.is_floating_point() else tensor.item()
    if isinstance(value, complex):
        return str(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _swapped(archive: bytes, sizes: dict[str, int]) -> bytes:
    """The archive as a big-endian machine writes it: each element of each storage the other way round."""
    records: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(archive)) as before:
        for name in before.namelist():
            short = name.partition("/")[2]
            data = before.read(name)
            size = sizes.get(short)
            if short.startswith("data/"):
                assert size is not None, short
                records[short] = b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))
            elif short == "data.pkl":
                pickle = data
    return checkpoint_around(pickle, records, byteorder=b"big")


@pytest.mark.parametrize("dtype", [*REALS, *COMPLEX], ids=str)
def test_values_of_every_dtype_are_those_that_torch_reads_in_either_byte_order(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    tensor = torch.tensor([[1.0, 0.0, 2.0], [4.0, 0.5, 8.0]]).to(dtype)
    single = tensor[0, 2].clone()
    data = saved({"hyper_parameters": {"all": tensor, "one": single}, "state_dict": {}})
    size = dtype.itemsize // (2 if dtype in COMPLEX else 1)
    big = _swapped(data, {"data/0": size, "data/1": size})
    if dtype not in NOT_SWAPPED:
        loaded = torch.load(io.BytesIO(big), weights_only=True)["hyper_parameters"]
        assert _said(loaded["all"]) == _said(tensor)
    for each in (data, big):
        shown = inspect_bytes(tmp_path, each).hyper_parameters
        assert shown == {"all": _said(tensor), "one": _said(single)}


VIEWS: dict[str, Callable[[], torch.Tensor]] = {
    "0-dim": lambda: torch.tensor(0.25),
    "one element": lambda: torch.tensor([[0.25]]),
    "strided": lambda: torch.arange(12.0)[1::3],
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).t(),
    "expanded": lambda: torch.arange(2.0).expand(3, 2),
    "tail": lambda: torch.arange(100.0)[97:],
    "parameter": lambda: torch.nn.Parameter(torch.tensor([1.0, 2.0])),
    "conjugate": lambda: torch.tensor([1 + 2j, 3j]).conj(),
    "one conjugate": lambda: torch.tensor(1 + 2j).conj(),
    "negative": lambda: torch._neg_view(torch.tensor([1.0, -2.0])),
    "imaginary part of a conjugate": lambda: torch.tensor([1 + 2j, 3j]).conj().imag,
    "not finite": lambda: torch.tensor([math.nan, math.inf, -math.inf]),
    "32 elements": lambda: torch.arange(32),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_small_view_is_shown_by_value(kind: str, tmp_path: Path) -> None:
    tensor = VIEWS[kind]()
    expected = tensor.item() if tensor.numel() == 1 and not tensor.is_complex() else _said(tensor.detach())
    assert _shown(tensor, tmp_path) == expected


SUMMARIES: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "33 elements": (lambda: torch.arange(33), "<tensor int64 [33]>"),
    "few elements far apart": (lambda: torch.zeros(3000)[::1500], "<tensor float32 [2]>"),
    "empty": (lambda: torch.zeros(0, 3), "<tensor float32 [0, 3]>"),
    "meta": (lambda: torch.empty(2, device="meta"), "<tensor float32 [2]>"),
    "sparse": (lambda: torch.eye(2).to_sparse(), "<tensor float32 [2, 2]>"),
    "pairs of 4 bits": (
        lambda: torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "<tensor float4_e2m1fn_x2 [2]>"
    ),
    "of many sides": (lambda: torch.zeros(1, 1, 1, 1, 1, 1, 1, 1, 2), f"<tensor float32 {[*[1] * 8, 2]}>"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SUMMARIES)
def test_other_tensors_are_shown_by_type_and_shape(kind: str, tmp_path: Path) -> None:
    make, expected = SUMMARIES[kind]
    assert _shown(make(), tmp_path) == expected


def test_a_negated_score_is_negative(tmp_path: Path) -> None:
    checkpoint = {"state_dict": state_dict(), "metrics": {"gain": torch._neg_view(torch.tensor(1.5))}}
    assert inspect_bytes(tmp_path, saved(checkpoint)).metrics == {"gain": -1.5}


def test_a_complex_number_is_no_score(tmp_path: Path) -> None:
    checkpoint = {"state_dict": state_dict(), "metrics": {"odd": torch.tensor(1j), "fine": torch.tensor(2.0)}}
    assert inspect_bytes(tmp_path, saved(checkpoint)).metrics == {"fine": 2.0}


def test_values_are_read_from_the_legacy_format_too(tmp_path: Path) -> None:
    parameters = {"mean": torch.tensor([0.5, 0.25]), "half": torch.tensor(1.5).half()}
    path = tmp_path / "legacy.pt"
    torch.save({"state_dict": state_dict(), "hparams": parameters}, path, _use_new_zipfile_serialization=False)
    assert inspect_checkpoint(path).hyper_parameters == {"mean": [0.5, 0.25], "half": 1.5}
