"""However Lightning comes to save a file, its sidecar says what that very file holds."""

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from ckptd.catalog.callbacks.lightning import MetadataCallback
from ckptd.catalog.description import SidecarStatus
from tests.catalog.callbacks.trainings import SUFFIX, Net, assert_all_described, fit, flushed, loader, sidecar, trainer
from tests.catalog.metadata_files import described

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where the checkpoints of an experiment go."""
    return tmp_path / "outputs/receipts/checkpoints"


def best(run: Path, **settings: Any) -> ModelCheckpoint:
    """Keeps the best by hmean."""
    named = "{epoch}-{step}"
    defaults: dict[str, Any] = {"monitor": "val/hmean", "mode": "max", "save_top_k": 2, "filename": named}
    return ModelCheckpoint(run, **defaults | settings)


def test_every_field_that_the_training_knows_is_written(run: Path) -> None:
    fit(run, best(run, save_top_k=-1, save_last=True), MetadataCallback(training_phase="finetuning"))
    written = sidecar(run / "last.ckpt")
    assert written["schema_version"] == "1.0"
    assert written["exp_name"] == "receipts"
    assert written["training"] == {
        "epoch": 1,
        "global_step": 4,
        "training_phase": "finetuning",
        "max_epochs": 2,
    }
    assert written["checkpointing"] == {"monitor": "val/hmean", "mode": "max", "save_top_k": -1, "save_last": True}
    model = written["model"]
    assert model["encoder"] == {"model_name": "tiny_encoder", "pretrained": None, "frozen": False}
    assert model["decoder"]["name"] == "Conv1d"
    assert (model["decoder"]["in_channels"], model["decoder"]["output_channels"]) == (1, 1)
    assert model["head"]["name"] == "Linear"
    assert model["loss"]["name"] == "MSELoss"
    assert written["hydra_config_path"] is None
    assert written["wandb_run_id"] is None
    assert written["source"]["generated_by"].startswith("ckptd.catalog.callbacks.lightning.MetadataCallback ")
    assert described(run / "last.ckpt", run.parents[1]).sidecar is SidecarStatus.FOREIGN


def test_top_k_leaves_a_sidecar_for_each_file_that_is_left_and_none_besides(run: Path) -> None:
    fit(run, best(run, save_last=True), MetadataCallback(), max_epochs=6)
    assert len(assert_all_described(run)) == 3


@pytest.mark.slow
def test_a_last_that_is_a_link_has_no_sidecar_of_its_own(run: Path) -> None:
    fit(run, best(run, save_last="link", save_top_k=-1), MetadataCallback(), max_epochs=3)
    assert (run / "last.ckpt").is_symlink()
    assert len(assert_all_described(run)) == 3


@pytest.mark.slow
def test_a_last_that_was_a_file_and_becomes_a_link_loses_its_sidecar(run: Path) -> None:
    fit(run, best(run, save_last=True), MetadataCallback())
    settings: dict[str, Any] = {"max_epochs": 4, "ckpt_path": run / "last.ckpt"}
    fit(run, best(run, save_last="link", save_top_k=-1), MetadataCallback(), **settings)
    assert (run / "last.ckpt").is_symlink()
    assert_all_described(run)


def test_an_overwritten_file_has_the_metadata_of_its_last_save(run: Path) -> None:
    saver = ModelCheckpoint(run, filename="latest", save_top_k=1, enable_version_counter=False, every_n_train_steps=1)
    fit(run, saver, MetadataCallback(), max_epochs=3)
    assert assert_all_described(run) == ["latest.ckpt"]
    assert sidecar(run / "latest.ckpt")["training"]["global_step"] == 6


def test_each_file_has_the_monitor_of_the_callback_that_wrote_it(run: Path) -> None:
    savers = [
        best(run, filename="hmean", save_top_k=1),
        best(run, filename="loss", monitor="val_loss", mode="min", save_top_k=1),
        ModelCheckpoint(run, filename="every-{step}", every_n_train_steps=1, save_top_k=-1),
    ]
    fit(run, *savers, MetadataCallback())
    every = {f"every-step={step}.ckpt": None for step in range(1, 5)}
    # The first validation comes after the second step: two files were saved without validation metrics.
    assert_all_described(run, {"hmean.ckpt": "val/hmean", "loss.ckpt": "val_loss"} | every)
    assert sidecar(run / "loss.ckpt")["checkpointing"]["mode"] == "min"
    assert sidecar(run / "every-step=1.ckpt")["checkpointing"]["mode"] is None
    assert sidecar(run / "every-step=1.ckpt")["metrics"]["hmean"] is None


def test_manual_saves_are_described_during_and_after_the_fit(run: Path) -> None:
    class Manual(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(run / "by hand.ckpt")

    made = fit(run, Manual(), MetadataCallback(), enable_checkpointing=False)
    made.save_checkpoint(run / "final.ckpt")
    made.save_checkpoint(run / "weights.ckpt", weights_only=True)
    flushed(made)
    assert assert_all_described(run) == ["by hand.ckpt", "final.ckpt", "weights.ckpt"]
    assert sidecar(run / "by hand.ckpt")["training"]["global_step"] == 3


class Fails(Net):
    """Raises in its third step."""

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        if self.global_step == 3:
            raise RuntimeError("out of luck")
        return super().training_step(batch, index)


def test_what_is_saved_on_an_exception_is_described(run: Path) -> None:
    saver = best(run, save_on_exception=True, save_top_k=-1)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(run, saver, OnExceptionCheckpoint(run, "raised"), MetadataCallback(), model=Fails())
    names = assert_all_described(run)
    assert names == ["epoch=0-step=2.ckpt", "epoch=1-step=3.ckpt", "raised.ckpt"]
    assert sidecar(run / "epoch=1-step=3.ckpt")["checkpointing"]["monitor"] == "val/hmean"


@pytest.mark.slow
def test_a_resumed_training_describes_its_own_files_and_replaces_its_older_sidecars(run: Path) -> None:
    fit(run, best(run, save_last=True, save_top_k=-1), MetadataCallback(exp_name="first"))
    settings: dict[str, Any] = {"max_epochs": 4, "ckpt_path": run / "last.ckpt"}
    fit(run, best(run, save_last=True, save_top_k=-1), MetadataCallback(exp_name="second"), **settings)
    assert len(assert_all_described(run)) == 5
    assert sidecar(run / "last.ckpt")["exp_name"] == "second"
    assert sidecar(run / "last.ckpt")["training"]["epoch"] == 3
    assert sidecar(run / "epoch=0-step=2.ckpt")["exp_name"] == "first"


class Late(TorchCheckpointIO):
    """Writes nothing before the training has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()
        self.written: list[str] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        assert self.ended.wait(60)
        super().save_checkpoint(checkpoint, path, storage_options)
        self.written.append(os.path.basename(path))


