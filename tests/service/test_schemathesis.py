"""The live service against its own description: requests that it allows and requests that it does not."""

import collections
import contextlib
import os
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.service.api_trees import NAMES, write_odd_tree, write_tree
from tests.service.daemons import eventually
from tests.service.token_daemons import TokenDaemon

REPO = pathlib.Path(__file__).parents[2]
EXAMPLES_EACH = 40
SECONDS = 240


@pytest.fixture
def daemon(tmp_path: pathlib.Path) -> Iterator[TokenDaemon]:
    """One of everything, read with a token; one listener alone is served, so that further ones end by themselves."""
    roots = [tmp_path / "outputs", tmp_path / "odd"]
    for root, write in zip(roots, (write_tree, write_odd_tree), strict=True):
        root.mkdir()
        write(root)
    config = tmp_path / "ckptd.yaml"
    config.write_text("suffixes: [.ckpt, .safetensors]\n")
    settings = {"config": config, "quiet_s": 0.2, "abandoned_s": 0.5, "max_listeners": 1}
    with TokenDaemon(roots, tmp_path / "state", **settings) as daemon:
        daemon.wait_complete()
        eventually(lambda: len(daemon.entries()) == NAMES, "all are listed")
        eventually(lambda: not daemon.health()["pending"], "all are described")
        yield daemon


@contextlib.contextmanager
def listening(daemon: TokenDaemon) -> Iterator[None]:
    """Take the one place for a listener."""
    headers = {"Authorization": f"Bearer {daemon.token}"}
    with httpx.stream("GET", f"{daemon.url}/checkpoints/events", headers=headers, timeout=None) as response:
        chunks = response.iter_raw()
        next(chunks)
        threading.Thread(target=_read_on, args=(chunks,), daemon=True).start()
        yield


def _read_on(chunks: Iterator[bytes]) -> None:
    with contextlib.suppress(httpx.HTTPError, httpx.StreamError):
        collections.deque(chunks, maxlen=0)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
def test_schemathesis_finds_nothing(daemon: TokenDaemon, tmp_path: pathlib.Path) -> None:
    """All its checks, all its phases: examples, boundaries, fuzzing with valid and invalid data, chains of requests."""
    ids = [entry["id"] for entry in daemon.entries().values()]
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{daemon.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {daemon.token}"),
        # The test below shows that each route wants a right token: guessers get 429, which this check cannot know.
        *("--checks", "all", "--exclude-checks", "ignored_auth", "--mode", "all"),
        *("--phases", "examples,coverage,fuzzing,stateful"),
        *(
            "--max-examples",
            str(EXAMPLES_EACH),
            "--seed",
            "1",
            "--request-timeout",
            "20",
            "--continue-on-failure",
            "--no-color",
        ),
    ]
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.service.schemathesis_hooks",
        "PYTHONPATH": str(REPO),
        "CKPTD_IDS": ",".join(ids),
        "COLUMNS": "120",
    }
    with listening(daemon):
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-5_000:]
    assert re.search(r"\b(\d+) generated, \1 passed", run.stdout), run.stdout[-5_000:]
    assert "error" not in {line.split()[0] for line in daemon.log().splitlines() if line}, daemon.log()


def test_every_route_of_the_description_wants_a_token_where_it_says_so(daemon: TokenDaemon) -> None:
    """Without one it is 401; a wrong one is the same, until its sender has guessed too often."""
    described = httpx.get(f"{daemon.url}/openapi.json", headers={"Authorization": f"Bearer {daemon.token}"}).json()
    asked = 0
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            if method == "parameters" or "401" not in operation["responses"]:
                continue
            url = daemon.url + path.replace("{id}", "a" * 16)
            assert httpx.request(method, url).status_code == 401, (method, path)
            wrong = httpx.request(method, url, headers={"Authorization": "Bearer wrong"})
            assert wrong.status_code == (401 if asked < 10 else 429), (method, path, asked)
            asked += 1
    assert asked > 20
