"""Verifier: reads every byte of every checkpoint in the background, newest first, and again when that was long ago.

One file at a time, or a handful of small ones, at idle priority and a bounded rate; nothing is begun while new
checkpoints wait to be described. What it finds becomes news through the journal like everything else, and is kept
there: a restart goes on where it was.
"""

import collections
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog

from ckptd.catalog.description import Description
from ckptd.catalog.entry import CheckpointId, Record
from ckptd.catalog.state import State
from ckptd.catalog.store import Batch, Catalog, Change, Tombstone
from ckptd.catalog.verification import Verification, apply
from ckptd.validators.findings import Severity
from ckptd.validators.inspection import Level

from .agenda import Agenda, Wanted
from .closing import Closer
from .journal import Journal
from .key import Key
from .look import Viewer
from .metrics import Metrics
from .pipeline import Pipeline
from .reading import (
    Attempt,
    Effort,
    FileToRead,
    Outcome,
    Reading,
    Refusal,
    Result,
    is_candidate,
    open_for_reading,
    read_to_end,
    young_for_s,
)
from .status import VerifierStatus
from .workers import WorkerPool, ZygoteError

AGAIN_S = 0.25
"""A file that cannot be verified yet (young, or looked at just now) is taken up again after this time."""
UNDESCRIBED_S = 2.0
"""The same where the description was lost, and must be made anew first."""
YIELD_S = 0.05
"""While checkpoints wait to be described nothing is begun; how often that is asked."""
RETRY_S = 600.0
"""A file that could not be read to its end (a failing disk, no memory) is tried again after this time."""
GROUP_FILES = 16
GROUP_BYTES = 4 << 20
"""So many small files are read at once: together they take as long as one of a few megabytes."""
SCRUB_PAGE = 256
SCRUB_LOOK_S = 60.0
"""How often the state is asked for verifications that have become old, at most."""
NO_POOL_S = 60.0
"""When no process that reads can be started, this is tried again after so long."""
SUMMARY_S = 600.0
"""How often the log is told how far it is, while it works."""
DAY_S = 86_400.0


