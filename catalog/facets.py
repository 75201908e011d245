"""Facets: how many entries a list would have for each value of a field, were it filtered by that value instead."""

import collections
from collections.abc import Callable, Iterable, Sequence

import msgspec

from .entry import CheckpointEntry, Record

MAX_VALUES = 100
"""Of one facet, the most frequent ones."""

Value = str | bool | None
_MANY: dict[str, Callable[[CheckpointEntry], Iterable[Value]]] = {
    "finding": lambda entry: {found.code for found in entry.findings},
    "dtype": lambda entry: set(entry.dtypes),
}
_ONE = (
    "exp_name",
    "architecture",
    "backbone",
    "format",
    "health",
    "safety",
    "verified",
    "run_id",
    "monitor",
    "root",
    "metadata_source",
    "has_metadata",
    "has_config",
)
FACETS = (*_ONE, *_MANY)
FILTERS = frozenset(("exp_name", "architecture", "format", "health", "safety", "verified", "has_metadata", "finding"))
"""Facets that a query can be filtered by under the same name."""


class FacetValue(msgspec.Struct, frozen=True):
    """One value of a facet."""

    value: Value
    """None: the field is not known."""
    count: int


class FacetCounts:
    """The entries that pass a filter, counted by one field; kept current by what changes."""

    def __init__(self, facet: str, records: Sequence[Record]) -> None:
        """Count `records`; 5 ms for 100,000."""
        self._facet = facet
        self._values = _values_of(facet)
        if facet in _MANY:
            self._counts = collections.Counter(value for record in records for value in self._values(record.entry))
        else:
            self._counts = collections.Counter(getattr(record.entry, facet) for record in records)

    def add(self, record: Record, count: int) -> None:
        """Count a record once more, or with -1 no longer."""
        for value in self._values(record.entry):
            self._counts[value] += count
            if not self._counts[value]:
                del self._counts[value]

    def top(self) -> list[FacetValue]:
        """The most frequent values, those of equal counts by name, the unknown last among them."""
        ranked = sorted(self._counts.items(), key=_by_count_then_name)
        return [FacetValue(value, count) for value, count in ranked[:MAX_VALUES]]


def _by_count_then_name(item: tuple[Value, int]) -> tuple[int, bool, str, str]:
    value, count = item
    return -count, value is None, str(value).lower(), str(value)


def _values_of(facet: str) -> Callable[[CheckpointEntry], Iterable[Value]]:
    return _MANY.get(facet) or (lambda entry: (getattr(entry, facet),))
