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

from .entry import CheckpointId, Record, Revision, encode_entry
from .sharing import SharedValues
from .sorted_lists import replace_items


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long deletions are remembered. A reader that missed a forgotten one starts anew; it is never misled."""

    tombstones_kept: int = 10_000
    """This many are kept however old they are."""
    tombstone_age_s: float = 24 * 3600
    """Younger ones are kept as well, as long as they are not more than the entries: whoever missed more deletions than
    there are entries is better served with a snapshot."""
    tombstones_max: int = 100_000
    """Bounds memory when trees are deleted by the million; about 0.5 KB each."""
    pin_age_s: float = 900
    """A snapshot reader slower than this no longer holds tombstones back."""
    compact_holes: int = 1024
    """The log is not compacted for fewer superseded items than this."""


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
    moved_to: CheckpointId | None = None
    """Where the file is listed now, if it was seen to be moved there."""


LogItem = Record | Tombstone
Replacement = tuple[Record | None, Record | None]
"""A change as a list sees it: the record that goes, the record that comes."""


class Removal(msgspec.Struct, frozen=True, gc=False):
    """A wish to delete an entry."""

    id: CheckpointId
    reason: DeleteReason = DeleteReason.REMOVED
    moved_to: CheckpointId | None = None


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
        return revision_of(self.items[-1]) if self.items else self.base


class Snapshot(msgspec.Struct, frozen=True):
    """The whole catalog as it stood at one revision, newest first. Shared by all who ask at that revision."""

    revision: Revision
    records: Sequence[Record]


def revision_of(item: LogItem) -> Revision:
    """The revision that `item` holds in the log."""
    return item.revision if isinstance(item, Tombstone) else item.entry.revision


def id_of(item: LogItem) -> CheckpointId:
    """The checkpoint that `item` is about."""
    return item.id if isinstance(item, Tombstone) else item.entry.id


def net_changes(changes: Iterable[Replacement]) -> tuple[list[Record], list[Record]]:
    """What changes come to, in their order: the records that a list had before, and those that it has now."""
    first: dict[CheckpointId, Record | None] = {}
    last: dict[CheckpointId, Record | None] = {}
    for before, after in changes:
        record = before or after
        if record is not None:
            first.setdefault(record.entry.id, before)
            last[record.entry.id] = after
    return [r for r in first.values() if r is not None], [r for r in last.values() if r is not None]


class Catalog:
    """The log of one instance, in memory. Not thread-safe: one thread prepares and publishes."""

    def __init__(
        self, instance: str, clock: Callable[[], float] = time.time, retention: Retention | None = None
    ) -> None:
        self.instance = instance
        self.revision = Revision(0)
        self.floor = Revision(0)
        """Cursors below this have missed a deletion and must start anew."""
        self._clock = clock
        self._retention = retention or Retention()
        self._current: dict[CheckpointId, Record] = {}
        self._paths: dict[str, dict[bytes, CheckpointId]] = {}
        self._directories: collections.Counter[tuple[str, bytes]] = collections.Counter()
        """(root, directory) → entries beneath it."""
        self._tombstones: collections.OrderedDict[CheckpointId, Tombstone] = collections.OrderedDict()
        # The log and the revision of each of its places, superseded ones included: a place is found by bisection.
        self._log: list[LogItem | None] = []
        self._revisions = array.array("q")
        self._holes = 0
        self._pins: dict[int, _Pin] = {}
        self._replaced: collections.deque[Replacement] = collections.deque(maxlen=REPLACED_KEPT)
        """One for each of the last revisions."""
        self._newest: list[Record] | None = []
        self._snapshot: Snapshot | None = None
        self._shared = SharedValues()
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

    def tombstones(self) -> list[Tombstone]:
        """The deletions that are remembered, oldest first."""
        return list(self._tombstones.values())

    def find(self, root: str, relative_path: bytes) -> Record | None:
        """The published record of a path, or None. Safe to call from another thread."""
        paths = self._paths.get(root)
        checkpoint_id = None if paths is None else paths.get(relative_path)
        return None if checkpoint_id is None else self._current.get(checkpoint_id)

    def is_directory(self, root: str, relative_path: bytes) -> bool:
        """Whether a path is listed as a checkpoint that is a directory. Safe to call from another thread."""
        record = self.find(root, relative_path)
        return record is not None and record.identities.shards is not None

    def paths(self, root: str) -> list[bytes]:
        """A copy of all relative paths under a root. Safe to call from another thread."""
        return list(self._paths.get(root, ()))

    def has_beneath(self, root: str, directory: bytes) -> bool:
        """Whether anything is listed beneath a directory of a root. Safe to call from another thread."""
        return (root, directory) in self._directories

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
        positions = range(bisect.bisect_right(self._revisions, cursor), len(self._log))
        live = (item for item in map(self._log.__getitem__, positions) if item is not None)
        return list(live if limit is None else itertools.islice(live, limit))

    def replaced_since(self, revision: int) -> Sequence[Replacement] | None:
        """What every change after `revision` took away and brought, in order; None where that is too long ago."""
        count = self.revision - revision
        if not 0 <= count <= len(self._replaced):
            return None
        return list(itertools.islice(self._replaced, len(self._replaced) - count, None))

    def snapshot(self) -> Snapshot:
        """The catalog at this revision, newest first; made once for a revision and shared."""
        if self._snapshot is None or self._snapshot.revision != self.revision:
            if self._newest is None:
                self._newest = list(self._current.values())
                self._newest.sort(key=newest_first)
            self._snapshot = Snapshot(self.revision, tuple(self._newest))
        return self._snapshot

    def pin(self, revision: Revision) -> None:
        """Keep the tombstones above `revision` until `unpin`: a reader works through a snapshot of it.

        Not for ever: after `Retention.pin_age_s` they may be forgotten, and `can_resume` tells the reader.
        """
        pin = self._pins.setdefault(revision, _Pin())
        pin.readers += 1
        pin.since = self._clock()

    def unpin(self, revision: Revision) -> None:
        """Undo one `pin` of the same revision."""
        pin = self._pins[revision]
        pin.readers -= 1
        if not pin.readers:
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
        self._reorder(len(batch.items))
        self._forget_tombstones()
        self._compact()
        for callback in self._on_publish:
            callback(batch)

    def load(
        self, records: Iterable[Record], tombstones: Iterable[Tombstone], revision: Revision, floor: Revision
    ) -> None:
        """Fill an empty catalog with what an earlier run knew. Nobody is told.

        Raises:
            ValueError: the catalog is not empty.
        """
        if self._log:
            raise ValueError("only an empty catalog can be loaded")
        items: list[LogItem] = [*records, *tombstones]
        items.sort(key=revision_of)
        self._log.extend(items)
        self._revisions.extend(map(revision_of, items))
        self._tombstones.update((item.id, item) for item in items if isinstance(item, Tombstone))
        self._current.update((item.entry.id, item) for item in items if isinstance(item, Record))
        self._index_paths()
        self._newest = None
        self.revision = Revision(max([revision, *self._revisions[-1:]]))
        self.floor = floor

    def renew_instance(self, instance: str) -> None:
        """Give the log a new name: cursors that were handed out before can no longer be resumed from."""
        self.instance = instance

    # ---- inside --------------------------------------------------------------------------------------------

    def _next(self, checkpoint_id: CheckpointId, outcome: Record | Removal, revision: Revision) -> LogItem | None:
        current = self._current.get(checkpoint_id)
        if isinstance(outcome, Removal):
            if current is None:
                return None
            now = self._clock()
            return Tombstone(checkpoint_id, current.entry.path, outcome.reason, revision, now, outcome.moved_to)
        if current is not None and _same(outcome, current):
            return None
        record = msgspec.structs.replace(
            outcome,
            entry=msgspec.structs.replace(outcome.entry, revision=revision),
            identities=msgspec.structs.replace(outcome.identities),  # a copy, whose values can be shared
        )
        self._shared.share(record)
        return record

    def _apply(self, item: LogItem) -> None:
        checkpoint_id = id_of(item)
        superseded: LogItem | None = self._current.pop(checkpoint_id, None) or self._tombstones.pop(checkpoint_id, None)
        if superseded is not None:
            self._punch(superseded)
        self._log.append(item)
        self.revision = revision_of(item)
        self._revisions.append(self.revision)
        before = superseded if isinstance(superseded, Record) else None
        self._replaced.append((before, item if isinstance(item, Record) else None))
        if isinstance(item, Tombstone):
            self._tombstones[checkpoint_id] = item
            if isinstance(superseded, Record):
                self._drop_path(superseded)
            return
        self._current[checkpoint_id] = item
        if not isinstance(superseded, Record):
            self._add_path(item)

    def _add_path(self, record: Record) -> None:
        root = record.entry.root
        self._paths.setdefault(root, {})[record.relative_path] = record.entry.id
        for directory in _directories_above(record.relative_path):
            self._directories[root, directory] += 1

    def _index_paths(self) -> None:
        """The same as `_add_path` for each record, in a quarter of the time."""
        parents: collections.Counter[tuple[str, bytes]] = collections.Counter()
        for record in self._current.values():
            root = record.entry.root
            self._paths.setdefault(root, {})[record.relative_path] = record.entry.id
            parents[root, record.relative_path.rpartition(b"/")[0]] += 1
        for (root, parent), count in parents.items():
            self._directories[root, parent] += count
            for directory in _directories_above(parent):
                self._directories[root, directory] += count

    def _drop_path(self, record: Record) -> None:
        root = record.entry.root
        self._paths[root].pop(record.relative_path, None)
        for directory in _directories_above(record.relative_path):
            self._directories[root, directory] -= 1
            if not self._directories[root, directory]:
                del self._directories[root, directory]

    def _punch(self, item: LogItem) -> None:
        self._log[bisect.bisect_left(self._revisions, revision_of(item))] = None
        self._holes += 1

    def _reorder(self, count: int) -> None:
        """Bring the order up to date with the last changes."""
        if self._newest is None:
            return
        if count > len(self._replaced):
            self._newest = None
            return
        last = itertools.islice(self._replaced, len(self._replaced) - count, None)
        removed, added = net_changes(last)
        self._newest = replace_items(self._newest, removed, added, newest_first)

    def _forget_tombstones(self) -> None:
        keep, now = self._retention, self._clock()
        oldest_s = now - keep.tombstone_age_s
        pinned = min((r for r, pin in self._pins.items() if now - pin.since < keep.pin_age_s), default=self.revision)
        while len(self._tombstones) > keep.tombstones_kept:
            tombstone = next(iter(self._tombstones.values()))
            is_young = tombstone.deleted_at > oldest_s and len(self._tombstones) <= len(self._current)
            wanted = is_young or tombstone.revision > pinned
            if wanted and len(self._tombstones) <= keep.tombstones_max:
                return
            del self._tombstones[tombstone.id]
            self._punch(tombstone)
            self.floor = tombstone.revision

    def _compact(self) -> None:
        if self._holes < self._retention.compact_holes or self._holes * 2 <= len(self._log):
            return
        self._revisions = array.array("q", (revision_of(item) for item in self._log if item is not None))
        self._log = [item for item in self._log if item is not None]
        self._holes = 0


class _Pin:
    """Readers of one snapshot, and when the last of them began."""

    __slots__ = ("readers", "since")

    def __init__(self) -> None:
        self.readers = 0
        self.since = 0.0


REPLACED_KEPT = 1024
"""Changes that can be followed one by one; catching up with more costs as much as beginning anew."""


def _directories_above(path: bytes) -> Iterator[bytes]:
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def newest_first(record: Record) -> tuple[int, CheckpointId]:
    """The sort key of the default order; no two records share one."""
    return -record.modified_ns, record.entry.id


def _same(outcome: Record, current: Record) -> bool:
    """Whether no reader could tell the two apart. JSON decides: a NaN that is compared with itself differs."""
    if outcome.identities != current.identities or outcome.modified_ns != current.modified_ns:
        return False
    if outcome.text_key != current.text_key:  # what is searched for may find it now, or no longer
        return False
    entry = msgspec.structs.replace(outcome.entry, revision=current.entry.revision)
    return entry == current.entry or encode_entry(entry) == encode_entry(current.entry)


def _as_seen(outcome: Record | Removal) -> Record | None:
    return None if isinstance(outcome, Removal) else outcome
