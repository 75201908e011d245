"""Descriptors used up by files, directories, watches and listeners at once: it answers, says so, and misses nothing."""

import contextlib
import pathlib
import re
import subprocess
from typing import Any

import httpx
import pytest

from tests.faults.faulty_services import assert_right_again, become, healthy, lines_by_event
from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually
from tests.validators.directory_files import save_dcp

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(300)]
QUICK = {"sidecar_delay_s": 0.1, "sweep_min_s": 0.2, "sweep_cpu": 0.5, "build_degraded_s": 120, "verify": "none"}
LISTENERS = 20
LEFT = 12
"""So many descriptors are free when the files come: a look at one path alone takes up to six."""


def opened(daemon: Daemon) -> int:
    """How many descriptors the service has open."""
    return len(list(pathlib.Path(f"/proc/{daemon.pid}/fd").iterdir()))


def limit(daemon: Daemon, count: int) -> int:
    """Set how many it may have open; returns how many it might before."""
    limits = re.search(r"Max open files +(\d+) +(\d+)", pathlib.Path(f"/proc/{daemon.pid}/limits").read_text())
    assert limits is not None
    subprocess.run(["prlimit", "--pid", str(daemon.pid), f"--nofile={count}:{limits[2]}"], check=True)
    return int(limits[1])


def test_with_hardly_a_descriptor_left_files_and_listeners_wait_and_whoever_is_connected_is_answered(
    tmp_path: pathlib.Path,
) -> None:
    outputs = tmp_path / "outputs"
    known = [f"run{number}/a.ckpt" for number in range(20)]
    for number, path in enumerate(known):
        rename_in(outputs / path, checkpoint_bytes(number % 4))
    new = [f"new{number % 15}/{number}.ckpt" for number in range(120)]
    with Daemon(outputs, tmp_path / "state", **QUICK) as daemon, contextlib.ExitStack() as stack:
        become(daemon, dict.fromkeys(known, "daemon"), "metadata_source", deadline_s=120)
        healthy(daemon)
        client = stack.enter_context(httpx.Client(base_url=daemon.url, verify=False, timeout=60))
        assert client.get("/health").status_code == 200

        def asked() -> dict[str, Any]:
            return dict(client.get("/health/checkpoints").json())

        listeners = [stack.enter_context(daemon.events()) for _ in range(LISTENERS)]
        for each in listeners:
            next(message for message in each if message["type"] == "complete")
        before = limit(daemon, opened(daemon) + LEFT)
        for number, path in enumerate(new):
            rename_in(outputs / path, checkpoint_bytes(number % 4))
        save_dcp(str(outputs / "sharded"))
        eventually(lambda: "Too many open files" in daemon.log(), "the log says what is lacking")
        for path in ("/health", "/checkpoints", "/health/checkpoints") * 5:
            assert client.get(path).status_code == 200, path
        listed = client.get("/checkpoints", params={"page_size": 1000, "include_invalid": "true"}).json()
        assert set(known) <= {entry["path"] for entry in listed["checkpoints"]}, "nothing is deleted"
        limit(daemon, 4)  # what is open stays so; nothing more can be opened
        health = eventually(
            lambda: h if "cannot be swept: Too many open files" in str((h := asked())["reasons"]) else None,
            f"health says what is lacking: {asked()['reasons']}",
        )
        assert health["catalog_status"] == "degraded"
        assert health["roots"][0]["online"], "the disk is not to blame"
        assert "offline" not in health["by_health"]

        limit(daemon, before)
        expected = dict.fromkeys((*known, *new, "sharded"), "valid")
        become(daemon, expected, "health", deadline_s=120)
        for each in listeners:
            told: set[str] = set()
            while not told >= {*new, "sharded"}:
                message = next(each)
                assert message["type"] not in ("delete", "reset"), message
                told |= {entry["path"] for entry in message.get("checkpoints", ())}
        assert_right_again(daemon, outputs)
        assert all(count <= 31 for count in lines_by_event(daemon).values())
