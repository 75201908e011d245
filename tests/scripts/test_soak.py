"""The soak of a few seconds: restarts, faults and changes at once, and nothing is wrong at any point of quiet."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_soak_of_20_seconds_ends_with_no_difference_no_lost_change_and_no_torn_file(tmp_path: Path) -> None:
    """Memory and latency are for people to judge, over hours; what is counted here must be zero however long."""
    flags = ["--minutes", "0.33", "--seed", "3", "--directory", str(tmp_path)]
    command = [sys.executable, str(BENCHMARKS), "soak", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if " | " in line]
    counted = {row[0].strip(): row[1].strip() for row in rows if len(row) == 4 and row[2].strip() == "0"}
    assert set(counted) >= {
        "differences between the catalog and the tree",
        "lost or untrue changes at live clients",
        "sidecars torn, missing or left over",
        "faults that it did not outlive",
        "tracebacks in the log",
        "exit code after SIGTERM",
    }
    assert set(counted.values()) == {"0"}, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    assert not list(tmp_path.iterdir()), "the soak leaves something behind"
