"""Disks that die under the tree while it is known and cached: offline, nothing is deleted, all comes back."""

import errno
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.faults.fault_filesystem import faulty_disk
from tests.faults.faulty_services import assert_right_again, become, has_reason, healthy, shown
from tests.faults.test_power_cut import LoopDisk
from tests.service.checkpoints import checkpoint_bytes, rename_in, write_in_place
from tests.service.daemons import Daemon, epoch_of

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(300)]
QUICK = {"sidecar_delay_s": 0.1, "sweep_min_s": 0.2, "sweep_cpu": 0.5, "build_degraded_s": 120}
PATHS = [f"run{number % 2}/{number}.ckpt" for number in range(6)]


def fill(root: pathlib.Path) -> None:
    for number, path in enumerate(PATHS):
        write_in_place(root / path, checkpoint_bytes(number))


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="/dev/fuse is missing")
def test_a_filesystem_whose_server_dies_leaves_everything_offline_until_it_is_mounted_again(
    tmp_path: pathlib.Path,
) -> None:
    """As sshfs or a userspace NFS client does: it stays mounted, and each call fails with ENOTCONN."""
    with faulty_disk(tmp_path) as disk:
        fill(disk.path)
        with Daemon(disk.path, tmp_path / "state", **QUICK) as daemon:
            become(daemon, dict.fromkeys(PATHS, ("valid", "daemon")), "health", "metadata_source", deadline_s=120)
            healthy(daemon)
            with daemon.events() as events:
                cursor = next(m for m in events if m["type"] == "complete")["_id"]
            died_at = time.time()
            disk.die()
            become(daemon, dict.fromkeys(PATHS, "offline"), "health", deadline_s=120)
            has_reason(daemon, f"{len(PATHS)} checkpoints are offline")
            health = has_reason(daemon, os.strerror(errno.ENOTCONN))  # whoever asked at that moment was told otherwise
            assert health["catalog_status"] == "unhealthy", "no root can be read"
            assert epoch_of(health["complete_as_of"]) <= died_at + 1
            assert daemon.stop() == 0
            daemon.start()
            become(daemon, dict.fromkeys(PATHS, "offline"), "health", deadline_s=120)
            disk.unmount()
            has_reason(daemon, "offline")
            assert shown(daemon).keys() == set(PATHS), "an empty mount point is no deletion"
            disk.mount()
            become(daemon, dict.fromkeys(PATHS, "valid"), "health", deadline_s=120)
            with daemon.events(last_event_id=cursor) as again:
                assert next(again)["type"] == "resumed"
            rename_in(disk.path / "run0/new.ckpt", checkpoint_bytes(9))
            become(daemon, dict.fromkeys((*PATHS, "run0/new.ckpt"), "daemon"), "metadata_source", deadline_s=120)
            assert_right_again(daemon, disk.path)


@pytest.fixture(params=["ext4", "xfs"])
def loop_disk(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[LoopDisk]:
    if shutil.which(f"mkfs.{request.param}", path="/usr/sbin:/sbin") is None:
        pytest.skip(f"mkfs.{request.param} is missing")
    disk = LoopDisk(tmp_path, request.param)
    with disk.mounted():
        yield disk


def test_a_disk_that_the_kernel_shut_down_beneath_the_tree_deletes_nothing(
    loop_disk: LoopDisk, tmp_path: pathlib.Path
) -> None:
    """As after an error of its journal: what is cached can still be seen, and nothing can be opened."""
    root = loop_disk.path / "outputs"
    fill(root)
    daemon = Daemon(root, tmp_path / "state", **QUICK)
    with daemon:
        become(daemon, dict.fromkeys(PATHS, ("valid", "daemon")), "health", "metadata_source", deadline_s=120)
        healthy(daemon)
        subprocess.run(["/bin/sync", "-f", str(root)], check=True)  # it is the disk that dies, no write that is lost
        loop_disk.cut()
        health = has_reason(daemon, "offline")
        assert health["catalog_status"] != "healthy"
        assert shown(daemon).keys() == set(PATHS)
        assert daemon.stop() == 0
        loop_disk.restore()
        daemon.start()
        become(daemon, dict.fromkeys(PATHS, "valid"), "health", deadline_s=120)
        assert_right_again(daemon, root)
