"""TorchScript archives are described by what their pickles and their code say, and nothing of them is compiled."""

import io
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckptd.validators import Format, Inspection, Level, Safety, Seal, inspect_checkpoint
from tests.validators.checkpoint_files import codes, inspect_bytes
from tests.validators.hostile import name_opcode
from tests.validators.torch_facts import assert_agree, described_tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("mean", torch.ones(2, 2))
        self.register_buffer("cache", torch.ones(5), persistent=False)
        self.plain = torch.ones(6)
        self.words = ["a", "b"]
        self.table = {"x": torch.ones(7)}
        self.scale = 2.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.scale + self.plain[0]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Inner()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.small = nn.Linear(4, 2).half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return x + torch.tensor([1.0, 2.0, 3.0, 4.0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def _traced() -> Any:
    return torch.jit.trace(Net(), torch.ones(1, 3))


PROGRAMS: dict[str, Callable[[], Any]] = {
    "scripted": lambda: torch.jit.script(Net()),
    "traced": _traced,
    "tied": lambda: torch.jit.script(Tied()),
    "sequential": lambda: torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())),
}


def _saved(program: Any) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(program, buffer)
    return buffer.getvalue()


def _program() -> bytes:
    return _saved(PROGRAMS["traced"]())


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_has_the_tensors_that_torch_loads_from_it(kind: str, tmp_path: Path) -> None:
    data = _saved(PROGRAMS[kind]())
    inspection = inspect_bytes(tmp_path, data)
    loaded = torch.jit.load(io.BytesIO(data))
    weights = loaded.state_dict(keep_vars=True)
    assert codes(inspection) == {"torchscript.program"}
    assert (inspection.format, inspection.seal) == (Format.TORCHSCRIPT, Seal.SEALED)
    assert inspection.is_valid
    assert inspection.has_state_dict
    assert_agree(described_tensors(inspection), weights)
    assert inspection.n_parameters == sum({t.data_ptr(): t.numel() for t in weights.values()}.values())


def test_the_class_is_the_one_that_was_compiled(tmp_path: Path) -> None:
    _program()  # the next program of the same classes has other names for them
    assert inspect_bytes(tmp_path, _program()).model_class == f"{__name__}.Net"
    linear = _saved(torch.jit.script(nn.Linear(2, 2)))
    assert inspect_bytes(tmp_path, linear).model_class == "torch.nn.modules.linear.Linear"


def test_a_program_is_never_called_safe_and_torch_agrees(tmp_path: Path) -> None:
    data = _program()
    inspection = inspect_bytes(tmp_path, data)
    assert inspection.safety is Safety.UNKNOWN
    assert inspection.weights_only is False
    assert inspection.unsafe_globals == inspection.imports == ()
    with pytest.raises(RuntimeError, match="weights_only"), warnings.catch_warnings(action="ignore"):
        torch.load(io.BytesIO(data), weights_only=True)


def test_plain_attributes_and_constants_are_listed_apart(tmp_path: Path) -> None:
    inspection = inspect_bytes(tmp_path, _saved(torch.jit.script(Net())))
    others = {info.name: info.shape for info in inspection.tensors if info.role == "other"}
    assert others == {"encoder.plain": (6,), "encoder.table.x": (7,)}
    traced = inspect_bytes(tmp_path, _program())
    constants = [info for info in traced.tensors if info.name.startswith("CONSTANTS.")]
    assert (4,) in [info.shape for info in constants]
    assert {info.role for info in constants} == {"other"}
    assert all(info.storage.startswith("constants/") for info in constants)


def test_frozen_weights_are_constants_and_the_file_is_whole(tmp_path: Path) -> None:
    frozen = torch.jit.freeze(torch.jit.trace(nn.Linear(3, 4).eval(), torch.ones(1, 3)))
    inspection = inspect_bytes(tmp_path, _saved(frozen))
    assert codes(inspection) == {"torchscript.program"}
    assert list(frozen.state_dict()) == []
    assert inspection.n_parameters is None
    assert sorted(info.shape for info in inspection.tensors) == [(4,), (4, 3)]


def test_a_function_without_module_is_valid(tmp_path: Path) -> None:
    @torch.jit.script
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x + x

    inspection = inspect_bytes(tmp_path, _saved(twice))
    assert codes(inspection) == {"torchscript.program"}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_packed_weights_of_a_quantized_program_are_its_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear}, torch.qint8)
    inspection = inspect_bytes(tmp_path, _saved(torch.jit.script(model)))
    assert inspection.is_valid
    assert {info.name: (info.dtype, info.shape) for info in inspection.tensors if info.role == "weights"} == {
        "0._packed_params._packed_params.0": ("qint8", (4, 3)),
        "0._packed_params._packed_params.1": ("float32", (4,)),
    }


