"""MetadataCallback in real transformers Trainers: one right sidecar per checkpoint directory."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import warnings
from typing import Any

import pytest
import yaml

from ckptd.catalog.describe import describe_checkpoint
from ckptd.catalog.description import SidecarStatus
from ckptd.catalog.sidecar import Author, author_of
from ckptd.validators import Level, inspect_checkpoint
from tests.catalog import transformers_runs
from tests.catalog.verified_files import flip

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, torch and accelerate about each other

REPO = pathlib.Path(__file__).parents[2]


def callback(**options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ckptd.catalog.callbacks.transformers import MetadataCallback

    return MetadataCallback(**({"flush_timeout_s": 60.0} | options))


def train(output_dir: pathlib.Path, options: dict[str, Any] | None = None, **arguments: Any) -> Any:
    trainer = transformers_runs.trainer(output_dir, callback(**(options or {})), **arguments)
    trainer.train()
    return trainer


def sidecars(output_dir: pathlib.Path) -> dict[str, dict[str, Any]]:
    return {
        path.name.removesuffix(".metadata.yaml"): yaml.safe_load(path.read_text())
        for path in output_dir.glob("*.metadata.yaml")
    }


def checkpoints(output_dir: pathlib.Path) -> set[str]:
    return {path.name for path in output_dir.iterdir() if path.is_dir() and path.name.startswith("checkpoint-")}


def logged(trainer: Any, step: int, name: str) -> float | None:
    found = [entry[name] for entry in trainer.state.log_history if entry["step"] == step and name in entry]
    return float(found[-1]) if found else None


def test_each_checkpoint_that_is_left_has_one_sidecar_with_what_was_logged_at_its_step(tmp_path: pathlib.Path) -> None:
    """The best one and the last one are kept, of three."""
    run = tmp_path / "outputs" / "words" / "run_1"
    trainer = train(
        run,
        num_train_epochs=3,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="recall",
        greater_is_better=True,
    )
    written = sidecars(run)
    assert written.keys() == checkpoints(run)
    assert len(written) == 2
    for name, document in written.items():
        step = int(name.removeprefix("checkpoint-"))
        assert document["exp_name"] == "words"
        assert document["training"] == {
            "epoch": step // 2,
            "global_step": step,
            "training_phase": "training",
            "max_epochs": 3,
        }
        assert document["metrics"]["additional_metrics"] == {"loss": logged(trainer, step, "loss")}
        assert document["metrics"]["validation_loss"] == logged(trainer, step, "eval_loss")
        assert document["metrics"]["hmean"] == logged(trainer, step, "eval_hmean")
        assert document["metrics"]["recall"] == logged(trainer, step, "eval_recall")
        assert document["checkpointing"] == {
            "monitor": "eval_recall",
            "mode": "max",
            "save_top_k": 2,
            "save_last": None,
        }
        bare = shutil.copytree(run / name, tmp_path / "bare" / name)
        architecture = describe_checkpoint(str(bare)).metadata.model.architecture
        assert document["model"]["architecture"] == architecture is not None
        assert author_of((run / f"{name}.metadata.yaml").read_bytes()) is Author.TRAINING
        described = describe_checkpoint(str(run / name))
        assert described.sidecar is SidecarStatus.FOREIGN
        assert described.metadata.metrics.hmean == document["metrics"]["hmean"]


@pytest.mark.slow
def test_an_evaluation_of_another_step_is_not_the_checkpoints(tmp_path: pathlib.Path) -> None:
    trainer = train(tmp_path / "run", eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=3)
    written = sidecars(tmp_path / "run")
    assert written.keys() == {"checkpoint-3", "checkpoint-4"}
    assert written["checkpoint-3"]["metrics"]["hmean"] is None
    assert written["checkpoint-3"]["metrics"]["additional_metrics"] == {"loss": logged(trainer, 3, "loss")}
    assert written["checkpoint-4"]["metrics"]["hmean"] == logged(trainer, 4, "eval_hmean")


@pytest.mark.slow
def test_what_the_trainer_does_not_know_is_null(tmp_path: pathlib.Path) -> None:
    """No monitor, an end by steps, the model alone."""
    train(tmp_path / "run", eval_strategy="no", max_steps=3, save_strategy="steps", save_steps=3, save_only_model=True)
    document = sidecars(tmp_path / "run")["checkpoint-3"]
    assert document["checkpointing"] == {"monitor": None, "mode": None, "save_top_k": None, "save_last": None}
    assert document["training"]["max_epochs"] is None
    assert document["metrics"]["hmean"] is None
    assert document["model"]["encoder"]["model_name"] is None


@pytest.mark.slow
def test_a_resumed_training_describes_its_own_checkpoints_and_forgets_what_it_deletes(tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    train(run, num_train_epochs=2)
    first = sidecars(run)
    assert first.keys() == {"checkpoint-2", "checkpoint-4"}
    mine = run / "checkpoint-1.metadata.yaml"
    mine.write_text("exp_name: mine\n")
    trainer = transformers_runs.trainer(run, callback(), num_train_epochs=3, save_total_limit=2)
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    written = sidecars(run)
    assert written.keys() == checkpoints(run) | {"checkpoint-1"} == {"checkpoint-1", "checkpoint-4", "checkpoint-6"}
    assert written["checkpoint-4"] == first["checkpoint-4"]
    assert written["checkpoint-6"]["metrics"]["hmean"] == logged(trainer, 6, "eval_hmean")
    assert mine.read_text() == "exp_name: mine\n"


@pytest.mark.slow
def test_where_no_metadata_can_be_written_there_is_one_warning_and_the_training_goes_on(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for step in (2, 4):
        (run / f"checkpoint-{step}.metadata.yaml").write_text("exp_name: mine\n")
    with caplog.at_level(logging.WARNING, "ckptd.callbacks"):
        trainer = train(run)
    assert trainer.state.global_step == 4
    assert [record.name for record in caplog.records if record.name.startswith("ckptd")] == ["ckptd.callbacks"]
    assert {document["exp_name"] for document in sidecars(run).values()} == {"mine"}


@pytest.mark.slow
def test_a_digest_shows_an_altered_byte_of_safetensors_at_the_first_reading(tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    train(run, {"digest": True}, num_train_epochs=1, save_only_model=True)
    directory = run / "checkpoint-2"
    assert sidecars(run)["checkpoint-2"]["source"]["digest"] == inspect_checkpoint(directory, Level.CHECKSUM).digest
    assert describe_checkpoint(str(directory), level=Level.CHECKSUM).inspection.level is Level.CHECKSUM
    weights = directory / "model.safetensors"
    flip(weights, weights.stat().st_size - 5)
    found = describe_checkpoint(str(directory), level=Level.CHECKSUM)
    assert "archive.checksum_mismatch" in {one.code for one in found.findings}
    assert not found.inspection.is_valid


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_of_several_processes_one_writes(tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    arguments = {"per_device_train_batch_size": 2, "num_train_epochs": 1, "ddp_backend": "gloo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "tests.catalog.transformers_runs", str(run), json.dumps(arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert sidecars(run).keys() == checkpoints(run) == {"checkpoint-2"}
    assert sidecars(run)["checkpoint-2"]["metrics"]["hmean"] is not None
    assert "metadata" not in ended.stderr


def test_a_hyper_parameter_search_saves_into_directories_of_its_trials(tmp_path: pathlib.Path) -> None:
    from ckptd.catalog.callbacks.transformers import _checkpoint_path

    for trial in ("run-0", "run-1"):
        (tmp_path / "a[1]" / trial / "checkpoint-7").mkdir(parents=True)
    os.utime(tmp_path / "a[1]" / "run-0" / "checkpoint-7", (1, 1))
    assert _checkpoint_path(str(tmp_path / "a[1]"), 7) == str(tmp_path / "a[1]" / "run-1" / "checkpoint-7")
    assert _checkpoint_path(str(tmp_path / "a[1]"), 8) is None
