"""The format before 1.6: everything in its five pickles and its storages is parsed inertly and checked."""

import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptd.validators import Inspection, Safety, Seal
from tests.validators.checkpoint_files import codes, inspect_bytes, saved

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001

pytestmark = pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated:UserWarning")


class _Stored:
    """Written as a persistent id."""

    def __init__(self, *saved_id: Any) -> None:
        self.saved_id = saved_id


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.saved_id if isinstance(value, _Stored) else None


class _Rebuilt:
    """A tensor over one storage."""

    def __init__(self, storage: _Stored, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.arguments = (storage, 0, shape, stride)

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor, self.arguments


def _vector(key: str = "7", numel: int = 4, view: Any = None) -> _Rebuilt:
    size = numel if view is None else view[2]
    return _Rebuilt(_Stored("storage", torch.FloatStorage, key, "cpu", numel, view), (size,), (1,))


def _file(
    value: Any = None,
    *,
    keys: Any = ("7",),
    tail: bytes | None = None,
    magic: Any = MAGIC,
    version: Any = VERSION,
    information: Any = None,
) -> bytes:
    file = io.BytesIO()
    for part in (magic, version, information or {"little_endian": True}, value or {"w": _vector()}, list(keys)):
        _Pickler(file, 2).dump(part)
    return file.getvalue() + (struct.pack("<q4f", 4, 1, 2, 3, 4) if tail is None else tail)


class _Call:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _inspect(directory: Path, data: bytes) -> Inspection:
    return inspect_bytes(directory, data)


def test_a_training_checkpoint_is_described_with_its_scores(tmp_path: Path) -> None:
    state = {"a": torch.randn(4, 3), "tied": torch.randn(5)}
    state["tied.view"] = state["tied"][1:]
    callback = {"best_model_score": torch.tensor(0.875), "best_k_models": {"x.ckpt": torch.tensor(0.5).double()}}
    data = saved(
        {"state_dict": state, "epoch": 3, "global_step": 120, "callbacks": {"ModelCheckpoint{}": callback}},
        _use_new_zipfile_serialization=False,
    )
    inspection = _inspect(tmp_path, data)
    assert inspection.findings == ()
    assert (inspection.epoch, inspection.global_step, inspection.n_parameters) == (3, 120, 17)
    assert inspection.callbacks[0].best_model_score == 0.875
    assert inspection.callbacks[0].best_k_models == {"x.ckpt": 0.5}
    assert inspection.safety is Safety.SAFE


def test_a_whole_module_is_described_and_not_called_safe(tmp_path: Path) -> None:
    data = saved(torch.nn.Linear(3, 2), _use_new_zipfile_serialization=False)
    inspection = _inspect(tmp_path, data)
    assert inspection.is_valid
    assert [info.name for info in inspection.tensors] == ["weight", "bias"]
    assert inspection.safety is Safety.UNKNOWN
    assert inspection.unsafe_globals == ("torch.nn.modules.linear.Linear",)


def test_a_view_of_a_storage_is_where_torch_finds_it(tmp_path: Path) -> None:
    """Written before version 0.4: a persistent id that names a part of another storage."""
    view = _vector(view=("8", 1, 1))
    value = {"w": _vector(), "epoch": 0, "metrics": {"loss": view}}
    data = _file(value)
    assert torch.load(io.BytesIO(data), weights_only=True)["metrics"]["loss"].tolist() == [2.0]
    inspection = _inspect(tmp_path, data)
    assert inspection.findings == ()
    assert inspection.metrics == {"loss": 2.0}


@pytest.mark.parametrize("place", ["information", "value", "keys"])
def test_a_call_in_any_of_the_pickles_is_found_and_not_run(place: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    call = _Call(exec, f"open({str(mark)!r}, 'w')")
    data = {
        "information": lambda: _file(information={"x": call}),
        "value": lambda: _file({"w": _vector(), "x": call}),
        "keys": lambda: _file(keys=("7", call)),
    }[place]()
    inspection = _inspect(tmp_path, data)
    assert inspection.safety is Safety.UNSAFE
    assert "builtins.exec" in inspection.unsafe_globals
    assert "pickle.dangerous_name" in codes(inspection)
    assert not mark.exists()


def _tar_too() -> bytes:
    """A file that is of this format by its first bytes, and a tar archive to whoever asks for one first."""
    data = bytearray(_file().ljust(512, b"\0")[:512])
    info = tarfile.TarInfo.frombuf(tarfile.TarInfo("x").tobuf(), "ascii", "strict")
    header = bytearray(info.tobuf())
    header[:100] = data[:100]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "another magic number": (lambda: _file(version=1002), "archive.malformed"),
    "a key twice": (lambda: _file(keys=("7", "7"), tail=b"\0" * 48), "archive.ambiguous"),
    "a key that no tensor uses": (lambda: _file(keys=("7", "8")), "archive.malformed"),
    "a key that is a number": (lambda: _file(keys=(7,)), "archive.malformed"),
    "a storage that is not listed": (lambda: _file(keys=(), tail=b""), "tensor.missing_storage"),
    "another count than the pickle's": (lambda: _file(tail=struct.pack("<q4f", 5, 1, 2, 3, 4)), "archive.malformed"),
    "a negative count": (lambda: _file(tail=struct.pack("<q4f", -4, 1, 2, 3, 4)), "archive.malformed"),
    "a tensor beyond its storage": (
        lambda: _file({"w": _Rebuilt(_vector().arguments[0], (5,), (1,))}),
        "tensor.out_of_bounds",
    ),
    "a storage of negative size": (lambda: _file({"w": _vector(numel=-1)}), "pickle.malformed"),
    "a storage without type": (lambda: _file({"w": _Stored("storage", 1, "7", "cpu", 4, None)}), "pickle.malformed"),
    "an unknown persistent id": (lambda: _file({"w": _Stored("else", 1)}), "pickle.malformed"),
    "a view that is no view": (lambda: _file({"w": _vector(view=("8", -1, 2))}), "pickle.malformed"),
    "a view beyond its storage": (lambda: _file({"w": _vector(view=("8", 3, 2))}), "tensor.missing_storage"),
    "a tar archive as well": (_tar_too, "archive.ambiguous"),
    "no opcode": (lambda: _file(tail=b"").replace(b"\x80\x02}", b"\x80\x02\xff", 1), "pickle.malformed"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_contradictions_are_found_and_never_waited_for(kind: str, tmp_path: Path) -> None:
    make, code = HOSTILE[kind]
    inspection = _inspect(tmp_path, make())
    assert codes(inspection) == {code}
    assert inspection.seal is not Seal.OPEN


def test_the_base_of_the_hostile_files_is_sound_to_torch_and_here(tmp_path: Path) -> None:
    assert torch.load(io.BytesIO(_file()), weights_only=True)["w"].tolist() == [1, 2, 3, 4]
    assert _inspect(tmp_path, _file()).findings == ()


def test_the_tar_archive_in_disguise_is_one_to_tarfile() -> None:
    with tarfile.open(fileobj=io.BytesIO(_tar_too()), mode="r:") as archive:
        assert len(archive.getmembers()) == 1


def test_a_pickle_that_asks_for_more_than_there_is_may_still_be_growing(tmp_path: Path) -> None:
    data = _file()
    cut = data[: data.index(b"FloatStorage") + 4]
    inspection = _inspect(tmp_path, cut)
    assert inspection.seal is Seal.OPEN
    assert codes(inspection) == {"archive.incomplete"}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_protocol_of_pickle_is_recognised(protocol: int, tmp_path: Path) -> None:
    data = saved(
        {"w": torch.ones(3), "name": "x" * 300}, _use_new_zipfile_serialization=False, pickle_protocol=protocol
    )
    inspection = _inspect(tmp_path, data)
    assert inspection.findings == ()
    assert inspection.n_parameters == 3
