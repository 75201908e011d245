"""Modules that were pickled whole are described as their own `state_dict()` names their tensors."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ckptd.validators import Inspection, Safety, inspect_checkpoint
from tests.validators.checkpoint_files import codes, saved
from tests.validators.hostile import checkpoint_around
from tests.validators.torch_facts import assert_agree, described_tensors

pytestmark = pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated:UserWarning")


class Block(nn.Module):
    """Parameters, buffers of both kinds, tensors that are neither, absent ones."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("cache", torch.ones(7), persistent=False)
        self.register_buffer("absent", None)
        self.register_parameter("missing", None)
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.plain = torch.ones(5)
        self.numbers = {"a": [torch.ones(6)]}


class Tied(nn.Module):
    """One parameter under two names, one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.first = nn.Linear(2, 2)
        self.second = self.first


class Children(nn.Module):
    """Children in lists and dictionaries, some absent."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.by_name = nn.ModuleDict({"x.y".replace(".", "_"): nn.Conv2d(1, 2, 3), "norm": nn.BatchNorm2d(2)})
        self.parameters_ = nn.ParameterList([torch.ones(2), torch.ones(3)])
        self.named = nn.ParameterDict({"w": nn.Parameter(torch.ones(3))})
        self.nothing = None
        self.register_module("absent", None)
        self.owner = [self]


def _weight_normed() -> nn.Module:
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return nn.utils.weight_norm(nn.Linear(3, 2))


def _spectral() -> nn.Module:
    return nn.utils.spectral_norm(nn.Linear(3, 2))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "sequential": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4)),
    "block": Block,
    "tied": Tied,
    "children": Children,
    "data parallel": lambda: nn.DataParallel(Block()),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "transformer": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False),
    "recurrent": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "weight norm": _weight_normed,
    "spectral norm": _spectral,
    "frozen": lambda: nn.Linear(3, 2).requires_grad_(requires_grad=False),
    "half": lambda: nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).half(),
    "single": lambda: nn.Linear(3, 2),
    "without parameters": nn.ReLU,
    "traced by fx": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU())),
}


