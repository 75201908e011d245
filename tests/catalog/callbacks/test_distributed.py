"""Trainings by several processes: rank zero describes, once, when all have written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.catalog.callbacks.trainings import assert_all_described, sidecar

REPOSITORY = Path(__file__).parents[3]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]


def train(strategy: str, directory: Path) -> None:
    """As a user starts it; the launcher of `ddp` starts the script once more."""
    script = directory.parent / "train.py"
    script.write_text("from tests.catalog.callbacks.distributed import main\nimport sys\n")
    script.write_text(script.read_text() + "if __name__ == '__main__':\n    main(*sys.argv[1:])\n")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script), strategy, str(directory)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "ddp_fork"])
def test_two_processes_leave_one_sidecar_for_each_file(tmp_path: Path, strategy: str) -> None:
    train(strategy, tmp_path / "run")
    assert len(assert_all_described(tmp_path / "run")) == 3
    assert sidecar(tmp_path / "run/last.ckpt")["checkpointing"]["monitor"] == "val/hmean"


def test_a_directory_of_shards_gets_one_sidecar_beside_it(tmp_path: Path) -> None:
    train("sharded", tmp_path / "run")
    names = assert_all_described(tmp_path / "run")
    assert len(names) == 3
    assert all((tmp_path / "run" / name / ".metadata").is_file() for name in names)
