"""systemd: datagrams that it understands, and sockets that it hands over."""

import os
import socket
import subprocess
import sys
import uuid

import pytest

from ckptd.daemon.systemd import Notifier, listen_fds


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A service manager's socket and its address as NOTIFY_SOCKET says it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(5)
        name = f"@ckptd-test-{uuid.uuid4()}" if request.param == "abstract" else str(tmp_path / "notify")
        listener.bind("\0" + name[1:] if name.startswith("@") else name)
        yield listener, name


def received(listener: socket.socket) -> list[str]:
    return listener.recv(4096).decode().split("\n")


def test_each_message_arrives_as_systemd_spells_it(manager):
    listener, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    assert notifier.active
    assert notifier.ready("serving 3 checkpoints")
    assert received(listener) == ["READY=1", "STATUS=serving 3 checkpoints"]
    notifier.status("sweeping")
    assert received(listener) == ["STATUS=sweeping"]
    notifier.watchdog()
    assert received(listener) == ["WATCHDOG=1"]
    notifier.stopping()
    assert received(listener)[0] == "STOPPING=1"
    notifier.reloading()
    reloading, at = received(listener)
    assert reloading == "RELOADING=1"
    assert at.startswith("MONOTONIC_USEC=")
    assert at.partition("=")[2].isdecimal()


def test_a_status_cannot_smuggle_in_another_assignment(manager):
    listener, name = manager
    Notifier({"NOTIFY_SOCKET": name}).status("x\nMAINPID=1")
    assert received(listener) == ["STATUS=x MAINPID=1"]


@pytest.mark.parametrize("env", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}])
def test_without_a_manager_nothing_is_sent(env):
    notifier = Notifier(env)
    assert not notifier.active
    assert not notifier.ready("x")


def test_a_manager_that_went_away_is_no_error(tmp_path):
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")


def test_the_watchdog_interval_is_read_in_seconds_and_only_when_meant_for_this_process(tmp_path):
    env = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "30000000"}
    assert Notifier(env).watchdog_s == 30
    assert Notifier(env | {"WATCHDOG_PID": str(os.getpid())}).watchdog_s == 30
    assert Notifier(env | {"WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier(env | {"WATCHDOG_USEC": "soon"}).watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_s is None


_ACTIVATED = """
import os
from ckptd.daemon.systemd import listen_fds
os.environ["LISTEN_PID"] = str(os.getpid())
(listener,) = listen_fds(os.environ)
assert not [name for name in os.environ if name.startswith("LISTEN_")]
assert not os.get_inheritable(listener.fileno())
listener.setblocking(True)
connection, _ = listener.accept()
connection.sendall(b"hello")
"""


def test_a_socket_handed_over_by_systemd_serves():
    """A child that got a listener as descriptor 3 accepts on it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = subprocess.Popen(
            [sys.executable, "-c", f"import os; os.dup2({listener.fileno()}, 3)\n{_ACTIVATED}"],
            pass_fds=[listener.fileno()],
            env=os.environ | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "ckptd.socket"},
        )
        with socket.create_connection(listener.getsockname(), timeout=20) as connection:
            assert connection.recv(16) == b"hello"
        assert child.wait(20) == 0


def test_a_descriptor_that_does_not_listen_is_refused():
    """The message names the descriptor."""
    code = _ACTIVATED.replace("(listener,) = ", "")
    with socket.socket() as idle:
        child = subprocess.run(
            [sys.executable, "-c", f"import os; os.dup2({idle.fileno()}, 3)\n{code}"],
            pass_fds=[idle.fileno()],
            env=os.environ | {"LISTEN_FDS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    assert child.returncode != 0
    assert "descriptor 3" in child.stderr


@pytest.mark.parametrize(
    "env", [{}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())}]
)
def test_without_socket_activation_for_this_process_nothing_is_taken_over(env):
    assert listen_fds(dict(env)) == []
