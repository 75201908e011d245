"""What `load_from_checkpoint` would import and call is told, wherever Lightning itself reads it, and nowhere else."""

import argparse
import warnings
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from omegaconf import OmegaConf

from ckptd.validators import Safety, inspect_checkpoint

CALLED = "os.system"
PARAMETERS = {"lr": 0.1, "_instantiator": CALLED}


class _Net(L.LightningModule):
    def __init__(self, lr: float = 0.1, hparams: Any = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)


class _Data(L.LightningDataModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()


READ: dict[str, dict[str, Any]] = {
    "a dict": {"hyper_parameters": PARAMETERS},
    "Lightning's own mapping": {"hyper_parameters": AttributeDict(PARAMETERS)},
    "a name that the class does not take": {"hyper_parameters": PARAMETERS, "hparams_name": "kwargs"},
    "OmegaConf": {"hyper_parameters": OmegaConf.create(PARAMETERS)},
    "files of 0.7": {"hparams": PARAMETERS, "hyper_parameters": {}},
    "files before that": {"module_arguments": PARAMETERS, "hyper_parameters": {"lr": 1}},
    "pairs": {"module_arguments": [("lr", 1), ("_instantiator", CALLED)], "hyper_parameters": {}},
}
NOT_READ: dict[str, dict[str, Any]] = {
    "deeper": {"hyper_parameters": {"lr": 0.1, "nested": PARAMETERS}},
    "elsewhere": {"hyper_parameters": {"lr": 0.1}, "config": PARAMETERS},
    "nothing named": {"hyper_parameters": {"lr": 0.1, "_instantiator": None}},
}


def _saved(path: Path, parts: dict[str, Any], **options: Any) -> Path:
    torch.save({"state_dict": _Net().state_dict(), "pytorch-lightning_version": "2.6.6", **parts}, path, **options)
    return path


def _loaded(kind: type, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind.load_from_checkpoint(path, weights_only=False)  # type: ignore[attr-defined]


def _told(path: Path) -> list[str]:
    findings = inspect_checkpoint(path).findings
    return [found.message for found in findings if "_instantiator" in found.message]


@pytest.mark.parametrize("name", READ)
def test_what_lightning_reads_is_told(name: str, tmp_path: Path) -> None:
    path = _saved(tmp_path / "read.ckpt", READ[name])
    with pytest.raises(ValueError, match=f"The instantiator '{CALLED}' from the checkpoint is not in the allowlist"):
        _loaded(_Net, path)
    (message,) = _told(path)
    assert f"would import and call {CALLED}" in message
    inspection = inspect_checkpoint(path)
    assert inspection.safety is Safety.UNSAFE
    assert inspection.is_valid


@pytest.mark.parametrize("name", NOT_READ)
def test_what_lightning_does_not_read_is_not_told(name: str, tmp_path: Path) -> None:
    path = _saved(tmp_path / "unread.ckpt", NOT_READ[name])
    _loaded(_Net, path)
    assert _told(path) == []


def test_a_data_module_reads_its_own_key(tmp_path: Path) -> None:
    path = _saved(tmp_path / "data.ckpt", {"datamodule_hyper_parameters": PARAMETERS})
    with pytest.raises(ValueError, match="from the checkpoint is not in the allowlist"):
        _loaded(_Data, path)
    (message,) = _told(path)
    assert message.startswith("datamodule_hyper_parameters hold")


@pytest.mark.parametrize("options", [{"_use_new_zipfile_serialization": False}, {"pickle_protocol": 5}])
def test_every_way_of_saving_counts(options: dict[str, Any], tmp_path: Path) -> None:
    assert len(_told(_saved(tmp_path / "any.ckpt", {"hyper_parameters": PARAMETERS}, **options))) == 1


def test_a_namespace_counts_for_releases_that_took_one(tmp_path: Path) -> None:
    path = _saved(tmp_path / "old.ckpt", {"hyper_parameters": argparse.Namespace(**PARAMETERS)})
    assert len(_told(path)) == 1


def test_the_classes_that_lightnings_own_function_would_build_are_named(tmp_path: Path) -> None:
    """As LightningCLI saves them: the function is Lightning's, the classes are the file's."""
    parameters = {
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "_class_path": "my.Net",
        "encoder": {"class_path": "torch.nn.Linear", "init_args": {"a": [{"class_path": "subprocess.Popen"}]}},
    }
    (message,) = _told(_saved(tmp_path / "cli.ckpt", {"hyper_parameters": parameters}))
    assert message.endswith(
        "call lightning.pytorch.cli.instantiate_module, with my.Net, subprocess.Popen, torch.nn.Linear"
    )


def test_something_else_than_a_name_is_told_as_well(tmp_path: Path) -> None:
    (message,) = _told(_saved(tmp_path / "odd.ckpt", {"hyper_parameters": {"_instantiator": 5}}))
    assert message.endswith("would import and call something")
