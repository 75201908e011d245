"""Query: filter, sort, page and search over one snapshot."""

import bisect
import datetime as dt
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ckptd.validators.findings import CATALOGUE
from ckptd.validators.inspection import Format, Level, Safety

from .entry import Health, Record, Revision
from .facets import FACETS, FILTERS, FacetValue
from .matching import Lines, Matcher, any_of, members, ns_of
from .ordering import SORT_FIELDS, Cursor, Order, is_sortable, order_of
from .search import SearchError, parse_search
from .store import Snapshot

__all__ = ["SORT_FIELDS", "Page", "Query", "QueryError", "filter_hash", "run_query"]

MAX_PAGE_SIZE = 1000
FORMATS = tuple(member.value for member in Format if member is not Format.UNKNOWN)

NO_FILTER = "0"
"""`filter_hash` of a query that shows what everybody sees."""


class QueryError(ValueError):
    """Raised when a query asks for what cannot be: names the field, its value and what it may be."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(f"{field} cannot be {value!r}: {remedy}")
        self.field = field
        self.value = value
        self.remedy = remedy


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader wants to see. All filters must hold; of one that was given several values, any."""

    page: int = 1
    page_size: int = 50
    after: str | None = None
    """`Page.next` of the page before: a place in the list, good whatever comes and goes; instead of `page`."""
    sort_by: str | None = None
    """An entry's field or a metric's name (`metrics.<name>` where both exist); None: newest first."""
    sort_order: str | None = None
    """`asc` or `desc`; None: text ascending, times and numbers descending."""
    facets: tuple[str, ...] = ()
    """Fields whose values are counted."""
    q: str | None = None
    """What is searched for, in the language of `search`."""
    exp_name: str | tuple[str, ...] | None = None
    architecture: str | tuple[str, ...] | None = None
    format: str | tuple[str, ...] | None = None
    finding: str | tuple[str, ...] | None = None
    """Codes; one of an entry's findings has it."""
    health: str | None = None
    """One or more of `Health`, separated by commas. None: all but `invalid`, see `include_invalid`."""
    safety: str | None = None
    """One or more of `Safety`, separated by commas."""
    verified: str | None = None
    """One or more of `Level`, separated by commas."""
    has_metadata: bool | None = None
    include_invalid: bool = False
    min_metrics: Mapping[str, float] = {}
    """Metric name → lowest value; an entry without the metric does not match."""
    max_metrics: Mapping[str, float] = {}
    modified_after: dt.datetime | None = None
    """Modified at this moment or later."""
    modified_before: dt.datetime | None = None
    """Modified before this moment."""

    def check(self) -> None:
        """Raise where a value is out of range.

        Raises:
            QueryError: names the first such field.
        """
        _check_number("page", self.page, None)
        _check_number("page_size", self.page_size, MAX_PAGE_SIZE)
        _check_sorting(self.sort_by, self.sort_order)
        _check_members("health", self.health, [member.value for member in Health])
        _check_members("safety", self.safety, [member.value for member in Safety])
        _check_members("verified", self.verified, [member.value for member in Level])
        _check_any("format", self.format, FORMATS)
        _check_any("finding", self.finding, tuple(CATALOGUE))
        _check_any("facets", self.facets, FACETS)
        _check_search(self.q)
        _check_cursor(self)
        for bound, limits in (("min", self.min_metrics), ("max", self.max_metrics)):
            for name, value in limits.items():
                if not math.isfinite(value):
                    raise QueryError(f"{bound}_{name}", value, "use a finite number")
        for field in ("modified_after", "modified_before"):
            moment: dt.datetime | None = getattr(self, field)
            if moment is not None and moment.tzinfo is None:
                raise QueryError(field, moment.isoformat(), "name the time zone, e.g. 2025-10-11T00:44:42Z")

    def matches(self, record: Record) -> bool:
        """Whether the record's entry passes every filter. Sorting and paging play no part.

        For one record, and without what is searched besides entries; `matching.Matcher` does the rest.
        """
        return Matcher(self)(record)


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of what matches."""

    records: Sequence[Record]
    total: int
    """Matching records on all pages."""
    page: int
    """Of a page behind a cursor, the number of the page in which its first entry stands now."""
    page_size: int
    total_pages: int
    """0 when nothing matches. A page beyond the last is empty, not an error: entries may have gone meanwhile."""
    revision: Revision
    next: str | None = None
    """`Query.after` of the next page; None where nothing follows."""
    facets: Mapping[str, Sequence[FacetValue]] | None = None
    """As asked for; None where none were."""


def run_query(snapshot: Snapshot, query: Query, lines: Lines | None = None) -> Page:
    """Answer a query from a snapshot, everything anew; `views` keeps what several need. Any thread.

    Args:
        snapshot: what is searched.
        query: what is asked.
        lines: what is searched besides entries.

    Raises:
        QueryError: as `Query.check`.
    """
    from .views import page_of, parts_of  # which cut their pages with what is here

    query.check()
    return page_of(query, [part.make(snapshot, lines) for part in parts_of(query)])


def make_page(
    query: Query,
    records: Sequence[Record],
    revision: Revision,
    facets: Mapping[str, Sequence[FacetValue]] | None = None,
) -> Page:
    """Cut the page that a query asks for out of everything that matches, in its order.

    Raises:
        QueryError: the cursor is none of this list.
    """
    start = (query.page - 1) * query.page_size if query.after is None else _start_behind(query, records)
    shown = records[start : start + query.page_size]
    follows = bool(shown) and start + len(shown) < len(records)
    return Page(
        records=shown,
        total=len(records),
        page=start // query.page_size + 1,
        page_size=query.page_size,
        total_pages=-(-len(records) // query.page_size),
        revision=revision,
        next=str(Cursor(query_order(query).place_of(shown[-1]), _list_hash(query))) if follows else None,
        facets=facets,
    )


def query_order(query: Query) -> Order:
    """In which order a query's list stands."""
    return order_of(query.sort_by, query.sort_order)


