"""Intact checkpoints of all kinds, the odd ones above all: what a careless check would call corrupt."""

import gzip
import io
import pathlib
import struct
import tarfile
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch

from tests.faults.subjects import (
    FILE,
    Subject,
    dcp_directory,
    file_subject,
    legacy_bytes,
    saved_bytes,
    script_bytes,
    subjects,
    without_checksums,
)

_SAFETENSORS_REFUSES = frozenset(
    {"empty state dict", "no tensors at all", "shared and strided", "sparse", "conjugated"}
)


def intact_subjects() -> Iterator[Subject]:
    """More than a hundred of them, every one with a name of its own."""
    yield from subjects()
    for name, value in {**_weights(), **_contents()}.items():
        loader = "torch_unsafe" if name in _NEEDS_TRUST else "torch"
        yield file_subject(f"zip: {name}", loader, saved_bytes(value), checksums=True)
        bare = without_checksums(lambda value=value: saved_bytes(value))
        yield file_subject(f"zip without checksums: {name}", loader, bare, checksums=False)
        if name != "float8":  # torch does not load it back
            yield file_subject(f"legacy: {name}", loader, legacy_bytes(value), checksums=False)
    for name, value in _weights().items():
        if name not in _SAFETENSORS_REFUSES:
            data = safetensors.torch.save({key: tensor.contiguous() for key, tensor in value.items()})
            yield file_subject(f"safetensors: {name}", "safetensors", data, checksums=False, suffix=".safetensors")
    yield file_subject(
        "safetensors: metadata alone", "safetensors", safetensors.torch.save({}, {"a": "b"}), checksums=False
    )
    yield from _scripts()
    yield from _stems()
    yield dcp_directory(
        "DCP: nested", {"model": {"a": torch.ones(3)}, "step": torch.tensor(3), "list": [torch.ones(2)]}, {}
    )


def _weights() -> dict[str, dict[str, torch.Tensor]]:
    """Dictionaries of tensors only: what every format can hold."""
    torch.manual_seed(5)
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, 46, 0, 0)
    shared = torch.arange(24.0)
    return {
        "no tensors at all": {},
        "one element": {"w": torch.ones(1)},
        "four megabytes of zeros": {"a": torch.zeros(1 << 20), "b": torch.ones(3)},
        "zeros at the end": {"a": torch.ones(3), "z": torch.zeros(100_000)},
        "pages of ones": {"w": torch.ones(64 * 1024)},
        "tensors without elements": {"a": torch.zeros(0, 4), "b": torch.zeros(0), "c": torch.ones(2)},
        "0-dim tensors": {"a": torch.tensor(1.5), "b": torch.tensor(3), "c": torch.tensor(True)},
        "not finite": {"w": torch.tensor([1.0, float("nan"), float("inf")])},
        "every dtype": {str(dtype): torch.zeros(5).to(dtype) for dtype in _dtypes()},
        "float8": {"a": torch.ones(3).to(torch.float8_e4m3fn), "b": torch.ones(3).to(torch.float8_e5m2)},
        "300 tensors": {f"layer.{n}.weight": torch.full((5,), float(n)) for n in range(300)},
        "long and foreign names": {
            "größe." + "x" * 1000: torch.ones(2),
            "层.权重": torch.ones(2),
            "a b\n\t'\"": torch.ones(1),
        },
        "names like numbers": {str(n): torch.ones(n + 1) for n in range(5)},
        "odd sizes": {
            f"w{n}": torch.randint(0, 255, (n,), dtype=torch.uint8) for n in (1, 2, 3, 63, 64, 65, 4095, 4097)
        },
        "an archive inside": {"w": _as_tensor(saved_bytes({"state_dict": {"x": torch.ones(9)}}))},
        "an archive inside, at the end": {"a": torch.ones(5), "z": _as_tensor(saved_bytes({"x": torch.zeros(100)}))},
        "a file of the old format inside": {"w": _as_tensor(legacy_bytes({"x": torch.ones(9)}))},
        "end records inside": {"w": _as_tensor(tail * 50), "v": _as_tensor(b"PK\6\7" * 9 + b"PK\6\6" * 9 + tail)},
        "headers of records inside": {"w": _as_tensor(b"PK\3\4" * 100 + b"PK\1\2" * 100 + b"PK\7\x08" * 100)},
        "a tar and a gzip inside": {"t": _as_tensor(_tar()), "g": _as_tensor(gzip.compress(b"a" * 500, mtime=0))},
        "shared and strided": {"a": shared, "b": shared[4:], "c": shared.view(4, 6).t(), "d": shared[:1].expand(5)},
        "sparse": {"s": torch.eye(4).to_sparse(), "w": torch.ones(2)},
        "conjugated": {"c": torch.ones(3, dtype=torch.complex64).conj(), "w": torch.ones(2)},
    }


_NEEDS_TRUST = frozenset({"module", "numpy inside"})


def _contents() -> dict[str, Any]:
    """What only pickles can hold."""
    import numpy as np

    linear = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=0.1)
    linear(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "empty state dict": {"state_dict": {}, "epoch": 0},
        "ordered": OrderedDict(linear.state_dict()),
        "module": torch.nn.Sequential(linear, torch.nn.Dropout()),
        "training state": {
            "model_state_dict": linear.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "epoch": 0,
            "best": float("inf"),
        },
        "numbers and words": {
            "state_dict": {"w": torch.ones(1)},
            "big": 1 << 200,
            "text": "PK\3\4" * 9,
            "raw": b"PK\5\6" * 9,
        },
        "nested": {"a": [{"b": (torch.ones(2), [torch.zeros(1)])}], "state_dict": {"w": torch.ones(1)}},
        "numpy inside": {"state_dict": {"w": torch.ones(2)}, "history": np.arange(5.0), "best": np.float64(0.5)},
        "parameters": {"state_dict": {"w": torch.nn.Parameter(torch.ones(3)), "b": torch.ones(2, requires_grad=True)}},
    }


def _scripts() -> Iterator[Subject]:
    modules = {
        "linear": torch.nn.Linear(3, 2),
        "convolution": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)),
        "without parameters": torch.nn.ReLU(),
    }
    for name, module in modules.items():
        data = script_bytes(torch.jit.script(module.eval()))
        yield file_subject(f"TorchScript: {name}", "jit", data, checksums=True, suffix=".pt")


def _stems() -> Iterator[Subject]:
    """torch.save names the archive's directory after the file."""
    for number, name in enumerate(("model.ckpt", "epoch=3-step=10.ckpt", "größe.pt", "data.pkl", "a b.ckpt")):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / name
            torch.save({"state_dict": {"w": torch.arange(number + 3.0)}}, path)
            yield Subject(f"named {name}", "torch", {FILE: path.read_bytes()}, frozenset({FILE}))


def _dtypes() -> list[torch.dtype]:
    return [
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
    ]


def _as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("model.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()
