"""What is described equals what torch itself says after loading, for every way of saving a tensor."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptd.validators import Format, Safety, Seal, inspect_checkpoint
from ckptd.validators.dtypes import DTYPES
from tests.validators.checkpoint_files import codes, inspect_bytes, saved, state_dict


def _dtypes() -> list[torch.dtype]:
    found = {getattr(torch, name) for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
    return sorted(found, key=str)


UNSAVABLE = re.compile(r"torch\.(q|u?int[1-7]$)")
"""Quantized ones need their own rebuild function; torch refuses to save the sub-byte integers."""


@pytest.mark.parametrize("dtype", _dtypes(), ids=str)
def test_every_dtype_of_torch_has_its_size_in_the_table(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    assert DTYPES[name].name == name
    assert DTYPES[name].itemsize == dtype.itemsize


@pytest.mark.parametrize("dtype", [dtype for dtype in _dtypes() if not UNSAVABLE.match(str(dtype))], ids=str)
def test_a_tensor_of_any_dtype_is_described_as_torch_describes_it(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.zeros(6 * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(2, 3)
    inspection = inspect_bytes(tmp_path, saved({"state_dict": {"w": tensor}}))
    (info,) = inspection.tensors
    assert inspection.findings == ()
    assert inspection.safety is Safety.SAFE
    assert (info.dtype, info.shape, info.stride) == (str(dtype).removeprefix("torch."), (2, 3), (3, 1))
    assert info.nbytes == tensor.numel() * tensor.element_size()


def _quantized() -> dict[str, torch.Tensor]:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # deprecated, but in files of old
        scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([0, 0])
        return {
            "quantized": torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8),
            "quantized by channel": torch.quantize_per_channel(torch.ones(2, 3), scales, zeros, 0, torch.qint8),
        }


BASE = torch.arange(24, dtype=torch.float32)
VIEWS = {
    "whole": BASE,
    "slice": BASE[3:9],
    "strided": BASE[::2],
    "transposed": BASE.reshape(4, 6).t(),
    "column": BASE.reshape(4, 6)[:, 2],
    "last": BASE[23:],
    "expanded": torch.ones(1).expand(5, 3),
    "0-dim": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "empty tail": BASE[24:],
    "channels last": torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "complex": torch.zeros(3, dtype=torch.complex64),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    "frozen parameter": torch.nn.Parameter(torch.ones(2, 2), requires_grad=False),
    "requires grad": torch.ones(3, requires_grad=True),
    "meta": torch.empty(3, 5, device="meta"),
    **_quantized(),
    "buffer": torch.nn.Buffer(torch.ones(3)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_described_as_torch_describes_it(name: str, tmp_path: Path) -> None:
    tensor = VIEWS[name]
    inspection = inspect_bytes(tmp_path, saved({"state_dict": {"w": tensor}}))
    (info,) = inspection.tensors
    assert inspection.is_valid, inspection.findings
    assert info.dtype == str(tensor.dtype).removeprefix("torch.")
    assert info.shape == tuple(tensor.shape)
    assert info.stride == tensor.stride()
    assert info.storage_offset == tensor.storage_offset()
    assert info.requires_grad == tensor.requires_grad
    assert inspection.n_parameters == tensor.numel()


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr"])
def test_a_sparse_tensor_is_one_tensor_of_its_dense_shape(layout: str, tmp_path: Path) -> None:
    dense = torch.eye(4)
    tensor: torch.Tensor = {
        "coo": lambda: dense.to_sparse(),
        "csr": lambda: dense.to_sparse_csr(),
        "csc": lambda: dense.to_sparse_csc(),
        "bsr": lambda: dense.to_sparse_bsr((2, 2)),
    }[layout]()
    inspection = inspect_bytes(tmp_path, saved({"state_dict": {"w": tensor, "b": torch.ones(2)}}))
    assert inspection.findings == ()
    assert inspection.safety is Safety.SAFE
    assert [(info.name, info.shape) for info in inspection.tensors] == [
        ("state_dict.w", (4, 4)),
        ("state_dict.b", (2,)),
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_nested_tensor_is_described_without_findings(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])
    inspection = inspect_bytes(tmp_path, saved({"state_dict": {"w": nested}}))
    assert inspection.findings == ()
    assert inspection.n_parameters == nested.numel()


def test_shared_memory_is_counted_once(tmp_path: Path) -> None:
    shared = torch.ones(10)
    parts = {"a": shared, "tied": shared, "first": shared[:4], "last": shared[6:], "own": torch.ones(3)}
    inspection = inspect_bytes(tmp_path, saved({"state_dict": parts}))
    assert len({info.storage for info in inspection.tensors}) == 2
    assert inspection.n_parameters == 13
    assert inspection.weights_bytes == 52


def test_views_side_by_side_are_all_counted(tmp_path: Path) -> None:
    shared = torch.ones(10)
    inspection = inspect_bytes(tmp_path, saved({"state_dict": {"first": shared[:4], "last": shared[4:]}}))
    assert inspection.n_parameters == 10


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module", None])
def test_names_and_counts_agree_with_the_model(protocol: int, key: str | None, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 2))
    weights = model.state_dict()
    value: Any = weights if key is None else {key: weights, "epoch": 0}
    inspection = inspect_bytes(tmp_path, saved(value, pickle_protocol=protocol))
    prefix = "" if key is None else f"{key}."
    assert [info.name for info in inspection.tensors] == [prefix + name for name in weights]
    assert {info.role for info in inspection.tensors} == {"weights"}
    assert inspection.n_parameters == sum(tensor.numel() for tensor in weights.values())
    assert inspection.parameters_by_part == {"0": 224, "1": 33, "2": 18}
    assert inspection.epoch == (None if key is None else 0)
    assert inspection.has_state_dict
    assert (inspection.format, inspection.seal, inspection.safety) == (Format.TORCH_ZIP, Seal.SEALED, Safety.SAFE)


def test_a_whole_pickled_module_has_the_names_of_its_state_dict(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    inspection = inspect_bytes(tmp_path, saved(model))
    assert [info.name for info in inspection.tensors] == list(model.state_dict())
    assert inspection.n_parameters == sum(tensor.numel() for tensor in model.state_dict().values())
    assert inspection.safety is Safety.UNKNOWN
    assert codes(inspection) == {"pickle.unknown_name", "pickle.whole_module"}
    assert inspection.model_class == "torch.nn.modules.container.Sequential"
    assert "torch.nn.modules.linear.Linear" in inspection.unsafe_globals


def test_an_optimizer_is_told_from_the_weights(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    value = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    inspection = inspect_bytes(tmp_path, saved(value))
    assert inspection.weights_bytes == 8 * 4
    assert inspection.optimizer_bytes == (2 * 8 + 2) * 4
    assert {info.name: info.role for info in inspection.tensors}["optimizer_state_dict.state.0.exp_avg"] == "optimizer"


def test_prefixes_of_wrappers_are_stripped_from_parts(tmp_path: Path) -> None:
    weights = {"module._orig_mod.model.encoder.w": torch.ones(3), "module._orig_mod.model.head.w": torch.ones(2)}
    assert inspect_bytes(tmp_path, saved({"state_dict": weights})).parameters_by_part == {"encoder": 3, "head": 2}


def test_dtypes_are_listed_by_use(tmp_path: Path) -> None:
    weights = {"a": torch.ones(9, dtype=torch.float16), "b": torch.ones(20), "c": torch.ones(1, dtype=torch.int64)}
    assert inspect_bytes(tmp_path, saved({"state_dict": weights})).dtypes == ("float32", "float16", "int64")


def test_a_file_is_read_by_name_and_by_path(tmp_path: Path) -> None:
    path = tmp_path / "ä b.ckpt"
    torch.save({"state_dict": state_dict()}, path)
    assert inspect_checkpoint(path).tensors == inspect_checkpoint(os.fspath(path)).tensors
    assert inspect_checkpoint(path).checkpoint_path == os.fspath(path)


def test_a_checkpoint_without_tensors_says_so(tmp_path: Path) -> None:
    inspection = inspect_bytes(tmp_path, saved({"epoch": 3}))
    assert codes(inspection) == {"state_dict.missing"}
    assert inspection.epoch == 3
    assert not inspection.is_valid


@pytest.mark.slow
def test_many_tensors_are_described_as_torch_describes_them(tmp_path: Path) -> None:
    weights = {f"layer{i // 7}.{i}": torch.ones(i % 5, 3) for i in range(20_000)}
    inspection = inspect_bytes(tmp_path, saved({"state_dict": weights}))
    assert codes(inspection) == {"architecture.unknown"}
    expected = [(f"state_dict.{name}", tuple(tensor.shape)) for name, tensor in weights.items()]
    assert [(info.name, info.shape) for info in inspection.tensors] == expected
