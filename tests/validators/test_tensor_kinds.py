"""Every kind of tensor that torch can save is described as torch loads it, in the zip format and in the legacy one."""

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import nn
from torch.masked import masked_tensor
from torch.testing._internal.two_tensor import TwoTensor

from ckptd.validators import Inspection, Level, inspect_checkpoint
from tests.validators.torch_facts import assert_agree, described_tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse:UserWarning"),
    pytest.mark.filterwarnings("ignore:ComplexHalf:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of (nested|MaskedTensors):UserWarning"),
]


class Sub(torch.Tensor):
    """A subclass without a word of its own."""


class Scaled(torch.Tensor):
    """A wrapper: what it looks like is not what it holds."""

    @staticmethod
    def __new__(cls, data: torch.Tensor, scale: torch.Tensor) -> Self:
        made = torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)
        made.data_as_integers, made.scale = data, scale
        return made

    def __init__(self, data: torch.Tensor, scale: torch.Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Scaled(args[0].data_as_integers, args[0].scale)
        raise NotImplementedError(func)


def _quantized(kind: str) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # deprecated, but in files of old
        scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([0, 0])
        if kind == "per tensor":
            return torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)
        if kind == "32 bits":
            return torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint32)
        if kind == "4 bits":
            return torch.quantize_per_channel(torch.ones(2, 5), scales, zeros.float(), 0, torch.quint4x2)
        if kind == "2 bits":
            return torch._empty_affine_quantized((3, 3), scale=1.0, zero_point=0, dtype=torch.quint2x4)
        return torch.quantize_per_channel(torch.ones(2, 3), scales, zeros, 0, torch.quint8)


def _with_attribute(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note, tensor.extra = "from there", torch.ones(9)
    return tensor


def _with_hook() -> torch.Tensor:
    tensor = torch.ones(3, requires_grad=True)
    (tensor * 2).sum().backward()
    return tensor


def _nested(layout: torch.layout) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=layout)


def _masked() -> Any:
    return masked_tensor(torch.ones(3, 4), torch.eye(3, 4) > 0)


def _complex() -> torch.Tensor:
    return torch.ones(3, dtype=torch.complex64)


KINDS: dict[str, Callable[[], torch.Tensor]] = {
    "quantized": lambda: _quantized("per tensor"),
    "quantized to 32 bits": lambda: _quantized("32 bits"),
    "quantized by channel": lambda: _quantized("per channel"),
    "quantized to 4 bits": lambda: _quantized("4 bits"),
    "quantized to 2 bits": lambda: _quantized("2 bits"),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "sparse parameter": lambda: nn.Parameter(torch.eye(4).to_sparse()),
    "sparse with values of vectors": lambda: torch.sparse_coo_tensor([[0, 0], [1, 1]], torch.ones(2, 3), (4, 4, 3)),
    "sparse rows": lambda: torch.eye(4).to_sparse_csr(),
    "sparse columns": lambda: torch.eye(4).to_sparse_csc(),
    "sparse blocks of rows": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "sparse blocks of columns": lambda: torch.eye(4).to_sparse_bsc((2, 2)),
    "nested": lambda: _nested(torch.strided),
    "jagged": lambda: _nested(torch.jagged),
    "two tensors": lambda: TwoTensor(torch.ones(3, 4), torch.ones(3, 4)),
    "parameter of two tensors": lambda: nn.Parameter(TwoTensor(torch.ones(3, 4), torch.ones(3, 4))),
    "masked": _masked,
    "scaled": lambda: Scaled(torch.ones(2, 3, dtype=torch.int8), torch.ones(1)),
    "subclass": lambda: torch.ones(3).as_subclass(Sub),
    "parameter of a subclass": lambda: nn.Parameter(torch.ones(3).as_subclass(Sub)),
    "attributes": lambda: _with_attribute(torch.ones(3)),
    "parameter with attributes": lambda: _with_attribute(nn.Parameter(torch.ones(3))),
    "gradient": _with_hook,
    "parameter": lambda: nn.Parameter(torch.ones(2, 2)),
    "frozen parameter": lambda: nn.Parameter(torch.ones(2, 2), requires_grad=False),
    "buffer": lambda: nn.Buffer(torch.ones(3)),
    "conjugated": lambda: _complex().conj(),
    "imaginary part of a conjugate": lambda: _complex().conj().imag,
    "negated": lambda: torch._neg_view(torch.ones(4)),
    "meta": lambda: torch.empty(3, 5, device="meta"),
    "meta parameter": lambda: nn.Parameter(torch.empty(3, 5, device="meta")),
    "meta of 4 bits": lambda: torch.empty(3, dtype=torch.uint4, device="meta"),
    "0-dim": lambda: torch.tensor(2.5),
    "empty": lambda: torch.empty(0, 3),
    "empty with sides": lambda: torch.empty(2, 0, 3),
    "strided": lambda: torch.arange(24.0)[1::2],
    "transposed": lambda: torch.arange(24.0).reshape(4, 6).t(),
    "expanded": lambda: torch.ones(1).expand(5, 3),
    "overlapping": lambda: torch.arange(6.0).as_strided((3, 2), (1, 1)),
    "channels last": lambda: torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "half complex": lambda: torch.zeros(6, dtype=torch.float16).view(torch.complex32),
    "double complex": lambda: torch.ones(3, dtype=torch.complex128),
    "4 bit floats in pairs": lambda: torch.zeros(3, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "16 bits": lambda: torch.zeros(4, dtype=torch.int16).view(torch.bits16),
}  # fmt: skip

NOT_LOADED = {"nested", "half complex", "4 bit floats in pairs", "16 bits"}
"""torch saves these in the legacy format and cannot load them: it has no storage class for the types, and asks for the
sizes of nested tensors before it has read them."""


def _saved(tensors: Any, path: Path, form: str) -> None:
    if form == "legacy":
        torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=False)
    elif form == "zip":
        torch.save({"state_dict": tensors}, path)
    else:
        torch.serialization.set_crc32_options(False)
        try:
            torch.save({"state_dict": tensors}, path)
        finally:
            torch.serialization.set_crc32_options(True)


