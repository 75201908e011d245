"""Announcements: what listeners are told besides changes: progress, ended rebuilds, heartbeats."""

import collections
import time
from collections.abc import Callable
from typing import NamedTuple

from . import sse
from .frames import Frame, FrameCache
from .problems import rfc3339
from .sse import Cursor

REBUILT_KEPT = 64
REBUILT_REPEATED_S = 300.0
"""A listener that returns within this time is told of rebuilds that ended while it was away."""


class _Announcement(NamedTuple):
    number: int
    at: float
    body: bytes


class Announcements:
    """Numbered in the order in which they were made; each listener remembers up to which one it was told."""

    def __init__(self, cache: FrameCache, complete_as_of: Callable[[], float | None]) -> None:
        """Args:
        cache: where frames are shared.
        complete_as_of: up to when the catalog is known to be complete, in epoch seconds; shown in heartbeats.
        """
        self._cache = cache
        self._complete_as_of = complete_as_of
        self.number = 0
        """Of the latest one."""
        self.round = 0
        """Announcements up to here are being sent: fixed for a round, so that none overtakes the changes that it
        speaks of."""
        self._heartbeat = 0
        self._progress: _Announcement | None = None
        self._rebuilt: collections.deque[_Announcement] = collections.deque(maxlen=REBUILT_KEPT)

    def progress(self, done: int, total: int) -> None:
        """How far a sweep or rebuild has come, in paths; only the latest is sent."""
        self._progress = self._next(sse.progress(done, total))

    def rebuilt(self, token: str, revision: int) -> None:
        """A rebuild is done; what it found is in the log up to `revision`."""
        self._rebuilt.append(self._next(sse.rebuilt(token, revision)))

    def heartbeat(self) -> None:
        """Time for a heartbeat; each listener's says its own cursor."""
        self.number += 1
        self._heartbeat = self.number

    def begin_round(self) -> None:
        """Send everything that has been announced by now."""
        self.round = self.number

    def told_to(self, last_event_id: str | None) -> int:
        """Up to which announcement a new listener needs none: one that returns may have missed some."""
        if not last_event_id:
            return self.number
        since = time.monotonic() - REBUILT_REPEATED_S
        missed = [announcement.number for announcement in self._rebuilt if announcement.at >= since]
        return missed[0] - 1 if missed else self.number

    def frame(self, since: int, at: Cursor, *, gzip: bool = False) -> Frame:
        """Everything announced since number `since`, for a reader at `at`; heartbeats and progress only as of now."""
        key = ("announcements", since, self.round, at, gzip)
        if gzip:
            return self._cache.get(key, lambda: self.frame(since, at).gzipped())
        return self._cache.get(key, lambda: self._make(since, at))

    def _next(self, body: bytes) -> _Announcement:
        self.number += 1
        return _Announcement(self.number, time.monotonic(), body)

    def _make(self, since: int, at: Cursor) -> Frame:
        news = [*self._rebuilt, *([] if self._progress is None else [self._progress])]
        news.sort(key=lambda announcement: announcement.number)
        bodies = [announcement.body for announcement in news if since < announcement.number <= self.round]
        if since < self._heartbeat:
            bodies.append(sse.heartbeat(at, rfc3339(self._complete_as_of())))
        return Frame(b"".join(bodies))
