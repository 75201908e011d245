"""The daemon's memory on disk: entries, descriptions, tombstones and the revision, in one SQLite file.

Deleting it is always safe. A file that is torn, foreign or newer is set aside and a fresh one begun; everything in it
can be read again from the tree. What was committed survives a killed process always, and a power cut except for the
last moments (WAL with synchronous=NORMAL); that is why the log's name changes after a reboot without a clean end.
"""

import contextlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from ckptd.validators.garbage import no_garbage_collection
from ckptd.validators.inspection import Level, TensorInfo
from ckptd.validators.text import counted

from . import state_rows as rows
from . import state_tables as tables
from .description import Description
from .entry import CheckpointId, Record, Revision
from .state_file import StateError, StateLock, StateLocked, Unusable, connect, connect_reader, is_damage, set_aside
from .state_tables import durably, transaction
from .store import Batch, Tombstone, revision_of
from .texts import Texts
from .verification import Verification

__all__ = ["Loaded", "State", "StateError", "StateLocked"]

FILE_NAME = "state.sqlite3"
NOTES_KEPT = 100

_T = TypeVar("_T")


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What an earlier run knew."""

    instance: str
    instance_kept: bool
    """Cursors of the earlier run can be resumed from."""
    revision: Revision
    floor: Revision
    records: list[Record]
    tombstones: list[Tombstone]


class State:
    """An open state file. One thread writes; `description` and `tensors` may be asked from others meanwhile."""

    def __init__(self, directory: str, lock: StateLock, *, boot_id: str, clock: Callable[[], float]) -> None:
        self.directory = directory
        self.path = os.path.join(directory, FILE_NAME)
        self.notes: list[str] = []
        """What a person should know of the state: what was set aside or dropped, and why."""
        self._lock = lock
        self._boot_id = boot_id
        self._clock = clock
        self._reading = threading.Lock()
        self._revision = Revision(0)
        self._marked = False
        self._damage: str | None = None
        """Found while a batch was written: the file is begun anew before anything else is."""
        self.texts = Texts(lambda error: self._note(f"{self.path}: cannot be searched: {error}"))
        """What full-text search looks into besides entries."""
        self._open_file()

    @classmethod
    def open(cls, directory: str, *, boot_id: str, clock: Callable[[], float]) -> "State":
        """Open the state in `directory`, which is made if it is not there.

        Args:
            directory: Absolute path, private to one daemon.
            boot_id: Of /proc/sys/kernel/random/boot_id; empty where it is not known.
            clock: Seconds since the epoch; names what is set aside.

        Raises:
            StateLocked: another process has it open.
            StateError: the directory cannot be made, or no file can be written there.
        """
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateError(directory, error) from error
        lock = StateLock(directory)
        try:
            return cls(directory, lock, boot_id=boot_id, clock=clock)
        except BaseException:
            lock.release()
            raise

    # ---- loading -------------------------------------------------------------------------------------------

    def load(self) -> Loaded:
        """Read everything but the descriptions, and mark the state as in use.

        A row that cannot be decoded is dropped with a note; its path is then read again like a new one. Whenever
        anything was dropped, or the last run ended by a power cut, the log gets a new instance name.
        """
        try:
            loaded = self._load()
        except (sqlite3.DatabaseError, Unusable) as error:
            if isinstance(error, sqlite3.DatabaseError) and not is_damage(error):
                raise self._error("read", error) from error
            self._begin_anew(str(error))
            loaded = self._load()
        self._revision = loaded.revision
        try:
            self._mark_in_use({"instance": loaded.instance})
            with transaction(self._writer):
                self.texts.drop_unused()
        except sqlite3.Error as error:
            # a full disk: what is known is still good, but what is told from now on may be forgotten
            self._note(f"{self.path}: cannot be written: {error}; the catalog begins under a new instance name")
            loaded = msgspec.structs.replace(loaded, instance=secrets.token_hex(8), instance_kept=False)
        return loaded

    def _load(self) -> Loaded:
        with no_garbage_collection():
            records, bad_records = tables.load_records(self._writer)
            tombstones, bad_tombstones = tables.load_tombstones(self._writer)
        meta = dict(self._writer.execute("SELECT key, value FROM meta"))
        whole = not bad_records and not bad_tombstones
        ended_well = meta.get("clean") == "1" or (self._boot_id != "" and meta.get("boot_id") == self._boot_id)
        kept = whole and ended_well and bool(meta.get("instance"))
        if not whole:
            dropped = f"{counted(len(bad_records), 'entry', 'entries')} and {counted(len(bad_tombstones), 'deletion')}"
            self._note(
                f"{self.path}: dropped {dropped} that could not be decoded; the files behind them are read again"
            )
            with contextlib.suppress(sqlite3.OperationalError), transaction(self._writer):
                tables.drop(self._writer, bad_records, bad_tombstones)
        revisions = [*map(revision_of, records), *map(revision_of, tombstones)]
        if len(set(revisions)) < len(revisions):
            raise Unusable("two changes claim the same revision")
        return Loaded(
            instance=meta["instance"] if kept else secrets.token_hex(8),
            instance_kept=kept,
            revision=Revision(max(_number(meta.get("revision")), *revisions, 0)),
            floor=Revision(_number(meta.get("floor"))),
            records=records,
            tombstones=tombstones,
        )

    def _mark_in_use(self, also: Mapping[str, str]) -> None:
        # Durable before anything is told: else a power cut would bring back the mark of the clean end before.
        with durably(self._writer), transaction(self._writer):
            tables.put_meta(self._writer, {"clean": "0", "boot_id": self._boot_id, **also})
        self._marked = True

    # ---- writing -------------------------------------------------------------------------------------------

    def commit(
        self,
        batch: Batch,
        descriptions: Mapping[CheckpointId, Description],
        floor: Revision,
        *,
        amended: Mapping[CheckpointId, Description] | None = None,
        verifications: Mapping[CheckpointId, Verification] | None = None,
    ) -> None:
        """Write one batch, all of it or nothing.

        Args:
            batch: As prepared by the catalog, not yet published.
            descriptions: What is kept behind entries from now on. An entry without one here keeps the one it has.
            floor: The catalog's; deletions up to it are forgotten here as well.
            amended: Descriptions whose tensor table stays as it is.
            verifications: Of entries, beside their descriptions. One stays until the next, or until its entry goes.

        Raises:
            StateError: the disk is full or failing. Nothing was written and the same call may be tried again.
            ValueError: an earlier batch is missing here; only `rewrite` can follow.
        """
        if batch.base != self._revision:
            raise ValueError(f"the state is at revision {self._revision}, the batch begins at {batch.base}: rewrite it")
        try:
            with self._errors("written"):
                if not self._marked:
                    self._mark_in_use({})
                self._commit(batch, descriptions, amended or {}, verifications or {}, floor)
        except StateError as error:
            self._damage = str(error) if error.damaged else self._damage
            raise
        self._revision = batch.revision
        for told in self._committed:
            told()

    def _commit(
        self,
        batch: Batch,
        descriptions: Mapping[CheckpointId, Description],
        amended: Mapping[CheckpointId, Description],
        verifications: Mapping[CheckpointId, Verification],
        floor: Revision,
    ) -> None:
        with transaction(self._writer):
            tables.put_items(self._writer, batch)
            tables.put_descriptions(self._writer, descriptions)
            self._committed = self.texts.add(one.search_text for one in descriptions.values())
            tables.amend_descriptions(self._writer, amended)
            tables.put_verifications(self._writer, verifications)
            # Last: a verification may come with news of a later state of its file.
            tables.outdate_verifications(self._writer, [item for item in batch.items if isinstance(item, Record)])
            self._writer.execute("DELETE FROM tombstones WHERE revision <= ?", (floor,))
            tables.put_meta(self._writer, {"revision": str(batch.revision), "floor": str(floor)})

    def rewrite(
        self,
        instance: str,
        records: Iterable[Record],
        tombstones: Iterable[Tombstone],
        revision: Revision,
        floor: Revision,
    ) -> None:
        """Write the whole catalog in one transaction, after a time in which batches could not be written.

        Descriptions of entries that changed meanwhile are dropped: they describe an earlier file. A damaged file is
        set aside first.

        Raises:
            StateError: still not possible; nothing was written.
        """
        everything = [*records], [*tombstones]
        if self._damage is not None:
            self._begin_anew(self._damage)
        try:
            self._rewrite(instance, *everything, revision, floor)
        except StateError as error:
            if not error.damaged:
                raise
            self._begin_anew(str(error))
            self._rewrite(instance, *everything, revision, floor)
        self._revision, self._marked = revision, True

    def _rewrite(
        self, instance: str, records: list[Record], tombstones: list[Tombstone], revision: Revision, floor: Revision
    ) -> None:
        with self._errors("written"), durably(self._writer), transaction(self._writer):
            tables.rewrite(self._writer, records, tombstones)
            tables.put_meta(self._writer, {"instance": instance, "revision": str(revision), "floor": str(floor)})
            tables.put_meta(self._writer, {"clean": "0", "boot_id": self._boot_id})

    def set_meta(self, key: str, value: str) -> None:
        """Keep a small text under a key, in a transaction of its own.

        Raises:
            StateError: it could not be written.
        """
        with self._errors("written"), transaction(self._writer):
            tables.put_meta(self._writer, {f"user:{key}": value})

    def get_meta(self, key: str) -> str | None:
        """The text under a key, or None."""
        rows = self._read("SELECT value FROM meta WHERE key = ?", f"user:{key}")
        return str(rows[0][0]) if rows else None

    def close(self, clean: bool = True) -> None:
        """Close the file and give up the lock. A second call does nothing.

        Args:
            clean: Everything that was told is in the state, so its cursors stay good even across a power cut.
        """
        if self._lock.released:
            return
        try:
            with contextlib.suppress(sqlite3.Error), durably(self._writer):
                if clean and self._marked:
                    with transaction(self._writer):
                        tables.put_meta(self._writer, {"clean": "1"})
                self._writer.execute("PRAGMA incremental_vacuum(2000)").fetchall()
            self._close_file()
        finally:
            self._lock.release()

    # ---- descriptions --------------------------------------------------------------------------------------

    def description(self, checkpoint_id: CheckpointId) -> Description | None:
        """The description behind an entry, without its tensor table; None where none is kept. Any thread."""
        found = self._read("SELECT summary FROM descriptions WHERE id = ?", checkpoint_id)
        return self._unpacked(rows.unpack_summary, found[0][0], checkpoint_id) if found else None

    def tensors(self, checkpoint_id: CheckpointId) -> tuple[TensorInfo, ...] | None:
        """The tensor table behind an entry; None where none is kept. Any thread."""
        found = self._read("SELECT tensors FROM descriptions WHERE id = ?", checkpoint_id)
        return self._unpacked(rows.unpack_tensors, found[0][0], checkpoint_id) if found else None

    def full_description(self, checkpoint_id: CheckpointId) -> Description | None:
        """The description behind an entry with its tensor table; None where none is kept. Any thread."""
        found = self._read("SELECT summary, tensors FROM descriptions WHERE id = ?", checkpoint_id)
        if not found:
            return None
        summary = self._unpacked(rows.unpack_summary, found[0][0], checkpoint_id)
        tensors = self._unpacked(rows.unpack_tensors, found[0][1], checkpoint_id)
        if summary is None or tensors is None:
            return None
        return msgspec.structs.replace(summary, inspection=msgspec.structs.replace(summary.inspection, tensors=tensors))

    def undescribed(self) -> set[CheckpointId]:
        """Ids of entries behind which no description is kept: their detail needs the file to be read. Any thread."""
        found = self._read("SELECT id FROM entries WHERE id NOT IN (SELECT id FROM descriptions)")
        return {CheckpointId(row[0]) for row in found}

    # ---- verifications -------------------------------------------------------------------------------------

    def verification(self, checkpoint_id: CheckpointId) -> Verification | None:
        """The last verification of an entry, of its present file or of an earlier one; None if none is kept.
        Any thread."""
        found = self._read("SELECT verification FROM verifications WHERE id = ?", checkpoint_id)
        return self._unpacked(rows.unpack_verification, found[0][0], checkpoint_id) if found else None

    def unverified(self, level: Level) -> list[CheckpointId]:
        """Ids of entries whose present file nobody tried to verify as far as `level`, in no order. Any thread."""
        return [CheckpointId(row[0]) for row in self._read(rows.GET_UNVERIFIED, rows.rank(level))]

    def verified_before(
        self, moment: float, *, after: tuple[float, str] = (0.0, ""), limit: int
    ) -> list[tuple[float, CheckpointId]]:
        """When the longest verified entries were verified, with their ids, longest ago first. Any thread.

        Args:
            moment: epoch seconds; what was verified later is left out.
            after: the last one of the answer before, to go on behind it.
            limit: of the answer.
        """
        return [
            (at, CheckpointId(row_id)) for at, row_id in self._read(rows.GET_VERIFIED_BEFORE, *after, moment, limit)
        ]

    def oldest_verified(self) -> float | None:
        """When the entry that was verified longest ago was verified; epoch seconds. Any thread."""
        found = self._read(rows.GET_OLDEST_VERIFIED)
        return found[0][0] if found else None

    def _read(self, query: str, *values: str | float) -> list[tuple[Any, ...]]:
        with self._reading:
            try:
                return self._reader.execute(query, values).fetchall()
            except sqlite3.Error as error:
                self._note(f"{self.path}: cannot be read: {error}")
                return []

    def _unpacked(self, unpack: Callable[[bytes], _T], data: bytes, checkpoint_id: CheckpointId) -> _T | None:
        try:
            return unpack(data)
        except rows.BadRow as error:
            self._note(f"{self.path}: what is kept of {checkpoint_id} cannot be decoded: {error}")
            return None

    # ---- inside --------------------------------------------------------------------------------------------

    def _open_file(self) -> None:
        try:
            try:
                self._writer = connect(self.path)
            except Unusable as error:
                self._set_aside(str(error))
                self._writer = connect(self.path)
            self._reader = connect_reader(self.path)
            try:
                self.texts.attach(self.path, self._writer)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._close_file()
                self._set_aside(f"what is searched is damaged: {error}")
                self._writer, self._reader = connect(self.path), connect_reader(self.path)
                self.texts.attach(self.path, self._writer)
        except (sqlite3.Error, OSError) as error:
            raise self._error("opened", error) from error

    def _begin_anew(self, reason: str) -> None:
        with self._reading:
            self._close_file()
            try:
                self._set_aside(reason)
            except OSError as error:
                raise self._error("set aside", error) from error
            self._open_file()
            self._damage = None

    def _close_file(self) -> None:
        self.texts.detach()
        for connection in (self._reader, self._writer):
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _set_aside(self, reason: str) -> None:
        aside = set_aside(self.path, self._clock())
        self._note(f"{self.path}: {reason}; it was set aside as {os.path.basename(aside)} and is rebuilt from the tree")

    @contextlib.contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(action, error) from error

    def _error(self, action: str, error: sqlite3.Error | OSError) -> StateError:
        damaged = isinstance(error, sqlite3.Error) and is_damage(error)
        return StateError(self.path, error, action=action, damaged=damaged)

    def _note(self, note: str) -> None:
        if len(self.notes) < NOTES_KEPT and note not in self.notes:
            self.notes.append(note)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