def _compared(path: Path, saved: dict[str, torch.Tensor], *, load: bool = True) -> Inspection:
    """Inspect, and compare with what torch loads, or saved where it cannot load that."""
    loaded = torch.load(path, weights_only=False)["state_dict"] if load else saved
    inspection = inspect_checkpoint(path)
    assert inspection.is_valid, inspection.findings
    assert inspection.n_parameters == sum(tensor.numel() for tensor in loaded.values())
    assert_agree(described_tensors(inspection), {f"state_dict.{name}": tensor for name, tensor in loaded.items()})
    return inspection


@pytest.mark.parametrize("form", ["zip", "no checksums", "legacy"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_is_described_as_torch_loads_it(kind: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    tensors = {"w": KINDS[kind](), "b": torch.ones(2)}
    _saved(tensors, path, form)
    assert _compared(path, tensors, load=form != "legacy" or kind not in NOT_LOADED).is_valid


def test_shared_memory_is_told_by_the_storage(tmp_path: Path) -> None:
    shared = torch.ones(10)
    tensors = {"a": shared, "tied": shared, "first": shared[:4], "last": shared[6:], "own": torch.ones(3)}
    for form in ("zip", "legacy"):
        _saved(tensors, tmp_path / form, form)
        inspection = inspect_checkpoint(tmp_path / form)
        assert_agree(described_tensors(inspection), {f"state_dict.{name}": tensor for name, tensor in tensors.items()})
        assert len({info.storage for info in inspection.tensors}) == 2
        assert inspection.n_parameters == 13
        assert inspection.weights_bytes == 52


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of one, without a network."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_a_distributed_tensor_is_described_as_the_whole_that_it_stands_for(one_process: None, tmp_path: Path) -> None:
    from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor

    whole = distribute_tensor(torch.ones(4, 6), DeviceMesh("cpu", [0]), [Shard(0)])
    torch.save({"state_dict": {"w": whole, "p": nn.Parameter(whole)}}, tmp_path / "distributed.ckpt")
    inspection = inspect_checkpoint(tmp_path / "distributed.ckpt")
    assert inspection.is_valid, inspection.findings
    assert [(info.name, info.shape, info.requires_grad) for info in inspection.tensors] == [
        ("state_dict.w", (4, 6), False),
        ("state_dict.p", (4, 6), True),
    ]


PARTS = {
    "sparse": lambda: torch.eye(4).to_sparse(),
    "nested": lambda: _nested(torch.strided),
    "jagged": lambda: _nested(torch.jagged),
    "two tensors": lambda: TwoTensor(torch.ones(3, 4), torch.ones(3, 4)),
    "quantized by channel": lambda: _quantized("per channel"),
    "attributes": lambda: _with_attribute(torch.ones(3)),
}


@pytest.mark.parametrize("kind", PARTS)
def test_every_part_of_a_tensor_is_looked_for_in_the_file(kind: str, tmp_path: Path) -> None:
    """Each storage that belongs to it is missed when it is gone, though only the whole is listed."""
    path = tmp_path / "one.ckpt"
    _saved({"w": PARTS[kind]()}, path, "zip")
    whole = path.read_bytes()
    assert inspect_checkpoint(path).is_valid
    storages = {int(name) for name in _storage_names(whole)}
    assert len(storages) > 1
    for storage in storages:
        renamed = whole.replace(b"/data/%d" % storage, b"/dada/%d" % storage)
        path.write_bytes(renamed)
        found = {finding.code for finding in inspect_checkpoint(path).findings}
        assert "tensor.missing_storage" in found, storage


def _storage_names(archive: bytes) -> set[bytes]:
    return set(re.findall(rb"/data/(\d+)", archive))


@pytest.mark.parametrize("kind", ["two tensors", "quantized by channel", "jagged", "sparse"])
def test_a_tensor_of_several_parts_can_be_verified_to_its_last_byte(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    _saved({"w": PARTS[kind]()}, path, "zip")
    inspection = inspect_checkpoint(path, Level.CHECKSUM)
    assert inspection.is_valid
    assert inspection.level is Level.CHECKSUM