def others_of(query: Query, facet: str) -> Query:
    """The same query without the filter by a facet's own field: what the facet counts."""
    if facet == "health":
        return msgspec.structs.replace(query, health=None, include_invalid=True)
    return msgspec.structs.replace(query, **{facet: None}) if facet in FILTERS else query


def filter_hash(query: Query) -> str:
    """Twelve hex digits that are equal for equal filters; `NO_FILTER` where there is none. For the stream's ids."""
    canonical = canonical_filter(query)
    if canonical == canonical_filter(Query()):
        return NO_FILTER
    return hashlib.blake2b(canonical.encode("utf-8", "replace"), digest_size=6).hexdigest()


def canonical_filter(query: Query) -> str:
    """A text that is equal for equal filters."""
    parts: list[Any] = [
        sorted(term.canonical for term in parse_search(query.q or "")),
        *(None if given is None else sorted(any_of(given)) for given in (query.exp_name, query.architecture)),
        None if query.health is None else sorted(members(query.health)),
        None if query.safety is None else sorted(members(query.safety)),
        query.include_invalid and query.health is None,
        sorted((name, float(value)) for name, value in query.min_metrics.items()),
        sorted((name, float(value)) for name, value in query.max_metrics.items()),
        None if query.modified_after is None else ns_of(query.modified_after, 0),
        None if query.modified_before is None else ns_of(query.modified_before, 0),
        *(None if given is None else sorted(any_of(given)) for given in (query.format, query.finding)),
        None if query.verified is None else sorted(members(query.verified)),
        query.has_metadata,
    ]
    return repr(parts)


def _list_hash(query: Query) -> str:
    order = query_order(query)
    text = f"{canonical_filter(query)} {order.by} {order.is_descending}"
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=6).hexdigest()


def _start_behind(query: Query, records: Sequence[Record]) -> int:
    order = query_order(query)
    try:
        cursor = Cursor.parse(query.after or "")
        if cursor.list != _list_hash(query):
            raise ValueError("it belongs to another list")
        key = order.key_of(cursor.place)
    except (ValueError, TypeError) as error:
        remedy = "use `next` of a page of the same filters and order, or leave it out to begin anew"
        raise QueryError("after", query.after, remedy) from error
    return bisect.bisect_right(records, key, key=order.key())


# ---- checking --------------------------------------------------------------------------------------------------


def _check_number(field: str, value: int, highest: int | None) -> None:
    if value < 1 or (highest is not None and value > highest):
        upper = "" if highest is None else f" to {highest}"
        raise QueryError(field, value, f"use a whole number from 1{upper}")


def _check_sorting(by: str | None, order: str | None) -> None:
    if order not in (None, "asc", "desc"):
        raise QueryError("sort_order", order, "use asc or desc")
    if by is not None and not is_sortable(by):
        raise QueryError("sort_by", by, f"use the name of a metric, or one of {', '.join(SORT_FIELDS)}")


def _check_members(field: str, text: str | None, known: Sequence[str]) -> None:
    if text is not None and not members(text) <= frozenset(known):
        raise QueryError(field, text, f"use one or more of {', '.join(known)}, separated by commas")


def _check_any(field: str, given: str | tuple[str, ...] | None, known: Sequence[str]) -> None:
    for value in sorted(() if given is None else any_of(given)):
        if value not in known:
            raise QueryError(field, value, f"use one or more of {', '.join(known)}")


def _check_search(q: str | None) -> None:
    try:
        parse_search(q or "")
    except SearchError as error:
        raise QueryError("q", error.token, error.remedy) from error


def _check_cursor(query: Query) -> None:
    if query.after is None:
        return
    if query.page != 1:
        raise QueryError("page", query.page, "use either page or after")
    _start_behind(query, ())
