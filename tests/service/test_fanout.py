"""Many listeners of one real daemon: all come back after a restart, and what some of them do harms no other."""

import pathlib
import signal
import socket

import pytest

from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import DEADLINE_S, Daemon, eventually
from tests.service.swarms import Swarm

HALF_A_REQUEST = b"GET /checkpoints/events HTTP/1.1\r\nHost: 127.0.0.1\r\nX-"


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "outputs"
    path.mkdir()
    return path


def _port_of(daemon: Daemon) -> int:
    return int(daemon.port_file.read_text())


@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.slow)])
def test_all_come_back_after_a_restart_and_nobody_is_refused_or_misses_anything(
    count: int, tmp_path: pathlib.Path, outputs: pathlib.Path
) -> None:
    rename_in(outputs / "a.ckpt", checkpoint_bytes(1))
    daemon = Daemon(outputs, tmp_path / "state")
    with daemon, Swarm(count, lambda: _port_of(daemon)) as swarm:
        swarm.run_until(swarm.all_have("a.ckpt"), "all listen")
        daemon.signal(signal.SIGTERM)
        assert daemon.process is not None
        swarm.run_until(lambda: daemon.process is None or daemon.process.poll() is not None, "it has ended")
        assert daemon.process.returncode == 0
        swarm.run_until(lambda: all(browser.retries for browser in swarm.browsers), "all were told when to come back")
        spread = {browser.retries[0] for browser in swarm.browsers}
        assert len(spread) > count // 4, "they do not come back in the same moment"
        assert max(spread) - min(spread) >= 1_000
        rename_in(outputs / "b.ckpt", checkpoint_bytes(2))
        daemon.launch()
        swarm.run_until(swarm.all_have("b.ckpt"), "all are back and know what is new")
        for browser in swarm.browsers:
            assert set(browser.statuses) == {200}, "an error would make a browser give up"
            assert browser.cut_off == 0, "every stream ended by a bye"
            assert browser.kinds["reset"] == 1, "what it knew before was still good"
            assert browser.kinds["resumed"] == 1
        assert not [line for line in daemon.log().splitlines() if '"level": "error"' in line]


def test_all_come_back_after_a_crash_of_the_daemon(tmp_path: pathlib.Path, outputs: pathlib.Path) -> None:
    """Killed, on a machine that goes on: what was told had been written, so it is resumed."""
    rename_in(outputs / "a.ckpt", checkpoint_bytes(1))
    daemon = Daemon(outputs, tmp_path / "state")
    with daemon, Swarm(50, lambda: _port_of(daemon)) as swarm:
        swarm.run_until(swarm.all_have("a.ckpt"), "all listen")
        daemon.kill()
        rename_in(outputs / "b.ckpt", checkpoint_bytes(2))
        daemon.launch()
        swarm.run_until(swarm.all_have("b.ckpt"), "all are back and know what is new")
        for browser in swarm.browsers:
            assert set(browser.statuses) == {200}
            assert browser.kinds["reset"] == 1


def test_listeners_that_vanish_by_the_hundred_leave_nothing_behind(
    tmp_path: pathlib.Path, outputs: pathlib.Path
) -> None:
    rename_in(outputs / "a.ckpt", checkpoint_bytes(1))
    daemon = Daemon(outputs, tmp_path / "state")
    with daemon, Swarm(200, lambda: _port_of(daemon)) as swarm:
        for _ in range(3):
            swarm.run_until(swarm.all_have("a.ckpt"), "all listen")
            swarm.disconnect_all()
        swarm.run_until(swarm.all_have("a.ckpt"), "all listen")
        eventually(lambda: _metric(daemon, "ckptd_stream_listeners") == 200, "those that left are forgotten")
        rename_in(outputs / "b.ckpt", checkpoint_bytes(2))
        swarm.run_until(swarm.all_have("b.ckpt"), "all are told")


@pytest.mark.slow
def test_more_connections_than_allowed_do_not_silence_the_daemon(tmp_path: pathlib.Path, outputs: pathlib.Path) -> None:
    """Half requests hold every place that there is: health is answered, listeners listen, and the places come free."""
    daemon = Daemon(outputs, tmp_path / "state", max_connections=20)
    with daemon, daemon.events() as events:
        assert next(events)["type"] == "reset"
        held = [socket.create_connection(("127.0.0.1", _port_of(daemon)), DEADLINE_S) for _ in range(40)]
        for connection in held:
            connection.sendall(HALF_A_REQUEST)
        refused = eventually(lambda: daemon.get("/checkpoints").status_code == 503, "others are refused")
        assert refused
        assert daemon.get("/health").status_code == 200
        rename_in(outputs / "a.ckpt", checkpoint_bytes(1))
        assert next(message for message in events if message["type"] == "upsert")
        eventually(lambda: daemon.get("/checkpoints").status_code == 200, "half requests are ended after a while")
        for connection in held:
            connection.close()


def _metric(daemon: Daemon, name: str) -> float:
    lines = daemon.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))
