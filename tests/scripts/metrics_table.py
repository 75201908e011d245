"""The table of metrics in docs/operations.md, read as what is promised."""

import re
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).parents[2]
_ROW = re.compile(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \|([^|]*)\| ([^|]+) \|$", re.MULTILINE)


class Documented(NamedTuple):
    """One row."""

    kind: str
    labels: frozenset[str]
    text: str


def documented() -> dict[str, Documented]:
    """Metric → its row; histograms under their family's name."""
    text = (REPO / "docs/operations.md").read_text(encoding="utf-8")
    return {
        name: Documented(kind, frozenset(re.findall(r"`(\w+)`", labels)), said.strip())
        for name, kind, labels, said in _ROW.findall(text)
    }


def series() -> dict[str, frozenset[str]]:
    """Series as an expression names them → their labels."""
    found: dict[str, frozenset[str]] = {}
    for name, row in documented().items():
        if row.kind == "histogram":
            found |= {f"{name}_sum": row.labels, f"{name}_count": row.labels, f"{name}_bucket": row.labels | {"le"}}
        else:
            found[name] = row.labels
    return found
