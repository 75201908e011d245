"""Pages: cut out of lists that are kept current; what is not kept is made once for all who ask, off the event loop."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TypeVar

import anyio
import anyio.to_thread

from ckptd.catalog.entry_texts import EntryTexts
from ckptd.catalog.matching import Lines
from ckptd.catalog.query import Page, Query
from ckptd.catalog.store import Catalog
from ckptd.catalog.views import Kept, Part, View, Views, page_of, parts_of

MAKERS = 2
"""Threads that make lists: more of them would only take turns, and the event loop would wait for each."""
IN_THREAD_FROM = 2_000
"""Entries from which a list is made off the event loop (2 ms)."""
_TEXTS = "texts"
_T = TypeVar("_T")


class Pages:
    """The pages of one catalog. Everything on its thread."""

    def __init__(self, catalog: Catalog, lines: Lines | None) -> None:
        """Args:
        catalog: the log.
        lines: what is searched besides entries.
        """
        self._catalog = catalog
        self._lines = lines
        self._views = Views(catalog)
        self._making: dict[Hashable, anyio.Event] = {}
        self._makers = anyio.CapacityLimiter(MAKERS)

    async def page(self, query: Query) -> Page:
        """The page that a query asks for. The query was checked."""
        parts = parts_of(query)
        made: list[Kept] = []
        for part in parts:
            made.append(self._views.current(part) or await self._make(part, parts[0], made))
        # What was at hand may have become old while the rest was made.
        return page_of(query, [self._views.current(part) or view for part, view in zip(parts, made, strict=True)])

    async def _make(self, part: Part, first: Part, made: Sequence[Kept]) -> Kept:
        """Make a part of a page. `made`: the parts before it, the first of them the list."""

        async def make() -> Kept:
            if made and part.filter == first.filter:
                view = self._views.current(first) or made[0]
                assert isinstance(view, View)
                making: Callable[[], Kept] = part.counting(view)
            else:
                source = await self._texts() if part.searches else self._catalog.snapshot()
                making = lambda: part.make(source, self._lines)  # noqa: E731
            kept = await self._run(making, blocks=part.asks_index)
            self._views.keep(part, kept)
            return kept

        return await self._once(part.key, lambda: self._views.current(part), make)

    async def _texts(self) -> EntryTexts:
        async def make() -> EntryTexts:
            snapshot = self._catalog.snapshot()
            texts = await self._run(lambda: EntryTexts.of(snapshot))
            self._views.keep_texts(texts)
            return self._views.texts() or texts

        known = self._views.texts()
        return known if known is not None else await self._once(_TEXTS, self._views.texts, make)

    async def _once(self, key: Hashable, known: Callable[[], _T | None], make: Callable[[], Awaitable[_T]]) -> _T:
        """What `make` makes, or what somebody else who is at it already makes known."""
        while (event := self._making.get(key)) is not None:
            await event.wait()
            found = known()
            if found is not None:
                return found
        done = self._making[key] = anyio.Event()
        try:
            return await make()
        finally:
            del self._making[key]
            done.set()

    async def _run(self, work: Callable[[], _T], *, blocks: bool = False) -> _T:
        if len(self._catalog) < IN_THREAD_FROM and not (blocks and self._lines is not None):
            return work()
        return await anyio.to_thread.run_sync(work, limiter=self._makers)
