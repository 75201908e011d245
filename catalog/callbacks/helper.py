"""The process beside a training that describes its checkpoints: Python's lock is shared by all threads of a process,
and a checkpoint takes some milliseconds of Python to describe, which a training thread would wait for.
"""

import contextlib
import os
import select
import struct
from typing import IO

import msgspec

from ckptd.validators.inspection import FileIdentity

from .facts import NotWritten, NotYet, Style, TrainingFacts, remove_facts, write_facts

_LENGTH = struct.Struct("<I")
_MAX_BYTES = 64 << 20
_PARENT_CHECK_S = 10.0
_NICENESS = 5
"""The training's own processes come first."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One checkpoint to describe, or whose sidecar is to be removed."""

    path: str
    style: Style
    facts: TrainingFacts | None = None
    """With plain numbers for metrics. None: the checkpoint was deleted."""
    previous: FileIdentity | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a task. With neither `not_yet` nor `kind` it is done."""

    not_yet: str | None = None
    kind: str | None = None
    """As `NotWritten.kind`, or the name of an errno or an exception."""
    message: str = ""


_task_decoder = msgspec.msgpack.Decoder(Task)
_outcome_decoder = msgspec.msgpack.Decoder(Outcome)


def carry_out(task: Task) -> Outcome:
    """Describe a checkpoint and write its sidecar, or remove it. Never raises: whatever goes wrong is the outcome."""
    try:
        if task.facts is None:
            remove_facts(task.path)
        else:
            write_facts(task.path, task.facts, task.style, previous=task.previous)
    except NotYet as problem:
        return Outcome(not_yet=str(problem))
    except NotWritten as problem:
        return Outcome(kind=problem.kind, message=str(problem))
    except OSError as error:
        what = "metadata of a deleted checkpoint was not removed" if task.facts is None else "no metadata was written"
        return Outcome(kind=f"errno {error.errno}", message=f"{what}: {task.path}: {error.strerror}")
    except Exception as error:  # noqa: BLE001 - the rim of one file
        return Outcome(kind=type(error).__name__, message=f"no metadata was written for {task.path}: {error!r}")
    return Outcome()


def send(stream: IO[bytes], message: Task | Outcome) -> None:
    """Write one message: its length, then msgpack. Raises OSError where nobody reads any more."""
    data = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive_outcome(stream: IO[bytes]) -> Outcome:
    """Read one outcome. Raises EOFError where the other side has ended, msgspec.DecodeError where it talks nonsense."""
    return _outcome_decoder.decode(_receive(stream))


def main() -> None:
    """Carry out tasks from standard input until it ends, or until the training has ended without closing it."""
    tasks, outcomes = open(0, "rb", buffering=0), open(os.dup(1), "wb")  # noqa: SIM115 - until the process ends
    os.dup2(2, 1)  # whatever is printed belongs to no message
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    parent = os.getppid()
    with contextlib.suppress(EOFError, BrokenPipeError):
        send(outcomes, Outcome())  # ready
        while _is_next(tasks, parent):
            send(outcomes, carry_out(_task_decoder.decode(_receive(tasks))))


def _is_next(tasks: IO[bytes], parent: int) -> bool:
    """Wait for a task. A forked DataLoader worker may keep the pipe open after the training was killed."""
    while not select.select([tasks], [], [], _PARENT_CHECK_S)[0]:
        if os.getppid() != parent:
            return False
    return True


def _receive(stream: IO[bytes]) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if length > _MAX_BYTES:
        raise EOFError(f"a message of {length} bytes")
    return _exactly(stream, length)


def _exactly(stream: IO[bytes], length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = stream.read(length - len(data))
        if not piece:
            raise EOFError("the other side has ended")
        data += piece
    return data


if __name__ == "__main__":
    main()