class Verifier:
    """Owns the order of verification and the files under way. `run` does the work."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        state: State,
        journal: Journal,
        pipeline: Pipeline,
        viewers: Sequence[Viewer],
        make_pool: Callable[[], WorkerPool],
        is_busy: Callable[[], bool],
        on_problem: Callable[[str, str, str], None],
        level: Level,
        mb_per_s: float,
        scrub_days: float,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """Args:
        make_pool: a pool for reading in the background.
        is_busy: whether checkpoints wait to be described; news goes first.
        on_problem: called with (what, path, message) for the operator's list of recent errors.
        level: how far to verify; up to `structure` there is nothing to do.
        mb_per_s: 10^6 bytes per second at most; 0: no limit.
        scrub_days: age at which a verification is repeated; 0: never.
        """
        self._catalog = catalog
        self._state = state
        self._journal = journal
        self._pipeline = pipeline
        self._viewers = {viewer.root.name: viewer for viewer in viewers}
        self._make_pool = make_pool
        self._is_busy = is_busy
        self._on_problem = on_problem
        self._level = level
        self._mb_per_s = mb_per_s or None
        self._scrub_s = scrub_days * DAY_S if scrub_days else math.inf
        self._metrics = metrics
        self._log = log
        self._agenda = Agenda()
        self._second_tries: set[CheckpointId] = set()
        """What ended the process that read it, and is to be read once more all the same."""
        self._held: Wanted | None = None
        """Taken out already, and too large for the handful before it."""
        self._scrub_at = 0.0
        """When the state is asked for old verifications again; monotonic."""
        self._oldest_at: float | None = None
        self._wake = anyio.Event()
        self._closer = Closer()
        self._under_way: str | None = None
        self._problem: str | None = None
        self._effort = Effort()
        catalog.on_publish(self._follow)

    @property
    def is_enabled(self) -> bool:
        """Whether anything is to be verified beyond what is seen at arrival."""
        return not Level.STRUCTURE.covers(self._level)

    def status(self) -> VerifierStatus:
        """How far it is."""
        return VerifierStatus(
            level=self._level.value,
            verifying=self._under_way,
            queued=len(self._agenda),
            bytes_per_s=round(self._effort.bytes_per_s),
            bytes_read=self._effort.bytes_read,
            outcomes={outcome.value: count for outcome, count in self._effort.outcomes.items()},
            oldest_verified_at=self._oldest_at,
            problem=self._problem,
        )

    def try_again(self, records: Iterable[Record]) -> None:
        """Read once more what ended the process that read it; of others nothing comes."""
        if not self.is_enabled:
            return
        for record in records:
            self._second_tries.add(record.entry.id)
            self._agenda.add(record.entry.id, record.modified_ns)
        self._wake.set()

    async def run(self) -> None:
        """Verify what was never verified, then what was verified long ago, until cancelled."""
        if not self.is_enabled:
            return
        await self._load()
        async with self._make_pool() as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(self._tell)
            while True:
                group = await self._next_group()
                if group:
                    await self._verify(pool, group)
                else:
                    await self._wait()

    async def _load(self) -> None:
        """Take up where the last run was, once the rush of the start is over."""
        await self._give_way()
        waiting, self._oldest_at = await anyio.to_thread.run_sync(self._ask_unverified)
        self._agenda.extend(waiting)

    def _ask_unverified(self) -> tuple[list[tuple[int, CheckpointId]], float | None]:
        """Runs in a thread: to sort 100,000 takes a tenth of a second."""
        records = filter(None, map(self._catalog.get, self._state.unverified(self._level)))
        waiting = sorted((record.modified_ns, record.entry.id) for record in records if is_candidate(record))
        return waiting, self._state.oldest_verified()

    async def _tell(self) -> None:
        """One line now and then, never one for each good file."""
        told: collections.Counter[Outcome] = collections.Counter()
        while True:
            await anyio.sleep(SUMMARY_S)
            outcomes = self._effort.outcomes
            if outcomes == told:
                continue
            shown = {outcome.value: count for outcome, count in outcomes.items()}
            waiting, read_mb = len(self._agenda), round(self._effort.bytes_read / 1e6)
            self._log.info("verification goes on", waiting=waiting, read_mb=read_mb, **shown)
            told = outcomes.copy()

    # ---- what is next ------------------------------------------------------------------------------------------

    async def _next_group(self) -> list[FileToRead]:
        """The next file, or a handful of small ones: a process for each would cost more than to read them."""
        await self._give_way()
        group: list[FileToRead] = []
        size = 0
        while len(group) < GROUP_FILES and size < GROUP_BYTES:
            await anyio.lowlevel.checkpoint()
            wanted = self._held or await self._next()
            if wanted is None:
                break
            self._held = None
            file = self._admit(wanted)
            if file is None:
                continue
            size += file.record.identities.file.size
            if group and size > GROUP_BYTES:
                self._held = wanted
                break
            group.append(file)
        return group

    async def _next(self) -> Wanted | None:
        now = anyio.current_time()
        for checkpoint_id in self._agenda.wake(now):
            record = self._catalog.get(checkpoint_id)
            if record is not None:
                self._agenda.add(checkpoint_id, record.modified_ns)
        wanted = self._agenda.take()
        if wanted is None and self._scrub_at <= now:
            await self._find_old(now)
            wanted = self._agenda.take()
        return wanted

    async def _give_way(self) -> None:
        """News goes first; and what cannot be kept is not worth finding out."""
        # Neither end is an event, and nobody waits for this.
        while self._is_busy() or not self._journal.durable:  # noqa: ASYNC110
            await anyio.sleep(YIELD_S)

    async def _find_old(self, now: float) -> None:
        old, self._oldest_at = await anyio.to_thread.run_sync(self._ask_old)
        self._agenda.scrub(old)
        if not old:  # a pass is over; the next one begins with the oldest
            self._scrub_at = now + min(SCRUB_LOOK_S, max(self._scrub_s, AGAIN_S))

    def _ask_old(self) -> tuple[list[tuple[float, CheckpointId]], float | None]:
        """Runs in a thread."""
        before = time.time() - self._scrub_s
        old = self._state.verified_before(before, after=self._agenda.scrubbed, limit=SCRUB_PAGE)
        return old, self._state.oldest_verified()

    async def _wait(self) -> None:
        with anyio.CancelScope(deadline=min(self._agenda.next_due(), self._scrub_at)):
            await self._wake.wait()
        self._wake = anyio.Event()

    def _follow(self, batch: Batch) -> None:
        """Have what is new or has changed verified."""
        if not self.is_enabled:
            return
        for item in batch.items:
            if not isinstance(item, Tombstone) and is_candidate(item) and not item.entry.verified.covers(self._level):
                self._agenda.add(item.entry.id, item.modified_ns)
                self._wake.set()

    def _admit(self, wanted: Wanted) -> FileToRead | None:
        """What is to be read, unless it is too early, or nothing can come of it."""
        record = self._catalog.get(wanted.id)
        viewer = None if record is None else self._viewers.get(record.entry.root)
        if record is None or viewer is None or not is_candidate(record):
            return None
        if self._agenda.rests(wanted.id, record.identities.file):
            return None
        file = FileToRead(wanted, record, viewer)
        wait_s = young_for_s(record) or (AGAIN_S if self._pipeline.is_pending(file.key) else 0.0)
        if wait_s:
            self._agenda.put_off(wanted.id, anyio.current_time() + wait_s)
            return None
        return file

    # ---- a handful of files ------------------------------------------------------------------------------------

    async def _verify(self, pool: WorkerPool, group: Sequence[FileToRead]) -> None:
        """Read files together, and publish what that shows in their order."""
        opened = await anyio.to_thread.run_sync(self._open, group)
        began_at = anyio.current_time()
        try:
            async with anyio.create_task_group() as readers:
                for file in group:
                    readers.start_soon(self._read, pool, file, opened)
        finally:
            self._under_way = None
            for file, reading in opened.items():
                if isinstance(reading, Reading):
                    self._closer.close(file.key.root, reading.close)
        seconds = (anyio.current_time() - began_at) / len(group)
        async with anyio.create_task_group() as publishers:
            for file in group:
                publishers.start_soon(self._conclude, file, opened[file], seconds)
        problem = next((file.result for file in group if isinstance(file.result, ZygoteError)), None)
        await self._without_pool(problem)

    def _open(self, group: Sequence[FileToRead]) -> dict[FileToRead, Reading | Refusal]:
        """Runs in a thread."""
        return {file: self._open_one(file) for file in group}

    def _open_one(self, file: FileToRead) -> Reading | Refusal:
        checkpoint_id = file.wanted.id
        try:
            description = self._state.description(checkpoint_id)
            previous = self._journal.verification(checkpoint_id)
            return open_for_reading(
                file.viewer,
                file.record,
                description,
                previous,
                level=self._level,
                again=file.wanted.again,
                second_try=checkpoint_id in self._second_tries,
            )
        except Exception as error:  # noqa: BLE001 - the rim of one file, as in `_read`
            file.result = error
            return Refusal.FAILED

    async def _read(self, pool: WorkerPool, file: FileToRead, opened: Mapping[FileToRead, Reading | Refusal]) -> None:
        reading = opened[file]
        if isinstance(reading, Refusal):
            return
        self._under_way = self._under_way or file.path
        try:
            file.result = await read_to_end(pool, reading, level=self._level, mb_per_s=self._mb_per_s)
        except Exception as error:  # noqa: BLE001
            # The rim of one file: whatever went wrong with it must not stop the others.
            file.result = error

    async def _conclude(self, file: FileToRead, opened: Reading | Refusal, seconds: float) -> None:
        if isinstance(file.result, ZygoteError):
            self._agenda.add(file.wanted.id, file.record.modified_ns)
        elif isinstance(file.result, Exception):
            self._log.error("a checkpoint could not be verified", path=file.path, exc_info=file.result)
            self._on_problem("internal error", file.path, repr(file.result))
            self._agenda.put_off(file.wanted.id, anyio.current_time() + RETRY_S, file.record.identities.file)
        elif isinstance(opened, Refusal):
            self._refused(file.key, opened)
        elif file.result is not None:
            await self._take_in(file, opened, file.result, seconds)

    async def _without_pool(self, error: ZygoteError | None) -> None:
        if error is None:
            self._problem = None
            return
        if self._problem is None:
            self._log.error("no checkpoint can be verified beyond its structure", error=str(error))
        self._problem = str(error)
        await anyio.sleep(NO_POOL_S)

    def _refused(self, key: Key, why: Refusal) -> None:
        match why:
            case Refusal.DONE | Refusal.FAILED:
                self._second_tries.discard(key.id)
            case Refusal.NOT_YET:
                self._agenda.put_off(key.id, anyio.current_time() + AGAIN_S)
            case Refusal.CHANGED:  # what the look finds is news, and brings it back here; or it finds nothing new
                self._pipeline.hint([key])
                self._agenda.put_off(key.id, anyio.current_time() + SCRUB_LOOK_S)
            case Refusal.UNDESCRIBED:
                self._journal.undescribed.add(key.id)
                self._agenda.put_off(key.id, anyio.current_time() + UNDESCRIBED_S)

    async def _take_in(self, file: FileToRead, reading: Reading, result: Result, seconds: float) -> None:
        outcome, verification, reason = result
        self._count(outcome, file.record.identities.file.size, seconds)
        if reason is not None and outcome is not Outcome.CHANGED:
            self._log.warning("a checkpoint could not be verified", path=file.path, error=reason)
            self._on_problem("checkpoint not verified", file.path, reason)
        now = anyio.current_time()
        if outcome is Outcome.CHANGED:
            self._refused(file.key, Refusal.CHANGED)
        elif outcome in (Outcome.FAILED, Outcome.UNREADABLE):
            self._agenda.put_off(file.wanted.id, now + RETRY_S, file.record.identities.file)
        if verification is not None:
            self._second_tries.discard(file.wanted.id)
            if self._oldest_at is None and not verification.is_failed:
                self._oldest_at = verification.verified_at
            self._tell_news(file.path, reading, verification)
            await self._publish(file.key, file.record, reading.description, verification)

    def _count(self, outcome: Outcome, size_bytes: int, seconds: float) -> None:
        read = size_bytes if outcome in (Outcome.GOOD, Outcome.CORRUPT, Outcome.ROTTEN) else 0
        self._effort.add(outcome, read, seconds)
        self._metrics.verified.labels(self._level.value, outcome.value).inc()
        self._metrics.verify_seconds.labels(self._level.value, outcome.value).observe(seconds)
        self._metrics.verified_bytes.inc(read)

    def _tell_news(self, path: str, reading: Reading, verification: Verification) -> None:
        previous = reading.previous
        before = previous.findings if previous is not None else ()
        errors = [one for one in verification.findings if one.severity is Severity.ERROR and one not in before]
        if not errors and verification.is_good and (previous is None or previous.digest != verification.digest):
            # Nothing is wrong with the file itself, but it may not be the one that the training saved.
            shown = apply(reading.description, verification, shards=verification.shards)
            errors = [one for one in shown.inspection.findings if one.severity is Severity.ERROR]
        if errors and not verification.is_failed:
            message = "; ".join(f"{one.code}: {one.message}" for one in errors)
            self._log.warning("a checkpoint is corrupt", path=path, found=message, remedy=errors[0].remedy)
            self._on_problem("checkpoint corrupt", path, message)
        healed = (
            previous is not None
            and not previous.is_good
            and previous.is_of_same_file(verification.identity, verification.shards)
        )
        if healed and verification.is_good:
            self._log.info("a checkpoint reads well again", path=path)

    async def _publish(
        self, key: Key, record: Record, description: Description | None, verification: Verification
    ) -> None:
        while True:
            shown = None if description is None else apply(description, verification, shards=verification.shards)
            attempt = Attempt(record, shown, verification)
            await self._journal.submit(Change(key.id, attempt.decide), verification=verification)
            if not attempt.overtaken:
                break
            newer = self._catalog.get(key.id)
            if newer is None:
                return
            record = newer
            description = await anyio.to_thread.run_sync(self._state.description, key.id)
        self._pipeline.hint_aliases(key.id)
