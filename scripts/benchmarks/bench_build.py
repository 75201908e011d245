"""From exec of a cold daemon to a list over HTTP that is complete."""

import statistics
import tempfile
from pathlib import Path

from daemon_process import Daemon
from files import cached, large_tree
from report import Row, against, print_report

CHECKPOINTS = 16
BUDGET_S = 1.0


def run(*, quick: bool) -> None:
    """Print medians over cold starts; nothing is written into the tree, so each start is the first."""
    size_mb = 20 if quick else 200
    repetitions = 3 if quick else 7
    tree = cached(f"tree-{CHECKPOINTS}x{size_mb}", large_tree(CHECKPOINTS, size_mb))
    with tempfile.TemporaryDirectory() as empty:
        first = [_seconds(Path(empty), 0) for _ in range(repetitions)]
    full = [_seconds(tree, CHECKPOINTS) for _ in range(repetitions)]
    built, answered = statistics.median(full), statistics.median(first)
    print_report(
        "build",
        [
            Row("empty tree: exec to first answer", f"{answered:.3f} s (worst {max(first):.3f})"),
            Row(
                f"{CHECKPOINTS} x {size_mb} MB without sidecars: exec to all listed",
                f"{built:.3f} s (worst {max(full):.3f})",
                f"{BUDGET_S:g} s",
                against(built, BUDGET_S),
            ),
            Row("of which reading the checkpoints", f"{max(0.0, built - answered):.3f} s"),
        ],
    )


def _seconds(tree: Path, count: int) -> float:
    with Daemon(tree, "--sidecars", "off", "--no-export-index") as daemon:
        return daemon.seconds_until(count)
