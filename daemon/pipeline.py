"""Pipeline: hints → settle → looks → workers → journal → sidecars. The way of a change, in one direction.

Whoever believes that a path may have changed calls `hint`; nothing else enters. Every path is judged by `settle` alone,
and every outcome leaves through the journal.
"""

import collections
import contextlib
import errno
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from ckptd.catalog.describe import failed_description
from ckptd.catalog.description import Description
from ckptd.catalog.entry import (
    CheckpointId,
    Health,
    Record,
    checkpoint_id,
    make_record,
    metadata_source,
    shown_path,
)
from ckptd.catalog.experiment import DirectFiles
from ckptd.catalog.roots import Root
from ckptd.catalog.store import Batch, Catalog, Change, DeleteReason, Removal, Tombstone, id_of
from ckptd.catalog.verification import Verification, apply
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.findings import finding
from ckptd.validators.inspection import FileIdentity, Seal

from .journal import Journal
from .look import READ_ERROR, Opened, Sight, Viewer, could_not_read
from .metrics import DescribeOutcome, Metrics
from .settle import Look, LookKind, Phase, Settle, Verdict
from .sidecars import SidecarWriter, keep_state_metadata
from .workers import WorkerDied, WorkerPool, finding_for

LOOKS_AT_ONCE = 192
"""Paths that are opened and described at the same time; each holds at most six descriptors."""

DIRECTORIES_AT_ONCE = 6
"""Checkpoints that are directories, of those; each holds up to `opening.OPENED_PARTS` descriptors more."""

REFUSED_LOOKS = 3
"""After so many looks a second apart, a file whose bytes the disk refuses is listed as that."""
DISK_ERRORS = frozenset(
    (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EUCLEAN, errno.EBADMSG)
)
UNSTEADY_LOOKS = 3
"""A directory whose files changed while they were read, so many times in a row, is being written."""

WRITING_NEWS_S = 1.0
"""A file that grows is news at most this often."""

INTERNAL_ERROR_RETRY_S = 30.0


class Key(NamedTuple):
    """One path of one root."""

    root: Root
    path: bytes

    @property
    def id(self) -> CheckpointId:
        """The slot in the catalog."""
        return checkpoint_id(self.root.name, self.path)


class _Seen(NamedTuple):
    """What a look saw, and what was known before it."""

    sight: Sight
    known: Record | None
    verification: Verification | None
    """The last one of this file, or of the target of this alias, as it was when `known` was published."""


class Counts(msgspec.Struct):
    """What was done since the start, for status and metrics."""

    looks: int = 0
    described: int = 0
    unchanged: int = 0
    removed: int = 0
    worker_deaths: int = 0


