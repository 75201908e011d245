"""Listening sockets: handed over by systemd, or bound here; always also one in the state directory for the commands."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import MutableMapping
from typing import NamedTuple

from .settings import Settings
from .systemd import listen_fds

STATE_SOCKET = "ckptd.sock"
"""In the state directory, which only its owner may enter: who reaches it is trusted."""

MAX_PATH_BYTES = 107
"""Of a Unix socket's path: `sun_path` holds 108, the last of which is a null byte (unix(7))."""
BACKLOG = 4096
"""Connections that the kernel completes for us while we are busy, as far as `net.core.somaxconn` lets it."""
KEEPALIVE_IDLE_S = 60
USER_TIMEOUT_MS = 30_000
"""Half-open peers are noticed within this time (tcp(7), TCP_USER_TIMEOUT; inherited from the listener)."""

_INTERNET = (socket.AF_INET, socket.AF_INET6)

SEND_BUFFER_BYTES = 256 * 1024
"""What the kernel holds for a reader that does not read; by default it is up to 4 MB each."""


class BindError(OSError):
    """Raised when an address cannot be listened on; says which, why and what to do. The command exits with 3."""


class Listeners(NamedTuple):
    """What the service listens on."""

    sockets: list[socket.socket]
    url: str
    """For people: where the first socket is reached."""
    port: int | None
    """Of the first TCP socket."""
    made: tuple[str, ...] = ()
    """Socket files that are ours to remove; those that systemd made are not."""
    handed_over: bool = False
    """By systemd: then `host`, `port` and `uds` of the settings did not count."""

    @property
    def addresses(self) -> list[str]:
        """Of the TCP sockets."""
        return [listener.getsockname()[0] for listener in self.sockets if listener.family in _INTERNET]


def bind(settings: Settings, env: MutableMapping[str, str]) -> Listeners:
    """Open every socket of the service, listening.

    Raises:
        BindError: an address is taken, unknown or not permitted.
    """
    opened: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        undo.callback(_close_all, opened)
        handed = listen_fds(env)
        opened += handed
        for listener in handed:
            _tune(listener)
        if not handed and settings.uds is None:
            opened.append(_bind_tcp(settings))
        given = {listener.getsockname() for listener in handed if listener.family == socket.AF_UNIX}
        ours = (None if handed else settings.uds, os.path.join(settings.state_dir, STATE_SOCKET))
        made = tuple(dict.fromkeys(path for path in ours if path is not None and path not in given))
        opened += (_bind_made(path, settings) for path in made)
        port = next((s.getsockname()[1] for s in opened if s.family in _INTERNET), None)
        if settings.port_file is not None and port is not None:
            _write_port_file(settings.port_file, port)
        undo.pop_all()
    return Listeners(opened, _url(settings, opened[0]), port, made, bool(handed))


def remove_unix_sockets(listeners: Listeners) -> None:
    """Remove the socket files that `bind` made."""
    for path in listeners.made:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def overruled_settings(settings: Settings, listeners: Listeners) -> list[str]:
    """Settings of where to listen that say otherwise than the sockets that systemd handed over, as `name=value`."""
    if not listeners.handed_over:
        return []
    names = {listener.getsockname() for listener in listeners.sockets if listener.family == socket.AF_UNIX}
    bound = {listener.getsockname()[:2] for listener in listeners.sockets if listener.family in _INTERNET}
    if settings.uds is not None:
        return [] if settings.uds in names else [f"uds={settings.uds}"]
    fields = type(settings).model_fields
    asked = [name for name in ("host", "port") if getattr(settings, name) != fields[name].default]
    return [] if (settings.host, settings.port) in bound else [f"{name}={getattr(settings, name)}" for name in asked]


def _close_all(opened: list[socket.socket]) -> None:
    for listener in opened:
        listener.close()


def _bind_tcp(settings: Settings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise BindError(
            f"host: {settings.host!r} is not an address of this machine ({error.strerror}); name one of its own"
        ) from error
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _tune(listener)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise BindError(_refusal(error, settings)) from error
    return listener


def _tune(listener: socket.socket) -> None:
    """What every connection inherits from its listener."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if listener.family in _INTERNET:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _refusal(error: OSError, settings: Settings) -> str:
    where = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return f"port: {where} is taken by another process; stop it, or choose another --port (0 takes a free one)"
    if error.errno == errno.EACCES:
        return f"port: {where} is not permitted to this user; choose a --port above 1023"
    return f"host: cannot listen on {where} ({error.strerror}); choose another --host or --port"


def _bind_made(path: str, settings: Settings) -> socket.socket:
    if path == settings.uds:
        return _bind_unix(path, int(settings.uds_mode, 8), "uds")
    return _bind_unix(path, 0o600, "state_dir")


def _bind_unix(path: str, mode: int, setting: str) -> socket.socket:
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise BindError(
            f"{setting}: the Unix socket {path} would have a path of {length} bytes, and the kernel takes "
            f"{MAX_PATH_BYTES}; choose a shorter --{setting.replace('_', '-')}"
        )
    _remove_stale(path, setting)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _tune(listener)
        previous = os.umask(~mode & 0o777)  # the socket must never exist with more rights, not even for a moment
        try:
            listener.bind(path)
        finally:
            os.umask(previous)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise BindError(f"{setting}: cannot listen on {path} ({error.strerror}); {_remedy(error, setting)}") from error
    return listener


def _remedy(error: OSError, setting: str) -> str:
    flag = setting.replace("_", "-")
    if error.errno == errno.ENOENT:
        return f"make its directory, or choose another --{flag}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"let this user write to its directory, or choose another --{flag}"
    return f"choose another --{flag}"


def _remove_stale(path: str, setting: str) -> None:
    """A socket file that nobody answers is left over from a killed process."""
    flag = setting.replace("_", "-")
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise BindError(f"{setting}: {path} exists and is not a socket; move it away, or choose another --{flag}")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as error:
            raise BindError(f"{setting}: {path} cannot be used ({error.strerror}); choose another --{flag}") from error
        else:
            raise BindError(f"{setting}: another process listens on {path}; stop it, or choose another --{flag}")


def _write_port_file(path: str, port: int) -> None:
    """Atomic: whoever waits for the file never reads half a number."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="ascii") as file:
            file.write(f"{port}\n")
        os.replace(temporary, path)
    except OSError as error:
        raise BindError(
            f"port_file: {path} cannot be written ({error.strerror}); name one where this user may write"
        ) from error


def _url(settings: Settings, listener: socket.socket) -> str:
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}{settings.root_path}"
