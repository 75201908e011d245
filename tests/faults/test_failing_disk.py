"""A disk (FUSE) that answers with errors, late, or never: nothing is deleted, and health says so while it lasts."""

import errno
import os
import pathlib
import signal
import time
from collections.abc import Iterator

import pytest

from tests.faults.fault_filesystem import NETWORK, FaultyDisk, faulty_disk
from tests.faults.faulty_services import (
    assert_log_is_bounded,
    assert_right_again,
    become,
    has_reason,
    lines_by_event,
    shown,
    swept,
)
from tests.service.campaigns import leftovers
from tests.service.checkpoints import checkpoint_bytes, rename_in, write_in_place
from tests.service.daemons import Daemon, epoch_of, eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="/dev/fuse is missing"),
]
QUICK = {"sidecar_delay_s": 0.1, "sweep_min_s": 0.2, "sweep_cpu": 0.5, "build_degraded_s": 120}


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Iterator[FaultyDisk]:
    with faulty_disk(tmp_path) as disk:
        yield disk


def filled_tree(root: pathlib.Path) -> list[str]:
    for number in range(6):
        write_in_place(root / f"run{number % 2}/{number}.ckpt", checkpoint_bytes(number))
    return [f"run{number % 2}/{number}.ckpt" for number in range(6)]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_files_that_a_disk_refuses_to_show_are_offline_and_not_deleted(
    disk: FaultyDisk, tmp_path: pathlib.Path, code: int
) -> None:
    paths = filled_tree(disk.path)
    with Daemon(disk.path, tmp_path / "state", **QUICK) as daemon:
        become(daemon, dict.fromkeys(paths, "daemon"), "metadata_source")
        with disk.failing("getattr", code=code, glob="/run0/*.ckpt"):
            become(daemon, {path: "offline" if "run0" in path else "valid" for path in paths}, "health")
            has_reason(daemon, "3 checkpoints are offline")
            rename_in(disk.path / "run1/new.ckpt", checkpoint_bytes(9))
            eventually(lambda: "run1/new.ckpt" in daemon.entries(), "the rest of the disk is followed")
        become(daemon, dict.fromkeys((*paths, "run1/new.ckpt"), ("valid", "daemon")), "health", "metadata_source")
        assert_right_again(daemon, disk.path)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_directory_that_cannot_be_listed_proves_nothing_and_loses_nothing(
    disk: FaultyDisk, tmp_path: pathlib.Path, code: int
) -> None:
    paths = filled_tree(disk.path)
    with Daemon(disk.path, tmp_path / "state", **QUICK) as daemon:
        become(daemon, dict.fromkeys(paths, "daemon"), "metadata_source")
        with disk.failing("readdir", code=code):
            failing_since = time.time()
            health = eventually(
                lambda: h if os.strerror(code) in ((h := daemon.health())["roots"][0]["last_error"] or "") else None,
                f"the root's error is told: {daemon.health()['roots']}",
            )
            assert health["catalog_status"] == "degraded"
            assert os.strerror(code) in str(health["reasons"])
            assert epoch_of(health["complete_as_of"]) < failing_since + 1
            assert shown(daemon).keys() == set(paths)
        become(daemon, dict.fromkeys(paths, "valid"), "health")
        assert_right_again(daemon, disk.path)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_checkpoint_whose_bytes_cannot_be_read_says_so_and_is_read_once_they_can(
    disk: FaultyDisk, tmp_path: pathlib.Path, code: int
) -> None:
    paths = filled_tree(disk.path)
    with Daemon(disk.path, tmp_path / "state", **QUICK) as daemon:
        become(daemon, dict.fromkeys(paths, "daemon"), "metadata_source")
        with disk.failing("read", code=code, glob="*/new.ckpt"):
            rename_in(disk.path / "run0/new.ckpt", checkpoint_bytes(9))
            become(daemon, dict.fromkeys(paths, "valid") | {"run0/new.ckpt": "invalid"}, "health")
            entry = daemon.entries()["run0/new.ckpt"]
            found = daemon.get(f"/checkpoints/{entry['id']}").json()["findings"]
            message = next(f for f in found if f["code"] == "file.read_error")["message"]
            assert os.strerror(code) in message
            swept(daemon)  # one bad file does not hold up what is claimed of all the others
            revision = daemon.entries()["run0/new.ckpt"]["revision"]
            swept(daemon)
            assert daemon.entries()["run0/new.ckpt"]["revision"] == revision
        become(daemon, dict.fromkeys((*paths, "run0/new.ckpt"), "valid"), "health", deadline_s=90)
        assert_right_again(daemon, disk.path)


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        (("create", "write"), errno.EDQUOT),
        (("write",), errno.ENOSPC),
        (("fsync",), errno.EIO),
        (("rename", "link"), errno.EIO),
    ],
    ids=["EDQUOT", "ENOSPC", "fsync", "rename"],
)
def test_a_sidecar_that_the_disk_refuses_leaves_nothing_behind_and_is_written_later(
    disk: FaultyDisk, tmp_path: pathlib.Path, operations: tuple[str, ...], code: int
) -> None:
    with Daemon(disk.path, tmp_path / "state", **QUICK, no_export_index=None) as daemon:
        daemon.wait_complete()
        paths = filled_tree(disk.backing)
        become(daemon, dict.fromkeys(paths, "daemon"), "metadata_source")
        with disk.failing(*operations, code=code, glob="*ckptd-*"):
            for number in range(6):
                rename_in(disk.backing / f"run{number % 2}/{number}.ckpt", checkpoint_bytes(10 + number))
            swept(daemon)
            become(daemon, dict.fromkeys(paths, ("valid", "state")), "health", "metadata_source")
            assert daemon.health()["with_state_metadata"] == 6
            assert os.strerror(code) in daemon.log()
            eventually(lambda: not leftovers(disk.backing), "nothing is left behind")
            assert lines_by_event(daemon)["sidecars cannot be written here; the metadata is kept in the state"] <= 4
        swept(daemon, "full")
        become(daemon, dict.fromkeys(paths, "daemon"), "metadata_source", deadline_s=120)
        assert_right_again(daemon, disk.path)


