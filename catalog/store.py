"""Catalog: entries in revision order; snapshot, resume and slow reader are one operation.

Every change takes the next revision of one log. An entry holds only its latest revision, a deletion is a
tombstone with one. A reader is a cursor: `since(cursor)` gives every entry and tombstone above it, each once,
in order. Superseded states are skipped; final states and deletions never are.

A change becomes visible in two steps, so that it can be made durable in between:
`batch = catalog.prepare(changes)`, commit the batch, `catalog.publish(batch)`. One batch at a time.
"""

import array
import bisect
import collections
import enum
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from .entry import CheckpointId, Record, Revision

TOMBSTONES_KEPT = 10_000
TOMBSTONE_AGE_S = 24 * 3600


class DeleteReason(enum.StrEnum):
    """Why an entry left the catalog, or a filtered view of it."""

    REMOVED = "removed"
    MOVED = "moved"
    FILTERED = "filtered"
    """Still in the catalog, but outside the reader's filter."""


class Tombstone(msgspec.Struct, frozen=True, gc=False):
    """A deletion in the log."""

    id: CheckpointId
    path: str
    reason: DeleteReason
    revision: Revision
    deleted_at: float
    """Seconds since the epoch."""


LogItem = Record | Tombstone


class Removal(msgspec.Struct, frozen=True, gc=False):
    """A wish to delete an entry."""

    id: CheckpointId
    reason: DeleteReason = DeleteReason.REMOVED


Decide = Callable[[Record | None], Record | Removal | None]
"""Given what is published of an id now, what should follow: a record, a removal, or nothing to do.

A decision, not a value: a result that was computed from an older state can see that it is out of date.
"""


class Change(msgspec.Struct, frozen=True):
    """A change to one id, decided when its batch is prepared."""

    id: CheckpointId
    decide: Decide


class Batch(msgspec.Struct, frozen=True):
    """Changes with their revisions, not yet visible. `items` is in revision order."""

    items: tuple[LogItem, ...]
    base: Revision
    """The catalog's revision before the batch."""

    @property
    def revision(self) -> Revision:
        """The catalog's revision after the batch."""
        return self.items[-1].revision if isinstance(self.items[-1], Tombstone) else self.items[-1].entry.revision


class Snapshot(msgspec.Struct, frozen=True):
    """The whole catalog as it stood at one revision, newest first. Shared by all who ask at that revision."""

    revision: Revision
    records: Sequence[Record]


def revision_of(item: LogItem) -> Revision:
    """The revision that `item` holds in the log."""
    return item.revision if isinstance(item, Tombstone) else item.entry.revision


def encode_entry(record: Record) -> bytes:
    """The entry's JSON, the one form in which list, detail and stream show it."""
    return _encoder.encode(record.entry)


_encoder = msgspec.json.Encoder()


