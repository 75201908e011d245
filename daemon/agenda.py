"""Agenda: which checkpoint is verified next; pure, without a clock, and small for 100,000 that wait."""

import array
import bisect
import collections
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ckptd.catalog.entry import CheckpointId
from ckptd.validators.inspection import FileIdentity

from .duequeue import DueQueue


class Wanted(NamedTuple):
    """An entry to be verified."""

    id: CheckpointId
    again: bool
    """It was verified long ago: a scrub, which reads the disk and not what is left in memory."""


class Agenda:
    """What was never verified, newest first, then what was verified long ago; and what was put off.

    100,000 entries that wait take 7 MB.
    """

    def __init__(self) -> None:
        # Columns in the order of the times: rows as tuples would take 10 MB more.
        self._times = array.array("q")
        self._ids: list[CheckpointId] = []
        self._waiting: set[CheckpointId] = set()
        self._later: DueQueue[CheckpointId] = DueQueue()
        self._resting: dict[CheckpointId, FileIdentity] = {}
        self._old: collections.deque[CheckpointId] = collections.deque()
        self.scrubbed: tuple[float, str] = (0.0, "")
        """When the last of the old ones that were given was verified, and its id: the next page begins behind it."""

    def __len__(self) -> int:
        """Entries that were never verified, and those that were put off."""
        return len(self._ids) + len(self._later)

    def add(self, checkpoint_id: CheckpointId, modified_ns: int) -> None:
        """Have a new or changed entry verified; one that waits already keeps its place."""
        if checkpoint_id in self._waiting:
            return
        self._waiting.add(checkpoint_id)
        place = bisect.bisect_left(self._times, modified_ns)
        self._times.insert(place, modified_ns)
        self._ids.insert(place, checkpoint_id)

    def extend(self, entries: Iterable[tuple[int, CheckpointId]]) -> None:
        """Add many at once: (modified_ns, id)."""
        new = [(at, key) for at, key in entries if key not in self._waiting]
        merged = sorted([*zip(self._times, self._ids, strict=True), *new])
        self._times = array.array("q", (at for at, _ in merged))
        self._ids = [key for _, key in merged]
        self._waiting.update(key for _, key in new)

    def put_off(self, checkpoint_id: CheckpointId, due_at: float, identity: FileIdentity | None = None) -> None:
        """Take it up again at a time.

        Args:
            checkpoint_id: of the entry.
            due_at: in seconds of the clock that `wake` is given.
            identity: until then, this state of the file is not to be tried, whoever asks for it.
        """
        self._later.schedule(checkpoint_id, due_at)
        if identity is not None:
            self._resting[checkpoint_id] = identity

    def rests(self, checkpoint_id: CheckpointId, identity: FileIdentity) -> bool:
        """Whether this state of the file was put off, and its time has not come."""
        return self._resting.get(checkpoint_id) == identity

    def scrub(self, old: Sequence[tuple[float, CheckpointId]]) -> None:
        """Verify these again, in their order.

        Args:
            old: (when it was verified, id); none means that a pass is over, and that the next begins anew.
        """
        self._old.extend(key for _, key in old)
        self.scrubbed = old[-1] if old else (0.0, "")

    def wake(self, now: float) -> list[CheckpointId]:
        """Take out those that were put off until now; they are to be added again."""
        due = []
        while (checkpoint_id := self._later.take(now)) is not None:
            self._resting.pop(checkpoint_id, None)
            due.append(checkpoint_id)
        return due

    def take(self) -> Wanted | None:
        """Take out the next one; None if there is none."""
        if self._ids:
            self._times.pop()
            newest = self._ids.pop()
            self._waiting.discard(newest)
            return Wanted(newest, again=False)
        return Wanted(self._old.popleft(), again=True) if self._old else None

    def next_due(self) -> float:
        """When something is due, if nothing is added; infinite if never."""
        if self._ids or self._old:
            return -math.inf
        due_at = self._later.next_due()
        return math.inf if due_at is None else due_at