def test_files_that_another_thread_writes_long_after_their_saves_are_described_rightly(run: Path) -> None:
    late = Late()

    class End(Callback):
        def on_train_end(self, *_: object) -> None:
            assert late.written == []
            late.ended.set()

    plugins = [AsyncCheckpointIO(late)]
    fit(run, best(run, save_last=True, save_top_k=-1), End(), MetadataCallback(), max_epochs=4, plugins=plugins)
    assert late.written.count("last.ckpt") == 4
    assert len(assert_all_described(run)) == 5


@pytest.mark.slow
def test_a_wrapper_that_finds_its_io_later_is_observed_too(run: Path) -> None:
    fit(run, best(run), MetadataCallback(), plugins=[AsyncCheckpointIO()])
    assert len(assert_all_described(run)) == 2


@pytest.mark.slow
def test_a_later_fit_of_the_same_trainer_writes_each_sidecar_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = MetadataCallback()
    made = trainer(run, best(run, save_top_k=-1), callback)
    submitted: list[str] = []
    submit = callback.writer.submit

    def counted(path: str, *arguments: Any, **keywords: Any) -> bool:
        submitted.append(path)
        return submit(path, *arguments, **keywords)

    monkeypatch.setattr(callback.writer, "submit", counted)
    made.fit(Net(), loader(), loader(1))
    made.fit_loop.max_epochs = 3
    made.fit(Net(), loader(), loader(1))
    names = assert_all_described(run)
    assert sorted(submitted) == sorted(str(run / name) for name in names)


@pytest.mark.slow
def test_generation_at_the_end_describes_the_files_that_are_left(run: Path) -> None:
    seen: list[list[str]] = []

    class Look(Callback):
        def on_train_end(self, *_: object) -> None:
            seen.append([name for name in os.listdir(run) if name.endswith(SUFFIX)])

    fit(run, best(run, save_last=True), Look(), MetadataCallback(generate_on_save=False), max_epochs=6)
    assert seen == [[]]
    assert len(assert_all_described(run)) == 3


@pytest.mark.slow
def test_validating_alone_and_saving_by_hand_is_described(run: Path) -> None:
    made = trainer(run, MetadataCallback())
    made.validate(Net(), loader(1), verbose=False)
    made.save_checkpoint(run / "validated.ckpt")
    flushed(made)
    assert assert_all_described(run) == ["validated.ckpt"]


@pytest.mark.slow
def test_a_name_with_a_slash_in_it_is_described_where_it_lies(run: Path) -> None:
    fit(run, best(run, filename="{epoch}-{val/hmean:.2f}", save_top_k=1), MetadataCallback())
    (directory,) = run.iterdir()
    assert len(assert_all_described(directory)) == 1


def test_a_relative_path_means_the_directory_at_the_time_of_the_save(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.mkdir(parents=True)
    monkeypatch.chdir(run)
    made = fit(run, MetadataCallback(), enable_checkpointing=False)
    made.save_checkpoint("relative.ckpt")
    monkeypatch.chdir("/")
    flushed(made)
    assert assert_all_described(run) == ["relative.ckpt"]


@pytest.mark.slow
def test_a_trainer_without_the_callback_is_left_as_it_was(run: Path) -> None:
    made = fit(run, best(run))
    assert "save_checkpoint" not in vars(made.strategy)
    assert not [name for name in os.listdir(run) if name.endswith(SUFFIX)]


@pytest.mark.slow
def test_the_callback_can_be_pickled_before_and_after_a_fit(run: Path) -> None:
    callback = MetadataCallback(exp_name="x")
    assert pickle.loads(pickle.dumps(callback)).exp_name == "x"
    made = fit(run, best(run), callback)
    again = pickle.loads(pickle.dumps(callback))
    fit(run.parent / "again", best(run.parent / "again"), again)
    assert_all_described(run.parent / "again")
    assert made.is_global_zero
