"""A filesystem in an image file, whose blocks can be changed behind its back; for tests that run as root."""

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator

from tests.daemon.real_mounts import mount, unmount

IMAGE_BYTES = 32 << 20


class LoopDisk:
    """An ext4 filesystem on a loop device."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.image = directory / "disk.img"
        self.path = directory / "disk"

    @contextlib.contextmanager
    def mounted(self) -> Iterator[pathlib.Path]:
        """The mounted filesystem while inside."""
        with open(self.image, "wb") as image:
            image.truncate(IMAGE_BYTES)
        subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", str(self.image)], check=True)
        self.path.mkdir()
        mount("-o", "loop", str(self.image), str(self.path))
        try:
            yield self.path
        finally:
            unmount(self.path)

    @property
    def device(self) -> str:
        """The loop device beneath."""
        shown = subprocess.run(
            ["/usr/sbin/losetup", "--noheadings", "--output", "NAME", "--associated", str(self.image)],
            check=True,
            capture_output=True,
            text=True,
        )
        return shown.stdout.split()[0]

    def rot(self, contents: bytes) -> None:
        """Flip a bit on the disk in the middle of `contents`, which occur there once.

        The filesystem does not learn of it: no time changes, and what it holds in memory of the file stays as it was.
        """
        os.sync()
        device = os.open(self.device, os.O_RDWR)
        try:
            os.posix_fadvise(device, 0, 0, os.POSIX_FADV_DONTNEED)
            data = os.pread(device, IMAGE_BYTES, 0)
            assert data.count(contents) == 1
            place = data.index(contents) + len(contents) // 2
            os.pwrite(device, bytes([data[place] ^ 1]), place)
            os.fsync(device)
        finally:
            os.close(device)
