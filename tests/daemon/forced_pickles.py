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
from ckptd.daemon import zygote
from ckptd.validators.inspection import Inspection
from ckptd.validators.reader import FileReader

REPOSITORY = str(pathlib.Path(__file__).resolve().parents[2])
COMMAND = (
    *(sys.executable, "-I", "-X", "utf8", "-W", "ignore", "-c"),
    f"import sys; sys.path.insert(0, {REPOSITORY!r}); from tests.daemon.forced_pickles import serve; serve()",
)
"""Starts a zygote whose children unpickle what they are given."""
LIBC = ctypes.CDLL(None, use_errno=True)


def serve() -> NoReturn:
    """What `COMMAND` runs."""
    zygote.main(run)


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
