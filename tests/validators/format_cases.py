"""One checkpoint of each format, written by the library that people use: what the shared suite runs over.

A new format joins by one more `Case` in `CASES`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import nn

from ckptd.validators import Format, Safety, Seal
from tests.validators import format_files

__all__ = ["CASES", "Case", "Net", "weights"]


class Net(nn.Module):
    """A model with a buffer, so that there is something beside parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.register_buffer("scale", torch.tensor(2.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean((2, 3))) * self.scale


class Case(NamedTuple):
    """One way of writing a checkpoint, and what is promised of its format."""

    name: str
    format: Format
    write: Callable[[Path], None]
    """Writes the checkpoint at a path that does not exist yet."""
    load: Callable[[Path], Mapping[str, torch.Tensor]]
    """The weights as the format's own library loads them, by the names that an inspection gives."""
    findings: frozenset[str] = frozenset()
    """Codes that a whole one has; none of them an error."""
    safety: Safety = Safety.SAFE
    open_from: int = 16
    """Bytes from which on a prefix is seen to be a file of this format that is still being written."""
    has_checksums: bool = False
    """Whether every byte of the weights is covered by a checksum."""
    cut_seal: Seal = Seal.OPEN
    """What a prefix is: `open`, or `none` for a format without a seal."""


def weights() -> dict[str, torch.Tensor]:
    """Tensors of many types and shapes, none sharing memory, which safetensors refuses."""
    return format_files.weights() | {"as.float8": torch.arange(6.0).reshape(2, 3).to(torch.float8_e4m3fn)}


def _checkpoint() -> dict[str, Any]:
    return {"state_dict": weights(), "epoch": 3, "global_step": 120}


def _write_legacy(path: Path) -> None:
    checkpoint = _checkpoint()
    del checkpoint["state_dict"]["as.float8"]  # written, but torch cannot load it: such storages have no type there
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)


def _write_unverifiable(path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(_checkpoint(), path)
    finally:
        torch.serialization.set_crc32_options(True)


def _net() -> Net:
    torch.manual_seed(5)
    return Net().eval()


def _load_plain(path: Path) -> dict[str, torch.Tensor]:
    loaded = torch.load(path, weights_only=True)["state_dict"]
    return {f"state_dict.{name}": tensor for name, tensor in loaded.items()}


def _load_whole(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=False).state_dict(keep_vars=True))


def _load_program(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.jit.load(path).state_dict(keep_vars=True))


UNVERIFIABLE = frozenset({"archive.unverifiable"})
WHOLE = frozenset({"pickle.whole_module", "pickle.unknown_name"})

CASES: tuple[Case, ...] = (
    Case("zip", Format.TORCH_ZIP, lambda path: torch.save(_checkpoint(), path), _load_plain, has_checksums=True),
    Case("zip without checksums", Format.TORCH_ZIP, _write_unverifiable, _load_plain, UNVERIFIABLE),
    Case("legacy", Format.TORCH_LEGACY, _write_legacy, _load_plain),
    Case(
        "safetensors",
        Format.SAFETENSORS,
        lambda path: safetensors.torch.save_file(weights(), path, metadata={"format": "pt"}),
        lambda path: safetensors.torch.load_file(path),
    ),
    Case(
        "torchscript",
        Format.TORCHSCRIPT,
        lambda path: torch.jit.save(torch.jit.script(_net()), path),
        _load_program,
        frozenset({"torchscript.program"}),
        Safety.UNKNOWN,
        has_checksums=True,
    ),
    Case(
        "traced torchscript",
        Format.TORCHSCRIPT,
        lambda path: torch.jit.save(torch.jit.trace(_net(), torch.ones(1, 1, 5, 5)), path),
        _load_program,
        frozenset({"torchscript.program"}),
        Safety.UNKNOWN,
        has_checksums=True,
    ),
    Case(
        "whole module",
        Format.TORCH_ZIP,
        lambda path: torch.save(_net(), path),
        _load_whole,
        WHOLE,
        Safety.UNKNOWN,
        has_checksums=True,
    ),
    Case(
        "whole module, legacy",
        Format.TORCH_LEGACY,
        lambda path: torch.save(_net(), path, _use_new_zipfile_serialization=False),
        _load_whole,
        WHOLE,
        Safety.UNKNOWN,
    ),
)
