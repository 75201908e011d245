"""Filters: the views of live streams; those of one filter share what its index said."""

import weakref

import anyio.to_thread

from ckptd.catalog.matching import Lines, Matcher
from ckptd.catalog.query import Query, canonical_filter, filter_hash

from .frames import View


class Filters:
    """Makes views. The search behind one is done once, for all who listen with the same filter."""

    def __init__(self, lines: Lines | None) -> None:
        self._lines = lines
        self._matchers: weakref.WeakValueDictionary[str, Matcher] = weakref.WeakValueDictionary()

    async def view(self, query: Query) -> View:
        """The view that shows what passes the query's filters."""
        canonical = canonical_filter(query)
        matcher = self._matchers.get(canonical)
        if matcher is None:
            matcher = Matcher(query, self._lines)
            if matcher.needs_preparing:
                await anyio.to_thread.run_sync(matcher.prepare)
            matcher = self._matchers.setdefault(canonical, matcher)
        return View(filter_hash(query), matcher)
