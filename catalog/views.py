"""Views: lists that were filtered and sorted once, kept current change by change; and the facets beside them.

Sorting 100,000 entries anew takes 11 to 60 ms; to move one of them in a sorted list takes 50 µs.
"""

import collections
from collections.abc import Callable, Hashable, Sequence

from .entry import Record, Revision
from .entry_texts import EntryTexts
from .facets import FacetCounts
from .matching import Lines, Matcher
from .ordering import Order
from .query import Page, Query, canonical_filter, make_page, others_of, query_order
from .search import parse_search
from .sorted_lists import replace_items
from .store import Catalog, Replacement, Snapshot, net_changes

KEPT = 24
"""Lists and facets that are kept, 0.8 MB for a list of 100,000; those asked for least recently go."""


Source = Snapshot | EntryTexts
"""All entries at one revision, newest first."""


class View:
    """The entries that pass a filter, in one order. Changed on one thread only."""

    def __init__(self, query: Query, source: Source, lines: Lines | None = None) -> None:
        """Filter and sort. Any thread; blocks."""
        order = query_order(query)
        self.revision: int = source.revision
        self.matches = Matcher(query, lines)
        self.matches.prepare()
        self.records: list[Record] = order.sort(_select(self.matches, source))
        self._key = order.key()

    def apply(self, changes: Sequence[Replacement]) -> None:
        """Bring up to date with what was replaced since, in revision order."""
        removed, added = net_changes(changes)
        self.records = replace_items(self.records, removed, list(filter(self.matches, added)), self._key)


class FacetView:
    """One facet of a filter. Changed on one thread only."""

    def __init__(self, facet: str, matches: Matcher, revision: int, records: Sequence[Record]) -> None:
        """Count. Any thread; blocks.

        Args:
            facet: name of the field.
            matches: the filter.
            revision: of the catalog.
            records: everything that passed.
        """
        self.revision = revision
        self.counts = FacetCounts(facet, records)
        self._matches = matches

    def apply(self, changes: Sequence[Replacement]) -> None:
        """As `View.apply`."""
        for before, after in changes:
            if before is not None and self._matches(before):
                self.counts.add(before, -1)
            if after is not None and self._matches(after):
                self.counts.add(after, 1)


Kept = View | FacetView


class Part:
    """A list or facet that a query needs: what it is kept under, and how it is made."""

    def __init__(self, query: Query, facet: str | None = None) -> None:
        self.facet = facet
        self._query = query if facet is None else others_of(query, facet)
        self.filter: str = canonical_filter(self._query)
        order: Order = query_order(query)
        self.key: Hashable = (self.filter, facet or order)

    @property
    def searches(self) -> bool:
        """Whether it looks for words."""
        return self._query.q is not None and bool(self._query.q.strip())

    @property
    def asks_index(self) -> bool:
        """Whether it looks for them in lines as well; that may take a while."""
        return any(term.phrases for term in parse_search(self._query.q or ""))

    def make(self, source: Source, lines: Lines | None) -> Kept:
        """Make it. Any thread; blocks."""
        if self.facet is None:
            return View(self._query, source, lines)
        matches = Matcher(self._query, lines)
        matches.prepare()
        return FacetView(self.facet, matches, source.revision, _select(matches, source))

    def counting(self, view: View) -> Callable[[], FacetView]:
        """How to make a facet of a list under the same filter: any thread, while that list goes on changing."""
        facet, matches, revision, records = self.facet, view.matches, view.revision, tuple(view.records)
        assert facet is not None
        return lambda: FacetView(facet, matches, revision, records)


def parts_of(query: Query) -> list[Part]:
    """What a page needs: its list, and each facet that is asked for."""
    return [Part(query), *(Part(query, facet) for facet in query.facets)]


class Views:
    """The lists and facets that were asked for last. Everything on the catalog's thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._kept: collections.OrderedDict[Hashable, Kept] = collections.OrderedDict()
        self._texts: EntryTexts | None = None

    def current(self, part: Part) -> Kept | None:
        """What is kept of a part, as the catalog stands now; None where it has to be made."""
        view = self._kept.get(part.key)
        if view is None:
            return None
        if not self._catch_up(view):
            del self._kept[part.key]
            return None
        self._kept.move_to_end(part.key)
        return view

    def keep(self, part: Part, view: Kept) -> None:
        """Keep what was made, and bring it up to date if it can be."""
        self._catch_up(view)
        self._kept[part.key] = view
        self._kept.move_to_end(part.key)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def texts(self) -> EntryTexts | None:
        """The texts of all entries, as the catalog stands now; None where they have to be made."""
        texts, revision = self._texts, self._catalog.revision
        if texts is not None and texts.revision != revision:
            changes = self._catalog.replaced_since(texts.revision)
            self._texts = None if changes is None else texts.after(changes, revision)
        return self._texts

    def keep_texts(self, texts: EntryTexts) -> None:
        """Keep them for the next search."""
        self._texts = texts

    def _catch_up(self, view: Kept) -> bool:
        if view.revision == self._catalog.revision:
            return True
        changes = self._catalog.replaced_since(view.revision)
        if changes is None:
            return False
        view.apply(changes)
        view.revision = self._catalog.revision
        return True


def page_of(query: Query, made: Sequence[Kept]) -> Page:
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


def _select(matches: Matcher, source: Source) -> list[Record]:
    if isinstance(source, EntryTexts):
        return matches.select(source.records, source.texts, source.text_keys)
    return matches.select(source.records)
