"""What was measured, beside its budget."""

import math
import os
import platform
from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One line of a report."""

    what: str
    measured: str
    budget: str = ""
    verdict: str = ""


def against(value: float, budget: float, *, at_least: bool = False) -> str:
    """`ok` or `over budget`, with the ratio to the budget."""
    good = value >= budget if at_least else value <= budget
    return f"{'ok' if good else 'MISSED'} ({value / budget:.2f} of it)"


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; 0.5 is the median."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def print_report(title: str, rows: Sequence[Row]) -> None:
    """Print rows as an aligned table, under what they were measured on."""
    print(f"\n{title} - Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    table = [Row("what", "measured", "budget", "verdict"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for number, row in enumerate(table):
        print(" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("-|-".join("-" * width for width in widths))
