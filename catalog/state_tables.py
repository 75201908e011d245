"""The tables of the state: what is read from them, and what is written into them in the caller's transaction.

Everything raises `sqlite3.Error` where the file fails.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence

from . import state_rows as rows
from .description import Description
from .entry import CheckpointId, Record
from .sharing import SharedValues
from .store import Batch, Tombstone
from .verification import Verification


@contextlib.contextmanager
def transaction(writer: sqlite3.Connection) -> Iterator[None]:
    """What is written in here is written as a whole or not at all."""
    writer.execute("BEGIN IMMEDIATE")
    try:
        yield
        writer.execute("COMMIT")
    except BaseException:
        if writer.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                writer.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def durably(writer: sqlite3.Connection) -> Iterator[None]:
    """Commits in here are on the disk when they return."""
    writer.execute("PRAGMA synchronous = FULL")
    try:
        yield
    finally:
        with contextlib.suppress(sqlite3.Error):
            writer.execute("PRAGMA synchronous = NORMAL")


# ---- reading ---------------------------------------------------------------------------------------------------


def load_records(connection: sqlite3.Connection) -> tuple[list[Record], list[str]]:
    """All entries, and the ids of those that cannot be decoded."""
    shared = SharedValues()
    records: list[Record] = []
    bad: list[str] = []
    for row in connection.execute(rows.GET_ENTRIES):
        try:
            records.append(rows.record_of(row, shared))
        except rows.BadRow:
            bad.append(row[0])
    return records, bad


def load_tombstones(connection: sqlite3.Connection) -> tuple[list[Tombstone], list[str]]:
    """All tombstones in the order of their revisions, and the ids of those that cannot be decoded."""
    tombstones: list[Tombstone] = []
    bad: list[str] = []
    for row in connection.execute(rows.GET_TOMBSTONES):
        try:
            tombstones.append(rows.tombstone_of(row))
        except rows.BadRow:
            bad.append(row[0])
    return tombstones, bad


# ---- writing ---------------------------------------------------------------------------------------------------


def put_items(writer: sqlite3.Connection, batch: Batch) -> None:
    """Entries and tombstones, each in the place of the other; what is kept behind an entry goes with it."""
    records = [item for item in batch.items if isinstance(item, Record)]
    gone = [item for item in batch.items if isinstance(item, Tombstone)]
    write = writer.executemany
    write(rows.PUT_ENTRY, map(rows.entry_row, records))
    write("DELETE FROM tombstones WHERE id = ?", rows.one_column([record.entry.id for record in records]))
    write(rows.PUT_TOMBSTONE, map(rows.tombstone_row, gone))
    _drop_entries(writer, [item.id for item in gone])


def put_descriptions(writer: sqlite3.Connection, descriptions: Mapping[CheckpointId, Description]) -> None:
    """Of entries that there are."""
    writer.executemany(
        "INSERT OR REPLACE INTO descriptions SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM entries WHERE id = ?1)",
        ((key, rows.pack_summary(one), rows.pack_tensors(one.tensors)) for key, one in descriptions.items()),
    )


def amend_descriptions(writer: sqlite3.Connection, amended: Mapping[CheckpointId, Description]) -> None:
    """The same, but a tensor table that is kept already stays as it is."""
    writer.executemany(
        "INSERT INTO descriptions SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM entries WHERE id = ?1) "
        "ON CONFLICT (id) DO UPDATE SET summary = excluded.summary",
        ((key, rows.pack_summary(one), rows.pack_tensors(one.tensors)) for key, one in amended.items()),
    )


def put_verifications(writer: sqlite3.Connection, verifications: Mapping[CheckpointId, Verification]) -> None:
    """Of entries that there are."""
    put = [rows.verification_row(key, one) for key, one in verifications.items()]
    writer.executemany(rows.PUT_VERIFICATION, put)


def outdate_verifications(writer: sqlite3.Connection, records: Iterable[Record]) -> None:
    """Those of an earlier state of these files count no more."""
    writer.executemany(rows.OUTDATE_VERIFICATION, map(rows.outdating, records))


def put_meta(writer: sqlite3.Connection, values: Mapping[str, str]) -> None:
    """Small texts under their keys."""
    writer.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())


def drop(writer: sqlite3.Connection, entries: Sequence[str], tombstones: Sequence[str]) -> None:
    """Forget rows, with what is kept behind the entries."""
    _drop_entries(writer, entries)
    writer.executemany("DELETE FROM tombstones WHERE id = ?", rows.one_column(tombstones))


def rewrite(writer: sqlite3.Connection, records: Sequence[Record], tombstones: Sequence[Tombstone]) -> None:
    """Put these in the place of all entries and tombstones. Descriptions stay where the entry is unchanged."""
    before = dict(writer.execute("SELECT id, revision FROM entries"))
    unchanged = {r.entry.id for r in records if before.get(r.entry.id) == r.entry.revision}
    changed = [row_id for row_id in before if row_id not in unchanged]
    writer.executemany("DELETE FROM descriptions WHERE id = ?", rows.one_column(changed))
    writer.execute("DELETE FROM entries")
    writer.execute("DELETE FROM tombstones")
    writer.executemany(rows.PUT_ENTRY, map(rows.entry_row, records))
    writer.executemany(rows.PUT_TOMBSTONE, map(rows.tombstone_row, tombstones))
    writer.execute("DELETE FROM verifications WHERE id NOT IN (SELECT id FROM entries)")
    outdate_verifications(writer, records)


def _drop_entries(writer: sqlite3.Connection, ids: Sequence[str]) -> None:
    for table in ("entries", "descriptions", "verifications"):
        writer.executemany(f"DELETE FROM {table} WHERE id = ?", rows.one_column(ids))  # noqa: S608
