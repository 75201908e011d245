"""SidecarWriter: has checkpoints described by a process beside the training, so that saving them costs it nothing."""

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref

import msgspec

from ckptd.validators.inspection import FileIdentity
from ckptd.validators.reader import identity_of
from ckptd.validators.text import counted

from .digesting import remembered_digest
from .facts import Style, TrainingFacts, plain_number
from .helper import Outcome, Task
from .helper_process import Helper

log = logging.getLogger("ckptd.callbacks")

MAX_PENDING = 256
"""Checkpoints that wait to be described; beyond that (a hung disk) no more are taken on."""
PATIENCE_S = 60.0
"""How long a checkpoint may take to be there whole, once its save was announced."""
FLUSH_S = 10.0
"""How long the end of a training waits for its last sidecars."""

_IDLE_S = 5.0
"""A thread without work ends, so that a process with a thousand trainings does not keep a thousand threads."""
_RETRY_S = (0.02, 1.0)
"""First and longest wait until a checkpoint that is not there yet is looked at again."""


class _Job(msgspec.Struct, kw_only=True):
    path: str
    facts: TrainingFacts | None
    """None: the checkpoint was deleted, and its sidecar goes."""
    previous: FileIdentity | None = None
    give_up_at: float
    due_at: float = 0.0
    wait_s: float = _RETRY_S[0]