def test_a_disk_that_hangs_holds_up_neither_the_other_root_nor_the_list_and_nothing_is_claimed_of_it(
    disk: FaultyDisk, tmp_path: pathlib.Path
) -> None:
    good = tmp_path / "good"
    paths = filled_tree(disk.path)
    write_in_place(good / "a.ckpt", checkpoint_bytes(20))
    with Daemon([disk.path, good], tmp_path / "state", **QUICK) as daemon:
        become(daemon, dict.fromkeys((*paths, "a.ckpt"), "daemon"), "metadata_source")
        newest = max(path.stat().st_ctime for path in disk.backing.rglob("*"))
        eventually(lambda: time.time() > newest + 3, "no file is so young that it is read once more")
        swept(daemon)  # what was being read when it hangs would be given up as unreadable, and rightly
        become(daemon, dict.fromkeys((*paths, "a.ckpt"), "checksum"), "verified", deadline_s=120)
        eventually(lambda: not daemon.health()["pending"], "nothing is being read")
        with disk.hanging("getattr", "readdir", "open", "read"), daemon.events() as events:
            hanging_since = time.time()
            next(m for m in events if m["type"] == "complete")
            for number in range(5):
                rename_in(good / f"{number}.ckpt", checkpoint_bytes(30 + number))
            told: set[str] = set()
            while len(told) < 5:
                message = next(events)
                told |= {e["path"] for e in message.get("checkpoints", ()) if e["path"][0].isdigit()}
            become(daemon, dict.fromkeys((*paths, "a.ckpt", *(f"{n}.ckpt" for n in range(5))), "valid"), "health")
            eventually((good / "4.ckpt.metadata.yaml").exists, "sidecars are written on the disk that works")
            roots = {root["path"]: root for root in daemon.health()["roots"]}
            other = eventually(
                lambda: r if epoch_of((r := daemon.health()["roots"][1])["complete_as_of"]) > hanging_since else None,
                f"the other root is swept: {roots}",
            )
            assert other["path"] == str(good)
            stuck = daemon.health()["roots"][0]
            assert epoch_of(stuck["complete_as_of"]) < hanging_since + 1
            assert epoch_of(daemon.health()["complete_as_of"]) < hanging_since + 1
        become(daemon, dict.fromkeys((*paths, "a.ckpt", *(f"{n}.ckpt" for n in range(5))), "daemon"), "metadata_source")
        swept(daemon)
        assert_log_is_bounded(daemon)


