"""Listening: what is taken, stale or not permitted is told apart and said plainly."""

import fcntl
import os
import pathlib
import shutil
import socket
import stat
import subprocess
import sys
import tempfile

import pytest

from ckptd.daemon import sockets
from ckptd.daemon.settings import Settings
from ckptd.daemon.settings_loader import load_settings


def _settings(state: pathlib.Path, **flags: object) -> Settings:
    state.mkdir(exist_ok=True)
    return load_settings({"port": 0, "state_dir": str(state), "roots": (str(state),)} | flags, env={})


def _close(listeners: sockets.Listeners) -> None:
    for listener in listeners.sockets:
        listener.close()


def test_port_0_takes_a_free_port_and_tells_it_in_the_port_file(tmp_path: pathlib.Path) -> None:
    port_file = tmp_path / "port"
    listeners = sockets.bind(_settings(tmp_path / "state", port_file=str(port_file)), {})
    try:
        assert int(port_file.read_text()) == listeners.port
        assert listeners.url == f"http://127.0.0.1:{listeners.port}"
        socket.create_connection(("127.0.0.1", listeners.port or 0)).close()
    finally:
        _close(listeners)


def test_a_taken_port_is_named_with_the_remedy(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(sockets.BindError, match=rf"127\.0\.0\.1:{port} is taken .* choose another --port"):
            sockets.bind(_settings(tmp_path / "state", port=port), {})


def test_an_unknown_host_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(sockets.BindError, match=r"192\.0\.2\.1"):
        sockets.bind(_settings(tmp_path / "state", host="192.0.2.1"), {})


def test_the_state_socket_is_for_its_owner_alone(tmp_path: pathlib.Path) -> None:
    settings = _settings(tmp_path / "state")
    listeners = sockets.bind(settings, {})
    path = tmp_path / "state" / sockets.STATE_SOCKET
    try:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    finally:
        _close(listeners)
    sockets.remove_unix_sockets(listeners)
    assert not path.exists()


def test_a_socket_left_over_by_a_killed_process_is_replaced_and_a_living_one_is_not(tmp_path: pathlib.Path) -> None:
    settings = _settings(tmp_path / "state")
    _close(sockets.bind(settings, {}))  # leaves the file behind, as a kill does
    listeners = sockets.bind(settings, {})
    try:
        with pytest.raises(sockets.BindError, match="another process listens"):
            sockets.bind(settings, {})
    finally:
        _close(listeners)


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: pathlib.Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    with pytest.raises(sockets.BindError, match="not a socket"):
        sockets.bind(_settings(tmp_path / "state", uds=str(precious)), {})
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("setting", ["uds", "state_dir"])
def test_a_path_that_is_too_long_for_a_socket_is_named_with_its_length_and_the_limit(
    setting: str, tmp_path: pathlib.Path
) -> None:
    """One byte less is taken."""
    directory = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        name = "/" + sockets.STATE_SOCKET if setting == "state_dir" else ""
        for surplus in (0, 1):
            place = f"{directory}/{'x' * (sockets.MAX_PATH_BYTES - len(f'{directory}/{name}') + surplus)}"
            given = {"state_dir": str(tmp_path / "s"), setting: place}
            settings = load_settings({"port": 0, "roots": (str(tmp_path),)} | given, env={})
            for made in {settings.state_dir, os.path.dirname(place)}:
                os.makedirs(made, exist_ok=True)
            if not surplus:
                _close(sockets.bind(settings, {}))
                continue
            flag = setting.replace("_", "-")
            said = (
                f"{setting}: the Unix socket {place}{name} would have a path of 108 bytes, .* takes 107; .* --{flag}$"
            )
            with pytest.raises(sockets.BindError, match=said):
                sockets.bind(settings, {})
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"uds": "nowhere/ckptd.sock"},
            r"^uds: .*nowhere/ckptd\.sock \(No such file or directory\); make its directory",
        ),
        ({"port_file": "nowhere/port"}, r"^port_file: .*nowhere/port cannot be written .*; name one where"),
        ({"host": "192.0.2.1"}, r"^host: cannot listen on 192\.0\.2\.1:0 .*; choose another --host or --port$"),
    ],
)
def test_what_cannot_be_listened_on_is_told_without_numbers_of_errors(
    given: dict[str, str], says: str, tmp_path: pathlib.Path
) -> None:
    given = {name: str(tmp_path / value) if "/" in value else value for name, value in given.items()}
    with pytest.raises(sockets.BindError, match=says):
        sockets.bind(_settings(tmp_path / "state", **given), {})


