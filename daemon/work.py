"""Work and Run: a file that is to be described, across all attempts; a child at work on some of them."""

import contextlib
import os
import signal

import anyio
import msgspec

from ckptd.catalog.description import DescribeRequest, OpenedFiles
from ckptd.validators.findings import Finding, finding

from .answers import Death, Ended, Job
from .child import BEGUN, PROGRESS

MAX_FALSE_STARTS = 3
"""Children that may die before they look at a file, until that is held against the file all the same."""

_SIGNALS = {
    signal.SIGSYS: Death.FORBIDDEN,
    signal.SIGALRM: Death.LIMIT_WALL,
    signal.SIGXCPU: Death.LIMIT_CPU,
    signal.SIGXFSZ: Death.ANSWER_TOO_LARGE,
    signal.SIGKILL: Death.KILLED,
}

_MESSAGES = {
    Death.CRASHED: ("worker.crashed", "the process that parsed the file crashed"),
    Death.FORBIDDEN: ("worker.crashed", "parsing the file led to a system call that parsing never needs"),
    Death.BAD_ANSWER: ("worker.crashed", "the process that parsed the file gave no usable answer"),
    Death.KILLED: ("worker.crashed", "the process that parsed the file was killed from outside, twice"),
    Death.LIMIT_MEMORY: ("pickle.limits", "parsing the file needs more memory than a worker may use"),
    Death.LIMIT_CPU: ("pickle.limits", "parsing the file takes more processor time than a worker may use"),
    Death.LIMIT_WALL: ("pickle.limits", "parsing the file takes longer than a worker may take"),
    Death.ANSWER_TOO_LARGE: ("pickle.limits", "the description of the file is too large"),
}


class WorkerDied(Exception):
    """Raised when the child that parsed a file ended without an answer, or with none that can be used."""

    def __init__(self, how: Death, detail: str) -> None:
        super().__init__(f"{_MESSAGES[how][1]}: {detail}")
        self.how = how
        self.detail = detail


def finding_for(died: WorkerDied) -> Finding:
    """What a worker's death says about the file it worked on."""
    return finding(_MESSAGES[died.how][0], str(died))


class Work:
    """One call of `describe`, across all its attempts."""

    def __init__(self, request: DescribeRequest, files: OpenedFiles, listed: int | None = None) -> None:
        """Args:
        request: what is asked.
        files: the opened files; they stay the caller's.
        listed: what `list_of` made of the request's shards; closed by `close`.
        """
        self._list = listed
        self.job = Job(
            _transportable(request),
            len(files.sidecars),
            files.config is not None,
            len(files.records),
            len(files.shards),
            0 if self._list is None else os.fstat(self._list).st_size,
        )
        self.descriptors = (*files.all(), *(() if self._list is None else (self._list,)))
        self.size_bytes = len(msgspec.msgpack.encode(self.job))
        self.owner = files.owner
        self.alone = request.timeout_s is not None
        """It must not share a child with earlier jobs. What asks for its own time would keep others waiting."""
        self.was_killed = False
        self.zygote_deaths = 0
        self.false_starts = 0
        self.settled = anyio.Event()
        self.outcome: bytes | Exception = b""

    def close(self) -> None:
        """Close what was made to send the request; it must not be sent again."""
        if self._list is not None:
            os.close(self._list)
            self._list = None

    def may_share_with(self, other: "Work") -> bool:
        """Whether both may be given to one child.

        Only files of one owner may: who takes it over can read, and tell, what else it holds.
        """
        is_same_owner = self.owner is not None and self.owner == other.owner
        return is_same_owner and not self.alone and not other.alone

    def settle(self, outcome: bytes | Exception) -> None:
        self.outcome = outcome
        self.settled.set()

    def deserves_another_try(self, death: WorkerDied) -> bool:
        """Whether something else than the file may be to blame: an earlier file of the same child, or a killer."""
        if not self.alone:
            self.alone = True
            return True
        if death.how is Death.KILLED and not self.was_killed:
            self.was_killed = True
            return True
        return False

    def fail(self, death: WorkerDied) -> None:
        """Settle without another try."""
        self.alone = self.was_killed = True
        self.settle(death)


