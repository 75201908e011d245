"""Bad surroundings of the running daemon: roots, links between them, names without an encoding, state, settings."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import time
from typing import Any

import pytest

from tests.service.checkpoints import checkpoint_bytes, rename_in, write_in_place
from tests.service.daemons import DEADLINE_S, Daemon, eventually


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "outputs"
    path.mkdir()
    return path


def healths(daemon: Daemon) -> dict[str, str]:
    return {path: entry["health"] for path, entry in daemon.entries().items()}


def listed(daemon: Daemon, expected: dict[str, str]) -> None:
    """Wait until exactly these are listed, with these healths."""
    eventually(lambda: healths(daemon) == expected, f"{expected}; last: {healths(daemon)}; {daemon.log()[-1500:]}")


def root_of(daemon: Daemon, path: pathlib.Path) -> dict[str, Any]:
    return next(root for root in daemon.health()["roots"] if root["path"] == str(path))


def run_to_its_end(daemon: Daemon) -> subprocess.CompletedProcess[str]:
    return subprocess.run(daemon.command(), capture_output=True, text=True, timeout=DEADLINE_S, check=False)


# ---- roots -------------------------------------------------------------------------------------------------------


def test_a_root_that_is_missing_is_waited_for_and_one_that_vanishes_may_come_back(tmp_path: pathlib.Path) -> None:
    root, other = tmp_path / "outputs", tmp_path / "other"
    write_in_place(other / "b.ckpt", checkpoint_bytes(2))
    with Daemon([root, other], tmp_path / "state", sidecar_delay_s=0.1) as daemon:
        listed(daemon, {"b.ckpt": "valid"})
        health = daemon.health()
        assert health["catalog_status"] == "degraded"
        assert any(f"root {root} is offline" in reason for reason in health["reasons"]), health["reasons"]
        assert not root_of(daemon, root)["online"]
        assert "root cannot be listed; it is looked for again and again" in daemon.log()
        assert not root.exists()
        write_in_place(root / "a.ckpt", checkpoint_bytes(1))
        listed(daemon, {"a.ckpt": "valid", "b.ckpt": "valid"})
        eventually(lambda: daemon.health()["catalog_status"] == "healthy", "all is well")
        shutil.rmtree(root)
        eventually(lambda: not root_of(daemon, root)["online"], "the root is known to be gone")
        assert healths(daemon)["b.ckpt"] == "valid"
        write_in_place(root / "c.ckpt", checkpoint_bytes(3))
        listed(daemon, {"c.ckpt": "valid", "b.ckpt": "valid"})
        eventually(lambda: root_of(daemon, root)["watching"], "the new root is watched")
        write_in_place(root / "d.ckpt", checkpoint_bytes(4))
        listed(daemon, {"c.ckpt": "valid", "d.ckpt": "valid", "b.ckpt": "valid"})


def test_when_no_root_can_be_read_the_service_is_unhealthy_and_says_why(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "later"
    with Daemon(root, tmp_path / "state") as daemon:
        health = eventually(
            lambda: h if (h := daemon.health())["roots"][0]["last_error"] else None, "somebody has looked for the root"
        )
        assert health["catalog_status"] == "unhealthy"
        assert str(root) in health["reasons"][0]
        assert "does not exist" in str(health["roots"]) or "No such file" in str(health["roots"])
        assert daemon.get("/health").status_code == 200
        assert daemon.get("/checkpoints").json()["total"] == 0


def test_a_root_that_is_renamed_away_and_replaced_is_read_anew(outputs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write_in_place(outputs / "a.ckpt", checkpoint_bytes(1))
    with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1) as daemon:
        listed(daemon, {"a.ckpt": "valid"})
        outputs.rename(tmp_path / "old")
        write_in_place(outputs / "b.ckpt", checkpoint_bytes(2))
        listed(daemon, {"b.ckpt": "valid"})
        write_in_place(tmp_path / "old/c.ckpt", checkpoint_bytes(3))
        daemon.wait_complete()
        listed(daemon, {"b.ckpt": "valid"})


def test_overlapping_roots_are_merged_with_a_warning(outputs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write_in_place(outputs / "inner/a.ckpt", checkpoint_bytes(1))
    (tmp_path / "link").symlink_to(outputs)
    with Daemon([outputs / "inner", outputs, tmp_path / "link"], tmp_path / "state") as daemon:
        listed(daemon, {"inner/a.ckpt": "valid"})
        assert [root["path"] for root in daemon.health()["roots"]] == [str(outputs)]
        assert "is merged into it" in daemon.log()
        assert "is named twice" in daemon.log()


def test_links_from_one_root_into_another_and_to_allowed_places_are_followed(tmp_path: pathlib.Path) -> None:
    first, second, allowed = tmp_path / "first", tmp_path / "second", tmp_path / "allowed"
    write_in_place(second / "b.ckpt", checkpoint_bytes(2, epoch=2))
    write_in_place(allowed / "c.ckpt", checkpoint_bytes(3, epoch=3))
    write_in_place(allowed / "deep/d.ckpt", checkpoint_bytes(4, epoch=4))
    first.mkdir()
    (first / "to-b.ckpt").symlink_to(second / "b.ckpt")
    (first / "to-c.ckpt").symlink_to(allowed / "c.ckpt")
    (first / "to-passwd.ckpt").symlink_to("/etc/passwd")
    (first / "dir").symlink_to(allowed / "deep")
    settings = {"sidecar_delay_s": 0.1, "follow_links": allowed}
    with Daemon([first, second], tmp_path / "state", **settings) as daemon:
        expected = dict.fromkeys(("b.ckpt", "to-b.ckpt", "to-c.ckpt", "dir/d.ckpt"), "valid")
        listed(daemon, expected)
        moment = time.time()
        daemon.rebuild()
        health = daemon.wait_complete(moment)
        assert health["skipped_links"] == 1
        entries = daemon.entries()
        assert healths(daemon) == expected
        assert entries["to-b.ckpt"]["alias_of"] == entries["b.ckpt"]["id"]
        assert entries["to-c.ckpt"]["epoch"] == 3
        revision = health["revision"]
        daemon.rebuild()
        assert daemon.wait_complete(time.time())["revision"] >= revision
        rename_in(second / "b.ckpt", checkpoint_bytes(5, epoch=5))
        eventually(lambda: daemon.entries()["to-b.ckpt"]["epoch"] == 5, "the alias follows into the other root")


def test_what_is_written_beneath_a_link_to_a_directory_is_listed_once_and_where_it_is(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The kernel tells of it by only one of its ways, and that may be the link's: `latest -> run5`."""
    run = outputs / "run5"
    run.mkdir()
    (outputs / "alatest").symlink_to("run5")
    (outputs / "zlatest").symlink_to(run)
    with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1, sweep_min_s=3600) as daemon:
        eventually(lambda: root_of(daemon, outputs)["watching"], "it is watched")
        eventually(lambda: not daemon.health()["pending"], "the start is over")
        rename_in(run / "direct.ckpt", checkpoint_bytes(1))
        rename_in(outputs / "alatest/through.ckpt", checkpoint_bytes(2))
        rename_in(outputs / "zlatest/new/deep.ckpt", checkpoint_bytes(3))
        listed(daemon, dict.fromkeys(("run5/direct.ckpt", "run5/through.ckpt", "run5/new/deep.ckpt"), "valid"))
        eventually((run / "through.ckpt.metadata.yaml").exists, "it has its sidecar")
        (run / "direct.ckpt").unlink()
        (outputs / "alatest/through.ckpt").unlink()
        listed(daemon, {"run5/new/deep.ckpt": "valid"})


