"""Jobs for the worker pool that do on purpose what a file must never make a child do; the file's text says which.

The zygote of these tests is the real one; only the job that its children run is this module's.
"""

import contextlib
import ctypes
import mmap
import os
import pathlib
import resource
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from ckptd.catalog.description import CheckpointMetadata, DescribeRequest, Description, OpenedFiles
from ckptd.daemon import zygote
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.inspection import Inspection, TensorInfo
from ckptd.validators.reader import FileReader

REPOSITORY = str(pathlib.Path(__file__).resolve().parents[2])
COMMAND = (
    *(sys.executable, "-I", "-X", "utf8", "-W", "ignore", "-c"),
    f"import sys; sys.path.insert(0, {REPOSITORY!r}); from tests.daemon.worker_jobs import serve; serve()",
)
"""Starts a zygote whose children run `run`."""


def serve() -> NoReturn:
    """What `COMMAND` runs."""
    zygote.main(run)


def run(request: DescribeRequest, files: OpenedFiles) -> Description:
    """Do what the checkpoint's first word says, with the second word as its argument."""
    reader = FileReader(files.checkpoint)
    word, _, argument = reader.read(0, 100).decode("ascii").partition(" ")
    done = _JOBS[word](argument, files) if word in _JOBS else None
    tensors = tuple(_tensor(index) for index in range(int(argument))) if word == "tensors" else ()
    config = done if files.config is None else FileReader(files.config).read(0, 100).decode()
    return Description(
        inspection=Inspection(checkpoint_path=request.checkpoint_path, identity=reader.identity, tensors=tensors),
        findings=(),
        metadata=CheckpointMetadata(),
        config=config,
        user={os.fsdecode(b): FileReader(fd).size for b, fd in zip(request.sidecar_names, files.sidecars, strict=True)},
    )


def _tensor(index: int) -> TensorInfo:
    return TensorInfo(
        name=f"state_dict.layer.{index}.weight",
        dtype="float32",
        shape=(3, index),
        stride=(index, 1),
        storage=str(index),
        storage_offset=0,
        nbytes=12 * index,
        role="weights",
    )


def _crash(_argument: str, _files: OpenedFiles) -> object:
    return ctypes.string_at(0)


def _hang(_argument: str, _files: OpenedFiles) -> NoReturn:
    while True:
        pass


def _wait(_argument: str, files: OpenedFiles) -> object:
    """Until the test writes something else into the file."""
    while os.pread(files.checkpoint, 4, 0) == b"wait":
        pass
    return "waited"


def _eat(_argument: str, _files: OpenedFiles) -> object:
    pieces: list[bytes] = []
    while True:
        pieces.append(b"x" * (1 << 20))


def _deny_memory(_argument: str, _files: OpenedFiles) -> object:
    """As `_eat`, down to the last small object."""
    chain: object = None
    while True:
        chain = (chain, bytearray(64))


def _exit(argument: str, _files: OpenedFiles) -> NoReturn:
    os._exit(int(argument))


def _raise(argument: str, _files: OpenedFiles) -> NoReturn:
    raise KeyError(argument + "\ud800")


def _changed(argument: str, _files: OpenedFiles) -> NoReturn:
    raise Changed(argument)


def _unreadable(argument: str, _files: OpenedFiles) -> NoReturn:
    raise Unreadable(argument, 5)


def _garbage(argument: str, files: OpenedFiles) -> NoReturn:
    """Say that an answer is there, and have written something else. The descriptors precede the checkpoint's."""
    data = bytes.fromhex(argument)
    os.write(files.checkpoint - 2, data)
    os.write(files.checkpoint - 1, zygote.PROGRESS.pack(len(data)))
    os._exit(0)


def _forge_length(argument: str, files: OpenedFiles) -> NoReturn:
    os.write(files.checkpoint - 1, zygote.PROGRESS.pack(int(argument)))
    os._exit(0)


