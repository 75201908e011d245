"""What the service tells its manager: time that a start needs, life as long as the loop turns, a line that is true."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from ckptd.daemon.status import CatalogStatus, RootStatus, Status, VerifierStatus
from ckptd.daemon.supervision import feed_watchdog, patient_start, status_line, tell_status
from ckptd.daemon.systemd import Notifier

URL = "http://127.0.0.1:8765"


class Manager:
    """What systemd hears."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listener.bind(str(path))
        self.listener.settimeout(30)
        self.notifier = Notifier({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "30000"})

    def heard(self) -> list[str]:
        """The next message, waited for."""
        return self.listener.recv(4096).decode().split("\n")

    def heard_so_far(self) -> list[str]:
        """What has come meanwhile."""
        lines: list[str] = []
        self.listener.setblocking(False)
        try:
            while True:
                lines += self.heard()
        except BlockingIOError:
            self.listener.settimeout(30)
            return lines


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    with manager.listener:
        yield manager


def status(**changes: object) -> Status:
    """Of a healthy service."""
    return Status(**{"instance": "i", "revision": 7, "started_at": 0.0, "state": CatalogStatus.HEALTHY, **changes})  # type: ignore[arg-type]


def test_a_long_start_asks_for_more_time_again_and_again_until_it_is_ready(manager: Manager) -> None:
    with patient_start(manager.notifier, asked_s=0.01, extension_s=60):
        for _ in range(3):
            extension, said = manager.heard()
            assert extension == "EXTEND_TIMEOUT_USEC=60000000"
            assert said.startswith("STATUS=starting")
        manager.notifier.ready("serving")
    heard = manager.heard_so_far()
    assert heard[heard.index("READY=1") :] == ["READY=1", "STATUS=serving"]


def test_a_start_that_hangs_is_given_up(manager: Manager) -> None:
    """After its patience nothing is asked for any more: the manager's own limit ends it."""
    with patient_start(manager.notifier, asked_s=0.01, patience_s=0.03):
        for _ in range(3):
            assert manager.heard()[0].startswith("EXTEND_TIMEOUT_USEC=")
    assert manager.heard_so_far() == []


def test_a_short_start_asks_for_nothing(manager: Manager) -> None:
    with patient_start(manager.notifier, asked_s=3600):
        manager.notifier.ready("serving")
    assert manager.heard_so_far() == ["READY=1", "STATUS=serving"]


@pytest.mark.anyio
async def test_the_watchdog_is_fed_by_the_event_loop_and_not_while_it_hangs(manager: Manager) -> None:
    assert manager.notifier.watchdog_s == 0.03
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed_watchdog, manager.notifier)
        heard = 0
        with anyio.fail_after(30):
            while heard < 3:
                heard += manager.heard_so_far().count("WATCHDOG=1")
                await anyio.sleep(0.005)
        end = time.monotonic() + 0.2
        while time.monotonic() < end:  # a hang, six intervals long
            pass
        assert manager.heard_so_far() == []
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_the_status_line_is_sent_when_it_changes_and_only_then(manager: Manager) -> None:
    lines = iter(["a", "a", "a", "b", *["b"] * 10_000])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: tell_status(manager.notifier, lambda: next(lines), every_s=0.001))
        heard: list[str] = []
        with anyio.fail_after(30):
            while "STATUS=b" not in heard:
                heard += manager.heard_so_far()
                await anyio.sleep(0.002)
        tasks.cancel_scope.cancel()
    assert heard == ["STATUS=a", "STATUS=b"]


def test_the_status_line_says_how_much_is_served_where_and_what_is_being_done() -> None:
    quiet = status_line(status(checkpoint_count=1234), 3, URL)
    assert quiet == f"1,234 checkpoints at {URL}; 3 listeners; healthy"
    roots = (RootStatus(path="/a", online=True, watching=True, sweep_started_at=1.0),)
    assert status_line(status(roots=roots), 0, URL).endswith("; sweeping 1 of 1 root")
    assert status_line(status(roots=roots, pending=2000), 0, URL).endswith("; looking at 2,000 paths")
    verification = VerifierStatus(level="checksum", verifying="a/b.ckpt", queued=4)
    assert status_line(status(verification=verification), 0, URL).endswith("; verifying a/b.ckpt, 4 to go")


def test_the_status_line_gives_the_first_reason_for_bad_health() -> None:
    line = status_line(status(state=CatalogStatus.DEGRADED, reasons=("root /a is offline", "another")), 0, URL)
    assert "; degraded (root /a is offline, and 1 more)" in line
