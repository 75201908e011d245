"""Real mounts for tests that run as root; whatever is mounted is unmounted at the end."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


def mount(*arguments: str) -> None:
    """Run mount(8)."""
    subprocess.run(["/bin/mount", *arguments], check=True)


def unmount(path: Path) -> None:
    """Run umount(8), detaching at once."""
    subprocess.run(["/bin/umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def tmpfs(path: Path) -> Iterator[Path]:
    """A fresh empty filesystem at `path` while the context lasts, unless it is unmounted earlier."""
    mount("-t", "tmpfs", "tmpfs", str(path))
    try:
        yield path
    finally:
        if path.is_mount():
            unmount(path)
