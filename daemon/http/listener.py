"""Listener: one open stream as the broadcaster sees it: a cursor, and what is under way to it."""

from .frames import Frame, SnapshotFeed, View
from .sending import Sender
from .sse import Cursor


class Listener:
    """State alone; the hub acts on it."""

    __slots__ = (
        "announced",
        "blocked_since",
        "cursor",
        "feed",
        "frame",
        "opening",
        "piece",
        "pinned_until",
        "queued",
        "seen",
        "sender",
        "view",
    )

    def __init__(self, view: View, announced: int, opening: str | Cursor) -> None:
        self.view = view
        self.sender: Sender
        self.cursor = 0
        self.opening: str | Cursor | None = opening
        """What begins the stream: the reason of a reset, or the cursor that is resumed."""
        self.seen = 0
        """The revision that the client had reached before: no snapshot may show it an older state."""
        self.feed: SnapshotFeed | None = None
        self.piece = 0
        self.pinned_until: float | None = None
        self.announced = announced
        self.frame: Frame | None = None
        """Under way. The cursor moves when it is delivered, not before."""
        self.blocked_since: float | None = None
        self.queued = False
