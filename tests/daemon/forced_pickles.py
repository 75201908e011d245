"""A job that does what ckptd never does: it really unpickles the file. What a child may do then, the walls decide.

Everything that the pickles call is imported before the walls stand, so that it is the call itself that is refused.
"""

import ctypes
import os
import pathlib
import pickle
import resource
import signal
import socket
import subprocess  # noqa: F401 - for the pickles
import sys
import threading
from typing import NoReturn

from ckptd.catalog.description import CheckpointMetadata, DescribeRequest, Description, OpenedFiles
from ckptd.daemon import weights_zygote, zygote
from ckptd.validators.inspection import Inspection, Level
from ckptd.validators.reader import FileReader

REPOSITORY = str(pathlib.Path(__file__).resolve().parents[2])
_PYTHON = (sys.executable, "-I", "-X", "utf8", "-W", "ignore", "-c")
_IMPORT = f"import sys; sys.path.insert(0, {REPOSITORY!r}); from tests.daemon import forced_pickles; forced_pickles."
COMMAND = (*_PYTHON, _IMPORT + "serve()")
"""Starts a zygote whose children unpickle what they are given."""
WEIGHTS_COMMAND = (*_PYTHON, _IMPORT + "serve_with_torch()")
"""The same with torch."""
LIBC = ctypes.CDLL(None, use_errno=True)


def serve() -> NoReturn:
    """What `COMMAND` runs."""
    zygote.main(run)


def serve_with_torch() -> NoReturn:
    """What `WEIGHTS_COMMAND` runs: the zygote of level `weights`, but for its job."""
    zygote.main(run, weights_zygote.preload, Level.WEIGHTS)


def run(request: DescribeRequest, files: OpenedFiles) -> Description:
    """Unpickle the file for real, and answer with what came of it."""
    reader = FileReader(files.checkpoint)
    data = reader.read(0, 1 << 20)
    came = pickle.loads(data) if data.startswith(b"\x80") else None
    return Description(
        inspection=Inspection(checkpoint_path=request.checkpoint_path, identity=reader.identity),
        findings=(),
        metadata=CheckpointMetadata(),
        config=repr(came),
    )


def call(name: str, *arguments: object) -> bytes:
    """A pickle that calls `module.function` with arguments: unpickling makes the call.

    By hand: the process of the tests may have other functions under these names.
    """
    module, _, function = name.rpartition(".")
    packed = pickle.dumps(arguments, 2)[2:-1]  # without PROTO and STOP
    return b"\x80\x02c" + f"{module}\n{function}\n".encode() + packed + b"R."


def connect(port: int) -> None:
    """Connect to a port of this machine."""
    socket.create_connection(("127.0.0.1", port), timeout=5).close()


def connect_unix(path: str) -> None:
    """Connect to a socket in the file system."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def use_threads_of_torch() -> None:
    """Have torch start its pool of threads, which it does at the first large operation that may use two."""
    torch = sys.modules["torch"]
    torch.set_num_threads(2)
    torch.ones(1 << 22).add_(1).sum().item()


def share_by_torch() -> None:
    """Have torch move a tensor into shared memory, which it makes a file for."""
    sys.modules["torch"].ones(100).share_memory_()


def start_thread() -> None:
    """Start a thread."""
    threading.Thread(target=print).start()


def libc(name: str, *arguments: int) -> int:
    """Call the C library, past Python."""
    return int(getattr(LIBC, name)(*arguments))


def attacks(canary: pathlib.Path, victim: int, port: int, uds: pathlib.Path) -> dict[str, bytes]:
    """Pickles that do harm when they are unpickled.

    Args:
        canary: a file that is there; harm to it shows.
        victim: the process that is to be signalled and limited: the pool's own.
        port: where somebody listens.
        uds: the same as a file.
    """
    made = str(canary) + ".made"
    return {
        "shell": call("os.system", f"touch {made}"),
        "subprocess": call("subprocess.check_call", ["touch", made]),
        "write": call("io.open", made, "w"),
        "read": call("io.open", str(canary)),
        "read own memory": call("io.open", "/proc/self/mem", "rb"),
        "list": call("os.listdir", "/"),
        "unlink": call("os.unlink", str(canary)),
        "rename": call("os.rename", str(canary), made),
        "link": call("os.symlink", "/etc/passwd", made),
        "chmod": call("os.chmod", str(canary), 0o777),
        "chdir": call("os.chdir", "/tmp"),
        "connect": call("tests.daemon.forced_pickles.connect", port),
        "connect unix": call("tests.daemon.forced_pickles.connect_unix", str(uds)),
        "socket pair": call("socket.socketpair"),
        "fork": call("os.fork"),
        "thread": call("tests.daemon.forced_pickles.start_thread"),
        "execute": call("os.execv", "/usr/bin/touch", ["touch", made]),
        "kill the daemon": call("os.kill", victim, int(signal.SIGKILL)),
        "kill everybody": call("os.kill", -1, 0),
        "limit the daemon": call("resource.prlimit", victim, resource.RLIMIT_NOFILE, (16, 16)),
        "raise its own limit": call("resource.setrlimit", resource.RLIMIT_NOFILE, (64, 64)),
        "memory file": call("os.memfd_create", "code"),
        "priority": call("os.setpriority", os.PRIO_PROCESS, victim, 19),
        "ptrace": call("tests.daemon.forced_pickles.libc", "ptrace", 16, victim, 0, 0),
        "read the daemon": call("tests.daemon.forced_pickles.libc", "process_vm_readv", victim, 0, 0, 0, 0, 0),
        "namespace": call("tests.daemon.forced_pickles.libc", "unshare", 0x10000000),
        "keyring": call(
            "tests.daemon.forced_pickles.libc", "syscall", 250 if os.uname().machine == "x86_64" else 219, 0, 0, 0, 0, 0
        ),
    }


def attacks_by_torch(canary: pathlib.Path) -> dict[str, bytes]:
    """More of them, by what is there where torch is loaded. Arguments as of `attacks`."""
    made = str(canary) + ".made"
    return {
        "threads of torch": call("tests.daemon.forced_pickles.use_threads_of_torch"),
        "shared memory of torch": call("tests.daemon.forced_pickles.share_by_torch"),
        "load by torch": call("torch.serialization.load", str(canary)),
        "save by torch": call("torch.serialization.save", 1, made),
        "map by torch": call("torch.from_file", str(canary), True, 1),
        "a library": call("ctypes.CDLL", str(canary)),
    }
