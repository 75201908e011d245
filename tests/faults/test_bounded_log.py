"""A fault of every file, met again by every sweep: the log says it, counts the rest, and stays small."""

import errno
import os
import pathlib
import re
import time

import pytest

from tests.faults.fault_filesystem import faulty_disk
from tests.faults.faulty_services import become, lines_by_event
from tests.service.checkpoints import checkpoint_bytes, write_in_place
from tests.service.daemons import Daemon, eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="/dev/fuse is missing"),
]
FILES = 150
QUICK = {"sidecars": "off", "verify": "none", "sweep_min_s": 0.2, "sweep_cpu": 0.5, "build_degraded_s": 240}
PER_MINUTE = 31
"""Thirty lines of an event, and one that counts the rest."""


def failed_reads(daemon: Daemon) -> int:
    """Attempts to describe that the disk refused, so far."""
    found = re.search(
        r'^ckptd_describe_duration_seconds_count\{outcome="unreadable"\} (\S+)$', daemon.get("/metrics").text, re.M
    )
    return int(float(found[1])) if found else 0


def test_a_disk_that_refuses_every_file_at_every_sweep_fills_no_log(tmp_path: pathlib.Path) -> None:
    with faulty_disk(tmp_path) as disk:
        paths = [f"run{number % 5}/{number}.ckpt" for number in range(FILES)]
        for number, path in enumerate(paths):
            write_in_place(disk.path / path, checkpoint_bytes(number % 4))
        with Daemon(disk.path, tmp_path / "state", **QUICK) as daemon:
            with disk.failing("read", code=errno.EIO, glob="*.ckpt"):
                began_at = time.monotonic()
                for path in paths:
                    os.utime(disk.path / path)
                become(daemon, dict.fromkeys(paths, "invalid"), "health", deadline_s=120)
                # Three looks a second apart until they are listed so, and one with each sweep from then on.
                eventually(lambda: failed_reads(daemon) > 6 * FILES, "it goes on trying", deadline_s=120)
                minutes = int((time.monotonic() - began_at) // 60) + 2
                counts = lines_by_event(daemon)
                assert counts["checkpoint unreadable"] >= 30, "it is told"
                assert all(count <= PER_MINUTE * minutes for count in counts.values()), counts
                assert len(daemon.log()) < 100_000 * minutes
                errors = daemon.health()["recent_errors"]
                assert len(errors) == 50, "the latest ones, no more"
                assert os.strerror(errno.EIO) in errors[0]["message"]
            become(daemon, dict.fromkeys(paths, "valid"), "health", deadline_s=120)
