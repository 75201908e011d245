"""The demo trains for real, and what it saves is what ckptd reads."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ckptd.catalog.describe import describe_checkpoint

DEMO = Path(__file__).parents[2] / "scripts" / "lib" / "demo.py"


def train(out: Path, *flags: str) -> None:
    command = [sys.executable, str(DEMO), "--out", str(out), "--rounds", "1", "--pause-s", "0", *flags]
    subprocess.run(command, check=True, timeout=110, capture_output=True)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_round_leaves_described_checkpoints_of_three_experiments(tmp_path):
    train(tmp_path, "--epochs", "2")
    experiments = sorted(path.name for path in tmp_path.iterdir())
    assert experiments == ["strokes_baseline", "strokes_dice_transposed", "strokes_wide"]
    for experiment in experiments:
        checkpoints = sorted((tmp_path / experiment).glob("*/checkpoints/epoch-*.ckpt"))
        assert checkpoints
        for path in checkpoints:
            description = describe_checkpoint(str(path), root=str(tmp_path))
            assert description.inspection.is_valid, description.findings
            assert description.metadata.exp_name == experiment
            assert description.metadata.metrics.hmean is not None
            assert set(description.inspection.parameters_by_part) == {"encoder", "decoder", "head"}
        (config,) = (tmp_path / experiment).glob("*/.hydra/config.yaml")
        assert yaml.safe_load(config.read_text())["exp_name"] == experiment


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_old_runs_go_and_what_is_no_run_of_the_demo_stays(tmp_path):
    old = tmp_path / "strokes_wide" / "2020-01-01_00-00-00"
    (old / ".hydra").mkdir(parents=True)
    mine = tmp_path / "strokes_wide" / "2020-01-01_00-00-00_mine"
    mine.mkdir()
    train(tmp_path, "--epochs", "1", "--runs-kept", "1")
    assert not old.exists()
    assert mine.exists()
