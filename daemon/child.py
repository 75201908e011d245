"""The child: one forked process that waits for a batch, shuts its doors behind it and parses.

Children are forked ahead and get warm on a sample of ours while nobody waits for them. What they may use is limited
from their first breath; the sandbox closes once the files are in, before the first foreign byte is read.
"""

import array
import contextlib
import mmap
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles, ShardFile
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.inspection import Level

from . import sample, sandbox
from .answers import (
    MAX_DESCRIPTORS,
    MAX_MESSAGE_BYTES,
    Answer,
    AnswerTooLarge,
    Batch,
    ChangedAnswer,
    Death,
    GaveUp,
    Job,
    Limits,
    UnreadableAnswer,
    encode_answer,
    encode_description,
)

BATCH_BUDGET_S = 0.025
"""A child takes no further job once it has used so much processor time; what is left goes to another one. By the clock
on the wall, a busy machine would have fewer and fewer files described by each, and be busier for it."""
BATCH_LONGEST_S = 0.25
"""The same by the clock on the wall: the files behind one on a slow disk go elsewhere."""
BACKGROUND_BUDGET_S = 1.0
"""The same for work that nobody waits for: at the lowest priority the clock says little of what was done."""
PROGRESS = struct.Struct("<Q")
"""Child → pool, for each finished job: the length of its answer."""

BEGUN = b"\1"
"""The first byte of the memory file: the child is about to look at its first job. Answers follow."""

_CHANNEL = 3
"""Descriptor of the child's socket. 0 to 2 stay /dev/null, so that a last cry of the C library hits no file."""
_UNTOUCHED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_OUT_OF_MEMORY: Answer = GaveUp(Death.LIMIT_MEMORY, "memory ran out while parsing")

_shards_decoder = msgspec.msgpack.Decoder(tuple[ShardFile, ...])

DescribeJob = Callable[[DescribeRequest, OpenedFiles], Description]


class Sample:
    """The sample's files, open in the zygote and in every child that gets warm on it."""

    request = DescribeRequest(
        checkpoint_path="/outputs/sample/checkpoints/sample.ckpt",
        relative_path=b"sample/checkpoints/sample.ckpt",
        sidecar_names=(b"sample/checkpoints/sample.ckpt.metadata.yaml",),
        config_name=b"sample/.hydra/config.yaml",
    )

    def __init__(self, level: Level = Level.STRUCTURE) -> None:
        self.request = msgspec.structs.replace(self.request, level=level)
        checkpoint, sidecar, config = map(_memory_file, (sample.checkpoint(), sample.SIDECAR, sample.CONFIG))
        self.files = OpenedFiles(checkpoint=checkpoint, sidecars=(sidecar,), config=config)

    def describe(self, job: DescribeJob, max_answer_bytes: int) -> None:
        """Run the job once, for its side effects on this process."""
        with contextlib.suppress(Exception):  # whoever cannot describe the sample stays cold, no more
            encode_description(job(self.request, self.files), max_answer_bytes)


