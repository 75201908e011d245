"""The config group that the package ships: found by Hydra, composed, instantiated, switched off, used in a real run."""

import pathlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tests.catalog.test_training_guide import files

pytestmark = pytest.mark.filterwarnings("ignore")  # of lightning about its surroundings

SEARCH_PATH = "pkg://ckptd.catalog.callbacks.conf"
PRIMARY = f"""
defaults:
  - callbacks: [metadata]
  - _self_
hydra:
  searchpath: ["{SEARCH_PATH}"]
"""


@pytest.fixture
def conf(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory for configs, of which `train.yaml` is the main one."""
    directory = tmp_path / "conf"
    directory.mkdir()
    (directory / "train.yaml").write_text(PRIMARY)
    yield directory
    GlobalHydra.instance().clear()


def composed(conf: pathlib.Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf), version_base=None):
        return compose("train", overrides=list(overrides))


def made(config: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return instantiate(config)


def test_the_group_is_found_by_the_packages_search_path_and_makes_the_callback(conf: pathlib.Path) -> None:
    config = composed(conf)
    callback = made(config.callbacks.metadata)
    from ckptd.catalog.callbacks.lightning import MetadataCallback

    assert isinstance(callback, MetadataCallback)
    assert (callback.exp_name, callback.training_phase, callback.generate_on_save) == (None, "training", True)


def test_each_parameter_can_be_set_from_the_command_line(conf: pathlib.Path) -> None:
    config = composed(
        conf,
        "callbacks.metadata.exp_name=words",
        "callbacks.metadata.generate_on_save=false",
        "callbacks.metadata.outputs_dir=/srv/outputs",
        "callbacks.metadata.training_phase=finetuning",
        "callbacks.metadata.validate_schema=false",
    )
    callback = made(config.callbacks.metadata)
    assert (callback.exp_name, callback.training_phase, callback.generate_on_save) == ("words", "finetuning", False)
    assert callback.outputs_dir == "/srv/outputs"


def test_it_takes_the_experiments_name_from_the_config_around_it(conf: pathlib.Path) -> None:
    (conf / "train.yaml").write_text(PRIMARY + "exp_name: words\n")
    assert made(composed(conf).callbacks.metadata).exp_name == "words"


def test_null_switches_it_off(conf: pathlib.Path) -> None:
    config = composed(conf, "callbacks.metadata=null")
    assert config.callbacks.metadata is None
    assert instantiate(config.callbacks) == {"metadata": None}


def test_it_joins_a_group_of_callbacks_that_is_there_already(conf: pathlib.Path) -> None:
    (conf / "callbacks").mkdir()
    (conf / "callbacks" / "mine.yaml").write_text("mine: {_target_: builtins.dict}\n")
    (conf / "train.yaml").write_text(PRIMARY.replace("[metadata]", "[mine, metadata]"))
    assert list(composed(conf).callbacks) == ["mine", "metadata"]


def test_the_files_parameters_are_those_of_the_callback(conf: pathlib.Path) -> None:
    import inspect

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ckptd.catalog.callbacks.lightning import MetadataCallback

    parameters = inspect.signature(MetadataCallback).parameters
    given = OmegaConf.to_container(composed(conf).callbacks.metadata, resolve=True)
    assert isinstance(given, dict)
    assert given.pop("_target_") == f"{MetadataCallback.__module__}.{MetadataCallback.__qualname__}"
    assert given == {name: parameters[name].default for name in given}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_switched_off_on_the_command_line_a_real_training_writes_no_metadata(tmp_path: pathlib.Path) -> None:
    """The training of the guide; with the callback it is run by the test of the guide."""
    for name, text in files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, "train_hydra.py", "callbacks.metadata=null"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert list((tmp_path / "outputs").rglob("last.ckpt"))
    assert not list((tmp_path / "outputs").rglob("*.metadata.yaml"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_sweep_describes_each_job_in_its_own_directory(tmp_path: pathlib.Path) -> None:
    for name, text in files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, "train_hydra.py", "--multirun", "exp_name=one,two", "hydra.sweep.dir=outputs/sweep"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for job, exp_name in (("0", "one"), ("1", "two")):
        run = tmp_path / "outputs" / "sweep" / job
        document = yaml.safe_load((run / "checkpoints" / "last.ckpt.metadata.yaml").read_text())
        assert document["exp_name"] == exp_name
        assert (tmp_path / document["hydra_config_path"]).samefile(run / ".hydra" / "config.yaml")