class Pipeline:
    """Owns `settle` and every look under way."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        journal: Journal,
        pool: WorkerPool,
        sidecars: SidecarWriter,
        viewers: Sequence[Viewer],
        settle: Settle[Key],
        sweeps_begun: Callable[[Root], int],
        on_looked: Callable[[Key, int], None],
        on_problem: Callable[[str, str, str], None],
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """Args:
        sweeps_begun: how many sweeps of a root have begun.
        on_looked: called when a look at a path ended and its outcome is visible, with the number of sweeps of its root
            that had begun when the look began.
        on_problem: called with (what, path, message) for the operator's list of recent errors.
        """
        self._catalog = catalog
        self._journal = journal
        self._pool = pool
        self._sidecars = sidecars
        self._viewers = {viewer.root: viewer for viewer in viewers}
        self._settle = settle
        self._sweeps_begun = sweeps_begun
        self._on_looked = on_looked
        self._on_problem = on_problem
        self._metrics = metrics
        self._log = log
        self._wake = anyio.Event()
        self._in_flight = 0
        self._publishing: collections.Counter[Key] = collections.Counter()
        """Looks that ended, and whose outcome is not visible yet."""
        self._directories = anyio.CapacityLimiter(DIRECTORIES_AT_ONCE)
        self._unsteady: collections.Counter[Key] = collections.Counter()
        self._refused: collections.Counter[Key] = collections.Counter()
        self._forced: set[Key] = set()
        self._told_writing: dict[Key, float] = {}
        self._aliases: dict[CheckpointId, dict[CheckpointId, Key]] = {}
        self._targets: dict[CheckpointId, CheckpointId] = {}
        self._closing = False
        self.counts = Counts()
        catalog.on_publish(self._follow_aliases)
        # One look at each: 100,000 calls would keep the event loop for a fifth of a second.
        for record in [record for record in catalog if record.entry.alias_of is not None]:
            self._note_alias(record)

    @property
    def pending(self) -> int:
        """Paths that need a look or are being looked at."""
        return len(self._settle)

    @property
    def waiting(self) -> int:
        """Paths that were never looked at since they changed."""
        return self._settle.phases()[Phase.NEW]

    @property
    def phases(self) -> dict[Phase, int]:
        """How many paths stand where."""
        return self._settle.phases()

    def hint(self, keys: Iterable[Key], *, must_read: bool = False) -> None:
        """Something may have changed at these paths. Cheap; never blocks."""
        now = anyio.current_time()
        for key in keys:
            if must_read:
                self._forced.add(key)
            self._settle.hint(key, now)
        self._wake.set()

    def is_pending(self, key: Key) -> bool:
        """Whether a look at this path is due or under way, or its outcome not visible yet."""
        return key in self._settle or key in self._publishing

    def hint_aliases(self, target: CheckpointId) -> None:
        """More is known of a file's bytes: the links to it are to show that as well."""
        self.hint(list(self._aliases.get(target, {}).values()), must_read=True)

    def repeat_looks_under_way(self, root: Root) -> list[Key]:
        """Have every look under way in a root repeated, and return their keys. To be called when a sweep begins.

        A look counts as under way until its outcome is visible: the sweep compares the tree with what is published,
        and cannot see that an older outcome, published after the comparison, is out of date.
        """
        keys = dict.fromkeys(self._settle.hint_under_way(anyio.current_time())) | dict.fromkeys(self._publishing)
        concerned = [key for key in keys if key.root == root]
        self.hint(concerned)
        return concerned

    def close(self) -> None:
        """Take up no more looks; those under way end."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Look at what is due until closed."""
        async with anyio.create_task_group() as looks:
            while not self._closing:
                await self._take_due(looks)
                await self._wait()

    async def _wait(self) -> None:
        due = self._settle.next_due() if self._in_flight < LOOKS_AT_ONCE else None
        with anyio.CancelScope(deadline=math.inf if due is None else due):
            await self._wake.wait()
        self._wake = anyio.Event()

    async def _take_due(self, looks: anyio.abc.TaskGroup) -> None:
        while not self._closing and self._in_flight < LOOKS_AT_ONCE:
            keys = self._settle.due(anyio.current_time(), min(64, LOOKS_AT_ONCE - self._in_flight))
            if not keys:
                return
            self._in_flight += len(keys)
            looks.start_soon(self._look_at, keys)

    async def _look_at(self, keys: Sequence[Key]) -> None:
        """Look at a handful of paths in one thread, then describe each by itself."""
        wanted = [(key, self._catalog.get(key.id), self._must_read(key)) for key in keys]
        begun = [self._sweeps_begun(key.root) for key in keys]
        seen = await anyio.to_thread.run_sync(self._see, wanted)
        self.counts.looks += len(keys)
        present = zip(keys, seen, strict=True)
        moved = {one.sight.identities.file.inode: key.id for key, one in present if one.sight.identities is not None}
        async with anyio.create_task_group() as group:
            for key, one, sweeps in zip(keys, seen, begun, strict=True):
                group.start_soon(self._judge, key, one, moved, sweeps)

    def _must_read(self, key: Key) -> bool:
        return key in self._forced or self._settle.must_read(key)

    def _see(self, wanted: Sequence[tuple[Key, Record | None, bool]]) -> list[_Seen]:
        """Runs in a thread."""
        opened_roots: dict[Root, int | OSError] = {}
        seen = []
        try:
            for key, known, must_read in wanted:
                if key.root not in opened_roots:
                    opened_roots[key.root] = _open_root(key.root)
                sight = self._see_one(key, opened_roots[key.root], known, must_read=must_read)
                seen.append(_Seen(sight, known, self._recall(key, sight, known)))
        finally:
            for fd in opened_roots.values():
                if isinstance(fd, int):
                    os.close(fd)
        return seen

    def _recall(self, key: Key, sight: Sight, known: Record | None) -> Verification | None:
        """What is known of the bytes of a file that is described anew. Runs in a thread."""
        if sight.kind is not LookKind.SEEN or sight.identities is None:
            return None
        if sight.alias_of is not None:
            return self._journal.verification(sight.alias_of)
        if known is None or known.identities.file.inode != sight.identities.file.inode:
            return None
        return self._journal.verification(key.id)

    def _see_one(self, key: Key, root_fd: int | OSError, known: Record | None, *, must_read: bool) -> Sight:
        viewer = self._viewers[key.root]
        try:
            if isinstance(root_fd, FileNotFoundError):
                return viewer.absent_root(key.path)
            if isinstance(root_fd, OSError):
                return Sight(kind=LookKind.UNREACHABLE)
            return viewer.look(root_fd, key.path, known, must_read=must_read)
        except OSError as error:
            self._log.warning("a look failed", path=shown_path(key.root.join(key.path))[0], error=str(error))
            return Sight(kind=LookKind.UNREACHABLE)
        except Exception:  # noqa: BLE001
            # The rim of one path, as in `_judge`: the others in the same thread must not go with it.
            self._log.exception("a look failed", path=shown_path(key.root.join(key.path))[0])
            return Sight(kind=LookKind.UNREACHABLE)

    async def _judge(self, key: Key, seen: _Seen, moved: Mapping[int, CheckpointId], sweeps: int) -> None:
        try:
            sight, description = await self._open_and_describe(key, seen.sight)
            refused = description is not None and any(
                found.code == READ_ERROR for found in description.inspection.findings
            )
            if description is not None and refused and self._is_known_refused(key, description.inspection.identity):
                sight, description = Sight(kind=LookKind.UNCHANGED), None
            seen = seen._replace(sight=sight)
            if seen.sight.kind is LookKind.SEEN and description is None:
                return
            if await self._conclude(key, seen, description, moved):
                self._on_looked(key, sweeps)
        except Exception as error:  # noqa: BLE001
            # The rim of one file: whatever went wrong with it must not stop the others. It is tried again.
            self._log.exception("a checkpoint could not be processed", path=os.fsdecode(key.root.join(key.path)))
            self._on_problem("internal error", os.fsdecode(key.root.join(key.path)), repr(error))
            # An outcome that settle has taken already is not looked at again here: the next sweep asks for it.
            with contextlib.suppress(KeyError):
                self._settle.abort(key, anyio.current_time(), retry_in_s=INTERNAL_ERROR_RETRY_S)
        finally:
            self._in_flight -= 1
            self._wake.set()

    async def _open_and_describe(self, key: Key, sight: Sight) -> tuple[Sight, Description | None]:
        """Describe what was seen; a directory is opened first, when descriptors are free for it."""
        if sight.place is None:
            return sight, await self._describe(key, sight)
        async with self._directories:
            viewer = self._viewers[key.root]
            sight = await anyio.to_thread.run_sync(viewer.open_directory, key.path, sight)
            return sight, await self._describe(key, sight)

    async def _describe(self, key: Key, sight: Sight) -> Description | None:
        """Describe what was seen; None when the look must be repeated (settle has been told)."""
        if sight.kind is not LookKind.SEEN or sight.request is None or sight.identities is None:
            return None
        if sight.opened is None:
            problem = finding(sight.code, sight.unreadable or "cannot be read")
            return failed_description(sight.request, sight.identities.file, problem, seal=sight.seal)
        started = time.perf_counter()
        opened = sight.opened
        outcome: DescribeOutcome | None = None
        try:
            description = await self._pool.describe(opened.request, opened.files)
            if await self._is_of_another_place(key, opened, description):
                self._settle.abort(key, anyio.current_time(), retry_in_s=0.02)
                return None
            outcome = _outcome_of(description)
        except Changed as changed:
            outcome = DescribeOutcome.CHANGED
            if not self._is_unsteady(key, opened):
                self._settle.abort(key, anyio.current_time(), retry_in_s=0.02)
                return None
            problem = finding("shards.incomplete", f"the directory is being written: {changed.message}")
            description = failed_description(opened.request, opened.identities.file, problem, seal=Seal.OPEN)
        except Unreadable as error:
            outcome = DescribeOutcome.UNREADABLE
            self._problem("checkpoint unreadable", key, error.message)
            if not self._is_lasting(key, opened.identities.file, error):
                self._settle.abort(key, anyio.current_time(), retry_in_s=1.0)
                return None
            problem = finding(READ_ERROR, error.message)
            description = failed_description(opened.request, opened.identities.file, problem, seal=Seal.SEALED)
        except WorkerDied as death:
            outcome = DescribeOutcome.WORKER_DIED
            self.counts.worker_deaths += 1
            self._problem("worker died", key, str(death))
            description = failed_description(opened.request, opened.identities.file, finding_for(death))
        finally:
            opened.close()
            if outcome is not None:
                self._metrics.observe_description(outcome, time.perf_counter() - started)
        self.counts.described += 1
        return description

    async def _is_of_another_place(self, key: Key, opened: Opened, description: Description) -> bool:
        """Whether what was read is not what this path holds: it must not be published under its name.

        A descriptor follows its file. Moved away after it was opened, and overwritten under its new name before it was
        read, the file says what this path never held.
        """
        wanted, told = opened.identities.file, description.inspection.identity
        if told == wanted:
            return False
        if told.inode != wanted.inode:
            self._problem("an answer about another file was refused", key, f"inode {told.inode}, not {wanted.inode}")
            return True
        return await anyio.to_thread.run_sync(_inode_at, key) != told.inode

    def _is_lasting(self, key: Key, identity: FileIdentity, error: Unreadable) -> bool:
        """Whether to list a file whose bytes the disk refuses: to wait for them would hold up all that is claimed."""
        if error.errno not in DISK_ERRORS:  # no descriptors, no memory: says nothing of the file
            return False
        self._refused[key] += 1
        return self._refused[key] >= REFUSED_LOOKS or self._is_known_refused(key, identity)

    def _is_known_refused(self, key: Key, identity: FileIdentity) -> bool:
        """Whether it is published already that this state of a file cannot be read."""
        known = self._catalog.get(key.id)
        return known is not None and known.identities.file == identity and could_not_read(known)

    def _is_unsteady(self, key: Key, opened: Opened) -> bool:
        """Whether to say of a directory that it is being written: to read all its files takes time, and may never
        succeed while some of them grow."""
        if opened.identities.shards is None:
            return False
        self._unsteady[key] += 1
        return self._unsteady[key] >= UNSTEADY_LOOKS

    async def _conclude(
        self, key: Key, seen: _Seen, description: Description | None, moved: Mapping[int, CheckpointId]
    ) -> bool:
        """Publish what a look means; False if that is not clear yet, and another look will tell."""
        sight = seen.sight
        look = _as_look(sight, description)
        verdict = self._settle.looked(key, look, anyio.current_time(), time.time_ns())
        self._unsteady.pop(key, None)
        self._refused.pop(key, None)
        if sight.kind is LookKind.UNCHANGED:
            self.counts.unchanged += 1
        if sight.kind is LookKind.SEEN:
            self._forced.discard(key)
        if verdict is not Verdict.WRITING:
            self._told_writing.pop(key, None)
        match verdict:
            case Verdict.REMOVE:
                await self._remove(key, moved)
            case Verdict.OFFLINE:
                await self._submit(key, Change(key.id, _offline))
            case Verdict.WRITING if not self._is_news(key):
                return False  # what is published of it is older than this look
            case Verdict.WHOLE | Verdict.ABANDONED | Verdict.WRITING:
                assert description is not None
                await self._publish(key, seen, description, verdict)
            case Verdict.NOTHING if look.kind is LookKind.SEEN:
                return False
            case Verdict.NOTHING:
                pass
        return True

    async def _submit(self, key: Key, change: Change) -> None:
        with self._not_visible_yet(key):
            await self._journal.submit(change)

    @contextlib.contextmanager
    def _not_visible_yet(self, key: Key) -> Iterator[None]:
        self._publishing[key] += 1
        try:
            yield
        finally:
            self._publishing[key] -= 1
            if not self._publishing[key]:
                del self._publishing[key]

    async def _publish(self, key: Key, seen: _Seen, description: Description, verdict: Verdict) -> None:
        sight = seen.sight
        with self._not_visible_yet(key):
            while True:
                record = _record(key, sight, _with_verification(description, seen), verdict)
                attempt = _Attempt(record, seen.known)
                await self._journal.submit(Change(key.id, attempt.decide), description)
                if not attempt.overtaken:
                    break
                known = self._catalog.get(key.id)
                seen = _Seen(sight, known, await anyio.to_thread.run_sync(self._recall, key, sight, known))
        if _became_a_link(seen.known, record):
            assert seen.known is not None
            await self._sidecars.checkpoint_gone(key.root, seen.known)  # what it describes is gone; links have none
        if verdict is Verdict.WHOLE:
            self._sidecars.consider(key.root, record, description.sidecar, outdated=description.outdated)

    def _is_news(self, key: Key) -> bool:
        now = anyio.current_time()
        if now - self._told_writing.get(key, -math.inf) < WRITING_NEWS_S:
            return False
        self._told_writing[key] = now
        return True

    async def _remove(self, key: Key, moved: Mapping[int, CheckpointId]) -> None:
        self._forced.discard(key)
        gone: list[Record] = []

        def decide(current: Record | None) -> Removal | None:
            # Decided when its turn comes: news of the file may be on its way, and then there is something to remove.
            if current is None:
                return None
            gone.append(current)
            moved_to = moved.get(current.identities.file.inode)
            return Removal(key.id, DeleteReason.REMOVED if moved_to is None else DeleteReason.MOVED, moved_to)

        await self._submit(key, Change(key.id, decide))
        for record in gone:
            self.counts.removed += 1
            await self._sidecars.checkpoint_gone(key.root, record)

    def _problem(self, what: str, key: Key, message: str) -> None:
        path = os.fsdecode(key.root.join(key.path))
        self._log.warning(what, path=path, error=message)
        self._on_problem(what, path, message)

    # ---- aliases: a link's entry shows its target, so it is looked at when the target changes ------------------

    def _note_alias(self, record: Record) -> None:
        entry = record.entry
        if record.identities.link is not None and entry.alias_of is None:
            return  # dangling: it still leads to where it led, and that may come back
        if entry.id in self._targets:
            self._forget_alias(entry.id)
        root = next((root for root in self._viewers if root.name == entry.root), None)
        if entry.alias_of is not None and root is not None:
            self._targets[entry.id] = entry.alias_of
            self._aliases.setdefault(entry.alias_of, {})[entry.id] = Key(root, record.relative_path)

    def _forget_alias(self, alias: CheckpointId) -> None:
        target = self._targets.pop(alias)
        del self._aliases[target][alias]
        if not self._aliases[target]:
            del self._aliases[target]

    def _follow_aliases(self, batch: Batch) -> None:
        for item in batch.items:
            if not isinstance(item, Tombstone):
                self._note_alias(item)
            elif item.id in self._targets:
                self._forget_alias(item.id)
            aliases = self._aliases.get(id_of(item))
            if aliases:
                self.hint(list(aliases.values()))