def _flood(_argument: str, files: OpenedFiles) -> NoReturn:
    """Write into the memory file until something stops it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    while True:
        os.write(files.checkpoint - 2, b"x" * (1 << 20))


def _large(argument: str, _files: OpenedFiles) -> object:
    return "x" * int(argument)


def _many(argument: str, _files: OpenedFiles) -> object:
    """A few lists that are shared so often that they are 2 ** argument values on the wire."""
    value: list[object] = [1, 1]
    for _ in range(int(argument)):
        value = [value, value]
    return value


def _deep(argument: str, _files: OpenedFiles) -> object:
    value: list[object] = []
    for _ in range(int(argument)):
        value = [value]
    return value


def _descriptors(_argument: str, _files: OpenedFiles) -> object:
    """What is open here."""
    found = []
    for descriptor in range(256):
        with contextlib.suppress(OSError):
            mode = os.fstat(descriptor).st_mode
            found.append("/dev/null" if stat.S_ISCHR(mode) else "pipe" if stat.S_ISFIFO(mode) else "file")
    return found


def _exec_memory(_argument: str, _files: OpenedFiles) -> object:
    return mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def _raw(number: int) -> Callable[[str, OpenedFiles], object]:
    return lambda _argument, _files: ctypes.CDLL(None).syscall(number, 0, 0, 0, 0)


_JOBS: dict[str, Callable[[str, OpenedFiles], object]] = {
    "crash": _crash,
    "hang": _hang,
    "wait": _wait,
    "eat": _eat,
    "deny": _deny_memory,
    "exit": _exit,
    "raise": _raise,
    "changed": _changed,
    "unreadable": _unreadable,
    "garbage": _garbage,
    "forge": _forge_length,
    "flood": _flood,
    "large": _large,
    "many": _many,
    "deep": _deep,
    "descriptors": _descriptors,
}

FORBIDDEN: dict[str, Callable[[str, OpenedFiles], object]] = {
    "open": lambda _a, _f: os.open("/etc/hostname", os.O_RDONLY),
    "create": lambda _a, _f: os.open("/tmp/ckptd-forbidden", os.O_WRONLY | os.O_CREAT),
    "stat": lambda _a, _f: os.stat("/etc/hostname"),
    "unlink": lambda _a, _f: os.unlink("/tmp/ckptd-forbidden"),
    "chmod": lambda _a, files: os.fchmod(files.checkpoint, 0o777),
    "truncate": lambda _a, files: os.ftruncate(files.checkpoint, 0),
    "socket": lambda _a, _f: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "fork": lambda _a, _f: os.fork(),
    "exec": lambda _a, _f: os.execv("/bin/true", ["true"]),
    "kill": lambda _a, _f: os.kill(os.getppid(), signal.SIGKILL),
    "killpg": lambda _a, _f: os.killpg(0, signal.SIGTERM),
    "prlimit": lambda _a, _f: resource.prlimit(1, resource.RLIMIT_NOFILE),
    "raise-limit": lambda _a, _f: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
    "dup": lambda _a, files: os.dup(files.checkpoint),
    "exec-memory": _exec_memory,
    "environ": lambda _a, _f: os.open("/proc/self/environ", os.O_RDONLY),
    "import": lambda _a, _f: __import__("xmlrpc.client"),
    "ptrace": _raw(101 if struct.calcsize("P") == 8 and os.uname().machine == "x86_64" else 117),
    "x32": _raw(0x40000000),
}
"""What code from a file could try; each needs a system call that parsing does not."""
_JOBS |= FORBIDDEN


@contextlib.contextmanager
def opened(
    path: pathlib.Path, text: str, *, config: str | None = None
) -> Iterator[tuple[DescribeRequest, OpenedFiles]]:
    """A real file that says `text`, opened and ready for the pool."""
    path.write_text(text)
    with contextlib.ExitStack() as stack:
        files = OpenedFiles(
            checkpoint=_open(path, stack),
            config=None if config is None else _open(_written(path.with_suffix(".yaml"), config), stack),
            owner=os.geteuid(),
        )
        yield DescribeRequest(checkpoint_path=str(path), relative_path=os.fsencode(path.name)), files


def _written(path: pathlib.Path, text: str) -> pathlib.Path:
    path.write_text(text)
    return path


def _open(path: pathlib.Path, stack: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    stack.callback(os.close, descriptor)
    return descriptor
