"""Half a million small files beside the checkpoints: all checkpoints are listed, none is missed."""

import os
import pathlib
import time
from collections.abc import Iterator

import pytest

from tests.daemon.real_mounts import mount, unmount
from tests.faults.faulty_services import assert_log_is_bounded
from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(600)]
GENEROUS_S = 300.0


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """In memory: what is tried is the daemon, not the disk."""
    path = tmp_path / "outputs"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "nr_inodes=2m,size=2g", "tmpfs", str(path))
    try:
        yield path
    finally:
        unmount(path)


def test_half_a_million_small_files_beside_the_checkpoints_hide_none(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Samples, logs and images of trainings: entries of directories that a sweep must pass by."""
    (outputs / "template").write_bytes(b"")
    for directory in range(100):
        path = os.fsencode(outputs / f"run{directory:03}" / "samples")
        os.makedirs(path)
        source = os.fsencode(outputs / "template")
        for number in range(5000):
            os.link(source, path + b"/%d.png" % number)
    for number in range(20):
        rename_in(outputs / f"run{number:03}/{number}.ckpt", checkpoint_bytes(number))
    with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1, build_degraded_s=120) as daemon:
        health = daemon.wait_complete(deadline_s=GENEROUS_S)
        assert health["by_health"] == {"valid": 20}
        eventually(lambda: daemon.health()["roots"][0]["watching"], "it is watched", deadline_s=GENEROUS_S)
        rename_in(outputs / "run050/new.ckpt", checkpoint_bytes(50))
        eventually(lambda: "run050/new.ckpt" in daemon.entries(), "news arrives")
        (outputs / "run000").rename(outputs / "moved")
        eventually(lambda: "moved/0.ckpt" in daemon.entries(), "a tree of 5,000 files moves", deadline_s=GENEROUS_S)
        moment = time.time()
        daemon.rebuild()
        daemon.wait_complete(moment, deadline_s=GENEROUS_S)
        assert daemon.entries().keys() == {
            "moved/0.ckpt",
            "run050/new.ckpt",
            *(f"run{number:03}/{number}.ckpt" for number in range(1, 20)),
        }
        assert_log_is_bounded(daemon)
