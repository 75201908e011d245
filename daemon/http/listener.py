"""Listener: one open stream as the broadcaster sees it: a cursor, and what is under way to it."""

from typing import NamedTuple

from ckptd.catalog.store import Catalog

from .frames import Frame, Group, View
from .sending import Sender
from .snapshots import SnapshotReader
from .sse import Cursor


class Asked(NamedTuple):
    """What a client asks of the live stream."""

    view: View
    """What it wants to see."""
    last_event_id: str | None = None
    """The cursor that it comes with. Any doubt about it is answered by a snapshot."""
    gzip: bool = False
    """It understands gzip."""


class Listener:
    """State alone; the hub acts on it."""

    __slots__ = (
        "announced",
        "blocked_since",
        "cursor",
        "dismissed_for",
        "frame",
        "group",
        "has_gone",
        "is_starting",
        "opening",
        "queued",
        "seen",
        "sender",
        "snapshot",
    )

    def __init__(self, group: Group, announced: int, opening: str | Cursor) -> None:
        self.group = group
        self.sender: Sender
        self.cursor = 0
        self.opening: str | Cursor | None = opening
        """What begins the stream: the reason of a reset, or the cursor that is resumed."""
        self.seen = 0
        """The revision that the client had reached before: no snapshot may show it an older state."""
        self.snapshot: SnapshotReader | None = None
        self.announced = announced
        self.frame: Frame | None = None
        """Under way. The cursor moves when it is delivered, not before."""
        self.blocked_since: float | None = None
        self.queued = False
        self.is_starting = True
        """Still to be shown what there is: it waits behind those who follow the changes."""
        self.has_gone = False
        self.dismissed_for: str | None = None
        """Why it is to be ended with `bye` before anything else is sent to it."""


def opening_of(catalog: Catalog, asked: Asked) -> str | Cursor:
    """The good cursor that a listener comes with, or the reason why it gets a snapshot instead."""
    if not asked.last_event_id:
        return "start"
    cursor = Cursor.parse(asked.last_event_id)
    if cursor is None:
        return "unknown cursor"
    if cursor.instance != catalog.instance:
        return "other instance"
    if cursor.filter_hash != asked.view.filter_hash:
        return "other filter"
    if cursor.revision > catalog.revision:
        return "cursor in the future"
    if not catalog.can_resume(cursor.revision):
        return "cursor too old"
    return cursor


def seen_by(catalog: Catalog, last_event_id: str | None) -> int:
    """The revision of this log that a listener has seen already, under whatever filter; 0 if none."""
    cursor = Cursor.parse(last_event_id or "")
    return cursor.revision if cursor is not None and cursor.instance == catalog.instance else 0
