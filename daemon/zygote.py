"""The zygote: one lean process, all imports done, that forks a child for each batch of files to be parsed.

It never reads a file itself. It takes descriptors from the pool, forks, and tells how the child ended. Whatever a
child must import is imported here, before the first fork: behind the sandbox an import is the end of the child.
"""

import array
import gc
import importlib
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import msgspec

from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles
from ckptd.validators.errors import Changed, Unreadable

from . import sandbox
from .answers import (
    Answer,
    AnswerTooLarge,
    Batch,
    ChangedAnswer,
    Death,
    Ended,
    FromZygote,
    GaveUp,
    Job,
    Kill,
    Killed,
    Ready,
    Refused,
    ToZygote,
    UnreadableAnswer,
    encode_answer,
    encode_description,
)

MAX_MESSAGE_BYTES = 128 * 1024
"""Below the default buffer of a Unix socket (212,992 bytes), which bounds one message."""
MAX_DESCRIPTORS = 240
"""Linux passes at most 253 in one message (SCM_MAX_FD, include/net/scm.h)."""
BATCH_BUDGET_S = 0.025
"""A child takes no further job once it has worked for so long; what is left goes to another one."""
PROGRESS = struct.Struct("<Q")
"""Child → pool, for each finished job: the length of its answer."""

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

DescribeJob = Callable[[DescribeRequest, OpenedFiles], Description]


class Limits(msgspec.Struct, frozen=True):
    """What one child may use."""

    memory_bytes: int
    """Address space beyond the interpreter's own."""
    timeout_s: float
    """Wall time of one job, and CPU time."""
    max_answer_bytes: int


def main(describe: DescribeJob) -> NoReturn:
    """Serve the socket that `sys.argv` names until it closes: descriptor, parent's process id, `Limits` as JSON.

    Args:
        describe: the job that children run.
    """
    descriptor, parent, limits = sys.argv[1:4]
    sandbox.die_with_parent(int(parent))
    os.chdir("/")
    close_all_but([0, 1, 2, int(descriptor)])  # what the service's libraries left inheritable
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _preload()
    walls = sandbox.probe_sandbox()
    zygote = Zygote(
        socket.socket(fileno=int(descriptor)),
        describe,
        msgspec.json.decode(limits, type=Limits),
        restrict_calls=walls.no_seccomp is None,
    )
    _protect_the_service()
    if walls.no_landlock is None:
        sandbox.restrict_files()
    gc.collect()
    gc.freeze()
    gc.disable()
    zygote.serve(walls.summary)
    os._exit(0)


def close_all_but(descriptors: list[int]) -> None:
    """Close every descriptor of this process but the given ones."""
    start = 0
    for descriptor in sorted(descriptors):
        if start < descriptor:  # closerange(0, 0) closes everything: CPython passes the end as an unsigned -1
            os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, 1 << 30)


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


