"""The same weights in every format that is described, written by the libraries that people use."""

import io
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch

from ckptd.validators import Format
from tests.validators.checkpoint_files import saved

Writer = Callable[[dict[str, torch.Tensor]], bytes]


def zipped(weights: dict[str, torch.Tensor]) -> bytes:
    """As `torch.save` writes today."""
    return saved(dict(weights))


def legacy(weights: dict[str, torch.Tensor]) -> bytes:
    """As `torch.save` wrote before version 1.6."""
    return saved(dict(weights), _use_new_zipfile_serialization=False)


def as_safetensors(weights: dict[str, torch.Tensor]) -> bytes:
    """As `safetensors.torch.save_file` writes."""
    return safetensors.torch.save(dict(weights), metadata={"format": "pt", "note": "größer"})


WRITERS: dict[Format, Writer] = {
    Format.TORCH_ZIP: zipped,
    Format.TORCH_LEGACY: legacy,
    Format.SAFETENSORS: as_safetensors,
}


def read_by_torch(data: bytes, kind: Format) -> dict[str, Any]:
    """The weights as the format's own library loads them."""
    if kind is Format.SAFETENSORS:
        loaded: dict[str, Any] = safetensors.torch.load(data)
        return loaded
    return dict(torch.load(io.BytesIO(data), weights_only=True))


def weights() -> dict[str, torch.Tensor]:
    """Tensors of many types and shapes, none sharing memory, which safetensors refuses."""
    torch.manual_seed(11)
    made = {
        "encoder.weight": torch.randn(4, 3),
        "encoder.bias": torch.randn(4),
        "head.scale": torch.tensor(2.5),
        "empty": torch.zeros(0, 7),
        "mask": torch.tensor([True, False, True]),
    }
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int64):
        made[f"as.{str(dtype).removeprefix('torch.')}"] = torch.arange(6).reshape(2, 3).to(dtype)
    return made
