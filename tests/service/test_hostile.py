"""Hostile files in a watched tree: each ends as an entry with a finding, within bounds; nobody else is touched."""

import pathlib
import time
from collections.abc import Iterator

import pytest

from tests.service.checkpoints import checkpoint_bytes, rename_in, write_in_place
from tests.service.daemons import Daemon, eventually
from tests.validators.hostile import KILLERS, hostile_checkpoint, hostile_pickles

# The pool alone meets every one of these files in the default tier (tests/daemon/test_workers_describe.py).
pytestmark = pytest.mark.slow

RSS_LIMIT_MB = 300
"""Of the service; what parsing costs is spent in the workers."""
GOOD = 10


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has met every hostile file, between good ones."""
    base = tmp_path_factory.mktemp("hostile")
    outputs = base / "outputs"
    names = sorted(hostile_pickles())
    settings = {"sidecar_delay_s": 0.1, "worker_memory_mb": 256, "worker_timeout_s": 2}
    with Daemon(outputs, base / "state", **settings) as daemon:
        for number, name in enumerate(names):
            write_in_place(outputs / f"hostile/{name}.ckpt", hostile_checkpoint(name))
            if number % (len(names) // GOOD + 1) == 0:
                rename_in(outputs / f"good/{number}.ckpt", checkpoint_bytes(number))
        eventually(lambda: len(beneath(daemon, "hostile/")) == len(names), "all are listed", deadline_s=50)
        eventually(
            lambda: {e["health"] for e in beneath(daemon, "hostile/").values()} <= {"valid", "invalid"},
            "all are judged",
        )
        yield daemon
        assert daemon.stop() == 0


def beneath(daemon: Daemon, prefix: str) -> dict[str, dict]:
    return {p.removeprefix(prefix): e for p, e in daemon.entries().items() if p.startswith(prefix)}


def rss_mb(daemon: Daemon) -> int:
    status = pathlib.Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def test_every_hostile_file_is_judged_and_the_killers_are_invalid(daemon: Daemon) -> None:
    entries = beneath(daemon, "hostile/")
    assert set(entries) == {f"{name}.ckpt" for name in hostile_pickles()}
    for name in KILLERS:
        entry = entries[f"{name}.ckpt"]
        errors = {found["code"] for found in entry["findings"] if found["severity"] == "error"}
        assert entry["health"] == "invalid", name
        assert errors & {"pickle.limits", "pickle.malformed", "worker.crashed"}, (name, errors)
    assert all(entry["findings"] for entry in entries.values())


def test_names_that_would_run_code_are_told_as_unsafe_and_nothing_ran(daemon: Daemon) -> None:
    entries = beneath(daemon, "hostile/")
    for name in ("os_system", "posix_system", "eval", "exec_by_stack_global", "name_from_memo", "getattr_chain"):
        entry = entries[f"{name}.ckpt"]
        assert entry["safety"] == "unsafe", name
        assert "pickle.dangerous_name" in {found["code"] for found in entry["findings"]}
    assert not [e for e in entries.values() if e["safety"] == "safe" and e["health"] == "valid" and e["n_parameters"]]


def test_the_good_ones_beside_them_are_valid_and_have_their_sidecars(daemon: Daemon) -> None:
    eventually(
        lambda: (
            {(e["health"], e["metadata_source"]) for e in beneath(daemon, "good/").values()} == {("valid", "daemon")}
        ),
        "all good ones are described",
    )
    assert len(beneath(daemon, "good/")) >= GOOD - 1


def test_the_service_itself_stays_small_and_answers(daemon: Daemon) -> None:
    assert rss_mb(daemon) < RSS_LIMIT_MB
    assert daemon.get("/health").status_code == 200
    for entry in beneath(daemon, "hostile/").values():
        answer = daemon.get(f"/checkpoints/{entry['id']}")
        assert answer.status_code == 200
        assert len(answer.content) < 4 << 20
        assert daemon.get(f"/checkpoints/{entry['id']}/tensors").status_code in (200, 404)


def test_the_log_names_the_files_that_killed_a_worker_and_holds_no_traceback(daemon: Daemon) -> None:
    health = daemon.health()
    told = {error["path"] for error in health["recent_errors"]} | {
        line for line in daemon.log().splitlines() if "hostile/" in line
    }
    assert any("hostile/" in text for text in told)
    assert "Traceback" not in daemon.log()
    assert not [error for error in health["recent_errors"] if error["what"] == "internal error"]
    assert health["worker_crashes"] > 0


def test_a_second_sweep_reads_no_hostile_file_again(daemon: Daemon) -> None:
    eventually(lambda: not daemon.health()["pending"], "nothing is pending")
    crashes = daemon.health()["worker_crashes"]
    moment = time.time()
    daemon.rebuild()
    daemon.wait_complete(moment)
    assert daemon.health()["worker_crashes"] == crashes
