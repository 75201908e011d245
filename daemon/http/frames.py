"""Frames: the bytes that bring a reader from one point of the log to the next, made once and shared by all readers."""

import collections
import itertools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from ckptd.catalog.entry import Record
from ckptd.catalog.store import Catalog, LogItem, Snapshot, Tombstone, revision_of

from . import sse
from .sse import Cursor

FIRST_BATCH = 32
"""Entries of a snapshot's first piece: one screen, at once."""
NEXT_BATCH = 500
"""Entries of each further piece: about 300 KB, 0.2 ms to hand to the kernel."""
CHANGES_PER_FRAME = 500
SCAN_PER_TURN = 1_500
"""Entries that a snapshot's filter looks at before the event loop gets its turn (1.5 ms)."""
CACHE_BYTES = 32 << 20


_feeds = itertools.count()


class View(NamedTuple):
    """A filter as the stream sees it."""

    filter_hash: str
    """`0` for the default view."""
    matches: Callable[[Record], bool]


class Frame(NamedTuple):
    """Bytes to send, ready for ASGI, and where they bring the reader."""

    message: dict[str, Any]
    cursor: int | None = None
    """The reader's revision once the frame is delivered; None: it stays where it is."""

    @classmethod
    def of(cls, body: bytes, cursor: int | None = None, *, final: bool = False) -> "Frame":
        """A frame of `body`; `final` ends the response."""
        return cls({"type": "http.response.body", "body": body, "more_body": not final}, cursor)

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.message["body"])


class FrameCache:
    """The frames made last, at most so many bytes of them."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._frames: collections.OrderedDict[Hashable, Frame] = collections.OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Frame]) -> Frame:
        """The frame of `key`, made if it is not there."""
        frame = self._frames.get(key)
        if frame is not None:
            self._frames.move_to_end(key)
            return frame
        frame = self._frames[key] = make()
        self._size_bytes += frame.size
        while self._size_bytes > self._limit_bytes and len(self._frames) > 1:
            _, dropped = self._frames.popitem(last=False)
            self._size_bytes -= dropped.size
        return frame


class Changes:
    """Frames of the log itself."""

    def __init__(self, catalog: Catalog, cache: FrameCache) -> None:
        self._catalog = catalog
        self._cache = cache

    def frame(self, cursor: int, target: int, view: View) -> Frame:
        """What a reader of `view` at `cursor` needs next on its way to `target`; the body may be empty.

        Raises:
            ValueError: the log no longer reaches back to `cursor`.
        """
        if not self._catalog.can_resume(cursor):
            raise ValueError(f"cursor {cursor} is below the floor {self._catalog.floor}")
        key = ("changes", self._catalog.instance, cursor, target, view.filter_hash)
        return self._cache.get(key, lambda: self._make(cursor, target, view))

    def _make(self, cursor: int, target: int, view: View) -> Frame:
        found = self._catalog.since(cursor, CHANGES_PER_FRAME)
        items = list(itertools.takewhile(lambda item: revision_of(item) <= target, found))
        # Whatever lies between the last item and the target was superseded, and comes with its later revision.
        cut_short = len(items) == CHANGES_PER_FRAME
        reached = sse.last_revision(items) if cut_short else target
        pieces: list[bytes] = []
        # Runs, not one message of each kind: an id must never be ahead of a change that is still to come.
        for shown, run in itertools.groupby(items, key=lambda item: _is_shown(item, view)):
            group = list(run)
            end = reached if group[-1] is items[-1] else sse.last_revision(group)
            at = Cursor(self._catalog.instance, end, view.filter_hash)
            if shown:
                pieces.append(sse.upsert([item for item in group if isinstance(item, Record)], at))
            else:
                pieces.append(sse.delete(group, at))
        return Frame.of(b"".join(pieces), reached)


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

    def piece(self, index: int) -> Frame | None:
        """The piece `index`, or None when it is not ready yet: ask again at the next turn of the loop.

        Raises:
            IndexError: the snapshot has no further pieces.
        """
        start, stop = _bounds(index)
        # One entry more than the piece holds tells whether another follows.
        if not self._has_scanned(stop):
            self._scan()
            if not self._has_scanned(stop):
                return None
        if start >= len(self._matching):
            raise IndexError(index)
        records = self._matching[start:stop]
        has_more = len(self._matching) > stop
        return self._cache.get(("snapshot", self._key, index), lambda: Frame.of(sse.batch(records, has_more=has_more)))

    def _has_scanned(self, stop: int) -> bool:
        return self.total is not None or len(self._matching) > stop

    def _scan(self) -> None:
        end = min(self._scanned + SCAN_PER_TURN, len(self._source))
        self._matching.extend(filter(self.view.matches, self._source[self._scanned : end]))
        self._scanned = end


def _is_shown(item: LogItem, view: View) -> bool:
    return not isinstance(item, Tombstone) and view.matches(item)


def _bounds(index: int) -> tuple[int, int]:
    if index == 0:
        return 0, FIRST_BATCH
    start = FIRST_BATCH + (index - 1) * NEXT_BATCH
    return start, start + NEXT_BATCH
