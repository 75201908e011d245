"""Who gets in to a real service, as the kernel and the wire say it."""

import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.daemons import DEADLINE_S, eventually
from tests.service.token_daemons import TokenDaemon

WRONG = {"Authorization": "Bearer a-guess-of-enough-characters"}

_AS_ANOTHER_USER = """
import http.client, json, os, socket, sys
path, *asked = json.loads(sys.argv[1])
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
answers = []
for method, target, headers in asked:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(path)
    except PermissionError:
        answers.append("not let in")
        continue
    connection.request(method, target, headers=headers)
    answer = connection.getresponse()
    answers.append([answer.status, answer.read().decode()])
print(json.dumps(answers))
"""


@pytest.fixture
def reachable() -> Iterator[pathlib.Path]:
    """A directory that every user can enter; pytest's own lie under one that only we can."""
    path = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def asked_by_nobody(uds: pathlib.Path, *requests: tuple[str, str, dict[str, str]]) -> list[Any]:
    """What the user `nobody` is answered over a Unix socket."""
    done = subprocess.run(
        [sys.executable, "-c", _AS_ANOTHER_USER, json.dumps([str(uds), *requests])],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["600", "666"])
def test_the_mode_of_the_socket_says_who_reads_and_the_kernel_who_changes(
    mode: str, reachable: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The other user is a real one: SO_PEERCRED, not a header, tells."""
    outputs, uds = tmp_path / "outputs", reachable / "ckptd.sock"
    outputs.mkdir()
    with _OverUnix(outputs, tmp_path / "state", uds=uds, uds_mode=mode) as daemon:
        right = {"Authorization": f"Bearer {daemon.token}"}
        answers = asked_by_nobody(
            uds,
            ("GET", "/health/checkpoints", {}),
            ("POST", "/rebuild", {}),
            ("POST", "/rebuild", right),
            ("GET", "/checkpoints", {"X-Forwarded-For": "192.0.2.1"}),
        )
        if mode == "600":
            assert answers == ["not let in"] * 4
            return
        assert [answer[0] for answer in answers] == [200, 403, 202, 401]
        assert json.loads(answers[0][1])["may_rebuild"] is False
        assert daemon.get("/health/checkpoints").json()["may_rebuild"] is True, "we are its owner"


class _OverUnix(TokenDaemon):
    """Reached by its socket alone."""

    def is_up(self) -> bool:
        """See `Daemon`."""
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.settings["uds"])) != 0:
                return False
        return self.get("/health").status_code == 200

    def get(self, path: str, **parameters: object) -> httpx.Response:
        """See `Daemon`."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.settings["uds"])), timeout=DEADLINE_S) as client:
            return client.get(f"http://localhost{path}", params={name: str(v) for name, v in parameters.items()})


def test_a_guesser_is_told_to_slow_down_and_who_knows_the_token_notices_nothing(tmp_path: pathlib.Path) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    with TokenDaemon(outputs, tmp_path / "state") as daemon:

        def guess() -> httpx.Response:
            return httpx.get(f"{daemon.url}/checkpoints", headers=WRONG, timeout=DEADLINE_S)

        assert guess().status_code == 401
        refused = eventually(lambda: answer if (answer := guess()).status_code == 429 else None, "it is too many")
        assert 1 <= int(refused.headers["retry-after"]) <= 6
        assert refused.headers["connection"] == "close"
        assert daemon.get("/checkpoints").status_code == 200
        assert daemon.get("/health").status_code == 200
        assert "a-guess" not in daemon.log()
        assert daemon.stop() == 0
