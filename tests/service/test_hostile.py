"""Hostile files in a watched tree: each ends as an entry with a finding, within bounds; nobody else is touched."""

import pathlib
import time
from collections.abc import Iterator

import pytest

from tests.service.checkpoints import checkpoint_bytes, rename_in, write_in_place
from tests.service.daemons import Daemon, eventually
from tests.validators.hostile import KILLERS, containers, hostile_checkpoint, hostile_headers, hostile_pickles

# The pool alone meets every one of these files in the default tier (tests/daemon/test_workers_describe.py).
pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

RSS_LIMIT_MB = 300
"""Of the service; what parsing costs is spent in the workers."""
GOOD = 10
DANGEROUS = ("os_system", "posix_system", "eval", "exec_by_stack_global", "name_from_memo", "getattr_chain")


def hostile_files() -> dict[str, bytes]:
    """Name → contents: every pickle in an archive, the dangerous ones in all other places, and safetensors headers."""
    files = {name: hostile_checkpoint(name) for name in sorted(hostile_pickles())}
    for name in DANGEROUS:
        places = containers(hostile_pickles()[name]).items()
        files |= {f"{name}, {place}": data for place, data in places if place != "zip"}
    return files | {f"header, {name}": data for name, data in hostile_headers().items()}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has met every hostile file, between good ones."""
    base = tmp_path_factory.mktemp("hostile")
    outputs = base / "outputs"
    files = hostile_files()
    settings = {"sidecar_delay_s": 0.1, "worker_memory_mb": 256, "worker_timeout_s": 2}
    with Daemon(outputs, base / "state", **settings) as daemon:
        for number, (name, data) in enumerate(files.items()):
            write_in_place(outputs / f"hostile/{name}.ckpt", data)
            if number % (len(files) // GOOD + 1) == 0:
                rename_in(outputs / f"good/{number}.ckpt", checkpoint_bytes(number))
        eventually(lambda: len(beneath(daemon, "hostile/")) == len(files), "all are listed", deadline_s=100)
        eventually(
            lambda: {e["health"] for e in beneath(daemon, "hostile/").values()} <= {"valid", "invalid"},
            "all are judged",
            deadline_s=100,
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
    assert set(entries) == {f"{name}.ckpt" for name in hostile_files()}
    for name in KILLERS:
        entry = entries[f"{name}.ckpt"]
        errors = {found["code"] for found in entry["findings"] if found["severity"] == "error"}
        assert entry["health"] == "invalid", name
        assert errors & {"pickle.limits", "pickle.malformed", "worker.crashed"}, (name, errors)
    found = {name for name, entry in entries.items() if entry["findings"]}
    assert set(entries) - found <= {f"header, {name}.ckpt" for name in ("escape codes", "much metadata", "spaces")}


def test_names_that_would_run_code_are_told_as_unsafe_and_nothing_ran(daemon: Daemon) -> None:
    entries = beneath(daemon, "hostile/")
    hidden = [name for name in entries if name.removesuffix(".ckpt").partition(",")[0] in DANGEROUS]
    assert len(hidden) == len(DANGEROUS) * len(containers(b"."))
    for name in hidden:
        assert entries[name]["safety"] == "unsafe", name
        assert "pickle.dangerous_name" in {found["code"] for found in entries[name]["findings"]}, name
    pickled = [entry for name, entry in entries.items() if not name.startswith("header")]
    assert not [e for e in pickled if e["safety"] == "safe" and e["health"] == "valid" and e["n_parameters"]]


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
