"""The worker pool: opened files in, typed descriptions out; no file can hurt the service or another file.

Jobs wait in one queue. Each of `workers` tasks takes a job, or a handful when many wait, has the zygote fork a child
for them and follows that child until it ended. A child that dies takes only the file under way with it; if it had
worked on others before, that file gets a second chance in a fresh child, alone, before it is blamed.
"""

import collections
import contextlib
import itertools
import types
from collections.abc import Sequence
from typing import Protocol, Self

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import msgspec

from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.inspection import TensorInfo

from .answer_checks import check_can_be_told, check_size
from .answers import (
    MAX_DESCRIPTORS,
    MAX_MESSAGE_BYTES,
    BadAnswer,
    Batch,
    ChangedAnswer,
    Death,
    Described,
    Ended,
    GaveUp,
    Kill,
    Limits,
    Refused,
    UnreadableAnswer,
    decode_answer,
)
from .work import MAX_FALSE_STARTS, Run, Work, WorkerDied, death_of, finding_for, list_of
from .zygote_process import (
    ZYGOTE_COMMAND,
    ZygoteError,
    ZygoteGone,
    ZygoteProcess,
    adopt_zygote,
    launch_zygote,
    start_zygote,
)

__all__ = ["PoolClosed", "WorkerDied", "WorkerPool", "ZygoteError", "finding_for"]

BATCH_JOBS = 16
"""Jobs of one child at most. A fork costs as much as describing two or three small files."""
STALL_S = 0.25
"""After so long without progress, the jobs that wait behind a slow one go back to the queue."""
BACKGROUND_STALL_S = 10.0
"""The same in a background pool, where the jobs behind would only wait for the same worker."""
GRACE_S = 1.0
"""What a child gets beyond its own time limit before the pool ends it."""
ZYGOTE_GRACE_S = 5.0
"""What a zygote gets to say that a child was killed or has ended, before it counts as stuck."""
MAX_STUCK = 64
"""Children that survive SIGKILL (they hang in the kernel, on a dead disk) before the pool takes no more work."""
_BACKOFF_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)


class Log(Protocol):
    """What the pool needs of a structlog logger."""

    def info(self, event: str, **fields: object) -> object: ...
    def warning(self, event: str, **fields: object) -> object: ...
    def error(self, event: str, **fields: object) -> object: ...


class PoolClosed(RuntimeError):
    """Raised when the pool ends while a description is waited for."""


