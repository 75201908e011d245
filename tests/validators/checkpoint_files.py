"""Real checkpoints for the tests of inspection, written by torch and Lightning."""

import io
import os
from typing import Any

import torch

from ckptd.validators import Inspection, inspect_checkpoint

__all__ = ["codes", "inspect_bytes", "saved", "small_checkpoint", "state_dict"]


def state_dict() -> dict[str, torch.Tensor]:
    """Three small tensors of a made-up model."""
    torch.manual_seed(7)
    return {
        "model.encoder.weight": torch.randn(4, 3),
        "model.encoder.bias": torch.randn(4),
        "model.head.weight": torch.randn(2, 4),
    }


def saved(value: Any, **options: Any) -> bytes:
    """The bytes that `torch.save` writes for `value`."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def small_checkpoint() -> bytes:
    """A checkpoint of a few kilobytes as a plain training loop writes it."""
    return saved({"state_dict": state_dict(), "epoch": 3, "global_step": 120})


def inspect_bytes(directory: os.PathLike[str], data: bytes) -> Inspection:
    """Put `data` into a file and inspect that."""
    path = os.path.join(directory, "bytes.ckpt")
    with open(path, "wb") as file:
        file.write(data)
    return inspect_checkpoint(path)


def codes(inspection: Inspection) -> set[str]:
    """The codes of what was found."""
    return {finding.code for finding in inspection.findings}
