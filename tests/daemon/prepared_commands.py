"""Runs of `ckptd` in processes that are forked from one which has imported all commands.

A run costs 0.4 s of CPU until the command begins, of which nothing is asked by most tests. What is forked is a process
of its own all the same, with its own descriptors, directory, environment, end and exit code. That a command imports
what it needs is shown by those tests that start it afresh.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_MOST = 1 << 17
"""Bytes of a request: arguments and environment."""


class Prepared:
    """The process that the others are forked from; one run at a time."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
            )
        atexit.register(self._end)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait(30)

    def run(
        self, command: Sequence[str], cwd: Path, environment: dict[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with `capture_output` and `text`.

        Raises:
            subprocess.TimeoutExpired: and the process was killed.
        """
        (out, out_theirs), (errors, errors_theirs) = os.pipe(), os.pipe()
        request = json.dumps([list(command), str(cwd), environment]).encode()
        with ThreadPoolExecutor(2) as readers:
            shown, told = readers.submit(_read_all, out), readers.submit(_read_all, errors)
            try:
                socket.send_fds(self._socket, [request], [out_theirs, errors_theirs])
            finally:
                os.close(out_theirs)
                os.close(errors_theirs)
            status = self._status(command, timeout_s)
        return subprocess.CompletedProcess(list(command), status, shown.result(), told.result())

    def _status(self, command: Sequence[str], timeout_s: float) -> int:
        pid = int(self._socket.recv(64))
        self._socket.settimeout(timeout_s)
        try:
            status = int(self._socket.recv(64))
        except BaseException as error:  # the time-out of the test, too: the next run is to read its own answers
            os.kill(pid, signal.SIGKILL)
            prepared.cache_clear()
            atexit.unregister(self._end)
            self._end()
            if isinstance(error, TimeoutError):
                raise subprocess.TimeoutExpired(list(command), timeout_s) from None
            raise
        self._socket.settimeout(None)
        return status


def _read_all(descriptor: int) -> str:
    with open(descriptor, encoding="utf-8") as file:
        return file.read()


@functools.cache
def prepared() -> Prepared:
    """The one of this process, started when it is first asked for."""
    return Prepared()


# ---- in the process that is forked from ----------------------------------------------------------------------------


def _serve(requests: socket.socket) -> None:
    """Fork for each request; returns in the fork, which stands as if it had been started so, or ends."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _MOST, 2)
        if not message:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            requests.close()
            _become(*json.loads(message), *descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(str(pid).encode())
        requests.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def _become(command: list[str], cwd: str, environment: dict[str, str], out: int, errors: int) -> None:
    os.dup2(out, 1)
    os.dup2(errors, 2)
    os.close(out)
    os.close(errors)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command


if __name__ == "__main__":
    from ckptd.daemon import cli

    for _name in cli.COMMANDS:
        if _name != "serve":
            importlib.import_module(f"ckptd.daemon.commands.{_name}")
    for _name in ("anyio._backends._asyncio", "ckptd.daemon.workers"):  # imported when they are needed
        importlib.import_module(_name)
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.exit(cli.main())
