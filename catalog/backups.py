"""Backups: replacing or setting aside what a person wrote, only where that was asked for, and always kept as `.bak`.

The backup is there before the file is replaced, so that a kill at any moment loses nothing, and a second run ends as
the first one would have: a backup that holds exactly what is about to be replaced is not made again.
"""

import contextlib
import errno
import itertools
import os
import re

from ckptd.validators.inspection import FileIdentity
from ckptd.validators.reader import identity_of

from .experiment import is_sidecar_name
from .placing import check_name, fill, named, opened_directory, put_back, read_regular, sync_directory
from .renaming import exchange, rename_no_replace
from .temporary import is_abandoned, is_swap_name, swap_name, temporary_name

BACKUPS = 100
"""Of one file; more would be a mistake that repeats itself."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BACKUP = re.compile(rb"\.bak[0-9]*\Z")
# No hard links there, or not for this file (fs.protected_hardlinks): a copy will do.
_NO_LINKS = frozenset({errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV})


def replace_with_backup(
    root_fd: int, relative_path: bytes, data: bytes, *, like: os.stat_result, expected: FileIdentity
) -> bytes:
    """Replace a file that somebody else wrote, and keep it beside as `<name>.bak`, `.bak1`, … .

    Args:
        root_fd: The open root (O_PATH will do).
        relative_path: Of the file, beneath the root.
        data: What is to stand there.
        like: Status of the checkpoint: the new file gets its owner, group and mode as far as that is permitted.
        expected: The state of the file that was judged.

    Returns:
        The backup's path, relative to the root.

    Raises:
        FileExistsError: the file is another one than was judged, or there are too many backups.
        OSError: the system refused; carries the relative path. Nothing is lost, nothing of ours is left behind.
    """
    directory, name = os.path.split(relative_path)
    with named(relative_path), opened_directory(root_fd, directory) as directory_fd:
        temporary = temporary_name(name)
        fd = os.open(temporary, _NEW, 0o600, dir_fd=directory_fd)
        try:
            with open(fd, "wb", buffering=0, closefd=True):
                fill(fd, data, like)
            _check_is(directory_fd, name, expected)
            backup = _keep(directory_fd, name)
            sync_directory(directory_fd)
            _take_place(directory_fd, temporary, name, backup)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory_fd)
        sync_directory(directory_fd)
        return os.path.join(directory, backup)


def set_aside(root_fd: int, relative_path: bytes) -> bytes:
    """Rename a file that somebody else wrote to the next free `.bak`.

    Returns:
        The backup's path, relative to the root.

    Raises:
        FileNotFoundError: it is gone.
        FileExistsError: there are too many backups.
        OSError: the system refused; carries the relative path.
    """
    directory, name = os.path.split(relative_path)
    with named(relative_path), opened_directory(root_fd, directory) as directory_fd:
        for backup in _names(directory_fd, name):
            with contextlib.suppress(FileExistsError):
                rename_no_replace(directory_fd, name, backup)
                sync_directory(directory_fd)
                return os.path.join(directory, backup)
        raise _too_many()


def clean_swaps(root_fd: int, relative_directory: bytes, *, now: float) -> int:
    """Remove swap files of killed writers whose contents stand in their place, or are kept as a backup.

    Args:
        root_fd: The open root.
        relative_directory: Where to look.
        now: Epoch seconds.

    Returns:
        How many were removed.

    Raises:
        OSError: the directory cannot be listed.
    """
    removed = 0
    with named(relative_directory), opened_directory(root_fd, relative_directory) as directory_fd:
        names = [os.fsencode(name) for name in os.listdir(directory_fd)]
        places = [name for name in names if _BACKUP.search(name) or is_sidecar_name(name)]
        for name in filter(is_swap_name, names):
            with contextlib.suppress(OSError):
                status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
                if not is_abandoned(name, status.st_mtime, now):
                    continue
                if any(_is_same(directory_fd, name, place) for place in places):
                    os.unlink(name, dir_fd=directory_fd)
                    removed += 1
    return removed


# ---- inside ----------------------------------------------------------------------------------------------------


def _check_is(directory_fd: int, name: bytes, expected: FileIdentity) -> None:
    found = identity_of(os.stat(name, dir_fd=directory_fd, follow_symlinks=False))
    # A hard link that an earlier, killed run made has changed ctime, and nothing else.
    if (found.inode, found.size, found.mtime_ns) != (expected.inode, expected.size, expected.mtime_ns):
        raise FileExistsError(errno.EEXIST, "somebody wrote to it meanwhile; run it again")


def _keep(directory_fd: int, name: bytes) -> bytes:
    """Make a backup, or find the one that an earlier run made of exactly this file."""
    for backup in _names(directory_fd, name):
        try:
            _link_or_copy(directory_fd, name, backup)
        except FileExistsError:
            if not _is_same(directory_fd, name, backup):
                continue
        return backup
    raise _too_many()


def _names(directory_fd: int, name: bytes) -> "itertools.chain[bytes]":
    check_name(directory_fd, name + b".bak")
    return itertools.chain([name + b".bak"], (name + b".bak%d" % number for number in range(1, BACKUPS)))


def _too_many() -> OSError:
    return FileExistsError(errno.EEXIST, f"there are {BACKUPS} backups (.bak) already; remove some")


def _link_or_copy(directory_fd: int, name: bytes, backup: bytes) -> None:
    try:
        os.link(name, backup, src_dir_fd=directory_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _copy(directory_fd, name, backup)


def _copy(directory_fd: int, name: bytes, backup: bytes) -> None:
    data = read_regular(directory_fd, name)
    if data is None:
        raise OSError(errno.EINVAL, "it is no regular file of a sidecar's size")
    temporary = temporary_name(backup)
    fd = os.open(temporary, _NEW, 0o600, dir_fd=directory_fd)
    try:
        with open(fd, "wb", buffering=0, closefd=True):
            status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            fill(fd, data, status)
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        rename_no_replace(directory_fd, temporary, backup)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory_fd)


def _take_place(directory_fd: int, temporary: bytes, name: bytes, backup: bytes) -> None:
    """Exchange the new file with the old one; what came out must be what the backup holds.

    The new file takes the name of a swap file first: only those can ever hold what a person wrote.
    """
    swap = swap_name(name)
    mine = os.stat(temporary, dir_fd=directory_fd, follow_symlinks=False).st_ino
    rename_no_replace(directory_fd, temporary, swap)
    try:
        if not exchange(directory_fd, swap, name):
            os.rename(swap, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
            return
    except OSError:
        rename_no_replace(directory_fd, swap, temporary)
        raise
    if _is_same(directory_fd, swap, backup):
        os.unlink(swap, dir_fd=directory_fd)
        return
    if put_back(directory_fd, swap, name, mine):
        rename_no_replace(directory_fd, swap, temporary)
    raise FileExistsError(errno.EEXIST, "somebody wrote to it meanwhile; run it again")


def _is_same(directory_fd: int, one: bytes, other: bytes) -> bool:
    """Whether two names are one file, or hold the same bytes."""
    first, second = (os.stat(name, dir_fd=directory_fd, follow_symlinks=False) for name in (one, other))
    if (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino):
        return True
    data = read_regular(directory_fd, one)
    return data is not None and data == read_regular(directory_fd, other)
