"""What crosses between the pool, its zygote and their children: typed msgpack, never a pickle.

An answer is a sequence of pieces, each with its length in front: first one `Answer`, then, for a description, its
tensor table in parts. A checkpoint may have tens of thousands of tensors; the pool decodes a part at a time and lets
its event loop turn in between.
"""

import enum
import struct
from collections.abc import Iterator
from typing import Any, Self

import msgspec

from ckptd.catalog.description import DescribeRequest, Description
from ckptd.validators.inspection import TensorInfo
from ckptd.validators.text import counted

STANDBY = 4
"""Children that wait ahead of the work, at most; each holds a few megabytes of its own."""
MAX_MESSAGE_BYTES = 128 * 1024
"""Below the default buffer of a Unix socket (212,992 bytes), which bounds one message."""
MAX_DESCRIPTORS = 240
"""Linux passes at most 253 in one message (SCM_MAX_FD, include/net/scm.h)."""
MAX_NODES = 400_000
"""Values in one answer, its tensor table apart; far beyond any real configuration."""
TENSORS_PER_PIECE = 1_000
"""A piece of so many takes about a millisecond to decode."""

_LENGTH = struct.Struct("<I")
_TENSOR_BYTES = 192
"""What a tensor takes on the wire at most, besides its name, storage key, shape and stride."""


class Limits(msgspec.Struct, frozen=True):
    """What one child may use, and how many of them wait ahead."""

    memory_bytes: int
    """Address space beyond the interpreter's own."""
    timeout_s: float
    """Wall time of one job that asks for no other, and CPU time."""
    max_answer_bytes: int
    standby: int
    """Children that are forked before there is work for them."""
    background: bool = False
    """Whether processor and disk are used only as far as nobody else wants them."""
    architectures: str | None = None
    """A file that extends the table by which models are recognised."""

    @classmethod
    def of(
        cls,
        *,
        workers: int,
        memory_mb: int,
        timeout_s: float,
        max_answer_mb: int = 64,
        background: bool = False,
        architectures: str | None = None,
    ) -> Self:
        """The limits of the children of a pool with so many workers."""
        standby = 1 if background else min(workers, STANDBY)
        return cls(memory_mb << 20, timeout_s, max_answer_mb << 20, standby, background, architectures)

    def time_of(self, request: DescribeRequest) -> float:
        """Seconds that one job may take: what it asks for, else the pool's limit."""
        return self.timeout_s if request.timeout_s is None else request.timeout_s


class Death(enum.StrEnum):
    """Why a child ended without an answer that can be used."""

    CRASHED = "crashed"
    """A signal of its own making (SIGSEGV, SIGBUS, SIGABRT), or an exit that nobody asked for."""
    LIMIT_MEMORY = "limit_memory"
    LIMIT_CPU = "limit_cpu"
    LIMIT_WALL = "limit_wall"
    FORBIDDEN = "forbidden"
    """It tried what only code from the file would try: a system call outside the sandbox."""
    ANSWER_TOO_LARGE = "answer_too_large"
    BAD_ANSWER = "bad_answer"
    """What it said is not an answer, or the parser itself failed."""
    KILLED = "killed"
    """SIGKILL from outside: the kernel out of memory, or a person."""


class Job(msgspec.Struct, frozen=True, array_like=True):
    """One checkpoint of a batch. Its descriptors travel beside it: checkpoint, sidecars, config, records, shards, their
    list."""

    request: DescribeRequest
    """Without its shards: a message holds about 900 of them, a directory may have 100,000."""
    sidecars: int
    has_config: bool
    records: int = 0
    """Files that say something of the run."""
    shards: int = 0
    """Files of a directory that are opened."""
    list_bytes: int = 0
    """Size of the list of all its files, which travels as a memory file; 0 for a checkpoint that is a file."""

    @property
    def n_descriptors(self) -> int:
        """How many descriptors belong to it."""
        return 1 + self.sidecars + self.has_config + self.records + self.shards + (self.list_bytes > 0)


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """Pool → zygote: fork a child for these jobs, one after the other.

    Descriptors: the memory file for the answers, the pipe for progress, then those of the jobs.
    """

    id: int
    jobs: tuple[Job, ...]


class Kill(msgspec.Struct, frozen=True, tag="kill"):
    """Pool → zygote: end the child of a batch, if there still is one. The zygote owns the process id, so it kills."""

    batch: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Zygote → pool: imports are done; `sandbox` as `Sandbox.summary`."""

    sandbox: str


class Killed(msgspec.Struct, frozen=True, tag="killed"):
    """Zygote → pool: the signal is sent, or the child was gone already. Proves that the zygote lives."""

    batch: int


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """Zygote → pool: the child of a batch was reaped."""

    batch: int
    exit_code: int
    """As `os.waitstatus_to_exitcode`: negative for a signal."""
    max_rss_bytes: int
    cpu_s: float


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Zygote → pool: no child could be started for a batch."""

    batch: int
    reason: str


