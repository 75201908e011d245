"""What a digest costs while saving: torch.save and Lightning's CheckpointIO beside ours, turn by turn."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from report import Row, against, print_report

from ckptd.catalog.callbacks.checkpoint_io import DigestingCheckpointIO
from ckptd.catalog.callbacks.saving import save_with_metadata

Save = Callable[[Any, Path], object]

_WAYS: dict[str, Save] = {
    "torch.save": torch.save,
    "save_with_metadata": lambda obj, path: save_with_metadata(obj, path, durable=False),
    "Lightning's TorchCheckpointIO": lambda obj, path: TorchCheckpointIO().save_checkpoint(obj, path),
    "DigestingCheckpointIO": lambda obj, path: DigestingCheckpointIO().save_checkpoint(obj, path),
}
_COMPARED = {"save_with_metadata": "torch.save", "DigestingCheckpointIO": "Lightning's TorchCheckpointIO"}
"""Ours → what it stands for."""


def run(*, quick: bool) -> None:
    """Print how long a save takes; nothing waits for the disk."""
    turns = 5 if quick else 15
    rows: list[Row] = []
    for what, tensors in (("20 KB", 20), ("300 MB", 300)):
        shape = (16, 16) if tensors == 20 else (256, 1024)
        obj = {"state_dict": {f"layer.{number}.weight": torch.randn(shape) for number in range(tensors)}}
        rows += _measured(what, obj, turns)
    print_report("saving", rows)


def _measured(what: str, obj: Any, turns: int) -> list[Row]:
    seconds: dict[str, list[float]] = {name: [] for name in _WAYS}
    with tempfile.TemporaryDirectory() as directory:
        for turn in range(turns + 1):
            for number, (name, save) in enumerate(_WAYS.items()):
                began = time.perf_counter()
                save(obj, Path(directory) / f"{number}.ckpt")
                if turn:  # the first one imports
                    seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    rows = []
    for name, median in medians.items():
        other = _COMPARED.get(name)
        verdict = f"{median / medians[other]:.2f} x {other}" if other else ""
        if name == "DigestingCheckpointIO":
            rows.append(
                Row(f"{what}, {name}", f"{median * 1e3:.1f} ms", "no slower", against(median, medians[other or ""]))
            )
        else:
            rows.append(Row(f"{what}, {name}", f"{median * 1e3:.1f} ms", "", verdict))
    return rows