class Run:
    """One child at work: its jobs, how far it is, and the descriptors through which it answers."""

    def __init__(self, batch: int, works: list[Work]) -> None:
        self.batch = batch
        self.works = works
        self.finished = 0
        self.overdue = False
        self.progress = b""
        self.offset = len(BEGUN)
        with contextlib.ExitStack() as undo:
            self.answers = os.memfd_create("ckptd-answers")
            undo.callback(os.close, self.answers)
            self.reading, self.writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            undo.pop_all()

    @property
    def under_way(self) -> list[Work]:
        """The job that the child is at, and those behind it."""
        return self.works[self.finished :]

    @property
    def has_begun(self) -> bool:
        """Whether the child got as far as looking at a file."""
        return os.pread(self.answers, len(BEGUN), 0) == BEGUN

    @property
    def path(self) -> str | None:
        """The file under way."""
        return next((work.job.request.checkpoint_path for work in self.under_way), None)

    def release_waiting(self) -> list[Work]:
        """Give up the jobs behind the one under way. Should the child do them anyway, nobody reads the answers."""
        waiting = self.works[self.finished + 1 :]
        del self.works[self.finished + 1 :]
        return waiting

    def close_writing(self) -> None:
        """From here on the end of the pipe means the end of the child."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def close(self) -> None:
        self.close_writing()
        os.close(self.reading)
        os.close(self.answers)

    def read_progress(self, max_answer_bytes: int) -> bool:
        """Settle the jobs that are said to be finished; False once the child has ended.

        Raises:
            BlockingIOError: nothing was there after all.
        """
        received = os.read(self.reading, 4096)
        self.progress += received
        while len(self.progress) >= PROGRESS.size and self.under_way:
            (size,) = PROGRESS.unpack_from(self.progress)
            self.progress = self.progress[PROGRESS.size :]
            data = os.pread(self.answers, min(size, max_answer_bytes), self.offset)
            self.offset += len(data)
            work = self.under_way[0]
            work.alone = work.alone or not self.finished
            work.settle(data)
            self.finished += 1
        return bool(received)


def death_of(end: Ended, *, overdue: bool) -> WorkerDied:
    """How a child died, by its exit code. `overdue`: the pool had it killed."""
    used = f"{end.max_rss_bytes >> 20} MB and {end.cpu_s:.1f} s of processor time used"
    if end.exit_code >= 0:
        how = Death.BAD_ANSWER if end.exit_code == 0 else Death.CRASHED
        return WorkerDied(how, f"exit status {end.exit_code}, {used}")
    try:
        number = signal.Signals(-end.exit_code)
    except ValueError:  # a real-time signal
        return WorkerDied(Death.CRASHED, f"signal {-end.exit_code}, {used}")
    how = Death.LIMIT_WALL if overdue else _SIGNALS.get(number, Death.CRASHED)
    return WorkerDied(how, f"{number.name}, {used}")


def list_of(request: DescribeRequest) -> int:
    """The names and identities of a directory's files, in a memory file. Meant for a thread: there may be 100,000."""
    descriptor = os.memfd_create("ckptd-shards")
    try:
        view = memoryview(msgspec.msgpack.encode(request.shards))
        while view:
            view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _transportable(request: DescribeRequest) -> DescribeRequest:
    """The path is for people; names that are not UTF-8 arrive as surrogates, which msgpack cannot carry."""
    request = msgspec.structs.replace(request, shards=())
    try:
        request.checkpoint_path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(request.checkpoint_path).decode("utf-8", "backslashreplace")
        return msgspec.structs.replace(request, checkpoint_path=shown)
    return request
