"""Run the tests of one tier; what failed is tried once more, alone, to tell a flake from a fault.

    python scripts/lib/tier.py NAME [arguments of pytest]

Campaigns get no second try: they assert that a catalog or a client is never wrong, and once is wrong.
Exit status: 0 when all passed, some of them perhaps at the second try, and those are named; else that of pytest.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum

import pytest

MOST = 8
"""So many flakes at once are none: more failures than this are not tried again."""
EMPTY = int(pytest.ExitCode.NO_TESTS_COLLECTED)


class Second(StrEnum):
    """How the second try of a test ended."""

    PASSED = "passed only at the second try"
    FAILED = "failed twice"
    REFUSED = "failed, and is a campaign, which is never tried again"


class Failures:
    """A plugin of pytest's: which tests failed. Those of xdist's workers are told, too."""

    def __init__(self) -> None:
        self.tests: list[str] = []
        self.uncollected: list[str] = []
        self.workers_died = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for set-up, call and tear-down of each test."""
        if report.failed and report.nodeid not in self.tests:
            self.tests.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called for each file."""
        if report.failed:
            self.uncollected.append(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, error: object | None) -> None:
        """Called by xdist for each worker that ended."""
        self.workers_died += error is not None


def try_again(test: str) -> Second:
    """Run one test in a process of its own; a campaign is deselected, so that none is left to run."""
    print(f"\n== second try: {test}", flush=True)
    command = [sys.executable, "-m", "pytest", "-m", "not campaign", test]
    status = subprocess.run(command, check=False).returncode
    return {0: Second.PASSED, EMPTY: Second.REFUSED}.get(status, Second.FAILED)


def judge(status: int, failures: Failures, second: Callable[[str], Second] = try_again) -> tuple[int, list[str]]:
    """The status of the tier, and what is to be said of it.

    Args:
        status: of pytest, for the whole tier.
        failures: what failed then.
        second: runs one test again.
    """
    if status != pytest.ExitCode.TESTS_FAILED or failures.uncollected or not failures.tests:
        return status, []
    if failures.workers_died:
        return status, ["a worker died, and what it had left to run was not run: see the first failure"]
    if len(failures.tests) > MOST:
        return status, [f"{len(failures.tests)} failed: too many for flakes, so none was tried again"]
    outcomes = {test: second(test) for test in failures.tests}
    lines = [f"{outcome}: {test}" for test, outcome in outcomes.items()]
    return (0 if set(outcomes.values()) == {Second.PASSED} else status), lines


def main(name: str, arguments: Sequence[str]) -> int:
    """Run the tier, and say at its end what needed a second try."""
    failures = Failures()
    first = int(pytest.main(list(arguments), plugins=[failures]))
    status, lines = judge(first, failures)
    print(f"\n== {name} tier: {_in_words(status, lines)}", flush=True)
    for line in lines:
        print(f"   {line}", flush=True)
    return status


def _in_words(status: int, lines: Sequence[str]) -> str:
    if status == EMPTY:
        return "no test was asked for"
    if status:
        return "failed"
    return "passed, but see what needed a second try" if lines else "passed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
