"""Tiny real trainings, whose checkpoints carry what was logged when they were saved: the truth beside each sidecar."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckptd.catalog.callbacks.lightning import MetadataCallback
from ckptd.catalog.metric_names import metric_key
from ckptd.catalog.sidecar import Author, author_of

SUFFIX = ".metadata.yaml"


class Parts(nn.Module):
    """A model with an encoder, a decoder and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.encoder.model_name = "tiny_encoder"
        self.decoder = nn.Conv1d(1, 1, 1)
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(self.encoder(x).unsqueeze(1)).squeeze(1))


class Net(pl.LightningModule):
    """Logs values that differ at every step, and writes into each checkpoint what it has logged so far."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Parts()
        self.criterion = nn.MSELoss()
        self.logged: dict[str, float] = {}

    def note(self, name: str, value: float) -> None:
        """Log a value and remember it, as the 32-bit number that Lightning makes of it."""
        self.logged[name] = float(torch.tensor(value))
        self.log(name, value)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        self.note("train_loss", 10.0 + self.global_step)
        return self.criterion(self.model(batch[0]), torch.zeros(len(batch[0]), 1))

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        if index:
            return
        step = self.global_step
        self.note("val/hmean", 0.5 + 0.1 * math.sin(step))
        self.note("val_loss", 2.0 + math.cos(step))
        self.note("val/cer", 0.01 * step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["logged"] = dict(self.logged)


def loader(batches: int = 2) -> DataLoader[Any]:
    """Data that nobody cares for."""
    return DataLoader(TensorDataset(torch.ones(2 * batches, 3)), batch_size=2)


def trainer(directory: Path, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """A quiet Trainer on the CPU."""
    defaults: dict[str, Any] = {
        "default_root_dir": directory,
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(callbacks=list(callbacks), **defaults | settings)


def fit(directory: Path, *callbacks: pl.Callback, model: pl.LightningModule | None = None, **settings: Any) -> Any:
    """Train; returns the trainer. All metadata is written then."""
    resumed_from = settings.pop("ckpt_path", None)
    made = trainer(directory, *callbacks, **settings)
    made.fit(model or Net(), loader(), loader(1), ckpt_path=resumed_from)
    return made


def flushed(made: pl.Trainer) -> None:
    """Wait for the metadata of saves after the fit."""
    for callback in made.callbacks:
        if isinstance(callback, MetadataCallback):
            assert callback.writer.flush(30.0)


def sidecar(checkpoint: Path) -> dict[str, Any]:
    """What lies beside a checkpoint."""
    return dict(yaml.safe_load(checkpoint.with_name(checkpoint.name + SUFFIX).read_bytes()))


def held(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; of a directory, its `meta.pt`."""
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    return dict(torch.load(file, weights_only=False))


def flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a sidecar by name."""
    slots = {name: value for name, value in metrics.items() if name != "additional_metrics" and value is not None}
    return slots | dict(metrics["additional_metrics"])


def assert_all_described(directory: Path, monitors: Mapping[str, str | None] | None = None) -> list[str]:
    """Each checkpoint has exactly one sidecar, a training's, about what that very file holds; nothing else is there.

    Args:
        directory: Of the checkpoints.
        monitors: Name of a checkpoint → what the callback that wrote it monitors.

    Returns:
        The names of the checkpoints.
    """
    names = sorted(os.listdir(directory))
    checkpoints = [name for name in names if name.endswith(".ckpt") and not (directory / name).is_symlink()]
    links = [name for name in names if (directory / name).is_symlink()]
    assert names == sorted([*checkpoints, *links, *(name + SUFFIX for name in checkpoints)])
    for name in checkpoints:
        path = directory / name
        written, truth = sidecar(path), held(path)
        assert author_of(path.with_name(name + SUFFIX).read_bytes()) is Author.TRAINING
        assert flat(written["metrics"]) == {metric_key(key): value for key, value in truth["logged"].items()}, name
        assert written["training"]["epoch"] == truth["epoch"]
        assert written["training"]["global_step"] == truth["global_step"]
        assert written["checkpoint_path"] == os.path.realpath(path)
        if path.is_file():
            assert written["source"]["size_bytes"] == path.stat().st_size
        if monitors is not None:
            assert written["checkpointing"]["monitor"] == monitors[name], name
    return checkpoints
