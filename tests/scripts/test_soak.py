"""The soak of a few seconds: restarts, faults and changes at once, and nothing is wrong at any point of quiet."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Soak(NamedTuple):
    measured: dict[str, str]
    left: list[str]
    said: str


@pytest.fixture(scope="module")
def soak() -> Soak:
    """One run; memory and latency are for people to judge, over hours."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:  # a Unix socket's path has 107 bytes (unix(7))
        flags = ["--minutes", "0.2", "--seed", "3", "--directory", directory]
        command = [sys.executable, str(BENCHMARKS), "soak", "--quick", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1180, check=False)
        left = os.listdir(directory)
    said = f"{done.stdout[-3000:]}\n{done.stderr[-12_000:]}"
    assert done.returncode == 0, said
    rows = [line.split(" | ") for line in done.stdout.splitlines() if " | " in line]
    return Soak({row[0].strip(): row[1].strip() for row in rows if len(row) == 4}, left, said)


@pytest.mark.campaign
@pytest.mark.parametrize(
    "what",
    [
        "differences between the catalog and the tree",
        "lost or untrue changes at live clients",
        "sidecars torn, missing or left over",
    ],
)
def test_a_short_soak_ends_with_a_catalog_that_equals_the_tree(soak: Soak, what: str) -> None:
    assert soak.measured[what] == "0", soak.said


@pytest.mark.parametrize("what", ["faults that it did not outlive", "tracebacks in the log", "exit code after SIGTERM"])
def test_the_service_outlives_a_short_soak_and_ends_when_it_is_asked_to(soak: Soak, what: str) -> None:
    assert soak.measured[what] == "0", soak.said


def test_a_soak_leaves_nothing_behind(soak: Soak) -> None:
    assert not soak.left