class Catalog:
    """The log of one instance, in memory. Not thread-safe: one thread prepares and publishes."""

    def __init__(self, instance: str, clock: Callable[[], float] = time.time) -> None:
        self.instance = instance
        self.revision = Revision(0)
        self.floor = Revision(0)
        """Cursors below this have missed a deletion and must start anew."""
        self._clock = clock
        self._current: dict[CheckpointId, Record] = {}
        self._paths: dict[str, dict[bytes, CheckpointId]] = collections.defaultdict(dict)
        self._tombstones: collections.OrderedDict[CheckpointId, Tombstone] = collections.OrderedDict()
        self._log: list[LogItem | None] = []
        self._revisions = array.array("q")
        self._positions: dict[CheckpointId, int] = {}
        self._holes = 0
        self._pins: collections.Counter[int] = collections.Counter()
        self._snapshot: Snapshot | None = None
        self._on_publish: list[Callable[[Batch], None]] = []

    def __len__(self) -> int:
        return len(self._current)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._current.values())

    # ---- reading -------------------------------------------------------------------------------------------

    def get(self, checkpoint_id: CheckpointId) -> Record | None:
        """The published record of an id, or None."""
        return self._current.get(checkpoint_id)

    def tombstone(self, checkpoint_id: CheckpointId) -> Tombstone | None:
        """When and why an id left the catalog, as long as that is remembered."""
        return self._tombstones.get(checkpoint_id)

    def find(self, root: str, relative_path: bytes) -> Record | None:
        """The published record of a path, or None. Safe to call from another thread."""
        checkpoint_id = self._paths[root].get(relative_path) if root in self._paths else None
        return None if checkpoint_id is None else self._current.get(checkpoint_id)

    def paths(self, root: str) -> list[bytes]:
        """A copy of all relative paths under a root. Safe to call from another thread."""
        return list(self._paths[root]) if root in self._paths else []

    def can_resume(self, cursor: int) -> bool:
        """Whether `since(cursor)` would miss nothing: not in the future, not below the floor."""
        return self.floor <= cursor <= self.revision

    def since(self, cursor: int, limit: int | None = None) -> list[LogItem]:
        """Entries and tombstones with a revision above `cursor`, in order, at most `limit` of them.

        Raises:
            ValueError: the cursor cannot be resumed from (see `can_resume`).
        """
        if not self.can_resume(cursor):
            raise ValueError(f"cursor {cursor} is outside [{self.floor}, {self.revision}]")
        position = bisect.bisect_right(self._revisions, cursor)
        live = (item for item in itertools.islice(self._log, position, None) if item is not None)
        return list(live if limit is None else itertools.islice(live, limit))

    def snapshot(self) -> Snapshot:
        """The catalog at this revision, newest first; made once for a revision and shared."""
        if self._snapshot is None or self._snapshot.revision != self.revision:
            newest_first = sorted(self._current.values(), key=lambda r: (-r.modified_ns, r.entry.id))
            self._snapshot = Snapshot(self.revision, newest_first)
        return self._snapshot

    def pin(self, revision: Revision) -> None:
        """Keep the tombstones above `revision` until `unpin`: a reader works through a snapshot of it."""
        self._pins[revision] += 1

    def unpin(self, revision: Revision) -> None:
        """Undo one `pin` of the same revision."""
        self._pins[revision] -= 1
        if not self._pins[revision]:
            del self._pins[revision]

    # ---- writing -------------------------------------------------------------------------------------------

    def on_publish(self, callback: Callable[[Batch], None]) -> None:
        """Call `callback` after each batch became visible."""
        self._on_publish.append(callback)

    def prepare(self, changes: Iterable[Change]) -> Batch | None:
        """Decide each change against what is published, give revisions, encode. Nothing is visible yet.

        Later changes of the same id in one call win. Returns None when nothing would change.
        """
        decided: dict[CheckpointId, Record | Removal] = {}
        for change in changes:
            pending = decided.get(change.id)
            seen = self._current.get(change.id) if pending is None else _as_seen(pending)
            outcome = change.decide(seen)
            if outcome is not None:
                decided.pop(change.id, None)
                decided[change.id] = outcome
        items: list[LogItem] = []
        revision = self.revision
        for checkpoint_id, outcome in decided.items():
            item = self._next(checkpoint_id, outcome, Revision(revision + 1))
            if item is not None:
                items.append(item)
                revision = Revision(revision + 1)
        return Batch(tuple(items), self.revision) if items else None

    def publish(self, batch: Batch) -> None:
        """Make a prepared batch visible to all readers.

        Raises:
            ValueError: another batch was published since this one was prepared.
        """
        if batch.base != self.revision:
            raise ValueError(f"the batch was prepared at revision {batch.base}, the catalog is at {self.revision}")
        for item in batch.items:
            self._apply(item)
        self._forget_tombstones()
        self._compact()
        for callback in self._on_publish:
            callback(batch)

    def load(
        self, records: Iterable[Record], tombstones: Iterable[Tombstone], revision: Revision, floor: Revision
    ) -> None:
        """Fill an empty catalog with what an earlier run knew. Nobody is told."""
        items: list[LogItem] = [*records, *tombstones]
        items.sort(key=revision_of)
        for item in items:
            self._apply(item)
        self.revision, self.floor = revision, floor

    def renew_instance(self, instance: str) -> None:
        """Give the log a new name: cursors that were handed out before can no longer be resumed from."""
        self.instance = instance

    # ---- inside --------------------------------------------------------------------------------------------

    def _next(self, checkpoint_id: CheckpointId, outcome: Record | Removal, revision: Revision) -> LogItem | None:
        current = self._current.get(checkpoint_id)
        if isinstance(outcome, Removal):
            if current is None:
                return None
            return Tombstone(checkpoint_id, current.entry.path, outcome.reason, revision, self._clock())
        if current is not None:
            unchanged = msgspec.structs.replace(outcome.entry, revision=current.entry.revision)
            if unchanged == current.entry and outcome.identities == current.identities:
                return None
        record = msgspec.structs.replace(outcome, entry=msgspec.structs.replace(outcome.entry, revision=revision))
        return msgspec.structs.replace(record, encoded=encode_entry(record))

    def _apply(self, item: LogItem) -> None:
        revision = revision_of(item)
        checkpoint_id = item.id if isinstance(item, Tombstone) else item.entry.id
        superseded = self._positions.pop(checkpoint_id, None)
        if superseded is not None:
            self._log[superseded] = None
            self._holes += 1
        self._positions[checkpoint_id] = len(self._log)
        self._log.append(item)
        self._revisions.append(revision)
        self.revision = revision
        if isinstance(item, Tombstone):
            gone = self._current.pop(checkpoint_id, None)
            if gone is not None:
                self._paths[gone.entry.root].pop(gone.relative_path, None)
            self._tombstones[checkpoint_id] = item
            self._tombstones.move_to_end(checkpoint_id)
        else:
            self._current[checkpoint_id] = item
            self._paths[item.entry.root][item.relative_path] = checkpoint_id
            self._tombstones.pop(checkpoint_id, None)

    def _forget_tombstones(self) -> None:
        oldest_kept = self._clock() - TOMBSTONE_AGE_S
        while len(self._tombstones) > TOMBSTONES_KEPT:
            tombstone = next(iter(self._tombstones.values()))
            if tombstone.deleted_at > oldest_kept or (self._pins and min(self._pins) < tombstone.revision):
                return
            del self._tombstones[tombstone.id]
            self._log[self._positions.pop(tombstone.id)] = None
            self._holes += 1
            self.floor = tombstone.revision

    def _compact(self) -> None:
        if self._holes <= len(self._log) // 2 or self._holes < 1024:
            return
        self._log = [item for item in self._log if item is not None]
        live: list[LogItem] = [item for item in self._log if item is not None]
        self._revisions = array.array("q", map(revision_of, live))
        self._positions = {
            (item.id if isinstance(item, Tombstone) else item.entry.id): position for position, item in enumerate(live)
        }
        self._holes = 0


def _as_seen(outcome: Record | Removal) -> Record | None:
    return None if isinstance(outcome, Removal) else outcome
