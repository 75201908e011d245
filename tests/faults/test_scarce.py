"""Watches and descriptors that run out under the running daemon: it says so, goes on, and misses nothing."""

import pathlib
import re
import subprocess

import pytest

from tests.faults.faulty_services import (
    assert_right_again,
    become,
    has_reason,
    healthy,
    lines_by_event,
)
from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(240)]
QUICK = {"sidecar_delay_s": 0.1, "sweep_min_s": 0.2, "sweep_cpu": 0.5, "build_degraded_s": 120}


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "outputs"
    path.mkdir()
    return path


# ---- inotify -----------------------------------------------------------------------------------------------------


class FewWatches(Daemon):
    """A daemon in a user namespace of its own, whose limits are no other process's."""

    def __init__(self, *arguments: object, limit: str, value: int, **settings: object) -> None:
        super().__init__(*arguments, **settings)  # type: ignore[arg-type]
        self._limit = limit
        self._value = value

    def command(self) -> list[str]:
        """The command line."""
        limited = f'echo {self._value} > /proc/sys/user/{self._limit}; exec "$@"'
        return ["unshare", "--user", "--map-root-user", "sh", "-c", limited, "sh", *super().command()]

    def raise_limit(self) -> None:
        """As an operator does."""
        subprocess.run(
            [
                "nsenter",
                "--user",
                "--target",
                str(self.pid),
                "--",
                "sh",
                "-c",
                f"echo 9999 > /proc/sys/user/{self._limit}",
            ],
            check=True,
        )


@pytest.mark.parametrize(
    ("limit", "value", "setting"),
    [("max_inotify_watches", 10, "max_user_watches"), ("max_inotify_instances", 0, "max_user_instances")],
    ids=["watches", "instances"],
)
def test_with_the_watches_used_up_sweeps_find_everything_and_health_says_why_until_there_are_more(
    outputs: pathlib.Path, tmp_path: pathlib.Path, limit: str, value: int, setting: str
) -> None:
    for number in range(30):
        rename_in(outputs / f"run{number}/a.ckpt", checkpoint_bytes(number))
    daemon = FewWatches(outputs, tmp_path / "state", **QUICK, limit=limit, value=value)
    with daemon:
        daemon.wait_complete()
        health = has_reason(daemon, "is not watched")
        assert health["catalog_status"] == "degraded"
        assert f"raise fs.inotify.{setting} (sysctl)" in str(health["reasons"]), health["reasons"]
        assert health["roots"][0]["watching"] is False
        for number in range(30, 40):
            rename_in(outputs / f"run{number}/a.ckpt", checkpoint_bytes(number))
        (outputs / "run0/a.ckpt").unlink()
        become(daemon, dict.fromkeys((f"run{n}/a.ckpt" for n in range(1, 40)), "valid"), "health")
        assert daemon.health()["roots"][0]["watching"] is False
        daemon.raise_limit()
        eventually(lambda: daemon.health()["roots"][0]["watching"], "it is watched again", deadline_s=90)
        rename_in(outputs / "run40/a.ckpt", checkpoint_bytes(40))
        eventually(lambda: "run40/a.ckpt" in daemon.entries(), "events arrive")
        assert_right_again(daemon, outputs)
        assert lines_by_event(daemon)["the watch ended and is started anew"] <= 10


# ---- descriptors -------------------------------------------------------------------------------------------------


def limit_descriptors(daemon: Daemon, count: int) -> str:
    """Set how many the service may have open; returns what it was."""
    before = pathlib.Path(f"/proc/{daemon.pid}/limits").read_text()
    hard = re.search(r"Max open files +(\d+) +(\d+)", before)
    assert hard is not None
    subprocess.run(["prlimit", "--pid", str(daemon.pid), f"--nofile={count}:{hard[2]}"], check=True)
    return hard[1]


def test_without_a_free_descriptor_nothing_is_deleted_and_everything_is_found_once_there_are_some(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    paths = [f"run{number}/a.ckpt" for number in range(20)]
    for number, path in enumerate(paths):
        rename_in(outputs / path, checkpoint_bytes(number))
    with Daemon(outputs, tmp_path / "state", **QUICK) as daemon, daemon.events() as events:
        become(daemon, dict.fromkeys(paths, "daemon"), "metadata_source")
        healthy(daemon)
        next(message for message in events if message["type"] == "complete")
        before = limit_descriptors(daemon, 4)
        for number in range(20, 30):
            rename_in(outputs / f"run{number}/a.ckpt", checkpoint_bytes(number))
        # Whoever listens already hears that it lives, though no new connection can be taken.
        heard = [next(events) for _ in range(2)]
        assert all(message["type"] != "delete" for message in heard), heard
        eventually(lambda: "Too many open files" in daemon.log(), "the log says what is lacking")
        limit_descriptors(daemon, int(before))
        every = dict.fromkeys((f"run{number}/a.ckpt" for number in range(30)), "daemon")
        become(daemon, every, "metadata_source", deadline_s=90)
        assert_right_again(daemon, outputs)
