"""Real checkpoints for tests of the service, made once and copied: torch.save takes a millisecond, a copy far less."""

import functools
import io
import os
import pathlib

import torch


@functools.cache
def checkpoint_bytes(seed: int = 0, *, epoch: int = 3, elements: int = 16) -> bytes:
    """A small Lightning-like checkpoint; another seed gives other weights."""
    generator = torch.Generator().manual_seed(seed)
    buffer = io.BytesIO()
    torch.save(
        {
            "epoch": epoch,
            "global_step": 100 * epoch,
            "pytorch-lightning_version": "2.6.6",
            "state_dict": {
                "model.encoder.weight": torch.randn(elements, elements, generator=generator),
                "model.head.bias": torch.randn(elements, generator=generator),
            },
            "hyper_parameters": {"lr": 0.1, "seed": seed},
        },
        buffer,
    )
    return buffer.getvalue()


def write_in_place(path: pathlib.Path, data: bytes) -> None:
    """As `torch.save(obj, path)` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def rename_in(path: pathlib.Path, data: bytes) -> None:
    """As Lightning does on one filesystem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_bytes(data)
    temporary.replace(path)
