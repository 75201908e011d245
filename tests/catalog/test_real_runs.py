"""Runs of real libraries: what is known of each checkpoint is what the training logged of those very weights."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.catalog.metadata_files import described

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SAVED = {
    # how the Trainer runs, when checkpoints are saved, whether each was validated when it was saved
    "at the end of each epoch": ({"max_epochs": 3}, {"filename": "{epoch}-{step}", "save_last": True}, True),
    "after each validation": ({"max_epochs": 2, "val_check_interval": 4}, {"monitor": "val/weight"}, True),
    "at any step": ({"max_epochs": 2}, {"every_n_train_steps": 3}, False),
    "with accumulated gradients": ({"max_epochs": 2, "accumulate_grad_batches": 2}, {"monitor": "val/weight"}, True),
    "at the training epoch's end": ({"max_epochs": 2}, {"save_on_train_epoch_end": True}, True),
    "with two optimizers": ({"max_epochs": 2, "val_check_interval": 4}, {"monitor": "val/weight"}, True),
}


def trained(root: Path, trainer: dict[str, Any], saver: dict[str, Any], *, manual: bool) -> Path:
    """Train a model of one weight that logs it at each validation; the logger's directory."""
    import lightning
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    class Model(lightning.LightningModule):
        def __init__(self, exp_name: str = "real") -> None:
            super().__init__()
            self.save_hyperparameters()
            self.weight = torch.nn.Parameter(torch.tensor(1.0))
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, _: int) -> Any:
            loss = (self.weight * batch[0]).pow(2).mean()
            if manual:
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()
                    optimizer.zero_grad()
            self.log("train/weight_before", self.weight.detach().clone())
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("val/weight", self.weight.detach().clone())

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.01) for _ in range(2 if manual else 1)]

    def loader(size: int) -> Any:
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(size, 1) + 0.5))

    logger = CSVLogger(root, flush_logs_every_n_steps=1)
    fit = lightning.Trainer(
        logger=logger,
        callbacks=[ModelCheckpoint(save_top_k=-1, **saver)],
        accelerator="cpu",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    )
    fit.fit(Model(), loader(8), loader(2))
    fit.save_checkpoint(f"{logger.log_dir}/checkpoints/saved-by-hand.ckpt")
    return Path(logger.log_dir)


@pytest.mark.parametrize("how", SAVED)
def test_the_metrics_joined_from_a_lightning_log_are_of_these_weights(tmp_path: Path, how: str) -> None:
    import torch

    trainer, saver, validated = SAVED[how]
    run = trained(tmp_path, trainer, saver, manual="two" in how)
    checkpoints = sorted(run.glob("checkpoints/*.ckpt"))
    assert len(checkpoints) >= 3
    joined = 0
    for path in checkpoints:
        description = described(path, tmp_path)
        metrics = description.metadata.metrics.additional_metrics
        weight = float(torch.load(path, weights_only=True)["state_dict"]["weight"])
        assert description.run_id == "version_0"
        assert description.config == {"exp_name": "real"}
        assert "train/weight_before" in metrics, path.name
        if "val/weight" in metrics:
            joined += 1
            assert metrics["val/weight"] == pytest.approx(weight, rel=1e-6), path.name
            field = "metrics.additional_metrics.val/weight"
            named = saver.get("monitor") == "val/weight" and path.name != "saved-by-hand.ckpt"
            assert description.provenance[field] == ("checkpoint" if named else "metrics_csv")
    assert joined >= (len(checkpoints) if validated else 1)


APPLICATION = """
import hydra, torch
from omegaconf import OmegaConf

@hydra.main(version_base=None, config_path=None)
def main(config):
    import os
    from hydra.core.hydra_config import HydraConfig
    directory = HydraConfig.get().runtime.output_dir + "/checkpoints"
    os.makedirs(directory)
    torch.save({"state_dict": {"weight": torch.ones(2)}, "epoch": 1}, directory + "/best.ckpt")

main()
"""


def test_a_job_of_hydra_is_known_by_its_command_line(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(APPLICATION)
    command = [sys.executable, "train.py", "+exp_name=from_cli", "+trainer.max_epochs=4"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    (path,) = tmp_path.glob("outputs/*/*/checkpoints/best.ckpt")
    root = tmp_path / "outputs"
    description = described(path, root)
    day, time = path.relative_to(root).parts[:2]
    assert description.config_path == f"{day}/{time}/.hydra/config.yaml"
    assert (description.metadata.exp_name, description.run_id) == ("from_cli", f"{day}/{time}")
    assert description.metadata.training.max_epochs == 4
    # The same run, where it was put for keeps, without the config that Hydra composed.
    kept = root / "kept"
    path.parent.parent.rename(kept)
    (kept / "config.yaml").write_text("lr: 0.1\n")
    description = described(kept / "checkpoints/best.ckpt", root)
    assert (description.metadata.exp_name, description.run_id) == ("from_cli", f"{day}/{time}")
    assert description.provenance["run_id"] == "hydra"


def test_the_jobs_of_a_multirun_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(APPLICATION)
    command = [sys.executable, "train.py", "--multirun", "+exp_name=swept", "+lr=0.1,0.2"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    paths = sorted(tmp_path.glob("multirun/*/*/*/checkpoints/best.ckpt"))
    known = [described(path, tmp_path) for path in paths]
    assert [each.metadata.exp_name for each in known] == ["swept", "swept"]
    assert [each.run_id for each in known] == ["/".join(path.relative_to(tmp_path).parts[1:4]) for path in paths]
    assert [each.config["lr"] for each in known] == [0.1, 0.2]


def test_a_transformers_directory_names_its_architecture_and_the_metrics_of_its_step(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    from tests.catalog.transformers_runs import trainer

    logged: dict[int, float] = {}

    class Noting(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
            logged[state.global_step] = metrics["eval_loss"]

    trainer(tmp_path / "my_exp", Noting()).train()
    assert sorted(logged) == [2, 4]
    for step, loss in logged.items():
        description = described(tmp_path / f"my_exp/checkpoint-{step}", tmp_path)
        metadata, origin = description.metadata, description.provenance
        assert (metadata.exp_name, metadata.training.global_step) == ("my_exp", step)
        assert metadata.model.architecture == "BertForSequenceClassification"
        assert metadata.metrics.validation_loss == pytest.approx(loss)
        assert {origin["model.architecture"], origin["metrics.validation_loss"]} == {"checkpoint"}