class Child(msgspec.Struct, frozen=True):
    """What the zygote prepares before it forks; `run` is all that happens afterwards."""

    job: DescribeJob
    limits: Limits
    sample: Sample
    restrict_calls: bool
    parent: int
    """Process id of the zygote."""
    base_bytes: int
    """Address space of the zygote."""

    def run(self, channel: int, *, warm: bool) -> NoReturn:
        """Wait for a batch on the socket `channel` and work through it. Never returns.

        Args:
            channel: the child's end of a socket pair.
            warm: describe the sample first; for a child that nobody waits for yet.
        """
        status = 1
        try:
            sandbox.die_with_parent(self.parent)
            self._shut_the_doors(channel)
            if warm:
                self.sample.describe(self.job, self.limits.max_answer_bytes)
            close_all_but([0, 1, 2, _CHANNEL])
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=_CHANNEL) as mine:
                data, descriptors, _ = receive(mine)
            if data:
                batch = msgspec.msgpack.decode(data, type=Batch)
                self._limit_time(batch)
                resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
                if self.restrict_calls:
                    sandbox.restrict_calls()
                self._work(batch, descriptors)
            status = 0
        finally:
            os._exit(status)

    def _shut_the_doors(self, channel: int) -> None:
        os.dup2(1, 2)
        os.dup2(channel, _CHANNEL, inheritable=False)
        close_all_but([0, 1, 2, _CHANNEL, *self.sample.files.all()])
        memory = self.base_bytes + self.limits.memory_bytes + self._reserve_bytes
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * self.limits.max_answer_bytes,) * 2)

    def _limit_time(self, batch: Batch) -> None:
        cpu_s = int(max(self.limits.time_of(job.request) for job in batch.jobs) + self._budget_s) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))  # SIGXCPU, then SIGKILL

    @property
    def _budget_s(self) -> float:
        return BACKGROUND_BUDGET_S if self.limits.background else BATCH_BUDGET_S

    @property
    def _longest_s(self) -> float:
        return BACKGROUND_BUDGET_S if self.limits.background else BATCH_LONGEST_S

    @property
    def _reserve_bytes(self) -> int:
        """Address space kept back for encoding: the answer, and the buffer that grows by half as it fills."""
        return 3 * self.limits.max_answer_bytes + (4 << 20)

    def _work(self, batch: Batch, descriptors: list[int]) -> None:
        answers, progress, *files = descriptors
        enough, deadline = time.process_time() + self._budget_s, time.monotonic() + self._longest_s
        written = 0
        os.write(answers, BEGUN)
        for job in batch.jobs:
            mine, files = files[: job.n_descriptors], files[job.n_descriptors :]
            signal.setitimer(signal.ITIMER_REAL, self.limits.time_of(job.request))  # SIGALRM ends the process
            data, usable = self._answer(job, mine)
            _write(answers, data)
            written += len(data)
            os.write(progress, PROGRESS.pack(len(data)))
            worked = time.process_time() >= enough or time.monotonic() >= deadline
            if not usable or worked or written >= self.limits.max_answer_bytes:
                return

    def _answer(self, job: Job, descriptors: list[int]) -> tuple[bytes, bool]:
        """The encoded answer, and whether this process is still good for another job."""
        try:
            with mmap.mmap(-1, self._reserve_bytes, flags=_UNTOUCHED, prot=0):
                request, files = _received(job, descriptors)
                description = self.job(request, files)
            return encode_description(description, self.limits.max_answer_bytes), True
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


def receive(channel: socket.socket) -> tuple[bytes, list[int], bool]:
    """Receive one message.

    Returns:
        Its bytes, none once the other end is closed; its descriptors; and whether some of them were lost.
    """
    received = array.array("i")
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * received.itemsize)
    try:
        data, control, flags, _ = channel.recvmsg(MAX_MESSAGE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:  # closed with messages unread
        return b"", [], False
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
    return data, received.tolist(), bool(flags & socket.MSG_CTRUNC)


def close_all_but(descriptors: Sequence[int]) -> None:
    """Close every descriptor of this process but the given ones."""
    start = 0
    for descriptor in sorted(descriptors):
        if start < descriptor:  # closerange(0, 0) closes everything: CPython passes the end as an unsigned -1
            os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, 1 << 30)


def _received(job: Job, descriptors: list[int]) -> tuple[DescribeRequest, OpenedFiles]:
    checkpoint, *rest = descriptors
    sidecars, rest = rest[: job.sidecars], rest[job.sidecars :]
    config = rest.pop(0) if job.has_config else None
    records, rest = rest[: job.records], rest[job.records :]
    shards, rest = rest[: job.shards], rest[job.shards :]
    request = job.request
    if job.list_bytes:
        request = msgspec.structs.replace(request, shards=_shards_decoder.decode(os.pread(rest[0], job.list_bytes, 0)))
    files = OpenedFiles(
        checkpoint=checkpoint, sidecars=tuple(sidecars), config=config, records=tuple(records), shards=tuple(shards)
    )
    return request, files


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


def _memory_file(data: bytes) -> int:
    descriptor = os.memfd_create("ckptd-sample")
    _write(descriptor, data)
    return descriptor