@pytest.mark.filterwarnings("ignore:Lite Interpreter:DeprecationWarning")
def test_a_program_for_the_small_interpreter_is_described_as_well(tmp_path: Path) -> None:
    program = torch.jit.script(nn.Sequential(nn.Linear(3, 4)))
    program._save_for_lite_interpreter(str(tmp_path / "small.ptl"))
    inspection = inspect_checkpoint(tmp_path / "small.ptl")
    assert codes(inspection) == {"torchscript.program"}
    assert_agree(described_tensors(inspection), program.state_dict(keep_vars=True))


def _rewritten(data: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """The archive with other contents of its records, checksums right; a record whose contents are None is left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as after:
        for name in before.namelist():
            contents = change(name.partition("/")[2], before.read(name))
            if contents is not None:
                after.writestr(name, contents)
    return buffer.getvalue()


def _with(name: str, contents: bytes | None) -> Callable[[str, bytes], bytes | None]:
    return lambda record, before: contents if record == name else before


def test_without_its_code_every_tensor_of_a_module_counts(tmp_path: Path) -> None:
    program = _saved(PROGRAMS["scripted"]())
    data = _rewritten(program, lambda name, contents: None if name.startswith("code/") else contents)
    names = [info.name for info in inspect_bytes(tmp_path, data).tensors if info.role == "weights"]
    assert "encoder.plain" in names
    assert "encoder.linear.weight" in names


@pytest.mark.parametrize("record", ["data/0", "constants/0"])
def test_a_missing_storage_of_either_pickle_is_found(record: str, tmp_path: Path) -> None:
    inspection = inspect_bytes(tmp_path, _rewritten(_program(), _with(record, None)))
    assert "tensor.missing_storage" in codes(inspection)
    assert any(f"record {record}," in finding.message for finding in inspection.findings)


SYSTEM = b"\x80\x02" + name_opcode("os", "system") + b"."
HOSTILE: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "a name in data.pkl": (_with("data.pkl", SYSTEM), "pickle.dangerous_name"),
    "a name in constants.pkl": (_with("constants.pkl", SYSTEM), "pickle.dangerous_name"),
    "no pickle": (_with("data.pkl", b"\x80\x02\xff"), "pickle.malformed"),
    "no constants": (_with("constants.pkl", b"\x80\x02\xff"), "pickle.malformed"),
    "no root": (_with("data.pkl", b"\x80\x02}."), "pickle.malformed"),
    "no data.pkl": (_with("data.pkl", None), "archive.malformed"),
    "a second stream": (lambda name, data: data + b"N." if name == "data.pkl" else data, "pickle.second_stream"),
    "a second stream of constants": (
        lambda name, data: data + b"N." if name == "constants.pkl" else data, "pickle.second_stream"
    ),
    "a storage by a path": (
        lambda name, data: re.sub(rb"X\x01\0\0\x000", b"X\x0b\0\0\0constants/0", data) if name == "data.pkl" else data,
        "pickle.malformed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_wrong_with_a_program_is_named(kind: str, tmp_path: Path) -> None:
    change, code = HOSTILE[kind]
    inspection = inspect_bytes(tmp_path, _rewritten(_program(), change))
    assert inspection.format is Format.TORCHSCRIPT
    assert code in codes(inspection)
    assert inspection.safety is (Safety.UNSAFE if code == "pickle.dangerous_name" else Safety.UNKNOWN)


@pytest.mark.parametrize("record", ["data/0", "constants/0", "data.pkl", "constants.pkl", "code/"])
def test_a_flipped_bit_anywhere_is_found_at_the_level_of_checksums(record: str, tmp_path: Path) -> None:
    data = bytearray(_program())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = next(info for info in archive.infolist() if info.filename.partition("/")[2].startswith(record))
    begin = info.header_offset + 30 + int.from_bytes(data[info.header_offset + 26 : info.header_offset + 28], "little")
    begin += int.from_bytes(data[info.header_offset + 28 : info.header_offset + 30], "little")
    data[begin + info.compress_size // 2] ^= 4
    path = tmp_path / "flipped.pt"
    path.write_bytes(data)
    inspection = inspect_checkpoint(path, Level.CHECKSUM)
    assert "archive.checksum_mismatch" in codes(inspection) or _cannot_be_expanded(inspection)
    assert not inspection.is_valid


def _cannot_be_expanded(inspection: Inspection) -> bool:
    return any("cannot be expanded" in finding.message for finding in inspection.findings)
