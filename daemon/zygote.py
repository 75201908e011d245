"""The zygote: one lean process, all imports done, that forks the children in which files are parsed.

It never reads a foreign file itself. It takes descriptors from the pool, hands them to a child, and tells how the child
ended. Whatever a child must import is imported here, before the first fork: behind the sandbox an import is the end.
"""

import collections
import functools
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import msgspec

from ckptd.catalog.description import Description
from ckptd.validators.architectures import TableError, load_table
from ckptd.validators.inspection import Level

from . import sandbox
from .answers import Batch, Ended, FromZygote, Kill, Killed, Limits, Ready, Refused, ToZygote
from .background import step_back
from .child import Child, DescribeJob, Sample, close_all_but, receive

PRELOADED = (
    *(f"encodings.{name}" for name in ("ascii", "cp1252", "idna", "latin_1", "raw_unicode_escape", "unicode_escape")),
    *(f"encodings.{name}" for name in ("utf_8", "utf_8_sig", "utf_16", "utf_16_le", "utf_16_be", "utf_32")),
    "_strptime",
    "base64",
    "binascii",
    "calendar",
    "decimal",
    "hashlib",
    "json",
    "linecache",
    "locale",
    "stringprep",
    "traceback",
    "unicodedata",
    "yaml",
    "zlib",
)
"""Modules that the standard library and PyYAML import at first use only."""

IDLE_MS = 20
"""Children are forked ahead after so long without work: in a burst, getting them warm would cost more than it saves."""
WARM_UP_RUNS = 20
"""CPython specialises a function after it ran a few times (PEP 659); children inherit that."""


class Waiting(msgspec.Struct, frozen=True):
    """A child that was told nothing yet."""

    process: int
    """Descriptor of the process."""
    channel: socket.socket


def with_architectures(describe: Callable[..., Description], limits: Limits) -> DescribeJob:
    """The job, with the table by which models are recognised; children find it made.

    A file that could be used when the settings were read, and no longer can, does not keep the service from parsing.
    """
    try:
        table = load_table(limits.architectures)
    except TableError as error:
        print(f"the packaged table of architectures is used alone: {error}", file=sys.stderr)  # noqa: T201
        table = load_table()
    return functools.partial(describe, architectures=table)


def main(
    describe: DescribeJob,
    preload: Callable[[], None] = lambda: None,
    level: Level = Level.STRUCTURE,
    complete: Callable[[DescribeJob, Limits], DescribeJob] = lambda job, _: job,
) -> NoReturn:
    """Serve the socket that `sys.argv` names until it closes: descriptor, parent's process id, `Limits` as JSON.

    Args:
        describe: the job that children run.
        preload: imports what the job needs besides the usual.
        level: at which children get warm.
        complete: gives the job what depends on the limits.
    """
    descriptor, parent, encoded = sys.argv[1:4]
    limits = msgspec.json.decode(encoded, type=Limits)
    sandbox.die_with_parent(int(parent))
    os.chdir("/")
    close_all_but([0, 1, 2, int(descriptor)])  # what the service's libraries left inheritable
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _preload()
    preload()
    describe = complete(describe, limits)
    walls = sandbox.probe_sandbox()
    child = Child(
        job=describe,
        limits=limits,
        sample=Sample(level),
        restrict_calls=walls.no_seccomp is None,
        parent=os.getpid(),
        base_bytes=_address_space_bytes(),
    )
    _protect_the_service()
    if child.limits.background:
        step_back()
    for _ in range(WARM_UP_RUNS):
        child.sample.describe(describe, child.limits.max_answer_bytes)
    if walls.no_landlock is None:
        sandbox.restrict_files()
    gc.collect()
    gc.freeze()
    gc.disable()
    Zygote(socket.socket(fileno=int(descriptor)), child).serve(walls.summary)
    os._exit(0)


def _preload() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    time.localtime()  # reads /etc/localtime, once
    time.strptime("2000-01-01", "%Y-%m-%d")
    if sandbox.has_filter():
        sandbox.prepare_filter()