class WorkerPool:
    """Describes files in child processes. An async context manager; enter it on the service's main thread.

    Args:
        workers: files, or batches of small ones, that are parsed at the same time.
        memory_mb: memory that parsing one file may take.
        timeout_s: wall time that describing one file may take.
        max_answer_mb: size of a description.
        log: told of every death, with the file.
        command: how a zygote is started.
        launched: the first zygote, if it was launched already (with the same `Limits.of`).
        background: for work that nobody waits for: its children have the lowest priority of processor and disk, and
            what they read does not stay in the page cache. The zygote is started by the first request, and ended
            after `idle_s` without one.
        idle_s: see `background`.
        architectures: a file that extends the table by which models are recognised.

    Raises:
        ZygoteError: (on entering) the zygote does not start.
    """

    def __init__(
        self,
        *,
        workers: int,
        memory_mb: int,
        timeout_s: float,
        max_answer_mb: int = 64,
        log: Log,
        command: Sequence[str] = ZYGOTE_COMMAND,
        launched: ZygoteProcess | None = None,
        background: bool = False,
        idle_s: float = 120,
        architectures: str | None = None,
    ) -> None:
        self._workers = workers
        self._limits = Limits.of(
            workers=workers,
            memory_mb=memory_mb,
            timeout_s=timeout_s,
            max_answer_mb=max_answer_mb,
            background=background,
            architectures=architectures,
        )
        self._background = background
        self._idle_s = idle_s
        self._last_use = 0.0
        self._needed = anyio.Event()
        self._log = log
        self._command = command
        self._launched = launched
        self._batches = itertools.count(1)
        self._queue: collections.deque[Work] = collections.deque()
        self._arrived = anyio.Event()
        self._unsettled: set[Work] = set()
        self._zygote: ZygoteProcess | None = None
        self._revived = anyio.Event()
        self._stuck = 0
        self._open = False
        self.sandbox = "unknown"
        """`full`, `partial: why` or `none: why`."""
        self.crashes = 0
        """Children that ended otherwise than by themselves, since the start."""
        self.zygote_restarts = 0
        """Zygotes that ended unasked, since the start."""
        self.deaths: collections.Counter[Death] = collections.Counter()
        """Files that were given up, by how their worker ended, since the start."""

    @property
    def queued(self) -> int:
        """Files that wait for a worker."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Files that were handed to a child."""
        return len(self._unsettled) - len(self._queue)

    @property
    def zygote_pid(self) -> int | None:
        """Process id of the zygote; None while a new one is being started, or none is needed."""
        return None if self._zygote is None else self._zygote.pid

    async def describe(self, request: DescribeRequest, files: OpenedFiles) -> Description:
        """Describe one checkpoint in a child process.

        The descriptors must stay open until this returns; the caller closes them. `request.checkpoint_path` comes
        back with undecodable bytes shown as escapes.

        Raises:
            Changed: the file was modified meanwhile.
            Unreadable: the system refused to read the file, or has no resources for a process just now.
            WorkerDied: no description can be had of this file.
            ZygoteError: the zygote of a background pool does not start; the next request tries again.
            PoolClosed: the pool ended, or was not entered.
            ValueError: the request's names are too long to be sent, or it has too many sidecars.
        """
        if not self._open:
            raise PoolClosed("the worker pool is not running")
        if self._background:
            request = msgspec.structs.replace(request, spare_cache=True)
            self._needed.set()
        work = await _work_for(request, files)
        try:
            if work.size_bytes > MAX_MESSAGE_BYTES // 2 or len(work.descriptors) > MAX_DESCRIPTORS - 2:
                raise ValueError(f"the request for {work.job.request.checkpoint_path!r} is too large to be sent")
            self._unsettled.add(work)
            self._queue.append(work)
            self._arrived.set()
            while True:
                try:
                    return await self._outcome(work)
                except WorkerDied as death:
                    if not work.deserves_another_try(death):
                        self.deaths[death.how] += 1
                        raise
                work.settled = anyio.Event()
                self._requeue([work])
        finally:
            self._last_use = anyio.current_time()
            self._unsettled.discard(work)
            with contextlib.suppress(ValueError):
                self._queue.remove(work)
            work.close()

    async def __aenter__(self) -> Self:
        if not self._background:
            self._zygote = await self._first_zygote()
            self.sandbox = self._zygote.sandbox
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._attend_zygotes)
        for _ in range(self._workers):
            self._tasks.start_soon(self._work)
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> bool | None:
        self._open = False
        self._tasks.cancel_scope.cancel()
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        try:  # the caller's own error passes by as it is, instead of in a group
            return (
                await self._tasks.__aexit__(*((kind, error, trace) if cancelled else (None, None, None))) and cancelled
            )
        finally:
            for work in self._unsettled:
                work.settle(PoolClosed("the worker pool was closed"))
            if self._zygote is not None:
                await self._zygote.aclose()

    # ---- the zygote --------------------------------------------------------------------------------------------

    async def _first_zygote(self) -> ZygoteProcess:
        """The one that was launched early; another, if somebody ended that one. Its own fault ends the second, too."""
        launched, self._launched = self._launched, None
        try:
            return await adopt_zygote(launched or launch_zygote(self._command, self._limits))
        except ZygoteError as error:
            self._log.warning("the zygote ended while it started; starting another", error=str(error))
            return await start_zygote(self._command, self._limits)

    async def _attend_zygotes(self) -> None:
        """Listen to the zygote; when it ends, start the next one."""
        failures = 0
        while True:
            if self._zygote is None and self._background:
                await self._start_when_needed()
            elif self._zygote is None:
                await self._start_another(failures)
            if self._zygote is not None:
                failures += await self._attend(self._zygote)

    async def _attend(self, zygote: ZygoteProcess) -> int:
        """Listen to a zygote until it ends; 1 if nobody asked it to."""
        async with anyio.create_task_group() as tasks:
            if self._background:
                tasks.start_soon(self._retire, zygote)
            await zygote.listen()
            tasks.cancel_scope.cancel()
        retired = self._zygote is not zygote
        if not retired:
            self._log.warning("the zygote ended; starting another", pid=zygote.pid)
            self.crashes += 1
            self.zygote_restarts += 1
            self._zygote, self._revived = None, anyio.Event()
        await zygote.aclose()
        return not retired

    async def _retire(self, zygote: ZygoteProcess) -> None:
        """End a zygote that has been without work for long."""
        while (left := self._last_use + self._idle_s - anyio.current_time()) > 0 or self._unsettled:  # noqa: ASYNC110 - what is waited for is that nothing happens
            await anyio.sleep(max(left, self._idle_s / 10))
        self._zygote, self._revived, self._needed = None, anyio.Event(), anyio.Event()
        zygote.kill()

    async def _start_when_needed(self) -> None:
        """Wait for a request; tell everybody who waits if no zygote can be started for it."""
        await self._needed.wait()
        try:
            self._zygote = await start_zygote(self._command, self._limits)
        except ZygoteError as error:
            self._needed = anyio.Event()
            for work in self._unsettled:
                work.settle(error)
            return
        self._last_use = anyio.current_time()
        self.sandbox = self._zygote.sandbox
        self._revived.set()

    async def _start_another(self, failures: int) -> None:
        """Try until it works: nothing can be described without a zygote."""
        while self._zygote is None:
            await anyio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1])
            try:
                self._zygote = await start_zygote(self._command, self._limits)
            except ZygoteError as error:
                failures += 1
                self._log.error("no checkpoint can be described", error=str(error))
        self.sandbox = self._zygote.sandbox
        self._revived.set()

    # ---- the queue ---------------------------------------------------------------------------------------------

    def _requeue(self, works: Sequence[Work]) -> None:
        """Put back what was not begun, ahead of all others and in its old order."""
        self._queue.extendleft(work for work in reversed(works) if work in self._unsettled)
        self._arrived.set()

    async def _take(self) -> list[Work]:
        """Wait for work; the deeper the queue, the more of it at once."""
        while not self._queue:
            self._arrived = anyio.Event() if self._arrived.is_set() else self._arrived
            await self._arrived.wait()
        count = max(1, min(BATCH_JOBS, len(self._queue) // self._workers))
        works = [self._queue.popleft()]
        size, descriptors = works[0].size_bytes, len(works[0].descriptors)
        while self._queue and len(works) < count and works[0].may_share_with(self._queue[0]):
            size += self._queue[0].size_bytes
            descriptors += len(self._queue[0].descriptors)
            if size > MAX_MESSAGE_BYTES // 2 or descriptors > MAX_DESCRIPTORS - 2:
                break
            works.append(self._queue.popleft())
        return works

    # ---- one child ---------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """One of the workers: run children, one after the other, until cancelled."""
        while True:
            works = await self._take()
            while self._zygote is None or self._stuck >= MAX_STUCK:
                await (self._revived.wait() if self._zygote is None else anyio.sleep(STALL_S))
            works = [work for work in works if work in self._unsettled]
            if not works:
                continue
            try:
                run = Run(next(self._batches), works)
            except OSError as error:
                for work in works:
                    work.settle(Unreadable(f"no descriptors left for a worker: {error.strerror}", error.errno))
                continue
            await self._run(self._zygote, run)

    async def _run(self, zygote: ZygoteProcess, run: Run) -> None:
        zygote.expect(run.batch)
        try:
            await zygote.send(lambda: self._message(run))
            run.close_writing()
            run.overdue = not await self._follow(run)
            if await self._end(zygote, run):
                self._conclude(run, await zygote.end_of(run.batch))
        except ZygoteGone:
            self._requeue(run.works)
        finally:
            zygote.forget(run.batch)
            run.close()

    def _message(self, run: Run) -> tuple[Batch, list[int]]:
        """Made at the moment of sending: whoever stopped waiting has closed its descriptors."""
        run.works = [work for work in run.works if work in self._unsettled]
        descriptors = [descriptor for work in run.works for descriptor in work.descriptors]
        return Batch(run.batch, tuple(work.job for work in run.works)), [run.answers, run.writing, *descriptors]

    async def _follow(self, run: Run) -> bool:
        """Take in answers until the child has ended; False when it is overdue."""
        deadline = self._deadline_of(run)
        while True:
            stall_s = BACKGROUND_STALL_S if self._background else STALL_S
            patience_s = stall_s if len(run.under_way) > 1 else deadline - anyio.current_time()
            with anyio.move_on_after(patience_s) as scope:
                await anyio.wait_readable(run.reading)
            if not scope.cancelled_caught:
                with contextlib.suppress(BlockingIOError):
                    if not run.read_progress(self._limits.max_answer_bytes):
                        return True
                    deadline = self._deadline_of(run)
            elif len(run.under_way) > 1:
                self._requeue(run.release_waiting())
            else:
                return False

    def _deadline_of(self, run: Run) -> float:
        """When the job that a child is at must be done, or, behind the last one, when the child must have ended."""
        waited_for = run.under_way[:1]
        limit_s = self._limits.time_of(waited_for[0].job.request) if waited_for else self._limits.timeout_s
        return anyio.current_time() + limit_s + GRACE_S

    async def _end(self, zygote: ZygoteProcess, run: Run) -> bool:
        """See a child to its end; False if it survives even SIGKILL, its file then has been settled."""
        with contextlib.suppress(ZygoteGone), anyio.move_on_after(ZYGOTE_GRACE_S):
            if run.overdue:
                await zygote.send(lambda: (Kill(run.batch), []))
            await zygote.end_of(run.batch)
            return True
        if not zygote.has_killed(run.batch):  # the zygote itself is stuck or gone
            zygote.kill()
            await zygote.gone.wait()
            return True
        self._log.error("a worker does not end; is the disk of its file answering?", path=run.path)
        self._tasks.start_soon(self._await_stuck, zygote, run.batch)
        for work in run.under_way:
            work.fail(WorkerDied(Death.LIMIT_WALL, "reading it hangs in the kernel; check the disk"))
        return False

    async def _await_stuck(self, zygote: ZygoteProcess, batch: int) -> None:
        self._stuck += 1
        try:
            zygote.expect(batch)
            await zygote.end_of(batch)
            zygote.forget(batch)
        finally:
            self._stuck -= 1

    def _conclude(self, run: Run, end: Ended | Refused | None) -> None:
        """Settle or requeue what the child left undone. `end` is None when its zygote ended with it."""
        culprit, rest = run.under_way[:1], run.under_way[1:]
        if end is None:
            self._lost_with_zygote(run)
            return
        if isinstance(end, Refused):
            for work in run.under_way:
                work.settle(Unreadable(end.reason))
            return
        if end.exit_code != 0 and not run.has_begun and self._excuse(run):
            return
        if end.exit_code != 0:
            self.crashes += 1
            how = death_of(end, overdue=run.overdue)
            self._log.warning("a worker died", path=run.path, how=how.how.value, detail=how.detail)
        elif run.finished:
            culprit, rest = [], run.under_way  # it stopped by itself between two jobs
        for work in culprit:
            work.alone = work.alone or not run.finished
            work.settle(death_of(end, overdue=run.overdue))
        self._requeue(rest)

    def _excuse(self, run: Run) -> bool:
        """Put everything back if no file can be to blame, unless that happened too often."""
        for work in run.works:
            work.false_starts += 1
        if any(work.false_starts > MAX_FALSE_STARTS for work in run.works):
            return False
        self._requeue(run.works)
        return True

    def _lost_with_zygote(self, run: Run) -> None:
        for work in run.under_way:
            work.zygote_deaths += 1
            if work.zygote_deaths > 1:
                work.fail(WorkerDied(Death.KILLED, "the process above it ended as well"))
        self._requeue([work for work in run.under_way if not work.settled.is_set()])

    async def _outcome(self, work: Work) -> Description:
        await work.settled.wait()
        if isinstance(work.outcome, Exception):
            raise work.outcome
        tensors: list[TensorInfo] = []
        try:
            check_size(work.outcome)
            pieces = decode_answer(work.outcome)
            answer = next(pieces)
            if isinstance(answer, Described):
                check_can_be_told(answer.description)
            for part in pieces:
                assert isinstance(part, tuple)
                tensors.extend(part)
                await anyio.lowlevel.checkpoint()
        except BadAnswer as error:
            raise WorkerDied(Death.BAD_ANSWER, str(error)) from error
        match answer:
            case Described(description):
                inspection = msgspec.structs.replace(description.inspection, tensors=tuple(tensors))
                return msgspec.structs.replace(description, inspection=inspection)
            case ChangedAnswer(message):
                raise Changed(message)
            case UnreadableAnswer(message, code):
                raise Unreadable(message, code)
            case GaveUp(how, detail):
                raise WorkerDied(how, detail)
        raise AssertionError(answer)


async def _work_for(request: DescribeRequest, files: OpenedFiles) -> Work:
    listed = None
    if request.shards:
        try:
            with anyio.CancelScope(shield=True):  # what was made must reach whoever closes it
                listed = await anyio.to_thread.run_sync(list_of, request)
        except OSError as error:
            raise Unreadable(f"no descriptors left for a worker: {error.strerror}", error.errno) from error
    return Work(request, files, listed)
