"""A tier whose test failed once says so; what fails twice, or is a campaign, fails it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TIER = Path(__file__).parents[2] / "scripts" / "lib" / "tier.py"
TESTS = """
import pathlib, pytest

def test_sound():
    pass

def test_flaky():
    seen = pathlib.Path("seen")
    first, _ = not seen.exists(), seen.touch()
    assert not first

def test_broken():
    assert False

@pytest.mark.campaign
def test_that_nobody_is_ever_misled():
    test_flaky()
"""
SETTINGS = "[pytest]\nmarkers =\n    campaign: never tried again\n"


def run_tier(directory: Path, *arguments: str) -> tuple[int, str]:
    (directory / "test_them.py").write_text(TESTS)
    (directory / "pytest.ini").write_text(SETTINGS)
    # Plugins that are installed take longer to load than these tests to run; pytest tidies up what it finds in /tmp.
    bare = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_DEBUG_TEMPROOT": str(directory)}
    command = [sys.executable, str(TIER), "default", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=directory, env=os.environ | bare, capture_output=True, text=True, timeout=170, check=False
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("workers", [(), ("-p", "xdist.plugin", "-n", "2")], ids=["one process", "two workers"])
def test_what_passes_at_the_second_try_is_named_and_does_not_fail_the_tier(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    status, shown = run_tier(tmp_path, *workers, "-k", "flaky or sound")
    assert status == 0, shown
    assert "1 failed, 1 passed" in shown, "the first outcome"
    assert "default tier: passed, but" in shown
    assert "passed only at the second try: test_them.py::test_flaky" in shown


def test_what_fails_twice_fails_the_tier_whatever_else_passed(tmp_path: Path) -> None:
    status, shown = run_tier(tmp_path, "-k", "flaky or broken")
    assert status == 1, shown
    assert "passed only at the second try: test_them.py::test_flaky" in shown
    assert "failed twice: test_them.py::test_broken" in shown


def test_a_campaign_has_no_second_try(tmp_path: Path) -> None:
    status, shown = run_tier(tmp_path, "-k", "misled")
    assert status == 1, shown
    assert "never tried again: test_them.py::test_that_nobody_is_ever_misled" in shown


def test_a_tier_without_a_failure_says_nothing_of_second_tries(tmp_path: Path) -> None:
    status, shown = run_tier(tmp_path, "-k", "sound")
    assert (status, "second try" in shown) == (0, False), shown


def test_a_file_that_cannot_be_collected_fails_the_tier(tmp_path: Path) -> None:
    (tmp_path / "test_torn.py").write_text("import that_is_not_there\n")
    status, shown = run_tier(tmp_path, "-k", "sound")
    assert status not in (0, 5), shown


def test_a_worker_that_dies_ends_the_tier_as_failed_whatever_a_second_try_would_say(tmp_path: Path) -> None:
    """What it had left is not run, and xdist counts it neither as passed nor as failed."""
    (tmp_path / "test_a_death.py").write_text(
        "import os, pathlib\n"
        "def test_death():\n    dead = pathlib.Path('dead')\n"
        "    if not dead.exists():\n        dead.touch()\n        os._exit(1)\n"
        "def test_left():\n    pass\n"
    )
    parallel = ("-p", "xdist.plugin", "-n", "2", "--dist", "loadfile", "--max-worker-restart=0")
    status, shown = run_tier(tmp_path, *parallel, "-k", "death or left or sound")
    assert status == 1, shown
    assert "a worker died, and what it had left to run was not run" in shown


def test_many_failures_are_no_flakes(tmp_path: Path) -> None:
    (tmp_path / "test_many.py").write_text(
        "import pytest\n@pytest.mark.parametrize('n', range(9))\ndef test_many(n):\n    assert n < 0\n"
    )
    status, shown = run_tier(tmp_path, "-k", "many")
    assert status == 1, shown
    assert "9 failed: too many for flakes" in shown
    assert "== second try" not in shown