class SidecarWriter:
    """Writes and removes sidecars off the caller's thread. Nothing that goes wrong here reaches the training.

    One job per path: a save or deletion takes the place of an earlier one of the same path that still waits. Each kind
    of failure is logged once per directory, as a warning. Methods may be called from any thread, also from a signal
    handler; in a forked child the writer starts empty.
    """

    def __init__(self, style: Style, *, patience_s: float = PATIENCE_S) -> None:
        """Args:
        style: How sidecars are written, and who writes them.
        patience_s: How long a checkpoint may take to be there whole after `submit`.
        """
        self._style = style
        self._patience_s = patience_s
        self._begin()
        _living.add(self)

    @property
    def pending(self) -> int:
        """Jobs that wait or are under way."""
        self._check_process()
        with self._changed:
            return len(self._jobs) + (self._under_way is not None)

    def submit(self, path: str, facts: TrainingFacts, *, previous: FileIdentity | None = None) -> bool:
        """Have a checkpoint described and its sidecar written. Costs some microseconds; never raises, never waits.

        Args:
            path: The checkpoint that was saved.
            facts: What the training knows at that step.
            previous: What was at this path before; needed only where the save may not have ended yet.

        Returns:
            Whether it was taken on; False, with one warning, where too many wait already.
        """
        return self._add(_Job(path=path, facts=facts, previous=previous, give_up_at=self._deadline()))

    def forget(self, path: str) -> bool:
        """Have the sidecar of a deleted checkpoint removed, unless a person wrote it. Returns as `submit`."""
        return self._add(_Job(path=path, facts=None, give_up_at=self._deadline()))

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until everything submitted so far is done or given up.

        Args:
            timeout_s: How long to wait at most.

        Returns:
            Whether all is done; where it is not, one warning says so, and the work goes on in the background.
        """
        self._check_process()
        with self._changed:
            done = self._changed.wait_for(lambda: not self._jobs and self._under_way is None, timeout_s)
            left = [*self._jobs, *([] if self._under_way is None else [self._under_way])]
        if not done:
            self._warn(
                os.path.dirname(left[0]),
                "slow",
                f"{counted(len(left), 'metadata file')} not written after {timeout_s:g} s, such as {left[0]}; "
                "ckptd describes what is missing",
            )
        return done

    def close(self, timeout_s: float = FLUSH_S) -> bool:
        """Flush, then end the thread and the process that it keeps. A later `submit` starts them again.

        Returns:
            As `flush`.
        """
        done = self.flush(timeout_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if done and thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
        if done:
            self._helper.close()
        return done

    def __getstate__(self) -> dict[str, object]:
        return {"style": self._style, "patience_s": self._patience_s}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["style"], patience_s=state["patience_s"])  # type: ignore[misc]

    # ---- inside --------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._process = os.getpid()
        # Re-entrant: a signal handler that saves may interrupt a `submit` of the same thread.
        self._changed = threading.Condition(threading.RLock())
        self._jobs: dict[str, _Job] = {}
        self._under_way: str | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._warned: set[tuple[str, str]] = set()
        self._helper = Helper()

    def _check_process(self) -> None:
        """After a fork the thread is gone and its lock may be held for ever; the jobs are the parent's."""
        if self._process != os.getpid():
            self._begin()

    def _deadline(self) -> float:
        return time.monotonic() + self._patience_s

    def _add(self, job: _Job) -> bool:
        self._check_process()
        with self._changed:
            full = len(self._jobs) >= MAX_PENDING and job.path not in self._jobs
            if not full:
                self._jobs.pop(job.path, None)  # to the end of the queue
                self._jobs[job.path] = job
                self._closing = False
                self._start()
                self._changed.notify_all()
        if full:
            self._warn("", "full", f"{MAX_PENDING} checkpoints wait for their metadata; ckptd describes {job.path}")
        return not full

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ckptd-sidecars", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (job := self._take()) is not None:
            again = False
            try:
                again = not self._do(job)
            finally:
                with self._changed:
                    self._under_way = None
                    if again and job.path not in self._jobs:
                        self._jobs[job.path] = job
                    self._changed.notify_all()

    def _take(self) -> _Job | None:
        """The next job, waited for; None when this thread is to end."""
        with self._changed:
            while True:
                now = time.monotonic()
                job = min(self._jobs.values(), key=lambda job: job.due_at, default=None)
                if job is not None and job.due_at <= now:
                    self._under_way = job.path
                    return self._jobs.pop(job.path)
                woken = self._changed.wait(_IDLE_S if job is None else job.due_at - now)
                if not self._jobs and (self._closing or not woken):
                    self._thread = None
                    return None

    def _do(self, job: _Job) -> bool:
        """Do one job; False if it is to be tried again."""
        directory = os.path.dirname(job.path)
        try:
            outcome = self._helper.carry_out(_task_of(job, self._style))
        except Exception as error:  # noqa: BLE001
            # The rim: whatever this is, the training goes on.
            outcome = Outcome(kind=type(error).__name__, message=f"no metadata was written for {job.path}: {error!r}")
        if outcome.not_yet is not None:
            if self._is_superseded(job):
                return True
            if time.monotonic() < job.give_up_at:
                job.due_at = time.monotonic() + job.wait_s
                job.wait_s = min(2 * job.wait_s, _RETRY_S[1])
                return False
            outcome = Outcome(kind="late", message=f"no metadata was written for a save: {outcome.not_yet}")
        if outcome.kind is not None:
            self._warn(directory, outcome.kind, outcome.message)
        return True

    def _is_superseded(self, job: _Job) -> bool:
        with self._changed:
            return job.path in self._jobs

    def _warn(self, directory: str, kind: str, message: str) -> None:
        if (directory, kind) not in self._warned:
            self._warned.add((directory, kind))
            log.warning("%s; the training goes on (told once for this directory)", message)


def _task_of(job: _Job, style: Style) -> Task:
    """The job as another process can do it: metrics are numbers, and digests that only this process knows are named."""
    if job.facts is None:
        return Task(path=job.path, style=style)
    metrics = {name: plain_number(value) for name, value in job.facts.metrics.items()}
    facts = msgspec.structs.replace(job.facts, metrics=metrics)
    if facts.digest is None and not facts.read_digest:
        facts = _with_remembered_digest(job.path, facts)
    return Task(path=job.path, style=style, facts=facts, previous=job.previous)


def _with_remembered_digest(path: str, facts: TrainingFacts) -> TrainingFacts:
    try:
        identity = identity_of(os.stat(path))
    except OSError:
        return facts
    digest = remembered_digest(identity)
    return facts if digest is None else msgspec.structs.replace(facts, digest=digest, saved=facts.saved or identity)


_living: "weakref.WeakSet[SidecarWriter]" = weakref.WeakSet()


def _finish() -> None:
    # Daemon threads end with the interpreter: what a save after the fit left to do is done before.
    for writer in list(_living):
        with contextlib.suppress(Exception):
            writer.close()


atexit.register(_finish)