def test_a_stop_does_not_wait_for_a_disk_that_hangs(disk: FaultyDisk, tmp_path: pathlib.Path) -> None:
    """It says why and where it stands, and gives up; the kernel lets go of it as soon as the disk allows."""
    with Daemon(disk.path, tmp_path / "state", **QUICK) as daemon:
        paths = filled_tree(disk.path)
        become(daemon, dict.fromkeys(paths, "daemon"), "metadata_source")
        with disk.hanging("getattr", "readdir", "open", "read", "fsync", "write"):
            (disk.backing / paths[0]).unlink()
            daemon.rebuild("full")
            eventually(lambda: daemon.health()["pending"], "files are looked at")
            daemon.signal(signal.SIGTERM)
            eventually(lambda: "does not end by itself" in daemon.log(), "it gives up")
            eventually(lambda: not daemon.is_up(), "nobody is answered")
        assert daemon.process is not None
        assert daemon.process.wait(60) == 128 + signal.SIGTERM
        daemon.start()
        become(daemon, dict.fromkeys(paths[1:], "valid"), "health", deadline_s=60)
        assert_right_again(daemon, disk.path)


def test_a_worker_whose_file_hangs_gives_it_up_and_others_are_read_meanwhile(
    disk: FaultyDisk, tmp_path: pathlib.Path
) -> None:
    with Daemon(disk.path, tmp_path / "state", **QUICK, workers=2, worker_timeout_s=5) as daemon:
        daemon.wait_complete()
        with disk.hanging("read", glob="*stuck*"):
            rename_in(disk.path / "stuck.ckpt", checkpoint_bytes(1))
            for number in range(8):
                rename_in(disk.path / f"{number}.ckpt", checkpoint_bytes(2 + number))
            expected = dict.fromkeys((f"{number}.ckpt" for number in range(8)), "valid")
            eventually(lambda: expected.items() <= shown(daemon, "health").items(), "the others are listed")
            assert shown(daemon, "health").get("stuck.ckpt") != "valid"
        swept(daemon, "full")
        become(daemon, expected | {"stuck.ckpt": "valid"}, "health", deadline_s=60)
        assert_right_again(daemon, disk.path)


def test_on_a_slow_disk_everything_is_listed_all_the_same(disk: FaultyDisk, tmp_path: pathlib.Path) -> None:
    with (
        Daemon(disk.path, tmp_path / "state", **QUICK) as daemon,
        disk.lagging("getattr", "open", "read", "readdir", "write", "fsync", delay_s=0.02),
    ):
        paths = filled_tree(disk.path)
        become(daemon, dict.fromkeys(paths, "daemon"), "metadata_source", deadline_s=120)
        assert daemon.health()["by_health"] == {"valid": 6}
        (disk.path / paths[0]).unlink()
        become(daemon, dict.fromkeys(paths[1:], "valid"), "health", deadline_s=60)
        sidecar = disk.path / f"{paths[0]}.metadata.yaml"
        eventually(lambda: not sidecar.exists(), "its sidecar goes with it")


def test_a_network_filesystem_that_sends_no_event_is_polled_and_told_apart(tmp_path: pathlib.Path) -> None:
    """What is written behind the mount, as by another machine, is found by the timer alone."""
    with (
        faulty_disk(tmp_path, subtype=NETWORK) as disk,
        Daemon(disk.path, tmp_path / "state", sidecar_delay_s=0.1, poll_s=0.5) as daemon,
    ):
        daemon.wait_complete(0.0)
        root = daemon.health()["roots"][0]
        assert (root["online"], root["watching"]) == (True, False)
        has_reason(daemon, "network filesystem: no events, it is scanned on a timer")
        paths = filled_tree(disk.backing)
        become(daemon, dict.fromkeys(paths, ("valid", "daemon")), "health", "metadata_source")
        assert all((disk.backing / f"{path}.metadata.yaml").exists() for path in paths)
        rename_in(disk.backing / paths[0], checkpoint_bytes(50, epoch=50))
        eventually(lambda: daemon.entries()[paths[0]]["epoch"] == 50, "the change is found")
        (disk.backing / paths[1]).unlink()
        eventually(lambda: paths[1] not in daemon.entries(), "the deletion is found")
        # Attributes may be as old as the cache of such a filesystem allows: no more is claimed.
        moment = time.time()
        swept_at = eventually(
            lambda: r["complete_as_of"] if (r := daemon.health()["roots"][0])["last_sweep_s"] is not None else None,
            "it is swept",
        )
        assert epoch_of(swept_at) <= moment - 59
        assert_log_is_bounded(daemon)
