"""Frames: the bytes that bring a reader from one point of the log to the next, made once and shared by all readers."""

import collections
import itertools
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from ckptd.catalog.entry import Record
from ckptd.catalog.store import Catalog, LogItem, Tombstone, revision_of

from . import sse
from .compression import GZIP_HEADER, shared_piece
from .sse import Cursor

CHANGES_PER_FRAME = 500
CACHE_BYTES = 32 << 20
KEPT_S = 5.0
"""Whoever needs the same bytes asks within the same round, or reads the same snapshot at about the same pace. Without a
bound in time, listeners cost 2 KB more with each change until the cache is full (measured)."""


class View(NamedTuple):
    """A filter as the stream sees it."""

    filter_hash: str
    """`0` for the default view."""
    matches: Callable[[Record], bool]


class Frame:
    """Bytes to send, and where they bring the reader."""

    __slots__ = ("_message", "chunk", "cursor", "is_final", "size", "used_at")

    def __init__(self, body: bytes, cursor: int | None = None, *, final: bool = False) -> None:
        """Args:
        body: what is sent.
        cursor: the reader's revision once the frame is delivered; None: it stays where it is.
        final: it ends the response.
        """
        self.chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        """The body as HTTP/1.1 sends it where the length of the whole is not known (RFC 9112, 7.1)."""
        self.cursor = cursor
        self.is_final = final
        self.size = len(body)
        self.used_at = 0.0
        """When the cache last gave it out."""
        self._message: dict[str, Any] | None = None

    @property
    def body(self) -> bytes:
        """What is sent."""
        return self.chunk[-self.size - 2 : -2]

    @property
    def message(self) -> dict[str, Any]:
        """The same for ASGI; made once, where it is asked for."""
        if self._message is None:
            self._message = {"type": "http.response.body", "body": self.body, "more_body": not self.is_final}
        return self._message

    def gzipped(self, *, first: bool = False) -> "Frame":
        """The same for a reader that asked for gzip; its first frame begins the stream."""
        return Frame((GZIP_HEADER if first else b"") + shared_piece(self.body), self.cursor, final=self.is_final)


class Group:
    """Listeners of one view and one encoding: who of them is at the same place is sent the same bytes."""

    __slots__ = ("__weakref__", "cursor", "frame", "gzip", "target", "view")

    def __init__(self, view: View, *, gzip: bool) -> None:
        self.view = view
        self.gzip = gzip
        self.cursor = -1
        self.target = -1
        self.frame: Frame | None = None
        """What was made last: it brings whoever is at `cursor` on the way to `target`. Most are at one place."""


class FrameCache:
    """The frames that were of use a moment ago, at most so many bytes of them."""

    def __init__(self, limit_bytes: int = CACHE_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._size_bytes = 0
        self._frames: collections.OrderedDict[Hashable, Frame] = collections.OrderedDict()
        """In the order of their last use."""

    def __len__(self) -> int:
        return len(self._frames)

    def get(self, key: Hashable, make: Callable[[], Frame]) -> Frame:
        """The frame of `key`, made if it is not there."""
        frame = self._frames.get(key)
        if frame is None:
            frame = self._frames[key] = make()
            self._size_bytes += frame.size
        else:
            self._frames.move_to_end(key)
        frame.used_at = self._clock()
        self.forget_unused()
        while self._size_bytes > self._limit_bytes and len(self._frames) > 1:
            self._drop_oldest()
        return frame

    def forget_unused(self) -> None:
        """Drop what nobody asked for lately. To be called now and then: without requests nothing else does."""
        oldest = self._clock() - KEPT_S
        while self._frames and next(iter(self._frames.values())).used_at < oldest:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, dropped = self._frames.popitem(last=False)
        self._size_bytes -= dropped.size


class Changes:
    """Frames of the log itself."""

    def __init__(self, catalog: Catalog, cache: FrameCache) -> None:
        self._catalog = catalog
        self._cache = cache

    def frame(self, cursor: int, target: int, group: Group) -> Frame:
        """What a reader of `group` at `cursor` needs next on its way to `target`; the body may be empty.

        Raises:
            ValueError: the log no longer reaches back to `cursor`.
        """
        if not self._catalog.can_resume(cursor):
            raise ValueError(f"cursor {cursor} is below the floor {self._catalog.floor}")
        frame = self._frame(cursor, target, group.view, group.gzip)
        group.cursor, group.target, group.frame = cursor, target, frame
        return frame

    def _frame(self, cursor: int, target: int, view: View, gzip: bool) -> Frame:
        key = ("changes", self._catalog.instance, cursor, target, view.filter_hash, gzip)
        if gzip:
            return self._cache.get(key, lambda: self._frame(cursor, target, view, gzip=False).gzipped())
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
        return Frame(b"".join(pieces), reached)


def _is_shown(item: LogItem, view: View) -> bool:
    return not isinstance(item, Tombstone) and view.matches(item)