# ---- names without an encoding -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_names_that_are_not_utf8_are_listed_with_their_bytes_and_hide_nobody(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    write_in_place(outputs / "good.ckpt", checkpoint_bytes(1))
    root = os.fsencode(outputs)
    os.mkdir(root + b"/\xffdir")
    for name in (b"/\xfe\xff.ckpt", b"/\xffdir/x.ckpt"):
        with open(root + name, "wb") as file:
            file.write(checkpoint_bytes(2))
    with open(root + b"/\xffdir/torn.ckpt", "wb") as file:
        file.write(checkpoint_bytes(2)[:100])
    with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1, abandoned_s=3) as daemon:
        expected = {
            "good.ckpt": "valid",
            "\\xfe\\xff.ckpt": "valid",
            "\\xffdir/x.ckpt": "valid",
            "\\xffdir/torn.ckpt": "invalid",
        }
        listed(daemon, expected)
        entries = daemon.entries()
        assert entries["\\xfe\\xff.ckpt"]["path_base64"] == "/v8uY2twdA=="
        assert "path_base64" not in entries["good.ckpt"]
        for entry in entries.values():
            assert daemon.get(f"/checkpoints/{entry['id']}").status_code == 200
        eventually(lambda: os.path.exists(root + b"/\xffdir/x.ckpt.metadata.yaml"), "it has its sidecar")
        write_in_place(outputs / "later.ckpt", checkpoint_bytes(3))
        os.unlink(root + b"/\xfe\xff.ckpt")
        del expected["\\xfe\\xff.ckpt"]
        listed(daemon, expected | {"later.ckpt": "valid"})
        eventually(lambda: not os.path.exists(root + b"/\xfe\xff.ckpt.metadata.yaml"), "its sidecar went with it")
        os.rename(root + b"/\xffdir", root + b"/dir")
        listed(daemon, {"good.ckpt": "valid", "later.ckpt": "valid", "dir/x.ckpt": "valid", "dir/torn.ckpt": "invalid"})
        eventually(lambda: daemon.health()["catalog_status"] == "healthy", "it is watched again, all is well")
        index = json.loads((outputs / ".checkpoint_index.json").read_text()) if daemon.stop() == 0 else {}
        assert index["version"] == "2.0"


