"""The pool's side of one zygote: start it, send it work, hear how children ended, end it."""

import array
import errno
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence

import anyio
import msgspec

from .answers import MAX_MESSAGE_BYTES, Ended, FromZygote, Killed, Limits, Ready, Refused, ToZygote

ZYGOTE_COMMAND = (sys.executable, "-I", "-X", "utf8", "-W", "ignore", "-m", "ckptd.daemon.zygote")
"""Isolated: neither the environment, the working directory nor a user's site-packages reach it. Warnings are silent
because printing one imports modules."""

WEIGHTS_ZYGOTE_COMMAND = (*ZYGOTE_COMMAND[:-1], "ckptd.daemon.weights_zygote")
"""The same with torch loaded, for level `weights`: a second and 200 MB more."""

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0

_CHANNEL = 3
"""Descriptor of the socket in the zygote; 0 to 2 are the standard streams."""


class ZygoteError(RuntimeError):
    """Raised when a zygote cannot be started. The message ends with what it said on stderr."""


class ZygoteGone(Exception):
    """Raised when the zygote ended before a message could be sent."""


class ZygoteProcess:
    """One running zygote. Made by `start_zygote`; `aclose` ends it and every child of it."""

    def __init__(self, pid: int, channel: socket.socket, stderr: int) -> None:
        self.pid = pid
        self.sandbox = "unknown"
        self._channel = channel
        self._stderr = stderr
        self._process = os.pidfd_open(pid)
        self._decoder = msgspec.msgpack.Decoder(FromZygote)
        self._sending = anyio.Lock()
        self._killed: set[int] = set()
        self._ends: dict[int, Ended | Refused] = {}
        self._waiting: dict[int, anyio.Event] = {}
        self.gone = anyio.Event()
        """Set once the zygote's end of the socket is closed."""

    async def send(self, compose: Callable[[], tuple[ToZygote, list[int]]]) -> None:
        """Send the message that `compose` makes once there is room; its descriptors are duplicated into the zygote.

        Raises:
            ZygoteGone: there is nobody to send it to.
        """
        async with self._sending:
            while True:
                message, descriptors = compose()
                control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
                try:
                    self._channel.sendmsg([msgspec.msgpack.encode(message)], control)
                    return
                except BlockingIOError:
                    await anyio.wait_writable(self._channel)
                except OSError as error:
                    if error.errno != errno.ETOOMANYREFS:  # too many descriptors on their way (unix(7))
                        raise ZygoteGone from error
                    await anyio.sleep(0.01)

    async def listen(self) -> None:
        """Take in what the zygote says until it ends."""
        try:
            while (message := await self._receive()) is not None:
                if isinstance(message, Killed):
                    self._killed.add(message.batch)
                elif isinstance(message, Ended | Refused) and message.batch in self._waiting:
                    self._ends[message.batch] = message
                    self._waiting.pop(message.batch).set()
        finally:
            self.gone.set()
            for event in self._waiting.values():
                event.set()

    def expect(self, batch: int) -> None:
        """Remember how the child of `batch` ends, from now until it is told or forgotten."""
        self._waiting[batch] = anyio.Event()

    async def end_of(self, batch: int) -> Ended | Refused | None:
        """Wait until the child of `batch` was reaped; None if the zygote ended first."""
        if batch in self._waiting and not self.gone.is_set():
            await self._waiting[batch].wait()
        return self._ends.get(batch)

    def forget(self, batch: int) -> None:
        """Drop everything that is kept about `batch`."""
        self._waiting.pop(batch, None)
        self._ends.pop(batch, None)
        self._killed.discard(batch)

    def has_killed(self, batch: int) -> bool:
        """Whether the zygote has said that it sent the signal; proof that it is not stuck itself."""
        return batch in self._killed

    def kill(self) -> None:
        """End the zygote at once; the kernel ends its children with it."""
        if not self.gone.is_set():
            signal.pidfd_send_signal(self._process, signal.SIGKILL)

    async def aclose(self) -> None:
        """Kill and reap the zygote."""
        with anyio.CancelScope(shield=True):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)  # also one that closed its socket and lives on
            with anyio.move_on_after(END_TIMEOUT_S):  # a process that hangs in the kernel stays behind, for init
                await anyio.wait_readable(self._process)
                os.waitpid(self.pid, 0)  # noqa: ASYNC222 - it has ended: this only collects its status
        os.close(self._process)
        os.close(self._stderr)
        self._channel.close()

    async def wait_until_ready(self) -> None:
        """Wait for the imports to be done.

        Raises:
            ZygoteError: it ended instead, or took longer than `START_TIMEOUT_S`.
        """
        message: FromZygote | None = None
        with anyio.move_on_after(START_TIMEOUT_S):
            message = await self._receive()
        if not isinstance(message, Ready):
            said = os.pread(self._stderr, 1 << 16, 0).decode("utf-8", "replace").strip()[-2000:]
            raise ZygoteError(f"the process that parses checkpoints did not start: {said or 'it said nothing'}")
        self.sandbox = message.sandbox

    async def _receive(self) -> FromZygote | None:
        while True:
            try:
                data = self._channel.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._channel)
                continue
            except OSError:
                return None
            return self._decoder.decode(data) if data else None


async def start_zygote(command: Sequence[str], limits: Limits) -> ZygoteProcess:
    """Start a zygote and wait until it can fork; see `launch_zygote`.

    Raises:
        ZygoteError: it does not start.
    """
    return await adopt_zygote(launch_zygote(command, limits))


def launch_zygote(command: Sequence[str], limits: Limits) -> ZygoteProcess:
    """Start a zygote without waiting for it: its imports then run beside ours. `adopt_zygote` follows.

    Call it on a thread that lives as long as the service: the kernel's parent-death signal follows the *thread* that
    started the process (prctl(2)). Blocks for about a millisecond (vfork until exec).

    Raises:
        ZygoteError: the command cannot be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stderr = os.memfd_create("ckptd-zygote-stderr")
    try:
        with theirs:
            pid = _spawn(
                [*command, str(_CHANNEL), str(os.getpid()), msgspec.json.encode(limits).decode()], theirs, stderr
            )
    except OSError as error:
        ours.close()
        os.close(stderr)
        raise ZygoteError(f"{command[0]} cannot be started: {error.strerror}") from error
    ours.setblocking(False)
    return ZygoteProcess(pid, ours, stderr)


async def adopt_zygote(zygote: ZygoteProcess) -> ZygoteProcess:
    """Wait until a launched zygote can fork.

    Raises:
        ZygoteError: it ended instead; it is reaped.
    """
    try:
        await zygote.wait_until_ready()
    except BaseException:
        await zygote.aclose()
        raise
    return zygote


def _spawn(arguments: list[str], channel: socket.socket, stderr: int) -> int:
    """Environment empty; a process group of its own, so that Ctrl-C in a terminal reaches the service alone."""
    # The sources of both copies must survive them: lift them above the targets first.
    lifted = [_lift(descriptor) for descriptor in (channel.fileno(), stderr)]
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, lifted[1], 2),
            (os.POSIX_SPAWN_DUP2, lifted[0], _CHANNEL),
        ]
        return os.posix_spawn(arguments[0], arguments, {}, file_actions=actions, setpgroup=0)
    finally:
        for descriptor in lifted:
            os.close(descriptor)


def _lift(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _CHANNEL + 1)
