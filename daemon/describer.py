"""Describer: from what a look saw to a description, by a worker; and what it means when none can be had."""

import collections
import errno
import os
import time
from collections.abc import Callable

import anyio
import anyio.to_thread
import structlog

from ckptd.catalog.describe import failed_description
from ckptd.catalog.description import Description
from ckptd.catalog.store import Catalog
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.findings import finding
from ckptd.validators.inspection import FileIdentity, Seal

from .answers import Death
from .closing import Closer
from .key import Key
from .look import READ_ERROR, Opened, Sight, could_not_read
from .lookout import Lookout, inode_at
from .metrics import DescribeOutcome, Metrics
from .settle import LookKind
from .workers import WorkerDied, WorkerPool, finding_for

DIRECTORIES_AT_ONCE = 6
"""Checkpoints that are directories and described at the same time; each holds up to `opening.OPENED_PARTS` descriptors
more than a file."""

REFUSED_LOOKS = 3
"""After so many looks a second apart, a file whose bytes the disk refuses is listed as that."""
DISK_ERRORS = frozenset(
    (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EUCLEAN, errno.EBADMSG)
)
UNSTEADY_LOOKS = 3
"""A directory whose files changed while they were read, so many times in a row, is being written."""

MISTAKEN_ANSWERS = 3
"""After so many answers in a row that are about another file, one is listed as a file that no answer can be had of."""

CHANGED_RETRY_S = 0.02
REFUSED_RETRY_S = 1.0


SCARCE_RETRY_S = 1.0
"""What could not be looked at for want of descriptors or memory is tried again after this time."""


class LookAgain(Exception):
    """Raised when nothing can be said of a path before it was looked at again."""

    def __init__(self, in_s: float) -> None:
        super().__init__(f"to be looked at again in {in_s:g} s")
        self.in_s = in_s


