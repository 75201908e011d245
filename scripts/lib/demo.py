"""Real trainings on made-up data: three experiments that find strokes in small images, run after run."""

import argparse
import itertools
import logging
import os
import shutil
import signal
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning as L  # noqa: N812 - the name that Lightning's own documentation uses
    from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

IMAGE_SIZE = 32
TRAIN_IMAGES, VALIDATION_IMAGES = 256, 64


class Experiment(NamedTuple):
    """What differs between the trainings."""

    name: str
    width: int
    decoder: str
    loss: str
    learning_rate: float


EXPERIMENTS = (
    Experiment("strokes_baseline", 8, "upsample", "bce", 3e-3),
    Experiment("strokes_wide", 16, "upsample", "bce", 2e-3),
    Experiment("strokes_dice_transposed", 12, "transposed", "dice", 3e-3),
)


def make_images(count: int, seed: int) -> torch.utils.data.TensorDataset:
    """Noisy images with one to four bright bars, and the masks of the bars: (count, 1, 32, 32) each."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    masks = torch.zeros(count, 1, IMAGE_SIZE, IMAGE_SIZE)
    for mask in masks:
        for _ in range(draw(1, 5)):
            top, left = draw(1, 28), draw(1, 24)
            mask[0, top : top + draw(2, 4), left : left + draw(4, 20)] = 1.0
    images = masks * 0.8 + 0.35 * torch.randn(masks.shape, generator=generator)
    return torch.utils.data.TensorDataset(images, masks)


class StrokeModel(L.LightningModule):
    """Encoder, decoder, head: the parts that ckptd counts apart."""

    def __init__(self, width: int, decoder: str, loss: str, learning_rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = torch.nn.Sequential(
            torch.nn.Conv2d(1, width, 3, stride=2, padding=1),
            torch.nn.BatchNorm2d(width),
            torch.nn.ReLU(),
            torch.nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            torch.nn.BatchNorm2d(2 * width),
            torch.nn.ReLU(),
        )
        if decoder == "transposed":
            layers = [torch.nn.ConvTranspose2d(2 * width, width, 4, stride=4)]
        else:
            layers = [torch.nn.Upsample(scale_factor=4), torch.nn.Conv2d(2 * width, width, 3, padding=1)]
        self.decoder = torch.nn.Sequential(*layers, torch.nn.ReLU())
        self.head = torch.nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(self.encoder(images)))

    def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
        loss = self._loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], _index: int) -> None:
        logits, masks = self(batch[0]), batch[1]
        predicted = logits > 0
        hits, drawn, true = (predicted & (masks > 0)).sum(), predicted.sum(), masks.sum()
        self.log("val_loss", self._loss(logits, masks), prog_bar=True)
        self.log_dict(
            {"precision": hits / drawn.clamp(min=1), "recall": hits / true, "hmean": 2 * hits / (drawn + true)}
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["learning_rate"])

    def _loss(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        if self.hparams["loss"] == "bce":
            return torch.nn.functional.binary_cross_entropy_with_logits(logits, masks)
        share = torch.sigmoid(logits)
        return 1 - (2 * (share * masks).sum() + 1) / (share.sum() + masks.sum() + 1)


class Breather(Callback):
    """Waits between epochs: the demo shows checkpoints arriving, it need not heat the machine."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        time.sleep(self._pause_s)


def config_of(experiment: Experiment, epochs: int) -> dict[str, Any]:
    """What Hydra would have written into the run's directory."""
    width = experiment.width
    return {
        "exp_name": experiment.name,
        "model": {
            "architecture_name": "stroke_segmenter",
            "encoder": {"model_name": f"conv2x{width}", "pretrained": False, "frozen": False},
            "decoder": {"name": experiment.decoder, "in_channels": [2 * width], "output_channels": width},
            "head": {"name": "conv3x3", "in_channels": width},
            "loss": {"name": experiment.loss},
            "optimizer": {"lr": experiment.learning_rate},
        },
        "trainer": {"max_epochs": epochs},
        "checkpoint": {"monitor": "hmean", "mode": "max", "save_top_k": 3, "save_last": True},
    }


def train(experiment: Experiment, out: Path, epochs: int, pause_s: float, seed: int) -> Path:
    """Train one run into `out/<experiment>/<time>`; returns the run's directory."""
    L.seed_everything(seed, verbose=False)
    run = out / experiment.name / datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    (run / ".hydra").mkdir(parents=True, exist_ok=True)
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config_of(experiment, epochs), sort_keys=False))
    checkpoints = ModelCheckpoint(
        run / "checkpoints",
        filename="epoch-{epoch:02d}_step-{step:06d}_hmean-{hmean:.4f}",
        auto_insert_metric_name=False,
        monitor="hmean",
        mode="max",
        save_top_k=3,
        save_last=True,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[checkpoints, EarlyStopping("val_loss", patience=4), Breather(pause_s)],
        logger=CSVLogger(str(run), name="", version="logs"),
        log_every_n_steps=4,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = StrokeModel(experiment.width, experiment.decoder, experiment.loss, experiment.learning_rate)
    loader = torch.utils.data.DataLoader(make_images(TRAIN_IMAGES, seed), batch_size=16, shuffle=True)
    trainer.fit(model, loader, torch.utils.data.DataLoader(make_images(VALIDATION_IMAGES, seed + 1), batch_size=64))
    return run


def prune(out: Path, runs_kept: int) -> None:
    """Keep the newest runs of each experiment; the disk stays bounded however long the demo runs."""
    for experiment in EXPERIMENTS:
        runs = sorted(path for path in (out / experiment.name).glob("*_*-*-*") if (path / ".hydra").is_dir())
        for run in runs[: max(0, len(runs) - runs_kept)]:
            shutil.rmtree(run, ignore_errors=True)


def main() -> None:
    """Train until stopped."""
    parser = argparse.ArgumentParser(description="train small models for ever, so that there are checkpoints")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="directory of the runs (default: outputs)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of a run (default: 8)")
    parser.add_argument("--pause-s", type=float, default=1.0, help="seconds between epochs (default: 1)")
    parser.add_argument("--runs-kept", type=int, default=4, help="runs kept per experiment (default: 4)")
    parser.add_argument("--rounds", type=int, default=0, help="end after so many rounds of all experiments; 0: never")
    options = parser.parse_args()
    # A save is a rename: ending at any moment leaves no half file behind.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    os.nice(10)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch")
    for round_number in itertools.count() if options.rounds == 0 else range(options.rounds):
        for position, experiment in enumerate(EXPERIMENTS):
            seed = 1000 + 10 * round_number + position
            run = train(experiment, options.out, options.epochs, options.pause_s, seed)
            print(f"trained {run}", flush=True)
            prune(options.out, options.runs_kept)


if __name__ == "__main__":
    main()
