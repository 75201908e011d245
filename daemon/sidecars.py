"""SidecarWriter: writes what is missing beside checkpoints, after the news is out, and recognises its own writes.

It waits `sidecar_delay_s` so that a training's callback can write its better one. A directory that cannot be written is
warned of once; the metadata of its checkpoints then lives in the state. After a while one of them tries again, and once
that succeeds, all others there follow.
"""

import collections
import enum
import errno
import math
import os
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import structlog

from ckptd.catalog.describe import sidecar_for
from ckptd.catalog.description import Description, SidecarStatus
from ckptd.catalog.entry import CheckpointId, FindingRef, Health, MetadataSource, Record, shown_path
from ckptd.catalog.links import kind_of
from ckptd.catalog.opening import status_of_checkpoint
from ckptd.catalog.roots import Root, open_beneath
from ckptd.catalog.sidecar import remove_sidecar, render, sidecar_path, write_sidecar
from ckptd.catalog.store import Catalog, Change
from ckptd.validators.findings import Finding, finding
from ckptd.validators.inspection import FileIdentity

from .duequeue import DueQueue
from .journal import Journal

WRITERS = 16
"""Sidecars written at the same time: each waits for two fsyncs, which a journalling filesystem does for all at once."""

YIELD_S = 0.1
"""While checkpoints wait to be described, sidecars are looked at again after this time."""
MAX_YIELD_S = 30.0
"""Under a load that never ends, sidecars wait no longer than this for their turn."""

KNOWN_PER_TURN = 1000
"""Entries that are considered at start before the loop gets its turn: it is to answer meanwhile."""

RETRY_UNWRITABLE_S = 600.0
"""A directory that refused a sidecar is tried again after this time."""

RETRY_MET_S, MET_TRIES = 2.0, 5
"""Where a sidecar was met that nobody knew of: when it is tried again, and how often."""

WARNED_KEPT = 1000
"""Directories that the log was told of; with more of them it may tell of one again."""
RETRY_FAILED_S = 60.0
"""After a full disk or an I/O error, or where something else has the sidecar's name."""

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_LACKING = frozenset({MetadataSource.NONE, MetadataSource.STATE})
_REPLACED = frozenset({"metadata.missing", "metadata.stale", "metadata.unwritable"})


class _Wanted(NamedTuple):
    root: Root
    id: CheckpointId
    file: FileIdentity
    outdated: bool = False
    """There is one of ours, and more has become known since."""


class _Met(enum.Enum):
    """One had the name at the moment when ours was to be written."""

    MET = enum.auto()


_Place = tuple[Root, bytes]
"""A directory of a root."""


class _Written(msgspec.Struct, frozen=True):
    description: Description
    identity: FileIdentity


class _Refused(msgspec.Struct, frozen=True):
    error: OSError | None
    """None where none is to be written: sidecars are off, or the checkpoint lies outside the roots."""
    description: Description


