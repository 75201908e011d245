"""The log against a model: whatever happens, every reader's picture becomes the catalog's, and never goes backwards."""

import dataclasses

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ckptd.catalog.entry import CheckpointId, Record, Revision
from ckptd.catalog.store import (
    Catalog,
    Change,
    LogItem,
    Retention,
    Snapshot,
    Tombstone,
    id_of,
    newest_first,
    revision_of,
)
from tests.catalog.catalog_records import ROOT, drop, id_at, put, record_of

PATHS = ["top.ckpt", *(f"run/{letter}.ckpt" for letter in "abcd"), "run/deep/e.ckpt", "other/f.ckpt", "other/g.ckpt"]
DIRECTORIES = ["", "run", "run/deep", "other", "ru", "nowhere"]
READERS = 3

paths = st.sampled_from(PATHS)
values = st.integers(0, 3)


@dataclasses.dataclass
class Reader:
    """What a client holds: built from a snapshot in pieces, then from the log."""

    held: dict[CheckpointId, int] = dataclasses.field(default_factory=dict)
    """id → epoch, the value that the model changes."""
    seen: dict[CheckpointId, int] = dataclasses.field(default_factory=dict)
    """id → the highest revision that was delivered for it."""
    cursor: int = -1
    snapshot: Snapshot | None = None
    position: int = 0
    pinned_at: float | None = None

    def take(self, item: LogItem) -> None:
        checkpoint_id, revision = id_of(item), revision_of(item)
        assert revision > self.seen.get(checkpoint_id, -1), "a reader was shown an older state of the same entry"
        self.seen[checkpoint_id] = revision
        if isinstance(item, Tombstone):
            self.held.pop(checkpoint_id, None)
        else:
            self.held[checkpoint_id] = epoch_of(item)


def epoch_of(record: Record) -> int:
    assert record.entry.epoch is not None
    return record.entry.epoch


