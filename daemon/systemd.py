"""What systemd and a service say to each other: readiness, watchdog, and sockets that were opened beforehand."""

import os
import socket
import threading
import time
from collections.abc import Mapping, MutableMapping

_FIRST_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)


class Notifier:
    """Sends `sd_notify(3)` messages to the service manager; does nothing where there is none."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """Read `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`; the environment is not read again."""
        self._address = _address(env.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(env) if self._address is not None else None
        """The manager kills the service when it hears nothing for so many seconds; None: it does not watch."""
        self.started = threading.Event()
        """Set once the service has said that it is ready."""

    @property
    def active(self) -> bool:
        """Whether a service manager listens."""
        return self._address is not None

    def ready(self, status: str) -> bool:
        """The service answers; `status` is what `systemctl status` shows."""
        self.started.set()
        return self.notify(READY="1", STATUS=status)

    def extend_start(self, seconds: float, status: str) -> bool:
        """The start goes on: `TimeoutStartSec=` is not to end it within so many seconds from now."""
        return self.notify(EXTEND_TIMEOUT_USEC=str(int(seconds * 1e6)), STATUS=status)

    def reloading(self) -> bool:
        """A reload has begun; `ready` ends it."""
        return self.notify(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))

    def stopping(self, status: str = "shutting down") -> bool:
        """The service drains and will end."""
        return self.notify(STOPPING="1", STATUS=status)

    def status(self, status: str) -> bool:
        """One line for `systemctl status`."""
        return self.notify(STATUS=status)

    def watchdog(self) -> bool:
        """The service is alive; send it at least twice per `watchdog_s`."""
        return self.notify(WATCHDOG="1")

    def notify(self, **fields: str) -> bool:
        """Send one datagram of `KEY=value` lines.

        Returns:
            Whether it was taken. A manager that does not listen is not an error of ours.
        """
        if self._address is None:
            return False
        message = "\n".join(f"{key}={' '.join(value.splitlines())}" for key, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagram:
                datagram.setblocking(False)
                datagram.sendto(message.encode("utf-8", "backslashreplace"), self._address)
        except OSError:
            return False
        return True


def listen_fds(env: MutableMapping[str, str], pid: int | None = None) -> list[socket.socket]:
    """Take over the sockets of socket activation, `sd_listen_fds(3)`, once.

    The variables are removed from `env`, so that no child believes that they are its own.

    Returns:
        Listening stream sockets, not inheritable, non-blocking; empty without socket activation.

    Raises:
        OSError: a descriptor that was announced is not a listening stream socket.
    """
    announced_pid, announced = env.pop("LISTEN_PID", ""), env.pop("LISTEN_FDS", "")
    env.pop("LISTEN_FDNAMES", None)
    own_pid = os.getpid() if pid is None else pid
    if not announced.isdecimal() or announced_pid != str(own_pid):
        return []
    sockets: list[socket.socket] = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(announced)):
        os.set_inheritable(fd, False)
        listener = socket.socket(fileno=fd)
        if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(f"descriptor {fd} from socket activation is not a listening stream socket")
        listener.setblocking(False)
        sockets.append(listener)
    return sockets


def _address(given: str) -> str | bytes | None:
    if given.startswith("@"):
        return b"\0" + os.fsencode(given[1:])  # Linux's abstract namespace
    return given if given.startswith("/") else None


def _watchdog_s(env: Mapping[str, str]) -> float | None:
    microseconds = env.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    if env.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6