class SidecarWriter:
    """Owns the sidecars that are still to be written."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        journal: Journal,
        describe: Callable[[CheckpointId], Description | None],
        digest_of: Callable[[CheckpointId, FileIdentity], str | None],
        may_write: Callable[[Root], bool],
        is_busy: Callable[[], bool],
        enabled: bool,
        long_name: bool,
        delay_s: float,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """Args:
        describe: the stored description of an entry, without its tensors; called in a thread.
        digest_of: the digest of a whole file in that state, where it was verified already; called in a thread.
        may_write: whether this process is the one that writes into a root; called in a thread.
        is_busy: whether checkpoints wait to be described; news goes before sidecars.
        enabled: False keeps all metadata in the state.
        """
        self._catalog = catalog
        self._journal = journal
        self._describe = describe
        self._digest_of = digest_of
        self._may_write = may_write
        self._is_busy = is_busy
        self._enabled = enabled
        self._long_name = long_name
        self._delay_s = delay_s
        self._log = log
        self._queue: DueQueue[_Wanted] = DueQueue()
        self._wake = anyio.Event()
        self._threads = anyio.CapacityLimiter(WRITERS)
        self._unwritable: dict[_Place, float] = {}
        """Directories that refused, and when one of their checkpoints tries again."""
        self._trying: set[_Wanted] = set()
        self._opened: set[_Place] = set()
        """Directories that take sidecars again."""
        self._refusals: dict[_Place, OSError] = {}
        self._warned: set[tuple[_Place, int | None]] = set()
        self._under_way: collections.Counter[CheckpointId] = collections.Counter()
        self._met: collections.Counter[_Wanted] = collections.Counter()
        """How often a sidecar was met where one was to be written; see `_try_again`."""
        self._closing = False
        self._wrote: set[Root] = set()
        self.skipped = 0
        """Checkpoints whose sidecars could not be written where they belong, since the start."""
        self.written = 0

    @property
    def pending(self) -> int:
        """Sidecars that are still to be written."""
        return len(self._queue) + self._under_way.total()

    def can_write(self, root: Root) -> bool | None:
        """Whether sidecars go into this root: False while a directory there refuses them, None if none was tried."""
        if any(place[0] == root for place in self._unwritable):
            return False
        return True if root in self._wrote else None

    def retry_refused(self) -> None:
        """Let the directories that refused try again now: somebody may have given us the right."""
        self._unwritable = dict.fromkeys(self._unwritable, -math.inf)
        self._wake.set()

    def consider(self, root: Root, record: Record, sidecar: SidecarStatus, *, outdated: bool = False) -> None:
        """Write a sidecar for a published checkpoint later, if it needs one: there is none, or ours is out of date."""
        entry = record.entry
        replaceable = outdated or sidecar in (SidecarStatus.NONE, SidecarStatus.STALE_OURS)
        if entry.health is not Health.VALID or entry.alias_of is not None or not replaceable:
            return
        self._schedule(_Wanted(root, entry.id, record.identities.file, outdated), self._delay_s)

    async def consider_known(self, roots: Sequence[Root]) -> None:
        """At start: take up again what an earlier run did not get to."""
        by_name = {root.name: root for root in roots}
        lacking = {MetadataSource.NONE, MetadataSource.STATE} if self._enabled else {MetadataSource.NONE}
        for number, record in enumerate(list(self._catalog)):
            if number % KNOWN_PER_TURN == 0:
                await anyio.lowlevel.checkpoint()
            if record.entry.metadata_source not in lacking or record.entry.root not in by_name:
                continue
            stale = any(ref.code == "metadata.stale" for ref in record.entry.findings)
            if stale or not record.identities.sidecars:
                self.consider(by_name[record.entry.root], record, SidecarStatus.NONE)

    async def checkpoint_gone(self, root: Root, record: Record) -> None:
        """Remove our sidecar of a checkpoint that was deleted; never anybody else's.

        Also where none is known: it may have been written a moment ago.
        """
        if record.identities.link is not None or record.entry.metadata_source is MetadataSource.SIDECAR:
            return
        if not self._enabled:
            return
        try:
            await anyio.to_thread.run_sync(self._remove, root, record.relative_path, limiter=self._threads)
        except OSError as error:
            self._log.warning(
                "sidecar of a deleted checkpoint not removed", path=record.entry.checkpoint_path, error=str(error)
            )

    def close(self) -> None:
        """Begin no more sidecars; those under way end. The rest is taken up by the next run."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Write what is due until closed."""
        async with anyio.create_task_group() as writers:
            while not self._closing:
                self._reconsider()
                while (wanted := self._take_due()) is not None:
                    self._under_way[wanted.id] += 1
                    writers.start_soon(self._write_one, wanted)
                with anyio.CancelScope(deadline=self._next_turn()):
                    await self._wake.wait()
                self._wake = anyio.Event()

    # ---- inside --------------------------------------------------------------------------------------------

    def _take_due(self) -> _Wanted | None:
        now, due_at = anyio.current_time(), self._queue.next_due()
        if due_at is None or self._under_way.total() >= WRITERS:
            return None
        if self._is_busy() and now - due_at < MAX_YIELD_S:
            return None
        return self._queue.take(now)

    def _next_turn(self) -> float:
        """When to look at the queue again; a writer that ends wakes us as well."""
        retry_at = min(self._unwritable.values(), default=math.inf)
        due_at = self._queue.next_due()
        if due_at is None or self._under_way.total() >= WRITERS:
            return retry_at
        return min(retry_at, max(due_at, anyio.current_time() + YIELD_S if self._is_busy() else 0.0))

    def _schedule(self, wanted: _Wanted, delay_s: float) -> None:
        if self._queue.schedule(wanted, anyio.current_time() + delay_s):
            self._wake.set()

    def _reconsider(self) -> None:
        """Have one checkpoint of each directory whose time has come try again, and all of one that lets us in now."""
        now = anyio.current_time()
        due = {place for place, retry_at in self._unwritable.items() if retry_at <= now}
        if not due and not self._opened:
            return
        roots = {place[0].name: place[0] for place in (*due, *self._opened)}
        for record in self._catalog:
            root = roots.get(record.entry.root)
            if root is None or record.entry.metadata_source is not MetadataSource.STATE:
                continue
            place = root, os.path.dirname(record.relative_path)
            wanted = _Wanted(root, record.entry.id, record.identities.file)
            if place in due:
                due.discard(place)
                self._unwritable[place] = now + RETRY_UNWRITABLE_S
                self._trying.add(wanted)
            elif place not in self._opened:
                continue
            self._schedule(wanted, 0.0)
        for place in due:  # nothing waits there any more
            del self._unwritable[place]
            self._forget_refusal(place)
        self._opened.clear()

    async def _write_one(self, wanted: _Wanted) -> None:
        try:
            record = self._catalog.get(wanted.id)
            if record is not None and _still_wanted(record, wanted):
                await self._write_for(record, wanted)
            else:
                self._met.pop(wanted, None)
        except Exception as error:  # noqa: BLE001
            # The rim of one sidecar: the checkpoint is listed all the same.
            self._log.exception("a sidecar could not be written", id=wanted.id, error=repr(error))
        finally:
            self._trying.discard(wanted)
            self._under_way[wanted.id] -= 1
            if not self._under_way[wanted.id]:
                del self._under_way[wanted.id]
            self._wake.set()

    async def _write_for(self, record: Record, wanted: _Wanted) -> None:
        outcome = await anyio.to_thread.run_sync(self._write, record, wanted, limiter=self._threads)
        match outcome:
            case _Written():
                written = outcome
                self._met.pop(wanted, None)
                self._note_written((wanted.root, os.path.dirname(record.relative_path)))
                change = Change(wanted.id, lambda current: _with_sidecar(current, wanted, written))
                await self._journal.submit(change, amended=outcome.description)
                if self._catalog.get(wanted.id) is None:  # deleted while we wrote
                    await self.checkpoint_gone(wanted.root, record)
            case _Refused():
                refused = outcome.description
                self._note_refused(record, wanted, outcome.error)
                change = Change(wanted.id, lambda current: _in_state(current, wanted, refused))
                await self._journal.submit(change, amended=outcome.description)
            case _Met.MET:
                self._try_again(wanted)
            case None:
                pass  # the file changed meanwhile: a look at it is due, and considers its sidecar anew

    def _try_again(self, wanted: _Wanted) -> None:
        """A look finds the sidecar that was met, and then none is wanted. If it has gone before any look, the look
        that its going causes sees nothing new: nobody else would write one."""
        self._met[wanted] += 1
        if self._met[wanted] <= MET_TRIES:
            self._schedule(wanted, RETRY_MET_S)
        else:
            del self._met[wanted]

    def _note_written(self, place: _Place) -> None:
        self.written += 1
        self._wrote.add(place[0])
        self._forget_refusal(place)
        if self._unwritable.pop(place, None) is not None:
            self._opened.add(place)

    def _note_refused(self, record: Record, wanted: _Wanted, error: OSError | None) -> None:
        if error is None:
            return
        place = wanted.root, os.path.dirname(record.relative_path)
        if record.entry.metadata_source is not MetadataSource.STATE:
            self.skipped += 1
        if error.errno in _REFUSED:
            self._refusals[place] = error.with_traceback(None)  # which holds whatever the thread had at hand
            self._unwritable.setdefault(place, anyio.current_time() + RETRY_UNWRITABLE_S)
        elif error.errno != errno.ENAMETOOLONG:
            self._schedule(wanted, RETRY_FAILED_S)
        if (place, error.errno) not in self._warned:
            if len(self._warned) >= WARNED_KEPT:
                self._warned.clear()
            self._warned.add((place, error.errno))
            self._log.warning(
                "sidecars cannot be written here; the metadata is kept in the state",
                directory=os.fsdecode(wanted.root.join(place[1])),
                error=error.strerror,
                remedy=remedy_for(error.errno),
            )

    def _forget_refusal(self, place: _Place) -> None:
        self._refusals.pop(place, None)
        self._warned = {told for told in self._warned if told[0] != place}

    def _write(self, record: Record, wanted: _Wanted) -> _Written | _Refused | _Met | None:
        """Runs in a thread."""
        description = self._describe(wanted.id)
        if description is None or description.inspection.identity != wanted.file:
            return None
        directory = os.path.dirname(record.relative_path)
        if not self._enabled or record.identities.link is not None:
            return _Refused(None, _kept(description, None))
        try:
            if not self._may_write(wanted.root):
                raise PermissionError(errno.EACCES, "another process writes this tree's sidecars")
            refusal = self._refusals.get((wanted.root, directory))
            if refusal is not None and wanted not in self._trying:
                return _refused(refusal, description)
            return self._write_file(description, record.relative_path, wanted)
        except FileExistsError:
            blocked = _blocked(wanted.root, sidecar_path(record.relative_path, long_name=self._long_name))
            return _Met.MET if blocked is None else _refused(blocked, description)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None  # the checkpoint is gone: a look at it is due
            if error.errno == errno.EXDEV:  # beneath a link out of the root, where nothing is ours to write
                return _Refused(None, _kept(description, None))
            return _refused(error, description)

    def _write_file(self, description: Description, path: bytes, wanted: _Wanted) -> _Written | None:
        root_fd = os.open(wanted.root.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status, identity = status_of_checkpoint(root_fd, path)
            if identity != wanted.file:
                return None
            metadata = sidecar_for(description, digest=self._digest_of(wanted.id, wanted.file))
            written = write_sidecar(
                root_fd,
                sidecar_path(path, long_name=self._long_name),
                render(metadata, description.user),
                like=status,
                replace_ours=description.outdated or description.sidecar is SidecarStatus.STALE_OURS,
            )
        finally:
            os.close(root_fd)
        findings = tuple(f for f in description.findings if f.code not in _REPLACED)
        return _Written(
            msgspec.structs.replace(
                description,
                metadata=metadata,
                findings=findings,
                sidecar=SidecarStatus.OURS,
                outdated=False,
                sidecar_identities=(written,),
            ),
            written,
        )

    def _remove(self, root: Root, path: bytes) -> None:
        if not self._may_write(root):
            return
        root_fd = os.open(root.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for long_name in (True, False):
                remove_sidecar(root_fd, sidecar_path(path, long_name=long_name))
        finally:
            os.close(root_fd)


def remedy_for(number: int | None) -> str:
    """What whoever runs the daemon can do where sidecars are refused, by the error's number."""
    if number == errno.ENAMETOOLONG:
        return "shorten the checkpoint's name, or set sidecars: off"
    if number in _REFUSED:
        what = "give the daemon write access"
    elif number == errno.EEXIST:
        what = "remove what has the name"
    elif number in (errno.ENOSPC, errno.EDQUOT):
        what = "free space there"
    else:
        what = "see whether the disk is failing"
    return f"{what}, or set sidecars: off; it is tried again by itself"


def about_sidecars(ref: FindingRef) -> bool:
    """Whether a finding is about what lies beside a checkpoint, and so changes when a sidecar is written."""
    return ref.code in _REPLACED


def _refused(error: OSError, description: Description) -> _Refused:
    problem = finding("metadata.unwritable", f"the sidecar could not be written: {error.strerror}")
    return _Refused(error, _kept(description, problem))


def _blocked(root: Root, path: bytes) -> OSError | None:
    """Why the sidecar's name will stay taken; None where a sidecar is there, which a look will find."""
    what = "something else"
    root_fd = os.open(root.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mode = os.stat(path, dir_fd=root_fd, follow_symlinks=False).st_mode
        link, unreadable = "a link that leads to no sidecar", "a file that cannot be read"
        what = link if stat.S_ISLNK(mode) else unreadable if stat.S_ISREG(mode) else kind_of(mode)
        os.close(open_beneath(root_fd, path))
    except FileNotFoundError:
        # Gone again, unless it is a link without a target.
        return None if what == "something else" else _taken(path, what)
    except OSError:
        return _taken(path, what)
    finally:
        os.close(root_fd)
    return None


def _taken(path: bytes, what: str) -> OSError:
    return FileExistsError(errno.EEXIST, f"{what} has the name {shown_path(os.path.basename(path))[0]}; remove it")


def keep_state_metadata(current: Record | None, record: Record) -> Record:
    """`record`, as a look made it, with what only the state knows of the same files: metadata that had no place there.

    Otherwise each look at a file in a read-only directory would be news twice: without metadata, and with it again.
    """
    if current is None or current.entry.metadata_source is not MetadataSource.STATE:
        return record
    if record.entry.metadata_source is not MetadataSource.NONE:
        return record
    # What a training has logged meanwhile makes it no other file.
    if msgspec.structs.replace(current.identities, logs=()) != msgspec.structs.replace(record.identities, logs=()):
        return record
    why = tuple(found for found in current.entry.findings if found.code == "metadata.unwritable")
    findings = (*(found for found in record.entry.findings if found.code not in _REPLACED), *why)
    entry = msgspec.structs.replace(
        record.entry, has_metadata=True, metadata_source=MetadataSource.STATE, findings=findings
    )
    return msgspec.structs.replace(record, entry=entry)


def _still_wanted(record: Record, wanted: _Wanted) -> bool:
    return (
        record.identities.file == wanted.file
        and record.entry.health is Health.VALID
        and (record.entry.metadata_source in _LACKING or wanted.outdated)
        and record.entry.metadata_source is not MetadataSource.SIDECAR
    )


def _kept(description: Description, problem: Finding | None) -> Description:
    findings = tuple(f for f in description.findings if f.code not in _REPLACED)
    return msgspec.structs.replace(description, findings=findings if problem is None else (*findings, problem))


def _with_sidecar(current: Record | None, wanted: _Wanted, written: _Written) -> Record | None:
    if current is None or not _still_wanted(current, wanted):
        return None
    identities = msgspec.structs.replace(current.identities, sidecars=(written.identity,))
    return _amended(current, identities=identities, source=MetadataSource.DAEMON, description=written.description)


def _in_state(current: Record | None, wanted: _Wanted, description: Description) -> Record | None:
    if current is None or not _still_wanted(current, wanted):
        return None
    return _amended(current, identities=current.identities, source=MetadataSource.STATE, description=description)


def _amended(current: Record, *, identities: object, source: MetadataSource, description: Description) -> Record:
    # The other findings are the entry's own: verifying the file may have added to them since it was described.
    kept = (ref for ref in current.entry.findings if ref.code not in _REPLACED)
    ours = (FindingRef(f.code, f.severity) for f in description.findings if f.code in _REPLACED)
    entry = msgspec.structs.replace(current.entry, has_metadata=True, metadata_source=source, findings=(*kept, *ours))
    return msgspec.structs.replace(current, entry=entry, identities=identities)
