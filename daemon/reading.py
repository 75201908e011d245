"""One checkpoint, opened to be read to its end: whether it is to be, with what request, and what came of it."""

import collections
import contextlib
import enum
import errno
import os
import time
from typing import NamedTuple

import msgspec

from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles
from ckptd.catalog.entry import FindingRef, Health, Record, shown_path
from ckptd.catalog.opening import past_the_cache
from ckptd.catalog.verification import BIT_ROT, Verification, conclude, failed, is_damaged
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.findings import finding
from ckptd.validators.inspection import Level

from .agenda import Wanted
from .answers import Death
from .key import Key
from .look import Opened, Viewer
from .settle import LookKind
from .sidecars import about_sidecars
from .workers import WorkerDied, WorkerPool, finding_for

YOUNG_S = 2.0
"""A file that changed so recently may change again without its identity telling: clocks of file systems are coarse."""
LEAST_TIMEOUT_S = 120.0
SLOWEST_BYTES_PER_S = 2_000_000
"""A disk that is slower than this is taken for one that hangs."""

_DISK_ERRORS = frozenset((errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EILSEQ, errno.EREMOTEIO, errno.ENODATA))
_OWN_DEATHS = frozenset((Death.CRASHED, Death.FORBIDDEN, Death.BAD_ANSWER))
"""Ends that the file itself brought about. It was parsed before within the same limits: that it now meets one, or that
somebody killed the process, says more of the machine."""
_ORDER = ("error", "warning", "info")


class Outcome(enum.StrEnum):
    """How the verification of one file ended."""

    GOOD = "good"
    CORRUPT = "corrupt"
    """An error was found that the structure alone does not show."""
    ROTTEN = "rotten"
    """Its bytes are not those that were verified before, and nothing should have changed them."""
    UNREADABLE = "unreadable"
    """The disk refused."""
    CRASHED = "crashed"
    """It ended the process that read it."""
    CHANGED = "changed"
    """It changed meanwhile, and is looked at anew."""
    FAILED = "failed"
    """The attempt says nothing of the file: no time, no memory, no descriptors."""


class Refusal(enum.Enum):
    """Why a file is not read."""

    DONE = enum.auto()
    """It is verified, or nothing can come of it."""
    NOT_YET = enum.auto()
    """Somebody has it open for writing."""
    CHANGED = enum.auto()
    """It is not what the catalog holds."""
    UNDESCRIBED = enum.auto()
    """What was known of it is lost."""
    FAILED = enum.auto()
    """Something went wrong that nobody thought of."""


class Reading(NamedTuple):
    """One file, opened; whoever got it closes it."""

    opened: Opened
    files: OpenedFiles
    """To read from: those of `opened`, or the same past the page cache."""
    description: Description
    """As a look made it."""
    previous: Verification | None
    fresh: bool
    """The disk is read, not what is left in memory."""
    began_at: float
    """Epoch seconds."""
    descriptors: contextlib.ExitStack

    def close(self) -> None:
        """Close every descriptor."""
        self.descriptors.close()


Result = tuple[Outcome, Verification | None, str | None]
"""How a reading ended, what is to be remembered of it, and why it failed. Nothing is to be remembered of an attempt
that says nothing of the file."""


class FileToRead:
    """One file that is to be read, and what came of it."""

    def __init__(self, wanted: Wanted, record: Record, viewer: Viewer) -> None:
        self.wanted = wanted
        self.record = record
        self.viewer = viewer
        self.key = Key(viewer.root, record.relative_path)
        self.path = shown_path(viewer.root.join(record.relative_path))[0]
        self.result: Result | Exception | None = None


def is_candidate(record: Record) -> bool:
    """Whether verifying it could say something: it is whole, and not only a link to another entry."""
    return record.entry.alias_of is None and record.entry.health in (Health.VALID, Health.INVALID)


def young_for_s(record: Record) -> float:
    """For how long its identity will not tell whether it changes; 0 if it does."""
    age_s = time.time() - record.identities.file.ctime_ns / 1e9
    return max(0.0, YOUNG_S - age_s) if age_s > -YOUNG_S else 0.0  # further ahead, the clock that set it is wrong


def open_for_reading(
    viewer: Viewer,
    record: Record,
    description: Description | None,
    previous: Verification | None,
    *,
    level: Level,
    again: bool,
    second_try: bool = False,
) -> Reading | Refusal:
    """Open a file whose state is the one that is listed. Blocks.

    Args:
        viewer: of its root.
        record: as published.
        description: as a look made it.
        previous: the last verification under its name.
        level: how far it is to be verified.
        again: also if it was verified before, and then from the disk: what is read from memory proves nothing of it.
        second_try: also if it ended the process that read it.
    """
    identities = record.identities
    if description is None or description.inspection.identity != identities.file:
        return Refusal.UNDESCRIBED
    is_second_try = second_try and previous is not None and previous.is_final
    if not (again or is_second_try or _is_wanted(description, previous, identities.shards, level)):
        return Refusal.DONE
    began_at = time.time()
    opened = _open(viewer, record)
    if opened is None:
        return Refusal.CHANGED
    if (opened.identities.file, opened.identities.shards) != (identities.file, identities.shards) or opened.writer:
        opened.close()
        return Refusal.NOT_YET if opened.writer else Refusal.CHANGED
    with contextlib.ExitStack() as stack:
        stack.callback(opened.close)
        files = stack.enter_context(past_the_cache(opened.files)) if again else opened.files
        return Reading(opened, files, description, previous, again, began_at, stack.pop_all())


