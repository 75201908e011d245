"""Putting files in place beneath an open root: whole, durable, following no link. What sidecars and backups share."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from .documents import MAX_BYTES
from .renaming import exchange, rename_no_replace

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_MODE_BITS = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH


def fill(fd: int, data: bytes, like: os.stat_result) -> None:
    """Write a new file, whole and to the disk; owner, group and mode like another's as far as that is permitted."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    with contextlib.suppress(OSError):
        os.fchown(fd, like.st_uid, like.st_gid)
    with contextlib.suppress(OSError):
        os.fchmod(fd, like.st_mode & _MODE_BITS)
    os.fsync(fd)


def put_back(directory_fd: int, swap: bytes, name: bytes, mine: int) -> bool:
    """Undo an exchange that took a stranger's file out of its place; True if our own file came out again.

    If yet another file was put there in between, the newest keeps the place and the other one stays as the swap file.
    """
    try:
        exchange(directory_fd, swap, name)
    except FileNotFoundError:  # our own file was taken away meanwhile
        with contextlib.suppress(FileExistsError):
            rename_no_replace(directory_fd, swap, name)
        return False
    if os.stat(swap, dir_fd=directory_fd, follow_symlinks=False).st_ino == mine:
        return True
    exchange(directory_fd, swap, name)
    return False


def read_regular(directory_fd: int, name: bytes) -> bytes | None:
    """The bytes of a regular file; None for anything that cannot be a sidecar of ours (a link, a directory, huge)."""
    try:
        fd = os.open(name, _READ_FLAGS, dir_fd=directory_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EACCES):
            return None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            return None
        return os.pread(fd, MAX_BYTES + 1, 0)
    finally:
        os.close(fd)


def check_name(directory_fd: int, name: bytes) -> None:
    """Refuse a sidecar's name that the filesystem cannot take.

    Raises:
        OSError: ENAMETOOLONG, and says by how much.
    """
    longest = os.fpathconf(directory_fd, "PC_NAME_MAX")
    if len(name) > longest:
        raise OSError(
            errno.ENAMETOOLONG,
            f"the sidecar's name has {len(name)} bytes, the filesystem takes {longest}: shorten the checkpoint's name",
        )


def sync_directory(directory_fd: int) -> None:
    """Make renames in a directory durable, as far as its filesystem can."""
    try:
        os.fsync(directory_fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network filesystems cannot; the rename is all they offer
            raise


@contextlib.contextmanager
def opened_directory(root_fd: int, relative_directory: bytes) -> Iterator[int]:
    """Open a directory beneath the root, component by component, following no link."""
    current = os.open(b".", _DIRECTORY_FLAGS, dir_fd=root_fd)
    try:
        for part in filter(None, relative_directory.split(b"/")):
            if part == b"..":
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            step = os.open(part, _DIRECTORY_FLAGS, dir_fd=current)
            os.close(current)
            current = step
        yield current
    finally:
        os.close(current)


@contextlib.contextmanager
def named(relative_path: bytes) -> Iterator[None]:
    """Give errors the path that they are about; calls on descriptors do not know it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fsdecode(relative_path)) from error
