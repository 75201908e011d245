"""Matching: which records pass the filters of a query; one answer for lists, streams and single changes."""

import datetime as dt
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .entry import Health, Record
from .search import parse_search
from .search_terms import Term, entry_text
from .sorted_lists import STEP

if TYPE_CHECKING:
    from .query import Query

Test = Callable[[Record], bool]


class Found(NamedTuple):
    """What an index says of a term."""

    keys: frozenset[int]
    """Of the lines that hold it."""
    head: int
    """Number of the last line that was looked at."""


class Lines(Protocol):
    """The lines of tokens behind records, see `search_text`; `texts.Texts` keeps them. None of it raises."""

    def find(self, term: Term) -> Found:
        """All lines in which a term holds. Blocks; any thread."""
        ...

    def number_of(self, key: int) -> int | None:
        """The number of a line that was added since the start; None for older ones. At once."""
        ...

    def added_after(self, number: int) -> Sequence[int]:
        """The keys of lines with higher numbers."""
        ...

    def line(self, key: int) -> str | None:
        """One line. Fast enough for an event loop."""
        ...


class Matcher:
    """The filters of one query. Has to be prepared once, off the event loop, where it `needs_preparing`.

    What it says of a record never changes: a line of tokens is told of by its digest, and is there before its
    record is published.
    """

    def __init__(self, query: "Query", lines: Lines | None = None) -> None:
        self._tests = _tests(query)
        # What is quickly said of many comes first: what follows has fewer to look at.
        terms = sorted(parse_search(query.q or ""), key=lambda term: (term.test is not None, term.is_negated))
        self._terms = [_TermMatch(term, lines) for term in terms]
        self._reads_text = any(match.term.literal is not None for match in self._terms)
        self._is_default = query.health is None and not query.include_invalid

    @property
    def needs_preparing(self) -> bool:
        """Whether an index has to be asked first."""
        return any(match.is_unprepared for match in self._terms)

    def prepare(self) -> None:
        """Ask the index. Blocks."""
        for match in self._terms:
            match.prepare()

    def __call__(self, record: Record) -> bool:
        """Whether a record passes every filter."""
        return all(test(record) for test in self._tests) and (not self._terms or self._is_found(record))

    def select(
        self,
        records: Sequence[Record],
        texts: Sequence[str] | None = None,
        text_keys: Sequence[int | None] | None = None,
    ) -> list[Record]:
        """Those that pass, in their order. One pass for each filter: faster than all filters for each record.

        Args:
            records: to choose from.
            texts: the `entry_text` of each, where they are at hand.
            text_keys: their `text_key`s, likewise.
        """
        if self._terms:
            records = self._found_among(records, texts, text_keys)
        tests = self._tests
        if self._is_default:
            invalid = Health.INVALID
            records = [record for record in records if record.entry.health is not invalid]  # 4 ms for 100,000
            tests = tests[1:]
        for test in tests:
            records = list(filter(test, records))
        return records if isinstance(records, list) else list(records)

    def _found_among(
        self, records: Sequence[Record], texts: Sequence[str] | None, text_keys: Sequence[int | None] | None
    ) -> list[Record]:
        if texts is None:
            texts = [entry_text(record.entry) for record in records] if self._reads_text else [""] * len(records)
        if text_keys is None:
            text_keys = [record.text_key for record in records]
        for match in self._terms:
            found = match.find(records, texts, text_keys)
            records = list(itertools.compress(records, found))
            texts = list(itertools.compress(texts, found))
            text_keys = list(itertools.compress(text_keys, found))
        return list(records)

    def _is_found(self, record: Record) -> bool:
        text = entry_text(record.entry) if self._reads_text else ""
        return all(match.holds(record, text) for match in self._terms)


