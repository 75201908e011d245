"""What the Lightning callback costs a training: the same run with and without it, turn by turn."""

import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from report import Row, against, percentile, print_report
from torch import nn
from torch.utils.data import DataLoader

from ckptd.catalog.callbacks.lightning import MetadataCallback

BUDGET_MS = 1.0


class _Timed(MetadataCallback):
    """Measures what the hooks around a save take from the training thread, the save itself left out."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_ms: list[float] = []
        self.hook_cpu_ms: list[float] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Time the observer's two calls; they come one after the other, so their sum is the hook's time."""
        observer = self._observer
        saving, saved = observer.saving, observer.saved

        def timed_saving(*arguments: Any) -> Any:
            began, cpu_began = time.perf_counter(), time.thread_time()
            token = saving(*arguments)
            self.hook_cpu_ms.append((time.thread_time() - cpu_began) * 1e3)
            self.hook_ms.append((time.perf_counter() - began) * 1e3)
            return token

        def timed_saved(token: Any) -> None:
            began, cpu_began = time.perf_counter(), time.thread_time()
            saved(token)
            self.hook_cpu_ms[-1] += (time.thread_time() - cpu_began) * 1e3
            self.hook_ms[-1] += (time.perf_counter() - began) * 1e3

        observer.saving, observer.saved = timed_saving, timed_saved
        super().setup(trainer, pl_module, stage)


class _Net(pl.LightningModule):
    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.encoder = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
        self.model.decoder = nn.Linear(width, width)
        self.model.head = nn.Linear(width, 1)
        self.criterion = nn.MSELoss()

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        found = self.model.head(self.model.decoder(self.model.encoder(batch)))
        for number in range(10):
            self.log(f"val/metric_{number}", float(index))
        return self.criterion(found, torch.zeros_like(found))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.001)


def run(*, quick: bool) -> None:
    """Print what a save takes from the training thread: in the hooks, of its CPU time, and of the fit's wall time."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    turns = 3 if quick else 9
    rows = [
        *_rows("10 tensors, a save every step", 3, 16, saves=50 if quick else 200, steps_per_save=1, turns=turns),
        *_rows("10 tensors, a save every 20 steps", 3, 16, saves=10 if quick else 40, steps_per_save=20, turns=turns),
        *_rows("800 tensors, 26 MB, a save every 5 steps", 398, 128, saves=5, steps_per_save=5, turns=turns),
    ]
    print_report("callback", rows)


def _rows(what: str, layers: int, width: int, *, saves: int, steps_per_save: int, turns: int) -> Sequence[Row]:
    plain, described, hooks, hooks_cpu = [], [], [], []
    _fit(layers, width, saves=2, every=1, callback=_Timed())  # warm: imports, caches
    for _ in range(turns):
        plain.append(_fit(layers, width, saves=saves, every=steps_per_save, callback=None))
        timed = _Timed()
        described.append(_fit(layers, width, saves=saves, every=steps_per_save, callback=timed))
        hooks += timed.hook_ms[1:]
        hooks_cpu += timed.hook_cpu_ms[1:]
    cpu_ms = statistics.median((b.cpu_s - a.cpu_s) / saves * 1e3 for a, b in zip(plain, described, strict=True))
    wall_ms = statistics.median((b.wall_s - a.wall_s) / saves * 1e3 for a, b in zip(plain, described, strict=True))
    ratio = statistics.median(fit.wall_s for fit in described) / statistics.median(fit.wall_s for fit in plain)
    without_ms = statistics.median(fit.wall_s for fit in plain) / saves * 1e3
    p50, p99 = percentile(hooks, 0.5), percentile(hooks, 0.99)
    budget = f"{BUDGET_MS:g} ms a save"
    return (
        Row(f"{what}: hooks, wall", f"p50 {p50:.3f} ms, p99 {p99:.3f} ms", budget, against(p50, BUDGET_MS)),
        Row(
            f"{what}: hooks, CPU",
            f"p50 {percentile(hooks_cpu, 0.5):.3f} ms, p99 {percentile(hooks_cpu, 0.99):.3f} ms",
            budget,
            against(percentile(hooks_cpu, 0.99), BUDGET_MS),
        ),
        Row(f"{what}: CPU of the training thread", f"{cpu_ms:+.3f} ms a save", budget, against(cpu_ms, BUDGET_MS)),
        Row(
            f"{what}: fit, wall",
            f"{ratio:.3f} x of {without_ms:.2f} ms a save: {wall_ms:+.2f} ms",
            "",
            "load shows here",
        ),
    )


def _fit(layers: int, width: int, *, saves: int, every: int, callback: MetadataCallback | None) -> "_Clock":
    directory = Path(tempfile.mkdtemp(prefix="ckptd-callback-"))
    clock = _Clock(every, callback)
    saver = ModelCheckpoint(directory, every_n_train_steps=every, save_top_k=-1, filename="{step}")
    trainer = pl.Trainer(
        max_steps=(saves + 1) * every,
        callbacks=[saver, clock, *([callback] if callback else [])],
        default_root_dir=directory,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(_Net(layers, width), DataLoader(torch.ones(4 * (saves + 1) * every, width), batch_size=4))
    finally:
        shutil.rmtree(directory)
    return clock


class _Clock(pl.Callback):
    """Times the training from after its first save: the start of the describing process comes once in a training."""

    def __init__(self, first_save: int, callback: MetadataCallback | None) -> None:
        self.wall_s = self.cpu_s = 0.0
        self._first_save = first_save
        self._callback = callback

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """The first save is done when the step after it begins."""
        if trainer.global_step == self._first_save:
            if self._callback is not None:
                self._callback.writer.flush(60)
            self.wall_s, self.cpu_s = time.perf_counter(), time.thread_time()

    def on_train_end(self, *_: object) -> None:
        """Stop the clocks."""
        self.wall_s, self.cpu_s = time.perf_counter() - self.wall_s, time.thread_time() - self.cpu_s
