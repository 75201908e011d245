"""The power fails (the filesystem stops, unflushed data is lost): what was acknowledged is there afterwards, whole."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ckptd.catalog.index import read_index
from ckptd.catalog.sidecar import clean_leftovers, is_ours
from tests.catalog.metadata_files import opened
from tests.daemon.real_mounts import mount, unmount
from tests.faults.faulty_services import assert_log_is_bounded, become, has_reason
from tests.service.campaigns import assert_equal_to_tree
from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(240)]
_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, _IOR('X', 125, __u32), include/uapi/linux/fs.h
_NO_FLUSH = 2  # FS_SHUTDOWN_FLAGS_NOLOGFLUSH: the journal in memory is lost as well
CUTS = 8


class LoopDisk:
    """A filesystem in an image file, whose power can be cut."""

    def __init__(self, directory: pathlib.Path, kind: str) -> None:
        self.path = directory / "disk"
        self._image = directory / "disk.img"
        self._kind = kind

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """Made and mounted while inside."""
        with open(self._image, "wb") as image:
            image.truncate((320 if self._kind == "xfs" else 48) << 20)
        make = {"ext4": ["/usr/sbin/mkfs.ext4", "-q", "-F"], "xfs": ["/usr/sbin/mkfs.xfs", "-q", "-f"]}[self._kind]
        subprocess.run([*make, str(self._image)], check=True)
        self.path.mkdir()
        mount("-o", "loop", str(self._image), str(self.path))
        try:
            yield
        finally:
            unmount(self.path)

    def cut(self) -> None:
        """From now on every access fails with EIO, and what was not flushed is gone."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_FLUSH))
        finally:
            os.close(fd)

    def restore(self) -> None:
        """The power is back: the journal is replayed."""
        eventually(lambda: subprocess.run(["/bin/umount", str(self.path)], check=False).returncode == 0, "unmounted")
        mount("-o", "loop", str(self._image), str(self.path))


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[LoopDisk]:
    if shutil.which(f"mkfs.{request.param}", path="/usr/sbin:/sbin") is None:
        pytest.skip(f"mkfs.{request.param} is missing")
    disk = LoopDisk(tmp_path, request.param)
    with disk.mounted():
        yield disk


_WRITER = """
import os, sys
from ckptd.catalog.description import CheckpointMetadata
from ckptd.catalog.index import Experiment, Index, write_index
from ckptd.catalog.sidecar import render, write_sidecar
root = os.open(sys.argv[1], os.O_PATH)
status = os.stat(sys.argv[1])
number = 0
while True:
    number += 1
    data = render(CheckpointMetadata(exp_name=f"n{number}"))
    write_sidecar(root, b"best.ckpt.metadata.yaml", data, like=status, replace_ours=True)
    write_index(root, Index("2.0", checkpoints={f"n{number}": Experiment(["a.ckpt"] * 400)}))
    os.write(1, number.to_bytes(8, "little"))
"""


def test_sidecars_and_indexes_that_were_acknowledged_survive_and_none_is_torn(disk: LoopDisk) -> None:
    found = []
    for cut in range(CUTS):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(disk.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            acknowledged = 0
            for _ in range(3 + 5 * cut):  # other moments of the writer's work, and of the journal's
                acknowledged = int.from_bytes(writer.stdout.read(8), "little")
            disk.cut()
            rest = writer.stdout.read()
            acknowledged = int.from_bytes(rest[-8:], "little") if rest else acknowledged
            assert writer.wait() != 0
        disk.restore()
        sidecar = (disk.path / "best.ckpt.metadata.yaml").read_bytes()
        assert is_ours(sidecar)
        with opened(disk.path) as root_fd:
            index = read_index(root_fd)
            clean_leftovers(root_fd, b"")
        assert index.index is not None, index.reason
        number = int(sidecar.split(b"exp_name: n")[1].split(b"\n")[0])
        indexed = int(next(iter(index.index.checkpoints))[1:])
        # The sidecar is written first: it may be one ahead of what was acknowledged, never behind.
        assert acknowledged <= number <= acknowledged + 1
        assert acknowledged <= indexed <= acknowledged + 1
        found.append(number)
        assert set(os.listdir(disk.path)) <= {"best.ckpt.metadata.yaml", ".checkpoint_index.json", "lost+found"}
    assert len(set(found)) > CUTS / 2


def test_a_state_whose_disk_fails_is_told_and_afterwards_no_entry_is_missing(
    disk: LoopDisk, tmp_path: pathlib.Path
) -> None:
    outputs = tmp_path / "outputs"
    rename_in(outputs / "a.ckpt", checkpoint_bytes(1))
    daemon = Daemon(outputs, disk.path / "state", sidecar_delay_s=0.1)
    daemon.port_file, daemon.log_file = tmp_path / "port", tmp_path / "log"
    with daemon:
        become(daemon, {"a.ckpt": "daemon"}, "metadata_source")
        instance = daemon.health()["instance"]
        disk.cut()
        rename_in(outputs / "b.ckpt", checkpoint_bytes(2))
        (outputs / "a.ckpt").unlink()
        become(daemon, {"b.ckpt": "valid"}, "health")
        health = has_reason(daemon, "the state cannot be written")
        assert (health["state_durable"], health["catalog_status"]) == (False, "degraded")
        assert health["instance"] != instance
        daemon.kill()
        disk.restore()
        daemon.start()
        become(daemon, {"b.ckpt": ("valid", "daemon")}, "health", "metadata_source")
        daemon.wait_complete()
        assert_equal_to_tree(daemon, outputs)
        assert_log_is_bounded(daemon)