class Zygote:
    """The serving side of the socket."""

    def __init__(self, channel: socket.socket, describe: DescribeJob, limits: Limits, *, restrict_calls: bool) -> None:
        self._channel = channel
        self._describe = describe
        self._limits = limits
        self._restrict_calls = restrict_calls
        self._decoder = msgspec.msgpack.Decoder(ToZygote)
        self._base_bytes = _address_space_bytes()
        self._pid = os.getpid()
        self._poll = select.poll()
        self._children: dict[int, tuple[int, int]] = {}
        """Descriptor of the process → (batch, process id)."""

    def serve(self, sandbox_summary: str) -> None:
        """Handle messages and ended children until the pool closes its end."""
        self._poll.register(self._channel, select.POLLIN)
        self._send(Ready(sandbox_summary))
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor != self._channel.fileno():
                    self._reap(descriptor)
                elif not self._receive():
                    return

    def _receive(self) -> bool:
        received = array.array("i")
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * received.itemsize)
        try:
            data, control, flags, _ = self._channel.recvmsg(MAX_MESSAGE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # the pool closed its end with messages unread
            return False
        if not data:
            return False
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
        message = self._decoder.decode(data)
        if isinstance(message, Kill):
            self._kill(message.batch)
        else:
            self._start(message, received.tolist(), truncated=bool(flags & socket.MSG_CTRUNC))
        return True

    def _start(self, batch: Batch, descriptors: list[int], *, truncated: bool) -> None:
        expected = 2 + sum(job.n_descriptors for job in batch.jobs)
        try:
            if truncated or len(descriptors) != expected:
                self._send(Refused(batch.id, f"{len(descriptors)} of {expected} descriptors arrived (RLIMIT_NOFILE?)"))
                return
            child = os.fork()
            if child == 0:
                self._work(batch, descriptors)
            process = os.pidfd_open(child)
        except OSError as error:
            self._send(Refused(batch.id, f"no process could be started: {error.strerror}"))
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._children[process] = (batch.id, child)
        self._poll.register(process, select.POLLIN)

    def _reap(self, process: int) -> None:
        batch, child = self._children.pop(process)
        _, status, usage = os.wait4(child, 0)
        self._poll.unregister(process)
        os.close(process)
        code = os.waitstatus_to_exitcode(status)
        self._send(Ended(batch, code, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime))

    def _kill(self, batch: int) -> None:
        for candidate, child in self._children.values():
            if candidate == batch:
                os.kill(child, signal.SIGKILL)  # not reaped yet, so the number is still its own
        self._send(Killed(batch))

    def _send(self, message: FromZygote) -> None:
        try:
            self._channel.send(msgspec.msgpack.encode(message))
        except OSError:
            os._exit(0)  # the service is gone

    def _work(self, batch: Batch, descriptors: list[int]) -> NoReturn:
        """The child: shut the doors, then parse. Never returns."""
        code = 1
        try:
            sandbox.die_with_parent(self._pid)
            close_all_but(descriptors)
            _limit(self._base_bytes, self._limits)
            if self._restrict_calls:
                sandbox.restrict_calls()
            _Child(self._describe, self._limits).run(batch, descriptors)
            code = 0
        finally:
            os._exit(code)


def _address_space_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 64 << 20  # measured: 20 to 40 MB


def _limit(base_bytes: int, limits: Limits) -> None:
    memory = base_bytes + limits.memory_bytes + _reserve_bytes(limits)
    cpu_s = int(limits.timeout_s + BATCH_BUDGET_S) + 1
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))  # SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * limits.max_answer_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _reserve_bytes(limits: Limits) -> int:
    """Address space kept back for encoding: the answer, and the buffer that grows by half as it fills."""
    return 3 * limits.max_answer_bytes + (4 << 20)


class _Child:
    """Runs the jobs of one batch, in order."""

    def __init__(self, describe: DescribeJob, limits: Limits) -> None:
        self._describe = describe
        self._limits = limits

    def run(self, batch: Batch, descriptors: list[int]) -> None:
        answers, progress, *files = descriptors
        deadline = time.monotonic() + BATCH_BUDGET_S
        written = 0
        for job in batch.jobs:
            mine, files = files[: job.n_descriptors], files[job.n_descriptors :]
            signal.setitimer(signal.ITIMER_REAL, self._limits.timeout_s)  # SIGALRM ends the process
            data, usable = self._answer(job, mine)
            _write(answers, data)
            written += len(data)
            os.write(progress, PROGRESS.pack(len(data)))
            if not usable or time.monotonic() >= deadline or written >= self._limits.max_answer_bytes:
                return

    def _answer(self, job: Job, descriptors: list[int]) -> tuple[bytes, bool]:
        """The encoded answer, and whether this process is still good for another job."""
        try:
            with mmap.mmap(-1, _reserve_bytes(self._limits), flags=_UNTOUCHED, prot=0):
                description = self._describe(job.request, _opened(job, descriptors))
            return encode_description(description, self._limits.max_answer_bytes), True
        except Changed as error:
            return encode_answer(ChangedAnswer(error.message)), True
        except Unreadable as error:
            return encode_answer(UnreadableAnswer(error.message, error.errno)), True
        except MemoryError:
            return encode_answer(_OUT_OF_MEMORY), False
        except AnswerTooLarge as error:
            return encode_answer(GaveUp(Death.ANSWER_TOO_LARGE, str(error))), False
        except Exception as error:  # noqa: BLE001 - the rim of one file: a fault of the parser is told, not hidden
            return encode_answer(_fault(error)), False


_UNTOUCHED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_OUT_OF_MEMORY: Answer = GaveUp(Death.LIMIT_MEMORY, "memory ran out while parsing")


def _opened(job: Job, descriptors: list[int]) -> OpenedFiles:
    checkpoint, *rest = descriptors
    return OpenedFiles(
        checkpoint=checkpoint,
        sidecars=tuple(rest[: job.sidecars]),
        config=rest[job.sidecars] if job.has_config else None,
    )


def _fault(error: Exception) -> GaveUp:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = "" if frame is None else f" in {frame.tb_frame.f_code.co_qualname}, line {frame.tb_lineno}"
    text = f"the parser failed: {type(error).__name__}: {error}"[:500] + where
    return GaveUp(Death.BAD_ANSWER, text.encode("utf-8", "backslashreplace").decode())


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    from ckptd.catalog.describe import describe_opened

    main(describe_opened)
