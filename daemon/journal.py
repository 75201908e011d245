"""Journal: the one writer of the catalog; prepare → commit to the state → publish, one batch at a time.

Nothing is told to anybody before it is on disk, so a reader that resumes after a crash was never told something that
the next run does not know. When the state cannot be written (a full disk), news goes out all the same, but under a
new instance name that is not on disk: after a restart no cursor from that time is trusted.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec
import structlog

from ckptd.catalog.description import Description
from ckptd.catalog.entry import CheckpointId, Record
from ckptd.catalog.state import State, StateError
from ckptd.catalog.store import Batch, Catalog, Change, Removal, Tombstone
from ckptd.catalog.verification import Verification
from ckptd.validators.inspection import FileIdentity

from .loop import LoopMonitor, Phase

BATCH_LIMIT = 512
"""Changes in one commit: large enough to share its cost, small enough to keep news flowing."""

RETRY_S = 10.0
"""How long to wait before writing a failed state again."""


class _Submission(NamedTuple):
    change: Change
    description: Description | None
    amended: Description | None
    verification: Verification | None
    done: anyio.Event


class _Details(NamedTuple):
    """Descriptions and verifications that go with a batch."""

    descriptions: dict[CheckpointId, Description]
    amended: dict[CheckpointId, Description]
    verifications: dict[CheckpointId, Verification]

    def forget(self, checkpoint_id: CheckpointId) -> None:
        self.descriptions.pop(checkpoint_id, None)
        self.amended.pop(checkpoint_id, None)
        self.verifications.pop(checkpoint_id, None)

    def keep(self, submission: _Submission) -> None:
        if submission.description is not None:
            self.amended.pop(submission.change.id, None)
            self.descriptions[submission.change.id] = submission.description
        if submission.amended is not None:
            self.amended[submission.change.id] = submission.amended
        if submission.verification is not None:
            self.verifications[submission.change.id] = submission.verification


class Journal:
    """Serialises changes. `run` owns the work; `submit` returns when the change is visible."""

    def __init__(
        self,
        catalog: Catalog,
        state: State,
        log: structlog.stdlib.BoundLogger,
        *,
        clock: Callable[[], float] = anyio.current_time,
        monitor: LoopMonitor | None = None,
        on_commit: Callable[[float, bool], None] = lambda _seconds, _ok: None,
    ) -> None:
        """Args:
        on_commit: told how long each attempt to commit took, in seconds, and whether it is on disk.
        """
        self._catalog = catalog
        self._state = state
        self._log = log
        self._clock = clock
        self._monitor = monitor or LoopMonitor()
        self._on_commit = on_commit
        self._queue: list[_Submission] = []
        self._taken: list[_Submission] = []
        self._wake = anyio.Event()
        self._closing = False
        self._retry_at = 0.0
        self._writer = anyio.CapacityLimiter(1)
        self.durable = True
        """False while the state cannot be written and the catalog lives in memory alone."""
        self.undescribed: set[CheckpointId] = set()
        """Entries whose descriptions were lost while the state could not be written; to be read again."""
        self._awaited: set[CheckpointId] = set()
        """Those that are being read again."""
        self._unkept: dict[CheckpointId, Verification] = {}
        """Verifications that could not be written. What they cost to make is much; they go with the next commit."""

    @property
    def depth(self) -> int:
        """Changes that wait to be committed."""
        return len(self._queue)

    async def submit(
        self,
        change: Change,
        description: Description | None = None,
        *,
        amended: Description | None = None,
        verification: Verification | None = None,
    ) -> None:
        """Queue a change and wait until it is visible, or until it turned out to change nothing.

        Args:
            change: decided when its batch is prepared.
            description: what is kept behind the entry from now on, if the change publishes one.
            amended: the same, but the tensor table that is kept already stays as it is.
            verification: what is kept beside the description, if the change decides for a record, a new one or not.
        """
        submission = _Submission(change, description, amended, verification, anyio.Event())
        self._queue.append(submission)
        self._wake.set()
        await submission.done.wait()

    def verification(self, checkpoint_id: CheckpointId) -> Verification | None:
        """The last verification of an entry, written or not; None if there is none. Blocks; any thread."""
        return self._unkept.get(checkpoint_id) or self._state.verification(checkpoint_id)

    def digest_of(self, checkpoint_id: CheckpointId, file: FileIdentity) -> str | None:
        """The digest of a whole file in that state, where it was verified and is good. Blocks; any thread."""
        verification = self.verification(checkpoint_id)
        if verification is None or not verification.is_good or verification.identity != file:
            return None
        return verification.digest

    async def write(self, work: Callable[[], None]) -> None:
        """Let `work` write to the state, in the one thread that does.

        Raises:
            StateError: the state cannot be written; nothing is retried.
        """
        await self._in_thread(work)

    def take_undescribed(self) -> set[CheckpointId]:
        """The entries to be read again, each once: their descriptions are kept even if nothing else has changed."""
        taken, self.undescribed = self.undescribed, set()
        self._awaited |= taken
        return taken

    def close(self) -> None:
        """Let `run` end once everything queued is visible."""
        self._closing = True
        self._wake.set()

    async def drained(self) -> None:
        """Wait until everything submitted so far is visible."""
        waiting = [submission.done for submission in (*self._taken, *self._queue)]
        for done in waiting:
            await done.wait()

    async def run(self) -> None:
        """Commit and publish until closed."""
        while self._queue or not self._closing:
            if not self._queue:
                with anyio.move_on_after(RETRY_S):
                    await self._wake.wait()
                self._wake = anyio.Event()
            if not self.durable and self._clock() >= self._retry_at:
                await self._recover()
            self._taken, self._queue = self._queue[:BATCH_LIMIT], self._queue[BATCH_LIMIT:]
            if self._taken:
                await self._process(self._taken)

    async def _process(self, submissions: Sequence[_Submission]) -> None:
        details = _Details({}, {}, {})
        with self._monitor.phase(Phase.PREPARE):
            batch = self._catalog.prepare([_noting(submission, details) for submission in submissions])
        if batch is not None:
            if not await self._commit(batch, details):
                batch = _unsearchable(batch)
            with self._monitor.phase(Phase.PUBLISH):
                self._catalog.publish(batch)
        elif self._awaited & details.descriptions.keys() or details.verifications:
            await self._commit(Batch((), self._catalog.revision), details)
        for submission in submissions:
            submission.done.set()

    async def _commit(self, batch: Batch, details: _Details) -> bool:
        """Write a batch; False where the state cannot be written."""
        if self.durable:
            started = time.perf_counter()
            try:
                await self._in_thread(
                    lambda: self._state.commit(
                        batch,
                        details.descriptions,
                        self._catalog.floor,
                        amended=details.amended,
                        verifications=details.verifications,
                    )
                )
                self._on_commit(time.perf_counter() - started, True)
                self._awaited -= details.descriptions.keys()
                return True
            except StateError as error:
                self._on_commit(time.perf_counter() - started, False)
                self.durable = False
                self._retry_at = self._clock() + RETRY_S
                self._catalog.renew_instance(secrets.token_hex(8))
                self._log.error(
                    "state cannot be written; the catalog goes on in memory alone",
                    error=str(error),
                    remedy="free some space on the state directory's disk; it is tried again by itself",
                )
        self._unkept |= details.verifications
        self.undescribed.update(_ids(batch), self._awaited)
        self._awaited.clear()
        return False

    async def _recover(self) -> None:
        catalog = self._catalog
        records = list(catalog)
        tombstones = catalog.tombstones()
        nothing = Batch((), catalog.revision)
        unkept = {key: one for key, one in self._unkept.items() if _is_of(one, catalog.get(key))}

        def rewrite() -> None:
            self._state.rewrite(catalog.instance, records, tombstones, catalog.revision, catalog.floor)
            self._state.commit(nothing, {}, catalog.floor, verifications=unkept)
            # All of them, if the file was damaged and had to be begun anew.
            self.undescribed |= self._state.undescribed()

        try:
            await self._in_thread(rewrite)
        except StateError as error:
            self._retry_at = self._clock() + RETRY_S
            self._log.warning("state still cannot be written", error=str(error))
            return
        self.durable = True
        self._unkept.clear()
        self._log.info("state is written again", entries=len(records))

    async def _in_thread(self, work: Callable[[], None]) -> None:
        # A commit is never abandoned half-way: cancellation waits for it.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(work, limiter=self._writer)


def _noting(submission: _Submission, details: _Details) -> Change:
    """The same change, which also keeps its description if and only if its decision stands."""

    def decide(current: Record | None) -> Record | Removal | None:
        outcome = submission.change.decide(current)
        if isinstance(outcome, Removal):
            details.forget(submission.change.id)
        elif outcome is not None:
            details.keep(submission)
        return outcome

    return Change(submission.change.id, decide)


def _is_of(verification: Verification, record: Record | None) -> bool:
    return record is not None and verification.is_of(record.identities.file, record.identities.shards)


def _unsearchable(batch: Batch) -> Batch:
    """The batch without the keys of lines that are not in the state. Once they are, its records change."""
    items = [
        item if isinstance(item, Tombstone) else msgspec.structs.replace(item, text_key=None) for item in batch.items
    ]
    return Batch(tuple(items), batch.base)


def _ids(batch: Batch) -> set[CheckpointId]:
    return {item.entry.id for item in batch.items if not isinstance(item, Tombstone)}
