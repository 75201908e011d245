"""docs/training.md: every program in it runs and leaves the metadata that it promises; every key is explained."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from ckptd.catalog.callbacks import saving
from ckptd.catalog.description import Source
from ckptd.validators import Level, inspect_checkpoint

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "training.md"
TIMEOUT_S = 240


@functools.cache
def files() -> dict[str, str]:
    """Every block of code of the guide; its first line names the file that it is."""
    blocks = re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return dict(blocks)


def run(directory: pathlib.Path, *command: str) -> str:
    for name, text in files().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
    ended = subprocess.run(
        [sys.executable, *command], cwd=directory, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout + ended.stderr


def sidecars(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Checkpoint, relative to `outputs` → its metadata; every checkpoint has to have some."""
    found = {
        str(path.relative_to(directory / "outputs")).removesuffix(".metadata.yaml"): yaml.safe_load(path.read_text())
        for path in (directory / "outputs").rglob("*.metadata.yaml")
    }
    on_disk = {str(path.relative_to(directory / "outputs")) for path in (directory / "outputs").rglob("*.ckpt")}
    on_disk |= {str(path.relative_to(directory / "outputs")) for path in (directory / "outputs").rglob("checkpoint-*/")}
    assert found.keys() == on_disk
    return found


def test_every_program_of_the_guide_is_run_here() -> None:
    text = GUIDE.read_text()
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(files())
    tests = pathlib.Path(__file__).read_text()
    assert [name for name in files() if name.endswith(".py") and f'"{name}"' not in tests] == []


def test_every_key_of_the_schema_is_explained_and_no_other() -> None:
    section = GUIDE.read_text().partition("\n## The metadata\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    explained = {key for row in rows for key in re.findall(r"`([a-z_.]+)`", row)}
    slots = {f"metrics.{name}" for name in ("precision", "recall", "hmean", "validation_loss", "additional_metrics")}
    source = {f"source.{name}" for name in Source.__struct_fields__}
    assert explained == saving._FIELDS | slots | source | {"schema_version", "checkpoint_path"}


def test_every_parameter_of_save_with_metadata_is_named() -> None:
    section = GUIDE.read_text().partition("\n## Any loop\n")[2].partition("\n## ")[0]
    assert [name for name in saving.Knowledge.__annotations__ if f"`{name}`" not in section] == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_loop_of_ones_own(tmp_path: pathlib.Path) -> None:
    run(tmp_path, "train_loop.py")
    found = sidecars(tmp_path)
    assert found.keys() == {f"words_loop/checkpoints/epoch={epoch}.ckpt" for epoch in range(3)}
    last = found["words_loop/checkpoints/epoch=2.ckpt"]
    assert last["exp_name"] == "words_loop"
    assert last["metrics"]["hmean"] == pytest.approx(0.7)
    assert last["metrics"]["validation_loss"] is not None
    assert last["metrics"]["additional_metrics"] == {"test/hmean": 0.68}
    assert last["training"] == {"epoch": 2, "global_step": 300, "training_phase": None, "max_epochs": 3}
    assert last["model"]["encoder"]["model_name"] == "resnet18"
    path = tmp_path / "outputs/words_loop/checkpoints/epoch=2.ckpt"
    assert last["source"]["digest"] == inspect_checkpoint(path, Level.CHECKSUM).digest


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_lightning(tmp_path: pathlib.Path) -> None:
    run(tmp_path, "train_lightning.py")
    found = sidecars(tmp_path)
    assert found.keys() >= {"words/checkpoints/last.ckpt"}
    for document in found.values():
        assert document["exp_name"] == "words"
        assert document["checkpointing"]["monitor"] == "val/hmean"
        assert document["metrics"]["hmean"] is not None
        assert document["model"]["head"]["name"] == "Linear"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_lightning_with_a_digest(tmp_path: pathlib.Path) -> None:
    run(tmp_path, "train_digested.py")
    for name, document in sidecars(tmp_path).items():
        digest = inspect_checkpoint(tmp_path / "outputs" / name, Level.CHECKSUM).digest
        assert document["source"]["digest"] == digest is not None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_hydra(tmp_path: pathlib.Path) -> None:
    run(tmp_path, "train_hydra.py", "callbacks.metadata.training_phase=finetuning")
    found = sidecars(tmp_path)
    assert any(name.endswith("checkpoints/last.ckpt") for name in found)
    for name, document in found.items():
        assert document["exp_name"] == "words_hydra"
        assert document["training"]["training_phase"] == "finetuning"
        run_directory = (tmp_path / "outputs" / name).parents[1]
        assert (tmp_path / document["hydra_config_path"]).samefile(run_directory / ".hydra" / "config.yaml")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_transformers(tmp_path: pathlib.Path) -> None:
    run(tmp_path, "train_transformers.py")
    found = sidecars(tmp_path)
    assert len(found) == 1
    for name, document in found.items():
        assert document["exp_name"] == "reviews"
        assert document["checkpointing"] == {
            "monitor": "eval_loss",
            "mode": "min",
            "save_top_k": 1,
            "save_last": None,
        }
        state = json.loads((tmp_path / "outputs" / name / "trainer_state.json").read_text())
        logged = [
            e["eval_loss"] for e in state["log_history"] if e["step"] == state["global_step"] and "eval_loss" in e
        ]
        assert [document["metrics"]["validation_loss"]] == logged


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_several_processes(tmp_path: pathlib.Path) -> None:
    run(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train_ddp.py")
    found = sidecars(tmp_path)
    assert found.keys() == {"words_ddp/last.ckpt"}
    assert found["words_ddp/last.ckpt"]["metrics"]["validation_loss"] is not None
