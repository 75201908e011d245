"""Checkpoints to measure with, written by torch and Lightning, kept in .cache/bench between runs."""

import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "bench"


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The file or directory `name` of the cache, made at first use and then complete."""
    final = CACHE / name
    if not final.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = CACHE / f"{name}.partial-{os.getpid()}"
        make(partial)
        partial.rename(final)
    return final


def lightning_file(path: Path) -> None:
    """A checkpoint of about 20 KB, saved by a Lightning training of one step."""
    import lightning as L  # noqa: N812
    import torch

    class Tiny(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"lr": 0.1, "width": 40})
            self.encoder = torch.nn.Linear(32, 40)
            self.head = torch.nn.Linear(40, 1)

        def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
            return self.head(self.encoder(batch[0])).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.1)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=1, enable_checkpointing=False, **quiet)
    data = torch.utils.data.TensorDataset(torch.randn(8, 32))
    trainer.fit(Tiny(), torch.utils.data.DataLoader(data, batch_size=8))
    trainer.save_checkpoint(path)


def tensors_file(count: int, elements: int) -> Callable[[Path], None]:
    """A maker of files with `count` float32 tensors of `elements` elements each."""

    def make(path: Path) -> None:
        import torch

        weights = {f"model.block{n // 8}.layer{n % 8}.weight": torch.full((elements,), n * 0.5) for n in range(count)}
        torch.save({"epoch": 3, "global_step": 1200, "state_dict": weights}, path)

    return make


def large_tree(count: int, size_mb: int) -> Callable[[Path], None]:
    """A maker of `count` runs with one checkpoint of `size_mb` MB each; zeros, so that the disk keeps them as holes."""

    def make(directory: Path) -> None:
        import torch

        layers = 100
        weights = {f"model.layer{n}.weight": torch.zeros(size_mb * 1_000_000 // 4 // layers) for n in range(layers)}
        for number in range(count):
            run = directory / f"experiment_{number % 4}" / f"2026-01-{number + 1:02d}_10-00-00" / "checkpoints"
            run.mkdir(parents=True)
            path = run / f"epoch-{number:02d}_step-{number * 100:06d}.ckpt"
            torch.save({"epoch": number, "global_step": number * 100, "state_dict": weights}, path)
            if shutil.which("fallocate"):
                subprocess.run(["fallocate", "--dig-holes", path], check=False, capture_output=True)

    return make


def small_tree(count: int, checkpoint: Path) -> Callable[[Path], None]:
    """A maker of `count` copies of a checkpoint, 100 to a run, each run with a config."""

    def make(directory: Path) -> None:
        data = checkpoint.read_bytes()
        for run in range(count // 100):
            place = directory / f"experiment_{run % 10}" / f"2026-01-{run % 28 + 1:02d}_10-{run // 28:02d}-00"
            (place / "checkpoints").mkdir(parents=True)
            (place / "config.yaml").write_text("exp_name: small\nmodel:\n  encoder: {model_name: resnet18}\n")
            for number in range(100):
                (place / "checkpoints" / f"epoch-{number:02d}_step-{number * 10:06d}.ckpt").write_bytes(data)

    return make
