"""Whatever goes wrong with the metadata, the training goes on and hears of it once."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from ckptd.catalog.callbacks.lightning import MetadataCallback
from tests.catalog.callbacks.trainings import SUFFIX, Net, assert_all_described, fit, sidecar

pytestmark = pytest.mark.filterwarnings("ignore")


def every(run: Path | str, **settings: Any) -> ModelCheckpoint:
    return ModelCheckpoint(run, **{"save_top_k": -1, "filename": "{epoch}"} | settings)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "ckptd.callbacks"]


def test_a_remote_filesystem_is_skipped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = fit(tmp_path, every("memory://bucket/run"), MetadataCallback())
    assert made.global_step == 4
    assert ["remote" in told for told in warnings_of(caplog)] == [True]
    assert os.listdir(tmp_path) == []


def test_a_persons_sidecar_stays_and_the_other_files_are_described(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = tmp_path / f"latest.ckpt{SUFFIX}"
    theirs.write_text("exp_name: mine\n")
    latest = every(tmp_path, filename="latest", save_top_k=1, enable_version_counter=False)
    fit(tmp_path, latest, every(tmp_path, monitor="val_loss"), MetadataCallback(), max_epochs=3)
    assert theirs.read_text() == "exp_name: mine\n"
    assert sidecar(tmp_path / "epoch=2.ckpt")["training"]["epoch"] == 2
    assert ["left alone" in told for told in warnings_of(caplog)] == [True]


class Unreadable:
    """A metric on a device that is no more."""

    @property
    def device(self) -> str:
        raise RuntimeError("the device was lost")


class Odd(Net):
    """Logs what cannot be read, and raises from the very attributes that are looked at."""

    @property
    def encoder(self) -> nn.Module:
        raise RuntimeError("not before the third phase of the moon")

    @property
    def loss(self) -> str:
        return "a text"

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        super().validation_step(batch, index)
        self.trainer.callback_metrics["unreadable"] = Unreadable()  # type: ignore[assignment]
        self.trainer.callback_metrics["many"] = torch.zeros(3)
        self.trainer.callback_metrics["nan"] = torch.tensor(float("nan"))
        self.trainer.callback_metrics["word"] = "good"  # type: ignore[assignment]


def test_odd_modules_and_metrics_leave_the_rest_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, every(tmp_path), MetadataCallback(), model=Odd())
    assert len(assert_all_described(tmp_path)) == 2
    model = sidecar(tmp_path / "epoch=1.ckpt")["model"]
    assert model["encoder"]["model_name"] == "tiny_encoder"
    assert model["loss"]["name"] == "MSELoss"
    assert warnings_of(caplog) == []


def test_a_save_that_fails_raises_as_it_does_without_the_callback(tmp_path: Path) -> None:
    class Full(Net):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["unpicklable"] = lambda: None

    with pytest.raises(Exception, match=r"pickle|local object"):
        fit(tmp_path, every(tmp_path), MetadataCallback(), model=Full())
    assert [name for name in os.listdir(tmp_path) if name.endswith(SUFFIX)] == []


def test_a_callback_that_cannot_observe_warns_once_and_the_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise AttributeError("a later Lightning calls it something else")

    monkeypatch.setattr("ckptd.catalog.callbacks.lightning._saver_in_stack", broken)
    monkeypatch.setattr("ckptd.catalog.callbacks.lightning.known_parts", broken)
    made = fit(tmp_path, every(tmp_path), MetadataCallback())
    assert made.global_step == 4
    assert len(assert_all_described(tmp_path)) == 2
    assert ["a later Lightning" in told for told in warnings_of(caplog)] == [True]


def test_only_warnings_are_logged_and_none_where_all_is_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="ckptd.callbacks")
    fit(tmp_path, every(tmp_path, save_last=True), MetadataCallback())
    assert warnings_of(caplog) == []


# ---- where it runs ---------------------------------------------------------------------------------------------


class WandbLogger(DummyLogger):
    """Stands for W&B's, which is 100 MB: a Logger of this name whose version is the run's id."""

    @property
    def version(self) -> str:
        return "3kd8s0ab"


def test_the_run_of_wandb_is_named(tmp_path: Path) -> None:
    fit(tmp_path, every(tmp_path / "checkpoints"), MetadataCallback(), logger=[CSVLogger(tmp_path), WandbLogger()])
    assert sidecar(tmp_path / "checkpoints/epoch=1.ckpt")["wandb_run_id"] == "3kd8s0ab"


HYDRA = """
import sys, warnings
warnings.simplefilter("ignore")
import hydra
from lightning.pytorch.callbacks import ModelCheckpoint
from ckptd.catalog.callbacks.lightning import MetadataCallback
from tests.catalog.callbacks.trainings import fit

@hydra.main(version_base="1.3", config_path=None)
def main(config):
    fit(config.elsewhere, ModelCheckpoint(config.elsewhere, filename="last"), MetadataCallback())

main()
"""


@pytest.mark.slow
def test_hydras_output_directory_is_where_the_config_is(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(HYDRA)
    run, elsewhere = tmp_path / "outputs/2026-11-23/10-00-00", tmp_path / "elsewhere/checkpoints"
    arguments = [f"hydra.run.dir={run}", f"+elsewhere={elsewhere}"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, str(script), *arguments], check=True, capture_output=True, env=environment)
    assert sidecar(elsewhere / "last.ckpt")["hydra_config_path"] == str(run / ".hydra/config.yaml")


@pytest.mark.slow
def test_trainings_of_pytorch_lightning_are_described_alike(tmp_path: Path) -> None:
    text = """
import sys, warnings
warnings.simplefilter("ignore")
import pytorch_lightning as pl, torch
from ckptd.catalog.callbacks.lightning import MetadataCallback
assert "lightning" not in sys.modules
class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(3, 1)
    def training_step(self, batch, index):
        self.log("val_loss", float(self.global_step))
        return self.encoder(batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)
callback = MetadataCallback()
assert isinstance(callback, pl.Callback)
saver = pl.callbacks.ModelCheckpoint(sys.argv[1], monitor="val_loss", save_top_k=-1)
trainer = pl.Trainer(max_epochs=2, callbacks=[saver, callback], logger=False, accelerator="cpu")
trainer.fit(Net(), torch.utils.data.DataLoader(torch.ones(4, 3), batch_size=2))
"""
    subprocess.run([sys.executable, "-c", text, str(tmp_path)], check=True, capture_output=True)
    names = sorted(name for name in os.listdir(tmp_path) if name.endswith(".ckpt"))
    assert names == ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt"]
    for name, value in zip(names, (1.0, 3.0), strict=True):
        written = sidecar(tmp_path / name)
        assert written["metrics"]["validation_loss"] == value
        assert written["checkpointing"]["monitor"] == "val_loss"
