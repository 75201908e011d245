"""A real service under clients that mean harm: it keeps answering `/health` and the list, and ends in time."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.service.daemons import Daemon, eventually

DESCRIPTORS = 700
"""Few: the service keeps 512 for files, so that about 190 connections are left."""


class _Cramped(Daemon):
    """As `Daemon`, with few descriptors."""

    def launch(self) -> None:
        """See `Daemon`."""
        self.port_file.unlink(missing_ok=True)
        limit = f"import resource, os, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS},) * 2);"
        command = [sys.executable, "-c", limit + "os.execv(sys.executable, sys.argv[1:])", *self.command()]
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")


@pytest.fixture
def daemon(tmp_path: pathlib.Path) -> Iterator[Daemon]:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    with _Cramped(outputs, tmp_path / "state") as running:
        yield running


@contextlib.contextmanager
def clients(daemon: Daemon, count: int, first: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that send something and then neither read nor write."""
    port = int(daemon.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            client.settimeout(30)
            with contextlib.suppress(OSError):  # hung up on: as it should be
                client.connect(("127.0.0.1", port))
                client.sendall(first)
            opened.append(client)
        yield opened


def _lists(daemon: Daemon) -> bool:
    with contextlib.suppress(httpx.TransportError):  # beyond the reserve it hangs up
        return daemon.get("/checkpoints").status_code == 200
    return False


ATTACKS = {
    "silent": b"",
    "half a head": b"GET /checkpoints HTTP/1.1\r\nHost: localhost\r\nX-A: ",
    "half a body": b"POST /rebuild HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc",
    "stalled listeners": b"GET /checkpoints/events HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no http": os.urandom(64).replace(b"\n", b""),
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_more_clients_than_there_are_descriptors_keep_nobody_from_health_and_the_list_for_long(
    attack: str, daemon: Daemon
) -> None:
    """While they are there `/health` is answered; the list as soon as their time is over, or they have gone."""
    with clients(daemon, DESCRIPTORS + 100, ATTACKS[attack]):
        eventually(daemon.is_up, "/health is answered meanwhile")
        if attack != "stalled listeners":  # whose connections are in use, and stay
            eventually(lambda: _lists(daemon), "the list is answered meanwhile")
    eventually(lambda: _lists(daemon), "the list is answered afterwards")
    assert len(daemon.log()) < 200_000, "the log is bounded"
    assert daemon.stop() == 0