# ---- what the state may have become ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "torn",
        "directory",
        pytest.param("garbage", marks=pytest.mark.slow),
        pytest.param("foreign", marks=pytest.mark.slow),
        pytest.param("empty", marks=pytest.mark.slow),
    ],
)
def test_a_state_that_is_no_good_is_set_aside_and_the_catalog_gathered_anew(
    damage: str, outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    write_in_place(outputs / "a.ckpt", checkpoint_bytes(1))
    daemon = Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1)
    with daemon:
        eventually(lambda: daemon.entries().get("a.ckpt", {}).get("has_metadata"), "it has its sidecar")
        instance = daemon.health()["instance"]
        with daemon.events() as events:
            cursor = next(m for m in events if m["type"] == "complete")["_id"]
        assert daemon.stop() == 0
        (database,) = [p for p in daemon.state.iterdir() if p.name.endswith((".db", ".sqlite", ".sqlite3"))]
        _spoil(database, damage)
        daemon.start()
        listed(daemon, {"a.ckpt": "valid"})
        assert daemon.health()["instance"] != instance
        with daemon.events(last_event_id=cursor) as events:
            assert next(events)["type"] == "reset"
        assert any(error["what"] == "state" for error in daemon.health()["recent_errors"])
        assert database.name in daemon.log().rpartition("Started server process")[0]
        assert daemon.stop() == 0
        kept = [p.name for p in daemon.state.iterdir() if ".broken-" in p.name]
        assert kept


def _spoil(database: pathlib.Path, damage: str) -> None:
    match damage:
        case "torn":
            os.truncate(database, database.stat().st_size // 2 + 100)
        case "garbage":
            database.write_bytes(os.urandom(50_000))
        case "empty":
            database.write_bytes(b"")
        case "directory":
            database.unlink()
            database.mkdir()
            (database / "file").write_text("")
        case _:
            database.unlink()
            connection = sqlite3.connect(database)
            connection.execute("CREATE TABLE someone_elses (x)")
            connection.commit()
            connection.close()


def test_a_state_directory_that_cannot_be_used_ends_the_start_with_3(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("")
    refused = run_to_its_end(Daemon(outputs, tmp_path / "file"))
    assert refused.returncode == 3
    assert str(tmp_path / "file") in refused.stderr
    assert "Traceback" not in refused.stderr


# ---- settings ----------------------------------------------------------------------------------------------------


def test_all_bad_settings_are_told_at_once_and_nothing_starts(outputs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = tmp_path / "ckptd.yaml"
    config.write_text("quiet_s: soon\nverify: maybe\n")
    daemon = Daemon(outputs, tmp_path / "state", workers="0", sweep_cpu="7", config=config)
    refused = run_to_its_end(daemon)
    assert refused.returncode == 2
    for name, value, origin in (
        ("workers", "'0'", "--workers"),
        ("sweep_cpu", "'7'", "--sweep-cpu"),
        ("quiet_s", "'soon'", str(config)),
        ("verify", "'maybe'", str(config)),
    ):
        assert f"{name}: {value} (from {origin})" in refused.stderr, refused.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [("workers: [", "not valid YAML"), ("worker: 3\n", "did you mean workers"), ("- 1\n", "list"), ("\0", "YAML")],
)
def test_a_bad_settings_file_is_named(text: str, says: str, outputs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = tmp_path / "ckptd.yaml"
    config.write_text(text)
    refused = run_to_its_end(Daemon(outputs, tmp_path / "state", config=config))
    assert refused.returncode == 2
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_value_after_a_flag_that_takes_none_is_not_taken_for_a_root(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    command = [*Daemon(outputs, tmp_path / "state").command(), "--export-index", "false"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert refused.returncode == 2
    assert "--no-export-index" in refused.stderr


def test_a_root_whose_name_is_not_utf8_is_refused_in_words(tmp_path: pathlib.Path) -> None:
    root = os.path.join(os.fsencode(tmp_path), b"\xffroot")
    os.mkdir(root)
    daemon = Daemon(tmp_path / "x", tmp_path / "state")
    command = [os.fsencode(part) if part != str(tmp_path / "x") else root for part in daemon.command()]
    refused = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
    assert refused.returncode == 2, refused
    assert b"roots" in refused.stderr
    assert b"Traceback" not in refused.stderr


# ---- processes that are killed -----------------------------------------------------------------------------------


def test_killed_workers_and_zygotes_cost_no_checkpoint(outputs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1) as daemon:
        count = 150
        for number in range(count):
            rename_in(outputs / f"{number % 10}/{number}.ckpt", checkpoint_bytes(number % 20, elements=100))
            if number % 10 == 0:
                for pid in _descendants(daemon.pid)[:: 1 if number % 20 else -1][:3]:
                    _kill(pid)
        eventually(lambda: len(daemon.entries()) == count, "all are listed")
        eventually(lambda: set(healths(daemon).values()) == {"valid"}, f"all are valid: {daemon.log()[-1000:]}")
        assert "Traceback" not in daemon.log()
        assert daemon.stop() == 0


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        tasks = list(pathlib.Path(f"/proc/{pid}/task").iterdir())
        for task in tasks:
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_descendants(child)]
    except OSError:
        return found
    return found