def test_sockets_of_socket_activation_are_taken_over(tmp_path: pathlib.Path) -> None:
    # the descriptors start at 3, which is in use here: the hand-over itself is tested with systemd.listen_fds
    listeners = sockets.bind(_settings(tmp_path / "state"), {"LISTEN_PID": "1", "LISTEN_FDS": "1"})
    try:
        assert listeners.port is not None
    finally:
        _close(listeners)


_HANDED_OVER = """
import os, socket, sys
from ckptd.daemon import sockets
from ckptd.daemon.settings_loader import load_settings
settings = load_settings({"state_dir": sys.argv[1], "roots": (sys.argv[1],), "port": 1234}, env={})
env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
listeners = sockets.bind(settings, env)
web, state = listeners.sockets
assert listeners.handed_over and listeners.made == (), listeners
assert sockets.overruled_settings(settings, listeners) == ["port=1234"]
assert web.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == sockets.USER_TIMEOUT_MS
assert web.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
assert state.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * sockets.SEND_BUFFER_BYTES  # as socket(7) says
sockets.remove_unix_sockets(listeners)
"""


def test_sockets_from_systemd_are_set_up_like_our_own_and_their_files_are_left_alone(tmp_path: pathlib.Path) -> None:
    """One of them is even the state's own socket; a port that the settings ask for in vain is named."""
    path = str(tmp_path / sockets.STATE_SOCKET)
    with socket.create_server(("127.0.0.1", 0)) as web, socket.socket(socket.AF_UNIX) as state:
        state.bind(path)
        state.listen()
        # Above the targets first: one of them may be in the place where the other has to go.
        lifted = [fcntl.fcntl(given.fileno(), fcntl.F_DUPFD, 10) for given in (web, state)]
        moves = "".join(f"os.dup2({fd}, {target}); " for fd, target in zip(lifted, (3, 4), strict=True))
        try:
            subprocess.run(
                [sys.executable, "-c", f"import os; {moves}\n{_HANDED_OVER}", str(tmp_path)],
                pass_fds=lifted,
                check=True,
                timeout=60,
            )
        finally:
            for fd in lifted:
                os.close(fd)
    assert stat.S_ISSOCK(os.stat(path).st_mode)


@pytest.mark.parametrize(("given", "mode"), [({}, 0o600), ({"uds_mode": "660"}, 0o660), ({"uds_mode": "0666"}, 0o666)])
def test_the_mode_of_the_socket_is_what_is_set_and_the_state_socket_stays_its_owner_s(
    given: dict[str, str], mode: int, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "ckptd.sock"
    previous = os.umask(0)
    try:
        listeners = sockets.bind(_settings(tmp_path / "state", uds=str(path), **given), {})
    finally:
        os.umask(previous)
    try:
        assert stat.S_IMODE(os.stat(path).st_mode) == mode
        assert stat.S_IMODE(os.stat(tmp_path / "state" / sockets.STATE_SOCKET).st_mode) == 0o600
    finally:
        _close(listeners)


@pytest.mark.parametrize("mode", [660, 0o660, "rw-rw----", "1777", "888"])
def test_a_mode_that_may_be_misread_is_refused_with_the_remedy(mode: object, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="uds_mode"):
        _settings(tmp_path / "state", uds_mode=mode)


def test_a_link_in_place_of_the_socket_is_never_followed_nor_removed(tmp_path: pathlib.Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    link = tmp_path / "link.sock"
    link.symlink_to(precious)
    with pytest.raises(sockets.BindError, match="not a socket"):
        sockets.bind(_settings(tmp_path / "state", uds=str(link)), {})
    assert link.is_symlink()
    assert precious.read_text() == "mine"


_CUT_OFF = """
import errno, os, select, socket, subprocess, sys
from ckptd.daemon import sockets
from ckptd.daemon.settings_loader import load_settings
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
sockets.USER_TIMEOUT_MS = 1_000
settings = load_settings({"state_dir": sys.argv[1], "roots": (sys.argv[1],), "port": 0}, env={})
listener = sockets.bind(settings, {}).sockets[0]
listener.setblocking(True)
client = socket.create_connection(listener.getsockname())
connection, _ = listener.accept()
subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
connection.send(b"are you there?")
poll = select.poll()
poll.register(connection, select.POLLERR)
noticed = poll.poll(60_000)
error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
print("noticed" if noticed and error in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH) else error)
"""


@pytest.mark.root
@pytest.mark.slow
def test_a_peer_that_cannot_be_reached_any_more_is_noticed(tmp_path: pathlib.Path) -> None:
    """TCP_USER_TIMEOUT, inherited by the connection; without it, the kernel tries for a quarter of an hour."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare and ip")
    command = ["unshare", "--net", sys.executable, "-c", _CUT_OFF, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if "unshare failed" in done.stderr:
        pytest.skip(f"no network namespaces here: {done.stderr}")
    assert done.stdout == "noticed\n", done.stderr
