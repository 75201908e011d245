"""The service mounted in FastAPI as the guide says it, in a real uvicorn: the live stream's suite, and its end."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.service.checkpoints import checkpoint_bytes, write_in_place
from tests.service.daemons import DEADLINE_S, epoch_of, eventually
from tests.service.documented import block
from tests.service.doors import Door
from tests.service.stream_suite import HEARTBEAT_S, StreamSuite


class Host:
    """The guide's application in a process of its own."""

    def __init__(self, top: pathlib.Path, **settings: object) -> None:
        self.top = top
        self.outputs = top / "outputs"
        write_in_place(self.outputs / "seed.ckpt", checkpoint_bytes())
        (top / "host.py").write_text(block("guide.md", "### In another application", "python"))
        self.log = top / "host.log"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        given = {"roots": self.outputs, "state_dir": top / "state", "heartbeat_s": HEARTBEAT_S, "sidecars": "off"}
        variables = {f"CKPTD_{name.upper()}": str(value) for name, value in (given | settings).items()}
        fd = self._listener.fileno()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "host:app", "--fd", str(fd), "--timeout-graceful-shutdown", "1"],
                cwd=top,
                env=os.environ | variables,
                pass_fds=[fd],
                stdout=log,
                stderr=log,
            )

    def is_up(self) -> bool:
        """Whether the catalog answers, with everything in it."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            answer = httpx.get(f"{self.url}/inference/checkpoints", trust_env=False)
        except httpx.TransportError:
            return False
        return answer.status_code == 200 and answer.json()["total"] == 1 and "x-complete-as-of" in answer.headers

    def terminate(self) -> None:
        """As its operator does."""
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Leave nothing behind."""
        self._listener.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("fastapi"), allow_anonymous=1)
    try:
        eventually(host.is_up, f"the host serves the catalog; its log: {host.log}")
        yield host
    finally:
        host.close()


@pytest.fixture(scope="module")
def door(host: Host) -> Door:
    return Door(f"{host.url}/inference", host.outputs, host.terminate, prefix="/inference")


def test_the_catalog_is_there_and_the_host_answers_for_the_rest(door: Door, host: Host) -> None:
    assert door.get("/health").json() == {"status": "ok"}
    assert epoch_of(door.get("/health/checkpoints").json()["complete_as_of"]) > 0
    assert httpx.get(f"{host.url}/checkpoints", trust_env=False).json() == {"detail": "Not Found"}
    assert "/inference" not in httpx.get(f"{host.url}/openapi.json", trust_env=False).json()["paths"]


class TestStream(StreamSuite):
    pass


def test_the_end_was_an_orderly_one(host: Host) -> None:
    """Behind the suite's last test, which asked for it: the state is closed, and nothing broke."""
    host.terminate()
    assert host.process.wait(DEADLINE_S) in (0, -signal.SIGTERM)
    assert (host.outputs / ".checkpoint_index.json").exists()
    log = host.log.read_text()
    assert "Traceback" not in log, log
    errors = [line for line in log.splitlines() if line.startswith("ERROR")]
    assert all("timeout graceful shutdown exceeded" in line for line in errors), log
