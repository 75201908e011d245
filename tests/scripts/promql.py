"""What a PromQL expression asks for, as far as the tests of the rules and the dashboard need to know it."""

import re
from typing import NamedTuple

_SELECTOR = re.compile(r"\b((?:ckptd|process|up)[a-z0-9_:]*)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"""([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*"([^"]*)\"""")
_GROUPING = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")
SCRAPED = frozenset({"job", "instance", "le"})
"""Labels that Prometheus itself adds, and that of a histogram's buckets."""


class Selector(NamedTuple):
    """One series that an expression reads."""

    metric: str
    labels: dict[str, str]
    """Label → the value that it is compared with."""


def selectors_of(expression: str) -> list[Selector]:
    """Every series of our own that `expression` reads."""
    without_grouping = _GROUPING.sub("", expression)
    return [
        Selector(name, {label: value for label, _, value in _MATCHER.findall(matchers or "")})
        for name, matchers in _SELECTOR.findall(without_grouping)
    ]


def grouped_by(expression: str) -> set[str]:
    """The labels that `expression` aggregates by."""
    return {label.strip() for group in _GROUPING.findall(expression) for label in group.split(",") if label.strip()}
