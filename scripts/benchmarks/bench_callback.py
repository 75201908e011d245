"""What the Lightning callback costs a training: the same run with and without it, turn by turn."""

import logging
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from report import Row, against, percentile, print_report
from torch import nn
from torch.utils.data import DataLoader

from ckptd.catalog.callbacks.helper import Outcome
from ckptd.catalog.callbacks.lightning import MetadataCallback

BUDGET_MS = 1.0
SKIPPED = 4
"""First saves that are not compared; a multiple of the pattern of described ones."""


class _Timed(MetadataCallback):
    """Measures what the hooks around a save take from the training thread, the save itself left out."""

    def __init__(self, is_described: Callable[[int], bool], *, describing: bool = True) -> None:
        """Args:
        is_described: Which saves are told of, by their number.
        describing: Whether another process describes them, on a core that the training might use.
        """
        super().__init__()
        self.hook_ms: list[float] = []
        self.hook_cpu_ms: list[float] = []
        self._is_described = is_described
        self._saves = 0
        if not describing:
            self.writer._helper.carry_out = lambda task: Outcome()  # noqa: SLF001

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Time the observer's calls; they come one after the other, so their sum is the hooks' time."""
        observer = self._observer
        saving, saved, removed = observer.saving, observer.saved, observer.removed

        def timed_saving(*arguments: Any) -> Any:
            self._saves += 1
            if not self._is_described(self._saves - 1):
                return None
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

        def timed_removed(*arguments: Any) -> None:
            began, cpu_began = time.perf_counter(), time.thread_time()
            removed(*arguments)
            if self.hook_ms:  # top-k deletes after the save that takes the place
                self.hook_cpu_ms[-1] += (time.thread_time() - cpu_began) * 1e3
                self.hook_ms[-1] += (time.perf_counter() - began) * 1e3

        observer.saving, observer.saved, observer.removed = timed_saving, timed_saved, timed_removed
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
    """Print what a save takes from the training thread: in the hooks, and from one save to the next.

    Whole runs with and without the callback differ by more between two runs of the same than the callback costs, so
    saves are compared within one run: in the order ABBA, half of them are described and half are not. The control
    describes none; what it shows is what this measurement cannot tell from nothing.
    """
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    saves = 80 if quick else 320
    rows = [
        *_rows("10 tensors, a save every step", 3, 16, saves=saves * 2, steps_per_save=1),
        *_rows("10 tensors, a save every 20 steps", 3, 16, saves=saves, steps_per_save=20),
        *_rows("800 tensors, 26 MB, a save every 5 steps", 398, 128, saves=saves, steps_per_save=5),
    ]
    print_report("callback", rows)


def _rows(what: str, layers: int, width: int, *, saves: int, steps_per_save: int) -> Sequence[Row]:
    _fit(layers, width, saves=2, every=1, callback=_Timed(lambda number: True))  # warm: imports, caches
    timed = _Timed(_is_described)
    fit = _fit(layers, width, saves=saves, every=steps_per_save, callback=timed)
    undescribing = _Timed(_is_described, describing=False)
    sham = _fit(layers, width, saves=saves, every=steps_per_save, callback=undescribing)
    control = _fit(layers, width, saves=saves, every=steps_per_save, callback=_Timed(lambda number: False))
    budget = f"{BUDGET_MS:g} ms a save"
    return (
        _hooks(f"{what}: hooks, wall", timed.hook_ms, budget),
        _hooks(f"{what}: hooks, CPU", timed.hook_cpu_ms, budget),
        _compared(f"{what}: CPU of the training thread, save to save", sham, budget),
        _compared(f"{what}: the same, while another process describes", fit, ""),
        _compared(f"{what}: the same, none described (control)", control, ""),
    )


def _hooks(what: str, each_ms: Sequence[float], budget: str) -> Row:
    """Judged by the mean, which is what a training pays: after a large file was written the caches are cold."""
    mean = statistics.fmean(each_ms)
    shown = f"mean {mean:.3f} ms, p50 {percentile(each_ms, 0.5):.3f}, p99 {percentile(each_ms, 0.99):.3f}"
    return Row(what, shown, budget, against(mean, BUDGET_MS))


def _is_described(number: int) -> bool:
    """ABBA: a drift of the machine's speed is shared by both halves."""
    return number % 4 in (1, 2)


def _compared(what: str, clock: "_Clock", budget: str) -> Row:
    """The difference of the medians, with the interval that holds it in 95 of 100 cases (bootstrap by blocks of 4)."""
    pieces = clock.cpu_ms[: len(clock.cpu_ms) // 4 * 4]
    blocks = [pieces[at : at + 4] for at in range(0, len(pieces), 4)]

    def difference(chosen: Sequence[Sequence[float]]) -> float:
        described = [block[at] for block in chosen for at in range(4) if _is_described(at)]
        others = [block[at] for block in chosen for at in range(4) if not _is_described(at)]
        return statistics.median(described) - statistics.median(others)

    drawn = random.Random(1)
    likely = [difference(drawn.choices(blocks, k=len(blocks))) for _ in range(1000)]
    low, high = percentile(likely, 0.025), percentile(likely, 0.975)
    found = difference(blocks)
    return Row(
        what,
        f"{found:+.3f} ms a save of {statistics.median(pieces):.2f} ({low:+.3f} to {high:+.3f})",
        budget,
        _verdict(low, high) if budget else "",
    )


def _verdict(low_ms: float, high_ms: float) -> str:
    """Missed is only what is surely above the budget; what the machine is too noisy to tell is said to be so."""
    if low_ms > BUDGET_MS:
        return f"MISSED ({low_ms / BUDGET_MS:.2f} of it at least)"
    return "ok" if high_ms <= BUDGET_MS else "too noisy to tell"


def _fit(layers: int, width: int, *, saves: int, every: int, callback: _Timed) -> "_Clock":
    directory = Path(tempfile.mkdtemp(prefix="ckptd-callback-"))
    clock = _Clock(every)
    saver = ModelCheckpoint(
        directory, every_n_train_steps=every, save_top_k=2, monitor="step", mode="max", filename="{step}"
    )
    trainer = pl.Trainer(
        max_steps=(saves + SKIPPED + 1) * every,
        callbacks=[saver, clock, callback],
        default_root_dir=directory,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(_Net(layers, width), DataLoader(torch.ones(4 * (saves + SKIPPED + 1) * every, width), batch_size=4))
    finally:
        shutil.rmtree(directory)
    return clock


class _Clock(pl.Callback):
    """Takes the CPU time of the training thread from the beginning of one save to that of the next."""

    def __init__(self, every: int) -> None:
        self.cpu_ms: list[float] = []
        """Of the fifth save on, so that the first of four is the first here too. The first of all starts the describing
        process, which comes once in a training."""
        self._every = every
        self._began = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Comes before ModelCheckpoint's hook of the same name, which saves."""
        if trainer.global_step % self._every:
            return
        now = time.thread_time()
        if trainer.global_step > (SKIPPED + 1) * self._every:
            self.cpu_ms.append((now - self._began) * 1e3)
        self._began = now
