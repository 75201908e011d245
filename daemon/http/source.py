"""FrameSource: what a listener is sent next: the opening, a snapshot, changes, announcements, the end."""

import random
from collections.abc import Callable

from ckptd.catalog.store import Catalog

from . import sse
from .announcements import Announcements
from .frames import Changes, Frame, FrameCache
from .listener import Listener
from .snapshots import Snapshots
from .sse import Cursor

TOKEN_CHANGED = "the token was changed"  # noqa: S105 - a reason
"""Why a stream ends when other tokens are in force: its reader comes back at once with the new one, or not at all."""


class FrameSource:
    """Decides by a listener's state alone, and changes that state as if the frame were delivered next.

    The one exception is the cursor: it moves when the frame is delivered (see `Listener.frame`).
    """

    def __init__(self, catalog: Catalog, complete_as_of: Callable[[], float | None]) -> None:
        """Args:
        catalog: the log.
        complete_as_of: up to when the catalog is known to be complete, in epoch seconds; shown in heartbeats.
        """
        self._catalog = catalog
        self.frames = FrameCache()
        self._changes = Changes(catalog, self.frames)
        self.snapshots = Snapshots(catalog, self.frames)
        self.news = Announcements(self.frames, complete_as_of)
        self._target: int = catalog.revision
        """Everything up to here is being sent; later changes wait for the next round."""

    def begin_round(self) -> None:
        """Send, from now on, everything that is new by now."""
        self._target = self._catalog.revision
        self.news.begin_round()

    def has_more(self, listener: Listener) -> bool:
        """Whether there is something for a listener that has taken its last frame."""
        return listener.cursor < self._target or listener.is_starting or listener.announced < self.news.round

    def next_frame(self, listener: Listener) -> Frame | None:
        """What a listener is sent next; None if it has everything, or has to wait for its snapshot's filter."""
        if listener.is_starting:
            return self._starting_frame(listener)
        group, target = listener.group, self._target
        while listener.cursor < target:
            if group.cursor == listener.cursor and group.target == target and group.frame is not None:
                frame = group.frame
            elif self._catalog.can_resume(listener.cursor):
                frame = self._changes.frame(listener.cursor, target, group)
            else:
                return self._alone(listener, self._reset(listener, "cursor too old"))
            if frame.size:
                return frame
            assert frame.cursor is not None
            listener.cursor = frame.cursor
        if listener.announced < self.news.round:
            return self._announcements(listener)
        return None

    def bye(self, listener: Listener, reason: str, listeners: int) -> Frame:
        """The last frame; `listeners` are there in all, and come back one after the other."""
        return self._alone(listener, bye(reason, listeners))

    def forget(self, listener: Listener) -> None:
        """A listener has gone: hold nothing for it any longer."""
        if listener.snapshot is not None:
            self.snapshots.end(listener.snapshot)
            listener.snapshot = None

    def _starting_frame(self, listener: Listener) -> Frame | None:
        if listener.snapshot is not None:
            frame = self.snapshots.next_frame(listener.snapshot)
            if frame is not None and frame.cursor is not None:  # complete
                self.forget(listener)
                listener.is_starting = False
            return frame
        opening, listener.opening = listener.opening, None
        assert opening is not None
        frame = self._opened(listener, opening)
        return frame.gzipped(first=True) if listener.group.gzip else frame

    def _opened(self, listener: Listener, opening: str | Cursor) -> Frame:
        # Asked again: the log may have moved on between the request and this turn.
        if isinstance(opening, Cursor):
            if opening.instance == self._catalog.instance and self._catalog.can_resume(opening.revision):
                listener.is_starting = False
                return Frame(sse.resumed(opening), opening.revision)
            opening = "cursor too old"
        return self._reset(listener, opening)

    def _reset(self, listener: Listener, reason: str) -> Frame:
        group, at_least = listener.group, max(listener.seen, listener.cursor)
        listener.snapshot = self.snapshots.begin(group.view, at_least, gzip=group.gzip)
        listener.is_starting = True
        return Frame(sse.reset(reason))

    def _alone(self, listener: Listener, frame: Frame) -> Frame:
        """A frame for this listener alone. The first one of its stream begins the compression."""
        return frame.gzipped(first=listener.opening is not None) if listener.group.gzip else frame

    def _announcements(self, listener: Listener) -> Frame:
        since, listener.announced = listener.announced, self.news.round
        at = Cursor(self._catalog.instance, listener.cursor, listener.group.view.filter_hash)
        return self.news.frame(since, at, gzip=listener.group.gzip)


def bye(reason: str, listeners: int) -> Frame:
    """The end of a stream. When to come back is spread out, so that not all of `listeners` do in the same moment."""
    spread_ms = max(2_000, listeners)
    first_ms = 500 if reason in ("shutdown", TOKEN_CHANGED) else 10_000
    return Frame(sse.bye(reason, first_ms + random.randrange(spread_ms)), final=True)  # noqa: S311