class Describer:
    """Has what was seen described, and knows how often in a row that failed."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        pool: WorkerPool,
        lookout: Lookout,
        on_problem: Callable[[str, str, str], None],
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """Args:
        on_problem: called with (what, path, message) for the operator's list of recent errors.
        """
        self._catalog = catalog
        self._pool = pool
        self._lookout = lookout
        self._on_problem = on_problem
        self._metrics = metrics
        self._log = log
        self._directories = anyio.CapacityLimiter(DIRECTORIES_AT_ONCE)
        self._unsteady: collections.Counter[Key] = collections.Counter()
        self._refused: collections.Counter[Key] = collections.Counter()
        self._mistaken: collections.Counter[Key] = collections.Counter()
        self._closer = Closer()
        self.described = 0
        """Descriptions that were asked of workers and made, since the start."""

    async def describe(self, key: Key, sight: Sight) -> tuple[Sight, Description | None]:
        """Describe what was seen.

        Returns:
            What was seen, with what became of it, and its description; None where there is nothing to describe.

        Raises:
            LookAgain: what was read says nothing of what the path holds.
        """
        sight, description = await self._open_and_describe(key, sight)
        refused = description is not None and any(found.code == READ_ERROR for found in description.inspection.findings)
        if description is not None and refused and self._is_known_refused(key, description.inspection.identity):
            return Sight(kind=LookKind.UNCHANGED), None
        return sight, description

    def concluded(self, key: Key) -> None:
        """A look at this path ended: what fails from now on fails for the first time."""
        self._unsteady.pop(key, None)
        self._refused.pop(key, None)
        self._mistaken.pop(key, None)

    async def _open_and_describe(self, key: Key, sight: Sight) -> tuple[Sight, Description | None]:
        """Describe what was seen; a directory is opened first, when descriptors are free for it."""
        if sight.place is None:
            self._check(key, sight)
            return sight, await self._describe(key, sight)
        async with self._directories:
            sight = await anyio.to_thread.run_sync(self._lookout.open_directory, key, sight)
            self._check(key, sight)
            return sight, await self._describe(key, sight)

    def _check(self, key: Key, sight: Sight) -> None:
        """Take what this process lacks for no trouble of the path: nothing is told of it, and it is looked at again."""
        if sight.postponed is not None:
            self._problem("a look had to wait", key, sight.postponed)
            raise LookAgain(SCARCE_RETRY_S)

    async def _describe(self, key: Key, sight: Sight) -> Description | None:
        if sight.kind is not LookKind.SEEN or sight.request is None or sight.identities is None:
            return None
        if sight.opened is None:
            problem = finding(sight.code, sight.unreadable or "cannot be read")
            return failed_description(sight.request, sight.identities.file, problem, seal=sight.seal)
        try:
            description = await self._ask(key, sight.opened)
        finally:
            self._closer.close(key.root, sight.opened.close)
        self.described += 1
        return description

    async def _ask(self, key: Key, opened: Opened) -> Description:
        """Have a worker describe what is opened; what it cannot read is described as that."""
        started = time.perf_counter()
        outcome: DescribeOutcome | None = None
        try:
            description = await self._pool.describe(opened.request, opened.files)
            if await self._is_of_another_place(key, opened, description):
                raise LookAgain(CHANGED_RETRY_S)
            outcome = _outcome_of(description)
            return description
        except Changed as changed:
            outcome = DescribeOutcome.CHANGED
            return self._unsteady_description(key, opened, changed)
        except Unreadable as error:
            outcome = DescribeOutcome.UNREADABLE
            return self._refused_description(key, opened, error)
        except WorkerDied as death:
            outcome = DescribeOutcome.WORKER_DIED
            self._problem("worker died", key, str(death))
            return failed_description(opened.request, opened.identities.file, finding_for(death))
        finally:
            if outcome is not None:
                self._metrics.observe_description(outcome, time.perf_counter() - started)

    async def _is_of_another_place(self, key: Key, opened: Opened, description: Description) -> bool:
        """Whether what was read is not what this path holds: it must not be published under its name.

        A descriptor follows its file. Moved away after it was opened, and overwritten under its new name before it was
        read, the file says what this path never held.

        Raises:
            WorkerDied: that was so too often.
        """
        wanted, told = opened.identities.file, description.inspection.identity
        if told == wanted:
            return False
        if told.inode != wanted.inode:
            self._problem("an answer about another file was refused", key, f"inode {told.inode}, not {wanted.inode}")
            self._mistaken[key] += 1
            if self._mistaken[key] >= MISTAKEN_ANSWERS:
                raise WorkerDied(Death.BAD_ANSWER, f"{self._mistaken[key]} answers in a row were about another file")
            return True
        return await anyio.to_thread.run_sync(inode_at, key) != told.inode

    def _unsteady_description(self, key: Key, opened: Opened, changed: Changed) -> Description:
        """Of a directory that is being written: to read all its files takes time, and may never succeed while some of
        them grow."""
        if opened.identities.shards is None:
            raise LookAgain(CHANGED_RETRY_S)
        self._unsteady[key] += 1
        if self._unsteady[key] < UNSTEADY_LOOKS:
            raise LookAgain(CHANGED_RETRY_S)
        problem = finding("shards.incomplete", f"the directory is being written: {changed.message}")
        return failed_description(opened.request, opened.identities.file, problem, seal=Seal.OPEN)

    def _refused_description(self, key: Key, opened: Opened, error: Unreadable) -> Description:
        """Of a file whose bytes the disk refuses."""
        self._problem("checkpoint unreadable", key, error.message)
        if not self._is_lasting(key, opened.identities.file, error):
            raise LookAgain(REFUSED_RETRY_S)
        problem = finding(READ_ERROR, error.message)
        return failed_description(opened.request, opened.identities.file, problem, seal=Seal.SEALED)

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

    def _problem(self, what: str, key: Key, message: str) -> None:
        path = os.fsdecode(key.root.join(key.path))
        self._log.warning(what, path=path, error=message)
        self._on_problem(what, path, message)


def _outcome_of(description: Description) -> DescribeOutcome:
    inspection = description.inspection
    if inspection.is_valid:
        return DescribeOutcome.VALID
    return DescribeOutcome.INCOMPLETE if inspection.seal is Seal.OPEN else DescribeOutcome.INVALID
