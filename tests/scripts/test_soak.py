"""The soak of a few seconds: restarts, faults and changes at once, and nothing is wrong at any point of quiet."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

MUST_BE_ZERO = (
    "differences between the catalog and the tree",
    "lost or untrue changes at live clients",
    "sidecars torn, missing or left over",
    "faults that it did not outlive",
    "tracebacks in the log",
    "exit code after SIGTERM",
)
BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_short_soak_ends_with_a_catalog_that_equals_the_tree() -> None:
    """Memory and latency are for people to judge, over hours; what is counted here must be zero however long."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:  # a Unix socket's path has 107 bytes (unix(7))
        flags = ["--minutes", "0.2", "--seed", "3", "--directory", directory]
        command = [sys.executable, str(BENCHMARKS), "soak", "--quick", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1180, check=False)
        assert not os.listdir(directory), "the soak leaves something behind"
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if " | " in line]
    measured = {row[0].strip(): row[1].strip() for row in rows if len(row) == 4}
    shown = f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    for what in MUST_BE_ZERO:
        assert measured[what] == "0", f"{what}: {shown}"