class _Attempt:
    """To publish a record that was made from what was known at the beginning of a look."""

    def __init__(self, record: Record, known: Record | None) -> None:
        self._record = record
        self._known = known
        self.overtaken = False
        """There was other news of the same file meanwhile: its bytes may have been verified."""

    def decide(self, current: Record | None) -> Record | None:
        file = self._record.identities.file
        if current is not None and current is not self._known and current.identities.file == file:
            self.overtaken = True
            return None
        return keep_state_metadata(current, self._record)


def _with_verification(description: Description, seen: _Seen) -> Description:
    if seen.verification is None or seen.sight.identities is None:
        return description
    return apply(description, seen.verification, shards=seen.sight.identities.shards)


def _outcome_of(description: Description) -> DescribeOutcome:
    inspection = description.inspection
    if inspection.is_valid:
        return DescribeOutcome.VALID
    return DescribeOutcome.INCOMPLETE if inspection.seal is Seal.OPEN else DescribeOutcome.INVALID


def _open_root(root: Root) -> int | OSError:
    try:
        return os.open(root.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return error


def _inode_at(key: Key) -> int | None:
    """The inode that a path leads to now; None where it leads to none, or nobody can say. Runs in a thread."""
    root_fd = _open_root(key.root)
    if isinstance(root_fd, OSError):
        return None
    try:
        status = DirectFiles(root_fd).status(key.path)
    except OSError:
        return None
    finally:
        os.close(root_fd)
    return None if status is None else status.st_ino


def _as_look(sight: Sight, description: Description | None) -> Look:
    if sight.kind is not LookKind.SEEN or sight.identities is None or description is None:
        return Look(kind=sight.kind)
    if sight.opened is None:  # it exists and cannot be opened: there is nothing to wait for but a change
        return Look(kind=LookKind.SEEN, identity=sight.identities.file, seal=sight.seal, writer=False)
    return Look(
        kind=LookKind.SEEN,
        identity=description.inspection.identity,
        seal=description.inspection.seal,
        writer=sight.opened.writer,
    )


def _record(key: Key, sight: Sight, description: Description, verdict: Verdict) -> Record:
    assert sight.identities is not None
    described: FileIdentity = description.inspection.identity
    identities = msgspec.structs.replace(sight.identities, file=described)
    if verdict is Verdict.WRITING:
        health = Health.WRITING
    elif description.inspection.is_valid and sight.unreadable is None:
        health = Health.VALID
    else:
        health = Health.INVALID
    return make_record(
        key.root,
        key.path,
        description,
        health,
        identities=identities,
        metadata_source=metadata_source(description.sidecar),
        alias_of=sight.alias_of,
    )


def _became_a_link(known: Record | None, record: Record) -> bool:
    return known is not None and known.identities.link is None and record.identities.link is not None


def _offline(current: Record | None) -> Record | None:
    if current is None or current.entry.health is Health.OFFLINE:
        return None
    return msgspec.structs.replace(current, entry=msgspec.structs.replace(current.entry, health=Health.OFFLINE))
