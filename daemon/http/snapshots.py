"""Snapshots: what a listener is shown first, cut into pieces that all who begin at the same time share."""

import itertools
import time
from typing import NamedTuple

from ckptd.catalog.entry import Record
from ckptd.catalog.store import Catalog, Snapshot

from . import sse
from .frames import Frame, FrameCache, View
from .sse import Cursor

FIRST_BATCH = 32
"""Entries of a snapshot's first piece: one screen, at once."""
NEXT_BATCH = 100
"""Entries of each further piece: about 65 KB, which a socket's buffer takes whole: of a reader that stalls, nothing
waits in the process, and those that read are never served by many long writes in one turn of the loop."""
NEXT_BATCH_GZIP = 500
"""The same where it is compressed: about 30 KB."""
SCAN_PER_TURN = 1_500
"""Entries that a snapshot's filter looks at before the event loop gets its turn (1.5 ms)."""
SHARED_S = 0.25
"""Listeners that come within this time share one snapshot (sorting 100,000 entries takes 50 ms); the log brings them
up to date."""
PINNED_S = 300.0
"""How long one reader's snapshot may hold tombstones back; a slower one starts anew if it missed a deletion."""


_feeds = itertools.count()


class SnapshotFeed:
    """One snapshot under one view, cut into pieces; read by any number of listeners, each at its own pace."""

    def __init__(self, snapshot: Snapshot, view: View, cache: FrameCache) -> None:
        self.revision = snapshot.revision
        self.view = view
        self._key = next(_feeds)
        self._cache = cache
        self._source = snapshot.records
        self._scanned = 0
        self._matching: list[Record] = []

    @property
    def total(self) -> int | None:
        """Matching entries; None until all were looked at."""
        return len(self._matching) if self._scanned == len(self._source) else None

    def piece(self, index: int, *, gzip: bool = False) -> Frame | None:
        """The piece `index`, or None when it is not ready yet: ask again at the next turn of the loop.

        Raises:
            IndexError: the snapshot has no further pieces.
        """
        start, stop = _bounds(index, NEXT_BATCH_GZIP if gzip else NEXT_BATCH)
        # One entry more than the piece holds tells whether another follows.
        if not self._has_scanned(stop):
            self._scan()
            if not self._has_scanned(stop):
                return None
        if start >= len(self._matching):
            raise IndexError(index)
        return self._cache.get(("snapshot", self._key, index, gzip), lambda: self._make(start, stop, gzip))

    def _make(self, start: int, stop: int, gzip: bool) -> Frame:
        frame = Frame(sse.batch(self._matching[start:stop], has_more=len(self._matching) > stop))
        return frame.gzipped() if gzip else frame

    def _has_scanned(self, stop: int) -> bool:
        return self.total is not None or len(self._matching) > stop

    def _scan(self) -> None:
        end = min(self._scanned + SCAN_PER_TURN, len(self._source))
        self._matching.extend(filter(self.view.matches, self._source[self._scanned : end]))
        self._scanned = end


class SnapshotReader:
    """One listener's way through a feed."""

    __slots__ = ("feed", "gzip", "piece", "pinned_until")

    def __init__(self, feed: SnapshotFeed, gzip: bool, pinned_until: float) -> None:
        self.feed = feed
        self.gzip = gzip
        self.piece = 0
        self.pinned_until = pinned_until


class _Begun(NamedTuple):
    at: float
    feed: SnapshotFeed


class Snapshots:
    """The snapshots that are being read, with the tombstones above them held back for a while."""

    def __init__(self, catalog: Catalog, cache: FrameCache) -> None:
        self._catalog = catalog
        self._cache = cache
        self._begun: dict[tuple[str, str], _Begun] = {}
        self._pinned: dict[SnapshotReader, None] = {}

    def begin(self, view: View, at_least: int, *, gzip: bool) -> SnapshotReader:
        """Start to read a snapshot of `view` that is not older than revision `at_least`."""
        now = time.monotonic()
        feed = self._feed(view, at_least, now)
        self._catalog.pin(feed.revision)
        reader = SnapshotReader(feed, gzip, now + PINNED_S)
        self._pinned[reader] = None
        return reader

    def next_frame(self, reader: SnapshotReader) -> Frame | None:
        """The next piece; at the end `complete`, which has a cursor; None while the view's filter is at work."""
        feed = reader.feed
        try:
            frame = feed.piece(reader.piece, gzip=reader.gzip)
        except IndexError:
            assert feed.total is not None
            at = Cursor(self._catalog.instance, feed.revision, feed.view.filter_hash)
            frame = Frame(sse.complete(feed.total, feed.revision, at), feed.revision)
            return frame.gzipped() if reader.gzip else frame
        if frame is not None:
            reader.piece += 1
        return frame

    def end(self, reader: SnapshotReader) -> None:
        """The reader has all of it, or has gone."""
        if reader in self._pinned:
            del self._pinned[reader]
            self._catalog.unpin(reader.feed.revision)

    def unpin_slow(self, now: float) -> None:
        """Hold nothing back any longer for readers whose time is over; they may go on. `now` is monotonic."""
        for reader in list(itertools.takewhile(lambda reader: now >= reader.pinned_until, self._pinned)):
            self.end(reader)

    def _feed(self, view: View, at_least: int, now: float) -> SnapshotFeed:
        """One that was begun a moment ago, or a new one."""
        self._begun = {key: begun for key, begun in self._begun.items() if now - begun.at <= SHARED_S}
        key = (self._catalog.instance, view.filter_hash)
        begun = self._begun.get(key)
        if begun is not None and begun.feed.revision >= at_least and self._catalog.can_resume(begun.feed.revision):
            return begun.feed
        feed = SnapshotFeed(self._catalog.snapshot(), view, self._cache)
        self._begun[key] = _Begun(now, feed)
        return feed


def _bounds(index: int, next_batch: int) -> tuple[int, int]:
    if index == 0:
        return 0, FIRST_BATCH
    start = FIRST_BATCH + (index - 1) * next_batch
    return start, start + next_batch