async def read_to_end(pool: WorkerPool, reading: Reading, *, level: Level, mb_per_s: float | None) -> Result:
    """Read an opened file to its end.

    Args:
        pool: in which it is read.
        reading: the file.
        level: how far to verify.
        mb_per_s: 10^6 bytes per second at most; None: no limit.

    Raises:
        ZygoteError: no process can be started that reads.
    """
    request, files = _request(reading, level=level, mb_per_s=mb_per_s)
    identities = reading.opened.identities
    try:
        inspection = (await pool.describe(request, files)).inspection
    except Changed as error:
        return Outcome.CHANGED, None, error.message
    except Unreadable as error:
        if error.errno not in _DISK_ERRORS:
            return Outcome.FAILED, None, error.message
        outcome, reason = Outcome.UNREADABLE, error.message
        problem = finding("file.unreadable", f"the disk failed when the file was verified: {error.message}")
    except WorkerDied as death:
        if death.how not in _OWN_DEATHS:
            return Outcome.FAILED, None, str(death)
        outcome, reason, problem = Outcome.CRASHED, str(death), finding_for(death)
    else:
        if inspection.identity != identities.file:
            return Outcome.CHANGED, None, "it changed while it was opened"
        known = reading.description.inspection.findings
        verification = conclude(
            reading.previous, inspection, known=known, shards=identities.shards, asked=level, at=reading.began_at
        )
        return _outcome_of(verification, reading.description), verification, None
    verification = failed(
        reading.previous,
        problem,
        identity=identities.file,
        shards=identities.shards,
        asked=level,
        at=reading.began_at,
    )
    return outcome, verification, reason


class Attempt:
    """To publish what was read of a file, if that is still the file that is listed."""

    def __init__(self, record: Record, shown: Description | None, verification: Verification) -> None:
        self._record = record
        self._shown = shown
        self._verification = verification
        self.overtaken = False
        """There was other news of the same file meanwhile."""

    def decide(self, current: Record | None) -> Record | None:
        if current is None or current.entry.health is Health.WRITING:
            return None
        if not self._verification.is_of(current.identities.file, current.identities.shards):
            return None
        if current is not self._record:
            self.overtaken = True
            return None
        if self._shown is None or current.entry.health is Health.OFFLINE:
            return current  # what was read is kept, and shown at the next look
        return _verified(current, self._shown)


def _verified(current: Record, shown: Description) -> Record:
    """`current` with what is known of its bytes.

    Args:
        current: as published.
        shown: its description, together with its verification.
    """
    inspection = shown.inspection
    found = [FindingRef(one.code, one.severity) for one in shown.findings]
    # What lies beside the file is the entry's own: the description is as old as the last look.
    refs = [*(ref for ref in found if not about_sidecars(ref)), *filter(about_sidecars, current.entry.findings)]
    entry = msgspec.structs.replace(
        current.entry,
        verified=inspection.level,
        health=Health.VALID if inspection.is_valid else Health.INVALID,
        findings=tuple(sorted(refs, key=lambda ref: _ORDER.index(ref.severity.value))),
    )
    return msgspec.structs.replace(current, entry=entry)


class Effort:
    """What was done since the start."""

    def __init__(self, files: int = 32) -> None:
        self._last: collections.deque[tuple[int, float]] = collections.deque(maxlen=files)
        self.bytes_read = 0
        self.outcomes: collections.Counter[Outcome] = collections.Counter()

    def add(self, outcome: Outcome, size_bytes: int, seconds: float) -> None:
        """One file took so long."""
        self.outcomes[outcome] += 1
        self.bytes_read += size_bytes
        self._last.append((size_bytes, seconds))

    @property
    def bytes_per_s(self) -> float:
        """Over the last files; 0 before the first."""
        seconds = sum(took_s for _, took_s in self._last)
        return sum(size for size, _ in self._last) / seconds if seconds > 0 else 0.0


def _is_wanted(description: Description, previous: Verification | None, shards: str | None, level: Level) -> bool:
    if not description.inspection.is_valid:
        return False
    if previous is None or not previous.is_of(description.inspection.identity, shards):
        return True
    return not previous.asked.covers(level) or previous.is_unreadable


def _open(viewer: Viewer, record: Record) -> Opened | None:
    try:
        root_fd = os.open(viewer.root.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        sight = viewer.look(root_fd, record.relative_path, None, must_read=True)
    finally:
        os.close(root_fd)
    if sight.place is not None:
        sight = viewer.open_directory(record.relative_path, sight)
    return sight.opened if sight.kind is LookKind.SEEN else None


def _request(reading: Reading, *, level: Level, mb_per_s: float | None) -> tuple[DescribeRequest, OpenedFiles]:
    """What lies beside the file is described already."""
    size = reading.opened.identities.file.size
    slowest = SLOWEST_BYTES_PER_S if mb_per_s is None else min(SLOWEST_BYTES_PER_S, mb_per_s * 1e6 / 2)
    request = msgspec.structs.replace(
        reading.opened.request,
        level=level,
        sidecar_names=(),
        config_name=None,
        record_names=(),
        timeout_s=LEAST_TIMEOUT_S + size / slowest,
        mb_per_s=mb_per_s,
        fresh=reading.fresh,
    )
    return request, msgspec.structs.replace(reading.files, sidecars=(), config=None, records=())


def _outcome_of(verification: Verification, description: Description) -> Outcome:
    if not is_damaged(description, verification):
        return Outcome.GOOD
    rotten = any(found.code == BIT_ROT for found in verification.findings)
    return Outcome.ROTTEN if rotten else Outcome.CORRUPT