class LogMachine(RuleBasedStateMachine):
    """Random histories of one catalog, its readers, its clock and its restarts."""

    @initialize(capped=st.booleans())
    def begin(self, capped: bool) -> None:
        self.now = 1000.0
        self.capped = capped
        self.retention = Retention(
            tombstones_kept=2,
            tombstone_age_s=5,
            tombstones_max=4 if capped else 1000,
            pin_age_s=20,
            compact_holes=2,
        )
        self.catalog = Catalog("test", lambda: self.now, self.retention)
        self.model: dict[str, tuple[int, int]] = {}
        self.readers = [Reader() for _ in range(READERS)]

    # ---- what writers do -----------------------------------------------------------------------------------

    @rule(upserts=st.lists(st.tuples(paths, values, values), max_size=4), deletes=st.lists(paths, max_size=4))
    def change(self, upserts: list[tuple[str, int, int]], deletes: list[str]) -> None:
        before = self.catalog.revision
        batch = self.catalog.prepare(
            [put(record_of(path, epoch=epoch, modified_ns=ns)) for path, epoch, ns in upserts]
            + [drop(path) for path in deletes]
        )
        assert self.catalog.revision == before, "preparing showed something"
        for path, epoch, ns in upserts:
            self.model[path] = (epoch, ns)
        for path in deletes:
            self.model.pop(path, None)
        if batch is not None:
            assert [revision_of(item) for item in batch.items] == list(range(before + 1, batch.revision + 1))
            self.catalog.publish(batch)
            assert self.catalog.revision == batch.revision

    @rule(path=paths, epoch=values)
    def publish_out_of_turn(self, path: str, epoch: int) -> None:
        """A batch that was prepared before another was published is refused, whole."""
        late = self.catalog.prepare([put(record_of(path, epoch=9))])
        self.change([(path, epoch, 0)], [PATHS[0]])
        if late is not None and late.base != self.catalog.revision:
            with pytest.raises(ValueError, match="prepared at revision"):
                self.catalog.publish(late)

    @rule(path=paths)
    def a_late_answer_sees_that_it_is_late(self, path: str) -> None:
        """Decisions see what is published, or what the same batch has decided before them."""
        current = self.catalog.get(id_at(path))
        seen: list[Record | None] = []
        first = put(record_of(path, epoch=7))
        watching = Change(id_at(path), seen.append)
        self.catalog.prepare([watching, first, watching, drop(path), watching])
        assert seen[0] is current
        assert seen[1] is not None
        assert epoch_of(seen[1]) == 7
        assert seen[2] is None

    @rule(seconds=st.sampled_from([1.0, 6.0, 30.0, -10.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def restart(self) -> None:
        """A new process loads what the state kept; cursors of the old one stay good."""
        old = self.catalog
        self.catalog = Catalog("test", lambda: self.now, self.retention)
        self.catalog.load(list(old), old.tombstones(), old.revision, old.floor)
        for reader in self.readers:
            if reader.snapshot is not None:
                reader.snapshot = None
                reader.cursor = -1

    # ---- what readers do -----------------------------------------------------------------------------------

    @rule(index=st.integers(0, READERS - 1), limit=st.integers(1, 4))
    def read_some(self, index: int, limit: int) -> None:
        reader = self.readers[index]
        if reader.snapshot is not None:
            self._read_snapshot(reader, limit)
        elif not self.catalog.can_resume(reader.cursor):
            with pytest.raises(ValueError, match="outside"):
                self.catalog.since(reader.cursor)
            self._begin_snapshot(index)
        else:
            items = self.catalog.since(reader.cursor, limit)
            assert len(items) <= limit
            for item in items:
                assert revision_of(item) > reader.cursor
                reader.take(item)
                reader.cursor = revision_of(item)

    @rule(index=st.integers(0, READERS - 1))
    def read_all(self, index: int) -> None:
        while self.readers[index].snapshot is not None or not self.catalog.can_resume(self.readers[index].cursor):
            self.read_some(index, 4)
        reader = self.readers[index]
        for item in self.catalog.since(reader.cursor):
            reader.take(item)
        reader.cursor = self.catalog.revision
        assert reader.held == {id_at(path): epoch for path, (epoch, _) in self.model.items()}

    @rule(index=st.integers(0, READERS - 1))
    @precondition(lambda self: any(reader.snapshot for reader in self.readers))
    def leave(self, index: int) -> None:
        """A reader hangs up in the middle of its snapshot and comes back as a stranger."""
        reader = self.readers[index]
        if reader.snapshot is not None:
            self.catalog.unpin(reader.snapshot.revision)
            self.readers[index] = Reader()

    def _begin_snapshot(self, index: int) -> None:
        reader = self.readers[index] = Reader(snapshot=self.catalog.snapshot(), pinned_at=self.now)
        assert reader.snapshot is not None
        self.catalog.pin(reader.snapshot.revision)

    def _read_snapshot(self, reader: Reader, limit: int) -> None:
        assert reader.snapshot is not None
        assert reader.pinned_at is not None
        for record in reader.snapshot.records[reader.position : reader.position + limit]:
            reader.take(record)
        reader.position += limit
        if reader.position < len(reader.snapshot.records):
            return
        reader.cursor = reader.snapshot.revision
        if not self.capped and 0 <= self.now - reader.pinned_at < self.retention.pin_age_s:
            assert self.catalog.can_resume(reader.cursor), "a deletion above a pinned snapshot was forgotten"
        self.catalog.unpin(reader.snapshot.revision)
        reader.snapshot = None

    # ---- what always holds ---------------------------------------------------------------------------------

    @invariant()
    def the_catalog_is_the_model(self) -> None:
        held = {record.entry.path: (record.entry.epoch, record.modified_ns) for record in self.catalog}
        assert held == self.model
        assert len(self.catalog) == len(self.model)
        assert sorted(self.catalog.paths(ROOT)) == sorted(path.encode() for path in self.model)
        for path in PATHS:
            found = self.catalog.find(ROOT, path.encode())
            assert found is self.catalog.get(id_at(path))
            assert (found is None) == (path not in self.model)

    @invariant()
    def a_directory_is_known_by_what_is_listed_beneath_it(self) -> None:
        for directory in DIRECTORIES:
            beneath = any(not directory or path.startswith(directory + "/") for path in self.model)
            assert self.catalog.has_beneath(ROOT, directory.encode()) == beneath

    @invariant()
    def a_snapshot_is_everything_newest_first(self) -> None:
        snapshot = self.catalog.snapshot()
        assert snapshot is self.catalog.snapshot()
        assert snapshot.revision == self.catalog.revision
        assert list(snapshot.records) == sorted(self.catalog, key=newest_first)

    @invariant()
    def what_is_superseded_or_forgotten_takes_no_memory(self) -> None:
        live = len(self.catalog) + len(self.catalog.tombstones())
        assert len(self.catalog._log) <= max(2 * live, live + self.retention.compact_holes)
        assert len(self.catalog._log) == len(self.catalog._revisions)
        assert len(self.catalog.tombstones()) <= self.retention.tombstones_max or not self.capped

    @invariant()
    def a_tombstone_is_never_beside_its_entry(self) -> None:
        for tombstone in self.catalog.tombstones():
            assert self.catalog.get(tombstone.id) is None
            assert self.catalog.tombstone(tombstone.id) is tombstone
            assert tombstone.revision > self.catalog.floor


LogMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestLogMachine = LogMachine.TestCase


@pytest.mark.campaign
@pytest.mark.slow
def test_the_same_holds_for_long_histories() -> None:
    """More histories, each more than twice as long."""
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(LogMachine, settings=settings(max_examples=300, stateful_step_count=60, deadline=None))


def test_revision_is_an_integer_that_counts_changes_from_one() -> None:
    catalog = Catalog("test")
    batch = catalog.prepare([put(record_of("a.ckpt")), put(record_of("b.ckpt"))])
    assert batch is not None
    catalog.publish(batch)
    assert catalog.revision == Revision(2)