ToZygote = Batch | Kill
FromZygote = Ready | Killed | Ended | Refused


class Described(msgspec.Struct, frozen=True, tag="described"):
    """The description, without its tensors; they follow in `pieces` parts."""

    description: Description
    pieces: int


class ChangedAnswer(msgspec.Struct, frozen=True, tag="changed"):
    """The file was modified while it was read."""

    message: str


class UnreadableAnswer(msgspec.Struct, frozen=True, tag="unreadable"):
    """The system refused to read the file."""

    message: str
    errno: int | None


class GaveUp(msgspec.Struct, frozen=True, tag="gave_up"):
    """The child is alive, but has no description to give."""

    how: Death
    detail: str


Answer = Described | ChangedAnswer | UnreadableAnswer | GaveUp


class AnswerTooLarge(Exception):
    """Raised when a description exceeds the budget of an answer."""


class BadAnswer(Exception):
    """Raised when bytes are not an answer."""


_encoder = msgspec.msgpack.Encoder()
_answer_decoder = msgspec.msgpack.Decoder(Answer)
_tensors_decoder = msgspec.msgpack.Decoder(tuple[TensorInfo, ...])


def encode_answer(answer: Answer) -> bytes:
    """Encode an answer that has no tensors."""
    return _piece(answer)


def encode_description(description: Description, max_bytes: int) -> bytes:
    """Encode a description, after measuring it: msgspec segfaults when memory ends while it encodes.

    Raises:
        AnswerTooLarge: it has more than `MAX_NODES` values, or would take more than about `max_bytes`.
    """
    tensors = description.inspection.tensors
    inspection = msgspec.structs.replace(description.inspection, tensors=())
    without = msgspec.structs.replace(description, inspection=inspection)
    size = _tensors_size(tensors, max_bytes)
    _check_budget(without, max_bytes - size)
    parts = [tensors[start : start + TENSORS_PER_PIECE] for start in range(0, len(tensors), TENSORS_PER_PIECE)]
    return b"".join([_piece(Described(without, len(parts))), *map(_piece, parts)])


def decode_answer(data: bytes) -> Iterator[Answer | tuple[TensorInfo, ...]]:
    """Decode an answer piece by piece; take a breath between them.

    Yields:
        The answer, then the parts of the tensor table that belong to it.

    Raises:
        BadAnswer: the bytes are anything else.
    """
    view = memoryview(data)
    try:
        head, view = _next_piece(view)
        answer = _answer_decoder.decode(head)
        yield answer
        for _ in range(answer.pieces if isinstance(answer, Described) else 0):
            part, view = _next_piece(view)
            yield _tensors_decoder.decode(part)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(f"{error}") from error
    if view:
        raise BadAnswer(f"the answer is followed by {counted(len(view), 'byte')}")


def _piece(value: object) -> bytes:
    encoded = _encoder.encode(value)
    return _LENGTH.pack(len(encoded)) + encoded


def _next_piece(view: memoryview) -> tuple[memoryview, memoryview]:
    if len(view) < _LENGTH.size:
        raise BadAnswer("the answer ends early")
    (size,) = _LENGTH.unpack_from(view)
    rest = view[_LENGTH.size :]
    if len(rest) < size:
        raise BadAnswer(f"the answer ends early: {size} bytes announced, {len(rest)} there")
    return rest[:size], rest[size:]


def _tensors_size(tensors: tuple[TensorInfo, ...], max_bytes: int) -> int:
    size = 0
    for tensor in tensors:
        size += _TENSOR_BYTES + 4 * (len(tensor.name) + len(tensor.storage) + len(tensor.dtype))
        size += 9 * (len(tensor.shape) + len(tensor.stride))
        if size > max_bytes:
            raise AnswerTooLarge(f"the table of its {len(tensors)} tensors takes more than {max_bytes} bytes")
    return size


def _check_budget(value: object, max_bytes: int) -> None:
    """Walk without recursion: values may be nested as deep as memory allows, and shared many times over."""
    size = nodes = 0
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        nodes += 1
        size += 9
        if isinstance(item, str):
            size += len(item) if item.isascii() else 4 * len(item)
        elif isinstance(item, bytes):
            size += len(item)
        elif isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            stack.extend(item)
        elif isinstance(item, msgspec.Struct):
            stack.extend(item.__struct_fields__)
            stack.extend([getattr(item, name) for name in item.__struct_fields__])
        if nodes + len(stack) > MAX_NODES or size > max_bytes:
            raise AnswerTooLarge(f"{nodes + len(stack)} values, {size} bytes or more")
