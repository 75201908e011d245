"""Moves: which file was seen where lately, so that one that left its place is told as moved there, not as removed.

Best effort, and bounded: what a listener keeps is right with either word.
"""

import collections
from collections.abc import Callable, Iterable
from typing import TypeVar

import anyio

from ckptd.catalog.entry import CheckpointId, Identities
from ckptd.catalog.store import Catalog
from ckptd.validators.inspection import FileIdentity

GRACE_S = 0.05
"""How long a deletion waits for a sign of the file elsewhere: the two halves of a rename may come in two groups of
events, and those of two roots always do."""
TOGETHER_S = 0.1
"""How long the deletion of a file that was seen elsewhere waits, at most, to go out together with the news of that."""
KEPT = 16_384
"""Files that are remembered; about 0.3 KB each."""
KEPT_S = 10.0

Key = TypeVar("Key")

Mark = tuple[int, int, int]
"""(inode, size, mtime_ns): what of a file stays the same when it is renamed; ctime does not.

The inode alone does not tell: the number of a file that was deleted is given to the next one that is made."""


def mark_of(identity: FileIdentity) -> Mark:
    """What to know a file again by."""
    return identity.inode, identity.size, identity.mtime_ns


def mark_of_path(identities: Identities) -> Mark:
    """What to know again by what has the path itself: of a link, the link, for its target stays where it is."""
    return mark_of(identities.link or identities.file)


class Moves:
    """Where files were seen lately. Lives on the event loop's thread."""

    def __init__(self, catalog: Catalog, *, clock: Callable[[], float] = anyio.current_time) -> None:
        self._catalog = catalog
        self._clock = clock
        self._places: collections.OrderedDict[Mark, tuple[CheckpointId, float]] = collections.OrderedDict()
        """The latest place of each, and when it was seen there; the oldest first."""
        self._sought: dict[Mark, anyio.Event] = {}
        self._awaited: dict[CheckpointId, anyio.Event] = {}

    def __len__(self) -> int:
        return len(self._places)

    def seen(self, sightings: Iterable[tuple[Mark, CheckpointId]]) -> None:
        """Take note of files that were just seen at the paths of these entries."""
        now = self._clock()
        for mark, place in sightings:
            self._places[mark] = place, now
            self._places.move_to_end(mark)
            if (sought := self._sought.get(mark)) is not None:
                sought.set()
        while self._places:
            _, seen_at = next(iter(self._places.values()))
            if len(self._places) <= KEPT and now - seen_at <= KEPT_S:
                return
            self._places.popitem(last=False)

    def place_of(self, identities: Identities, left: CheckpointId) -> CheckpointId | None:
        """Where what was at `left` was seen lately; None where nobody saw it elsewhere."""
        place, seen_at = self._places.get(mark_of_path(identities), (left, 0.0))
        return None if place == left or self._clock() - seen_at > KEPT_S else place

    async def seek(self, identities: Identities, left: CheckpointId) -> None:
        """Wait for a sign of what was at `left` elsewhere, and then for the news of that; not for long."""
        if self.place_of(identities, left) is None:
            await _wait(self._sought, mark_of_path(identities), GRACE_S)
        place = self.place_of(identities, left)
        if place is not None and not self._is_published(identities, place):
            await _wait(self._awaited, place, TOGETHER_S)

    def publishing(self, place: CheckpointId) -> None:
        """The news of this entry is about to be told: what waits to be told together with it need not wait longer."""
        if (awaited := self._awaited.get(place)) is not None:
            awaited.set()

    def _is_published(self, identities: Identities, place: CheckpointId) -> bool:
        record = self._catalog.get(place)
        return record is not None and mark_of_path(record.identities) == mark_of_path(identities)


async def _wait(events: dict[Key, anyio.Event], key: Key, longest_s: float) -> None:
    """Wait until the event of `key` is set; several may wait for the same one."""
    event = events.setdefault(key, anyio.Event())
    try:
        with anyio.move_on_after(longest_s):
            await event.wait()
    finally:
        if events.get(key) is event:
            del events[key]