def _inspected(value: Any, path: Path, **options: Any) -> Inspection:
    path.write_bytes(saved(value, **options))
    return inspect_checkpoint(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 4"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_whole_module_has_the_tensors_of_its_state_dict(kind: str, form: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    options = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}, "protocol 4": {"pickle_protocol": 4}}
    inspection = _inspected(model, tmp_path / "whole.pt", **options[form])
    assert inspection.is_valid, inspection.findings
    assert "pickle.whole_module" in codes(inspection)
    assert inspection.model_class == f"{type(model).__module__}.{type(model).__qualname__}".replace(
        "torch.fx.graph_module.GraphModule.__new__.<locals>.GraphModuleImpl", "torch.fx.graph_module.GraphModule"
    )
    assert inspection.safety is not Safety.SAFE
    assert inspection.weights_only is False
    assert_agree(described_tensors(inspection), model.state_dict(keep_vars=True))


@pytest.mark.parametrize("key", ["model", "net", "module", "generator"])
def test_a_module_in_a_dictionary_is_found_by_its_key(key: str, tmp_path: Path) -> None:
    model = Block()
    inspection = _inspected({"epoch": 3, key: model, "optimizer": {"state": {}}}, tmp_path / "whole.pt")
    assert inspection.epoch == 3
    assert inspection.model_class == f"{__name__}.Block"
    assert "pickle.whole_module" in codes(inspection)
    weights = {f"{key}.{name}": tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    assert_agree(described_tensors(inspection), weights)
    assert inspection.n_parameters == sum(tensor.numel() for tensor in weights.values())
    assert set(inspection.parameters_by_part) == {"linear", "mean", "scale"}


def test_two_modules_are_both_weights(tmp_path: Path) -> None:
    value = {"generator": nn.Linear(3, 2), "discriminator": nn.Linear(2, 1)}
    inspection = _inspected(value, tmp_path / "both.pt")
    assert inspection.n_parameters == 11
    assert inspection.model_class == "torch.nn.modules.linear.Linear"


def test_a_module_beside_a_state_dict_or_in_the_hyper_parameters_is_not_the_model(tmp_path: Path) -> None:
    value = {
        "state_dict": nn.Linear(3, 2).state_dict(),
        "criterion": nn.BCELoss(weight=torch.ones(2)),
        "hyper_parameters": {"backbone": nn.Linear(5, 5), "lr": 0.1},
    }
    inspection = _inspected(value, tmp_path / "beside.pt")
    assert inspection.model_class is None
    assert "pickle.whole_module" not in codes(inspection)
    assert inspection.n_parameters == 8
    assert inspection.hyper_parameters == {"backbone": "<module torch.nn.modules.linear.Linear>", "lr": 0.1}


def test_what_a_module_keeps_outside_its_state_dict_is_listed_apart_and_once(tmp_path: Path) -> None:
    inspection = _inspected(nn.Sequential(Block(), nn.LSTM(2, 2)), tmp_path / "whole.pt")
    others = [info.name for info in inspection.tensors if info.role == "other"]
    assert others == ["0.cache", "0.plain", "0.numbers.a.0"]


def test_memory_shared_between_names_is_counted_once(tmp_path: Path) -> None:
    model = Tied()
    inspection = _inspected(model, tmp_path / "tied.pt")
    assert inspection.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert len(described_tensors(inspection)) == 6


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_packed_weights_of_a_quantized_module_are_its_weights(tmp_path: Path) -> None:
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear}, torch.qint8)
    whole = _inspected(model, tmp_path / "whole.pt")
    parts = _inspected(model.state_dict(), tmp_path / "parts.pt")
    named = {info.name: (info.dtype, info.shape) for info in whole.tensors if info.role == "weights"}
    assert named == {
        "0._packed_params._packed_params.0": ("qint8", (4, 3)),
        "0._packed_params._packed_params.1": ("float32", (4,)),
    }
    for name, facts in named.items():
        assert {info.name: (info.dtype, info.shape) for info in parts.tensors}[name] == facts
    assert whole.n_parameters == 16
    assert parts.n_parameters == 18  # with scale and zero point, which the module keeps as plain numbers


def _holder(**modules: Any) -> nn.Module:
    made = nn.Module()
    made.__dict__["_modules"] = modules
    return made


def test_a_module_inside_itself_ends(tmp_path: Path) -> None:
    inner = nn.Linear(2, 2)
    loop = _holder(inner=inner)
    loop.__dict__["_modules"]["again"] = loop
    inspection = _inspected(loop, tmp_path / "loop.pt")
    assert [info.name for info in inspection.tensors] == ["inner.weight", "inner.bias"]


def test_modules_that_double_at_each_level_are_stopped_by_a_limit(tmp_path: Path) -> None:
    """30 modules that name 2^30 tensors."""
    made: nn.Module = nn.Linear(1, 1)
    for _ in range(30):
        made = _holder(a=made, b=made)
    inspection = _inspected(made, tmp_path / "doubling.pt")
    assert codes(inspection) >= {"pickle.limits"}
    assert not inspection.is_valid


def test_modules_nested_without_end_are_stopped_by_a_limit(tmp_path: Path) -> None:
    name = b"cm\nM\n"
    tables = b"}(X\x0b\0\0\0_parameters}X\x08\0\0\0_buffers}X\x08\0\0\0_modules}X\x01\0\0\0m"
    deep = b"\x80\x02" + (name + b")\x81" + tables) * 5000 + b"N" + b"sub" * 5000 + b"."
    assert pickle.loads(deep.replace(name, b"cargparse\nNamespace\n"))
    path = tmp_path / "deep.pt"
    path.write_bytes(checkpoint_around(deep))
    assert "pickle.limits" in codes(inspect_checkpoint(path))


def test_what_only_looks_like_a_module_is_an_object_like_others(tmp_path: Path) -> None:
    value = SimpleNamespace(_parameters=3, _buffers=[], _modules=None, w=torch.ones(2))
    inspection = _inspected(value, tmp_path / "fake.pt")
    assert inspection.model_class is None
    assert [info.name for info in inspection.tensors] == ["w"]
