"""SidecarWriters: threads that write what was described, a directory's files together, durable before they are told.

Each waits for the disk, which does for many at once what it does for one. Files of one directory share the sync that
makes their names durable; nobody hears of a file before that.
"""

import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ckptd.catalog.placing import opened_directory, sync_directory
from ckptd.catalog.roots import Root

from .sidecar_jobs import Job, do
from .sidecar_results import Outcome, Result
from .targets import opened

THREADS = 8
BATCH = 16
"""Files of one directory that are synced together."""
WAITING = 256
"""Descriptions that wait to be written before no more are made."""

_REFUSING = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class SidecarWriters:
    """Takes jobs from the thread that describes; hands results on from threads of its own, one at a time."""

    def __init__(self, on_result: Callable[[Result], None], *, long_name: bool) -> None:
        """Args:
        on_result: told of each result.
        long_name: name what is generated `best.ckpt.metadata.yaml`.
        """
        self._on_result = on_result
        self._long_name = long_name
        self._jobs: deque[Job] = deque()
        self._arrived = threading.Condition()
        self._told = threading.Lock()
        self._closing = False
        self._refused: dict[tuple[Root, bytes], OSError] = {}
        """Directories that take no sidecars."""
        self._full: dict[int, OSError] = {}
        """Devices that are full."""
        self._failure: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, name="sidecars", daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that nobody has begun."""
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Have this one written."""
        with self._arrived:
            self._jobs.append(job)
            self._arrived.notify()

    @property
    def failed(self) -> bool:
        """Whether nothing more will come of this, and `close` says why."""
        return self._failure is not None

    def tell(self, result: Result) -> None:
        """Hand on a result for which nothing was to be written."""
        with self._told:
            self._on_result(result)

    def close(self) -> None:
        """Wait until all is written.

        Raises:
            Exception: what a thread failed with: a mistake of ours, or a closed pipe.
        """
        with self._arrived:
            self._closing = True
            self._arrived.notify_all()
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def abandon(self, patience_s: float) -> None:
        """Begin no more, and wait so long for those under way: each removes its temporary file."""
        with self._arrived:
            self._jobs.clear()
            self._closing = True
            self._arrived.notify_all()
        deadline = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # ---- in the threads ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while jobs := self._take():
                for result in self._batch(jobs):
                    self.tell(result)
        except BaseException as error:  # noqa: BLE001 - told by `close`, in the thread that can act on it
            self._failure = error

    def _take(self) -> list[Job]:
        """Wait for jobs, all of one directory; none once closed."""
        with self._arrived:
            while not self._jobs and not self._closing:
                self._arrived.wait()
            if not self._jobs:
                return []
            jobs = [self._jobs.popleft()]
            place = _place(jobs[0])
            while len(jobs) < BATCH and self._jobs and _place(self._jobs[0]) == place:
                jobs.append(self._jobs.popleft())
            return jobs

    def _batch(self, jobs: Sequence[Job]) -> Iterator[Result]:
        root, directory = place = _place(jobs[0])
        results: list[Result] = []
        try:
            with opened(root) as root_fd, opened_directory(root_fd, directory) as directory_fd:
                for job in jobs:
                    results.append(self._one(job, root_fd, directory_fd))
                    self._note_refusal(place, directory_fd, results[-1])
                sync_directory(directory_fd)
        except OSError as error:  # of the directory: what was written there is not certain to stay
            results = [_failed(job, error) for job in jobs]
        return iter(results)

    def _one(self, job: Job, root_fd: int, directory_fd: int) -> Result:
        known = self._refused.get(_place(job))
        if known is None and self._full:
            known = self._full.get(os.fstat(directory_fd).st_dev)
        if known is not None:
            return _failed(job, known)
        try:
            return do(job, root_fd, directory_fd, long_name=self._long_name)
        except OSError as error:
            return _failed(job, error)

    def _note_refusal(self, place: tuple[Root, bytes], directory_fd: int, result: Result) -> None:
        if result.errno in _REFUSING:
            self._refused.setdefault(place, OSError(result.errno, result.detail))
        elif result.errno in _FULL:
            self._full.setdefault(os.fstat(directory_fd).st_dev, OSError(result.errno, result.detail))


def _place(job: Job) -> tuple[Root, bytes]:
    return job.target.root, os.path.dirname(job.target.path)


def _failed(job: Job, error: OSError) -> Result:
    reason = error.strerror or str(error)
    if reason == os.strerror(errno.EEXIST):
        reason = "something of the sidecar's name is there already; look at it, and run it again"
    return Result(job.target, job.state, Outcome.FAILED, reason, errno=error.errno)


def written_per_s(data: Sequence[bytes], directory: bytes) -> float | None:
    """How many files like these can be made durable in a directory each second; no name ever appears there.

    Returns:
        None where that cannot be tried: no permission, no space, a filesystem without unnamed files (O_TMPFILE).
    """
    jobs = deque(data)
    refused: list[OSError] = []

    def write() -> None:
        with contextlib.suppress(IndexError):
            while True:
                try:
                    _write_unnamed(jobs.popleft(), directory)
                except OSError as error:
                    refused.append(error)
                    return

    began = time.perf_counter()
    threads = [threading.Thread(target=write) for _ in range(min(THREADS, len(data)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return None if refused or not data else len(data) / (time.perf_counter() - began)


def _write_unnamed(data: bytes, directory: bytes) -> None:
    fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
