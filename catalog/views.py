"""Views: lists that were filtered and sorted once, kept current change by change; and the facets beside them.

Sorting 100,000 entries anew takes 11 to 60 ms; to move one of them in a sorted list takes 50 µs.
"""

import collections
from collections.abc import Hashable, Sequence

from .entry import CheckpointId, Record, Revision
from .facets import FacetCounts
from .matching import Lines, Matcher
from .ordering import Order
from .query import Page, Query, canonical_filter, make_page, others_of, query_order
from .search import parse_search
from .sorted_lists import replace_items
from .store import Catalog, Replacement, Snapshot

KEPT = 24
"""Lists and facets that are kept, 0.8 MB for a list of 100,000; those asked for least recently go."""


class View:
    """The entries that pass a filter, in one order. Changed on one thread only."""

    def __init__(self, matcher: Matcher, order: Order, snapshot: Snapshot) -> None:
        """Filter and sort. Any thread; blocks."""
        matcher.prepare()
        self.revision = snapshot.revision
        self.records = order.sort(matcher.select(snapshot.records))
        self._matches = matcher
        self._key = order.key()

    def apply(self, changes: Sequence[Replacement]) -> None:
        """Bring up to date with what was replaced since, in revision order."""
        # Of an entry that changed several times, its first state may be in the list, and its last one goes in.
        first: dict[CheckpointId, Record | None] = {}
        last: dict[CheckpointId, Record | None] = {}
        for before, after in changes:
            record = before or after
            if record is None:  # a deletion of a deletion: nothing was listed
                continue
            first.setdefault(record.entry.id, before)
            last[record.entry.id] = after
        removed = [record for record in first.values() if record is not None]
        added = [record for record in last.values() if record is not None and self._matches(record)]
        self.records = replace_items(self.records, removed, added, self._key)


class FacetView:
    """One facet of a filter. Changed on one thread only."""

    def __init__(self, facet: str, matcher: Matcher, snapshot: Snapshot) -> None:
        """Filter and count. Any thread; blocks."""
        matcher.prepare()
        self.revision = snapshot.revision
        self._matches = matcher
        self.counts = FacetCounts(facet, matcher.select(snapshot.records))

    def apply(self, changes: Sequence[Replacement]) -> None:
        """As `View.apply`."""
        for before, after in changes:
            if before is not None and self._matches(before):
                self.counts.add(before, -1)
            if after is not None and self._matches(after):
                self.counts.add(after, 1)


class Part:
    """A list or facet that a query needs: what it is kept under, and how it is made."""

    def __init__(self, query: Query, facet: str | None = None) -> None:
        self.facet = facet
        self._query = query if facet is None else others_of(query, facet)
        self._order = query_order(query)
        self.key: Hashable = (canonical_filter(self._query), facet or self._order)

    @property
    def needs_index(self) -> bool:
        """Whether lines are searched as well; that may take a while."""
        return any(term.phrases for term in parse_search(self._query.q or ""))

    def make(self, snapshot: Snapshot, lines: Lines | None) -> View | FacetView:
        """Make it from a snapshot. Any thread; blocks."""
        matcher = Matcher(self._query, lines)
        if self.facet is None:
            return View(matcher, self._order, snapshot)
        return FacetView(self.facet, matcher, snapshot)


def parts_of(query: Query) -> list[Part]:
    """What a page needs: its list, and each facet that is asked for."""
    return [Part(query), *(Part(query, facet) for facet in query.facets)]


class Views:
    """The lists and facets that were asked for last. Everything on the catalog's thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._kept: collections.OrderedDict[Hashable, View | FacetView] = collections.OrderedDict()

    def current(self, part: Part) -> View | FacetView | None:
        """What is kept of a part, as the catalog stands now; None where it has to be made."""
        view = self._kept.get(part.key)
        if view is None:
            return None
        if not self._catch_up(view):
            del self._kept[part.key]
            return None
        self._kept.move_to_end(part.key)
        return view

    def keep(self, part: Part, view: View | FacetView) -> None:
        """Keep what was made, and bring it up to date if it can be."""
        self._catch_up(view)
        self._kept[part.key] = view
        self._kept.move_to_end(part.key)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def _catch_up(self, view: View | FacetView) -> bool:
        if view.revision == self._catalog.revision:
            return True
        changes = self._catalog.replaced_since(view.revision)
        if changes is None:
            return False
        view.apply(changes)
        view.revision = self._catalog.revision
        return True


def page_of(query: Query, made: Sequence[View | FacetView]) -> Page:
    """The page that a query asks for, of its parts in the order of `parts_of`.

    Raises:
        QueryError: its cursor belongs to another list.
    """
    view, *facets = made
    assert isinstance(view, View)
    counts = {
        name: part.counts.top() for name, part in zip(query.facets, facets, strict=True) if isinstance(part, FacetView)
    }
    return make_page(query, view.records, Revision(view.revision), counts if query.facets else None)


__all__ = ["FacetView", "Part", "Record", "View", "Views", "page_of", "parts_of"]
