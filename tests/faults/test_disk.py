"""Disks that refuse, fill up and go away, under the running daemon: nothing is lost, everything is told."""

import os
import pathlib
import time

import pytest

from tests.daemon.real_mounts import mount, tmpfs, unmount
from tests.faults.faulty_services import Ordinary, become, filled, has_reason, healthy, shown, swept
from tests.service.checkpoints import checkpoint_bytes, rename_in, write_in_place
from tests.service.daemons import Daemon, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(150)]


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "outputs"
    path.mkdir()
    return path


# ---- rights ------------------------------------------------------------------------------------------------------


def test_an_unreadable_file_is_listed_with_the_reason_until_it_can_be_read(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    write_in_place(outputs / "good.ckpt", checkpoint_bytes(1))
    write_in_place(outputs / "closed.ckpt", checkpoint_bytes(2))
    (outputs / "closed.ckpt.metadata.yaml").write_text("exp_name: mine\n")
    (outputs / "link.ckpt").symlink_to("closed.ckpt")
    (outputs / "closed.ckpt").chmod(0)
    with Ordinary(outputs, tmp_path / "state", sidecar_delay_s=0.1) as daemon:
        become(daemon, {"good.ckpt": "valid", "closed.ckpt": "invalid", "link.ckpt": "invalid"}, "health")
        entry = daemon.entries()["closed.ckpt"]
        found = daemon.get(f"/checkpoints/{entry['id']}").json()["findings"]
        assert "Permission denied" in next(f for f in found if f["code"] == "file.unreadable")["message"]
        before = shown(daemon, "revision")
        swept(daemon)
        after = shown(daemon, "revision")
        assert (after["closed.ckpt"], after["link.ckpt"]) == (before["closed.ckpt"], before["link.ckpt"])
        (outputs / "closed.ckpt").chmod(0o644)
        become(daemon, dict.fromkeys(("good.ckpt", "closed.ckpt", "link.ckpt"), "valid"), "health")
        (outputs / "good.ckpt").chmod(0)
        become(daemon, {"good.ckpt": "invalid", "closed.ckpt": "valid", "link.ckpt": "valid"}, "health")


def test_what_is_in_a_directory_that_may_not_be_listed_is_offline_and_its_sidecars_stay(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    write_in_place(outputs / "good.ckpt", checkpoint_bytes(1))
    write_in_place(outputs / "sub/a.ckpt", checkpoint_bytes(2))
    with Ordinary(outputs, tmp_path / "state", sidecar_delay_s=0.1) as daemon:
        become(daemon, dict.fromkeys(("good.ckpt", "sub/a.ckpt"), "daemon"), "metadata_source")
        (outputs / "sub").chmod(0)
        become(daemon, {"good.ckpt": "valid", "sub/a.ckpt": "offline"}, "health")
        has_reason(daemon, "1 checkpoint is offline")
        health = swept(daemon)
        assert "sub" in health["roots"][0]["last_error"]
        (outputs / "sub").chmod(0o755)
        become(daemon, {"good.ckpt": "valid", "sub/a.ckpt": "valid"}, "health")
        assert (outputs / "sub/a.ckpt.metadata.yaml").exists()
        healthy(daemon)


def test_a_directory_that_refuses_sidecars_is_warned_of_once_and_tried_again_on_demand(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for number in range(12):
        write_in_place(outputs / f"closed/{number}.ckpt", checkpoint_bytes(number))
    write_in_place(outputs / "open/a.ckpt", checkpoint_bytes(20))
    (outputs / "closed").chmod(0o555)
    with Ordinary(outputs, tmp_path / "state", sidecar_delay_s=0.1, verify="none") as daemon:
        expected = {f"closed/{number}.ckpt": ("valid", "state") for number in range(12)}
        become(daemon, expected | {"open/a.ckpt": ("valid", "daemon")}, "health", "metadata_source")
        health = daemon.health()
        assert health["skipped_sidecars"] == 12
        assert (health["with_sidecar"], health["with_state_metadata"]) == (1, 12)
        assert health["roots"][0]["writable"] is False
        assert health["metadata_coverage"] == 1.0
        assert daemon.log().count("sidecars cannot be written here") == 1
        newest = max(path.stat().st_ctime for path in outputs.rglob("*"))
        eventually(lambda: time.time() > newest + 3, "no file is so young that it is read once more")
        swept(daemon)
        eventually(lambda: not daemon.health()["pending"], "nothing is left to be read")
        revisions = shown(daemon, "revision")
        swept(daemon)
        assert shown(daemon, "revision") == revisions
        assert daemon.log().count("sidecars cannot be written here") == 1
        (outputs / "closed").chmod(0o755)
        swept(daemon, "full")
        become(daemon, dict.fromkeys((*expected, "open/a.ckpt"), "daemon"), "metadata_source")
        assert daemon.health()["roots"][0]["writable"] is True


# ---- read-only ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_read_only_tree_is_catalogued_without_sidecars_and_gets_them_when_it_becomes_writable(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with tmpfs(outputs):
        for number in range(8):
            write_in_place(outputs / f"{number % 2}/{number}.ckpt", checkpoint_bytes(number))
        mount("-o", "remount,ro", str(outputs))
        with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1) as daemon:
            paths = [f"{number % 2}/{number}.ckpt" for number in range(8)]
            become(daemon, dict.fromkeys(paths, ("valid", "state")), "health", "metadata_source")
            health = daemon.health()
            assert (health["skipped_sidecars"], health["with_state_metadata"]) == (8, 8)
            assert daemon.log().count("sidecars cannot be written here") == 2
            assert "Read-only file system" in daemon.log()
            assert daemon.stop() == 0
            daemon.start()
            become(daemon, dict.fromkeys(paths, ("valid", "state")), "health", "metadata_source")
            mount("-o", "remount,rw", str(outputs))
            swept(daemon, "full")
            become(daemon, dict.fromkeys(paths, ("valid", "daemon")), "health", "metadata_source")
            assert "Traceback" not in daemon.log()


# ---- full --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sidecars_that_found_the_disk_full_are_written_by_themselves_once_there_is_space(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(outputs))
    try:
        with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.5, no_export_index=None) as daemon:
            daemon.wait_complete()
            for number in range(6):
                write_in_place(outputs / f"{number}.ckpt", checkpoint_bytes(number))
            with filled(outputs):
                become(
                    daemon,
                    dict.fromkeys((f"{n}.ckpt" for n in range(6)), ("valid", "state")),
                    "health",
                    "metadata_source",
                )
                assert "No space left on device" in daemon.log()
                assert not list(outputs.glob("*.yaml"))
                assert not list(outputs.glob(".*tmp*"))
            become(daemon, dict.fromkeys((f"{n}.ckpt" for n in range(6)), "daemon"), "metadata_source", deadline_s=90)
            assert daemon.log().count("sidecars cannot be written here") == 1
    finally:
        unmount(outputs)


@pytest.mark.slow
def test_with_a_full_state_disk_news_goes_on_and_after_a_restart_no_cursor_of_that_time_is_trusted(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    state = tmp_path / "disk"
    state.mkdir()
    mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", str(state))
    try:
        write_in_place(outputs / "before.ckpt", checkpoint_bytes(1))
        with Daemon(outputs, state / "state", sidecar_delay_s=0.1) as daemon:
            become(daemon, {"before.ckpt": "daemon"}, "metadata_source")
            instance = daemon.health()["instance"]
            with filled(state), daemon.events() as events:
                next(m for m in events if m["type"] == "complete")
                expected = {"before.ckpt": "valid"}
                for number in range(40):
                    rename_in(outputs / f"{number}.ckpt", checkpoint_bytes(number, elements=64))
                    expected[f"{number}.ckpt"] = "valid"
                become(daemon, expected, "health")
                health = has_reason(daemon, "the state cannot be written")
                assert not health["state_durable"]
                assert health["instance"] != instance
                assert "free some space on the state directory's disk" in daemon.log()
                with daemon.events() as again:
                    cursor = next(m for m in again if m["type"] == "complete")["_id"]
                daemon.kill()
            daemon.start()
            become(daemon, expected, "health")
            with daemon.events(last_event_id=cursor) as events:
                assert next(events)["type"] == "reset"
    finally:
        unmount(state)


@pytest.mark.slow
def test_the_state_is_written_again_by_itself_once_there_is_space(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    state = tmp_path / "disk"
    state.mkdir()
    mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", str(state))
    try:
        with Daemon(outputs, state / "state", sidecar_delay_s=0.1) as daemon:
            daemon.wait_complete()
            expected = {}
            with filled(state):
                for number in range(40):
                    rename_in(outputs / f"{number}.ckpt", checkpoint_bytes(number, elements=64))
                    expected[f"{number}.ckpt"] = "valid"
                become(daemon, expected, "health")
                has_reason(daemon, "the state cannot be written")
            eventually(lambda: daemon.health()["state_durable"], "it is durable again")
            become(daemon, dict.fromkeys(expected, "daemon"), "metadata_source")
            healthy(daemon)
            for entry in daemon.entries().values():
                assert daemon.get(f"/checkpoints/{entry['id']}/tensors").json()["tensors"]
            with daemon.events() as events:
                cursor = next(m for m in events if m["type"] == "complete")["_id"]
            assert daemon.stop() == 0
            daemon.start()
            with daemon.events(last_event_id=cursor) as events:
                assert next(events)["type"] == "resumed"
    finally:
        unmount(state)


# ---- gone --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_nested_disk_that_is_unmounted_is_no_deletion_and_comes_back(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    disk, nested = tmp_path / "disk", outputs / "nested"
    disk.mkdir()
    nested.mkdir()
    write_in_place(outputs / "good.ckpt", checkpoint_bytes(1))
    with tmpfs(disk):
        write_in_place(disk / "a.ckpt", checkpoint_bytes(2))
        mount("--bind", str(disk), str(nested))
        with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1) as daemon:
            try:
                become(daemon, dict.fromkeys(("good.ckpt", "nested/a.ckpt"), "daemon"), "metadata_source")
                swept(daemon)
                unmount(nested)
                become(daemon, {"good.ckpt": "valid", "nested/a.ckpt": "offline"}, "health")
                has_reason(daemon, "1 checkpoint is offline")
                swept(daemon)
                become(daemon, {"good.ckpt": "valid", "nested/a.ckpt": "offline"}, "health")
                assert daemon.stop() == 0
                daemon.start()
                daemon.wait_complete()
                become(daemon, {"good.ckpt": "valid", "nested/a.ckpt": "offline"}, "health")
                assert (disk / "a.ckpt.metadata.yaml").exists()
                mount("--bind", str(disk), str(nested))
                become(daemon, {"good.ckpt": "valid", "nested/a.ckpt": "valid"}, "health")
                healthy(daemon)
                unmount(nested)
                become(daemon, {"good.ckpt": "valid", "nested/a.ckpt": "offline"}, "health")
                swept(daemon, "full")
                become(daemon, {"good.ckpt": "valid"}, "health")
                assert (disk / "a.ckpt.metadata.yaml").exists()
            finally:
                if nested.is_mount():
                    unmount(nested)


@pytest.mark.slow
def test_a_root_whose_disk_is_unmounted_keeps_its_list_and_nothing_is_written_where_it_was(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with tmpfs(disk):
        write_in_place(disk / "a.ckpt", checkpoint_bytes(2))
        mount("--bind", str(disk), str(outputs))
        with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1) as daemon:
            try:
                become(daemon, {"a.ckpt": "daemon"}, "metadata_source")
                eventually((disk / ".checkpoint_index.json").exists, "the index is written")
                swept(daemon)
                unmount(outputs)
                become(daemon, {"a.ckpt": "offline"}, "health")
                has_reason(daemon, "1 checkpoint is offline")
                # the portable index is due five seconds after a change: two sweeps lie ten seconds apart
                daemon.wait_complete(time.time() + 10)
                assert os.listdir(outputs) == []
                mount("--bind", str(disk), str(outputs))
                become(daemon, {"a.ckpt": "valid"}, "health")
                write_in_place(outputs / "b.ckpt", checkpoint_bytes(3))
                become(daemon, dict.fromkeys(("a.ckpt", "b.ckpt"), "daemon"), "metadata_source")
                healthy(daemon)
            finally:
                if outputs.is_mount():
                    unmount(outputs)