class _TermMatch:
    """A term, and in which lines it holds."""

    __slots__ = ("_found", "_judged", "_lines", "term")

    def __init__(self, term: Term, lines: Lines | None) -> None:
        self.term = term
        self._lines = lines if term.phrases else None
        self._found: Found | None = None
        self._judged: dict[int, bool] = {}
        """Of lines that came later than what the index said."""

    @property
    def is_unprepared(self) -> bool:
        return self._lines is not None and self._found is None

    def prepare(self) -> None:
        if self._lines is not None and self._found is None:
            self._found = self._lines.find(self.term)

    def holds(self, record: Record, text: str) -> bool:
        term = self.term
        holds = term.in_entry(record, text) or (record.text_key is not None and self._in_line(record.text_key))
        return holds is not term.is_negated

    def find(self, records: Sequence[Record], texts: Sequence[str], text_keys: Sequence[int | None]) -> list[bool]:
        """Of which records it holds."""
        keys, found = self._keys(), list[bool]()
        for start in range(0, len(records), STEP):  # other threads get their turn in between
            step = slice(start, start + STEP)
            found += self._find(records[step], texts[step], text_keys[step], keys)
        return found

    def _find(
        self,
        records: Sequence[Record],
        texts: Sequence[str],
        text_keys: Sequence[int | None],
        keys: frozenset[int | None],
    ) -> Iterable[bool]:
        term = self.term
        if term.literal is None or term.pattern is not None or term.test is not None or term.is_negated:
            rows, in_entry, wanted = zip(records, texts, text_keys, strict=True), term.in_entry, not term.is_negated
            return [(key in keys or in_entry(record, text)) is wanted for record, text, key in rows]
        # Without a look at the records: they lie all over the memory, and a word is in few of them.
        in_text = map(operator.contains, texts, itertools.repeat(term.literal))
        return map(operator.or_, in_text, map(keys.__contains__, text_keys)) if keys else in_text

    def _keys(self) -> frozenset[int | None]:
        """Of all lines in which it holds, as far as they are committed."""
        if self._lines is None or self._found is None:
            return frozenset()
        later = [key for key in self._lines.added_after(self._found.head) if self._in_line(key)]
        return self._found.keys.union(later)

    def _in_line(self, key: int) -> bool:
        if self._lines is None or self._found is None:
            return False
        if key in self._found.keys:
            return True
        number = self._lines.number_of(key)
        if number is None or number <= self._found.head:
            return False
        judged = self._judged.get(key)
        if judged is None:
            line = self._lines.line(key)
            judged = self._judged[key] = line is not None and self.term.in_line(line)
        return judged


def members(text: str) -> frozenset[str]:
    """The parts of a list that is separated by commas."""
    return frozenset(part.strip() for part in text.split(","))


def any_of(value: str | Iterable[str]) -> frozenset[str]:
    """The alternatives of a filter, of which one was given or several."""
    return frozenset((value,)) if isinstance(value, str) else frozenset(value)


def ns_of(moment: dt.datetime | None, default: float) -> float | int:
    """Nanoseconds since the epoch."""
    if moment is None:
        return default
    since = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (since // dt.timedelta(microseconds=1)) * 1000  # exact, unlike timestamp() as a float


def _tests(query: "Query") -> list[Test]:
    """The filters that a query sets, cheapest first; health always comes first."""
    tests = [_health_test(query)]
    for field in ("safety", "verified"):
        given = getattr(query, field)
        if given is not None:
            tests.append(_field_in(field, members(given)))
    for field in ("exp_name", "architecture", "format"):
        given = getattr(query, field)
        if given is not None:
            tests.append(_field_in(field, any_of(given)))
    if query.has_metadata is not None:
        has_metadata = query.has_metadata
        tests.append(lambda record: record.entry.has_metadata is has_metadata)
    if query.finding is not None:
        codes = any_of(query.finding)
        tests.append(lambda record: any(found.code in codes for found in record.entry.findings))
    if query.modified_after is not None or query.modified_before is not None:
        low, high = ns_of(query.modified_after, -math.inf), ns_of(query.modified_before, math.inf)
        tests.append(lambda record: low <= record.modified_ns < high)
    if query.min_metrics or query.max_metrics:
        tests.append(_metrics_test(query))
    return tests


def _field_in(field: str, wanted: frozenset[str]) -> Test:
    return lambda record: getattr(record.entry, field) in wanted


def _health_test(query: "Query") -> Test:
    if query.health is not None:
        return _field_in("health", members(query.health))
    if query.include_invalid:
        return lambda _: True
    return lambda record: record.entry.health is not Health.INVALID


def _metrics_test(query: "Query") -> Test:
    names = {*query.min_metrics, *query.max_metrics}
    limits = [(n, query.min_metrics.get(n, -math.inf), query.max_metrics.get(n, math.inf)) for n in sorted(names)]

    def within(record: Record) -> bool:
        metrics = record.entry.metrics
        return all((value := metrics.get(name)) is not None and low <= value <= high for name, low, high in limits)

    return within
