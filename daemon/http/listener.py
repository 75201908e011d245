"""Listener: one open stream as the broadcaster sees it: a cursor, and what is under way to it."""

from ckptd.catalog.store import Catalog

from .frames import Frame, View
from .sending import Sender
from .snapshots import SnapshotReader
from .sse import Cursor


class Listener:
    """State alone; the hub acts on it."""

    __slots__ = (
        "announced",
        "blocked_since",
        "cursor",
        "frame",
        "gzip",
        "opening",
        "queued",
        "seen",
        "sender",
        "snapshot",
        "view",
    )

    def __init__(self, view: View, announced: int, opening: str | Cursor, *, gzip: bool) -> None:
        self.view = view
        self.gzip = gzip
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

    @property
    def is_starting(self) -> bool:
        """Still to be shown what there is: it waits behind those who follow the changes."""
        return self.snapshot is not None or self.opening is not None


def opening_of(catalog: Catalog, view: View, last_event_id: str | None) -> str | Cursor:
    """The good cursor that a listener comes with, or the reason why it gets a snapshot instead."""
    if not last_event_id:
        return "start"
    cursor = Cursor.parse(last_event_id)
    if cursor is None:
        return "unknown cursor"
    if cursor.instance != catalog.instance:
        return "other instance"
    if cursor.filter_hash != view.filter_hash:
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