def _protect_the_service() -> None:
    """Let the kernel end a child before the service when memory ends, and write no cores. Children inherit it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        pass  # /proc may be hidden; the limits below still hold


def _address_space_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 64 << 20  # measured: 20 to 40 MB


class Zygote:
    """The serving side of the socket."""

    def __init__(self, channel: socket.socket, child: Child) -> None:
        self._channel = channel
        self._child = child
        self._decoder = msgspec.msgpack.Decoder(ToZygote)
        self._poll = select.poll()
        self._waiting: collections.deque[Waiting] = collections.deque()
        self._forks_ahead = True
        """False after forking ahead went wrong, until the next batch: it must not be tried in a loop."""
        self._pids: dict[int, int] = {}
        """Descriptor of a process → its id."""
        self._batches: dict[int, int] = {}
        """Descriptor of a process at work → its batch."""

    def serve(self, sandbox_summary: str) -> None:
        """Handle messages and ended children until the pool closes its end; fork ahead when there is nothing to do."""
        self._poll.register(self._channel, select.POLLIN)
        self._send(Ready(sandbox_summary))
        while True:
            ahead = self._forks_ahead and not self._batches and len(self._waiting) < self._child.limits.standby
            events = self._poll.poll(IDLE_MS if ahead else None)
            if not events:
                self._fork_ahead()
            for descriptor, _ in events:
                if descriptor != self._channel.fileno():
                    self._reap(descriptor)
                elif not self._receive():
                    return

    def _receive(self) -> bool:
        data, descriptors, truncated = receive(self._channel)
        if not data:
            return False
        message = self._decoder.decode(data)
        if isinstance(message, Kill):
            self._kill(message.batch)
            return True
        try:
            expected = 2 + sum(job.n_descriptors for job in message.jobs)
            if truncated or len(descriptors) != expected:
                self._refuse(message, f"{len(descriptors)} of {expected} descriptors arrived (RLIMIT_NOFILE?)")
            else:
                self._hand_over(message, data, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _hand_over(self, batch: Batch, data: bytes, descriptors: list[int]) -> None:
        self._forks_ahead = True
        while True:
            fresh = not self._waiting
            try:
                child = self._fork(warm=False) if fresh else self._waiting.popleft()
            except OSError as error:
                self._refuse(batch, f"no process could be started: {error.strerror}")
                return
            try:
                with child.channel:
                    socket.send_fds(child.channel, [data], descriptors)
            except OSError as error:  # it died while it waited; it is reaped as such
                if fresh:
                    self._refuse(batch, f"a process ended as soon as it was started: {error.strerror}")
                    return
                continue
            self._batches[child.process] = batch.id
            return

    def _fork_ahead(self) -> None:
        try:
            self._waiting.append(self._fork(warm=True))
        except OSError:
            self._forks_ahead = False

    def _fork(self, *, warm: bool) -> Waiting:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            pid = os.fork()
            if pid == 0:
                self._child.run(theirs.fileno(), warm=warm)
            try:
                process = os.pidfd_open(pid)
            except OSError:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
        self._pids[process] = pid
        self._poll.register(process, select.POLLIN)
        return Waiting(process, ours)

    def _reap(self, process: int) -> None:
        _, status, usage = os.wait4(self._pids.pop(process), 0)
        self._poll.unregister(process)
        os.close(process)
        code = os.waitstatus_to_exitcode(status)
        batch = self._batches.pop(process, None)
        if batch is not None:
            self._send(Ended(batch, code, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime))
            return
        self._forks_ahead = False
        for child in [child for child in self._waiting if child.process == process]:
            child.channel.close()
            self._waiting.remove(child)

    def _kill(self, batch: int) -> None:
        for process, candidate in self._batches.items():
            if candidate == batch:
                os.kill(self._pids[process], signal.SIGKILL)  # not reaped yet, so the number is still its own
        self._send(Killed(batch))

    def _refuse(self, batch: Batch, reason: str) -> None:
        self._send(Refused(batch.id, reason))

    def _send(self, message: FromZygote) -> None:
        try:
            self._channel.send(msgspec.msgpack.encode(message))
        except OSError:
            os._exit(0)  # the service is gone


if __name__ == "__main__":
    from ckptd.catalog.describe import describe_opened

    main(describe_opened, complete=with_architectures)
