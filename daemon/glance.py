"""Glance: a root as it stands, compared with what is watched."""

import contextlib
import os
import stat

import msgspec

from .mounts import Mount, mount_holding, mounts_beneath, read_mounts


class Glance(msgspec.Struct, frozen=True):
    """The root as it stands: cheap to take, equal as long as a watch on it is good."""

    device: int
    inode: int
    mounts: tuple[tuple[bytes, str], ...]
    """Beneath the root: relative directory and device."""
    polled: tuple[bytes, ...]


def glance_at(path: bytes) -> Glance:
    """The root at an absolute path as it stands now. Blocks; the root may be on a disk that hangs.

    Raises:
        OSError: it does not exist, is no directory, or cannot be asked.
    """
    mounts = read_mounts()
    beneath = mounts_beneath(path, mounts)
    polled = tuple(sorted(directory for directory, mount in beneath.items() if mount.is_network))
    holding: Mount | None = mount_holding(path, mounts)
    if holding is not None and holding.is_network:
        polled = (b"",)
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(os.fsdecode(path))
    devices = tuple(sorted((directory, mount.device) for directory, mount in beneath.items()))
    return Glance(status.st_dev, status.st_ino, devices, polled)


def wait_for_answer(directory: bytes) -> None:
    """Return when the filesystem says what is in a directory, or that it cannot."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        next(entries, None)
