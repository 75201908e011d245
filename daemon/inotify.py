"""Inotify: whether the kernel would watch one more directory; watchfiles does not say when it would not."""

import ctypes
import errno
import os

_IN_ONLYDIR = 0x01000000  # include/uapi/linux/inotify.h
_IN_DELETE_SELF = 0x00000400
_ANY_DIRECTORY = b"/"
"""Never on a disk that hangs, and may be read by everyone."""


def why_no_watch() -> str | None:
    """Why no further directory can be watched now, with the remedy; None where one can, or where nobody can tell.

    Watches and instances are counted for each user over all processes (inotify(7)), so this is found out by asking
    for one. May take some milliseconds, as closing an instance does: meant for a thread.
    """
    library = ctypes.CDLL(None, use_errno=True)
    instance = library.inotify_init1(os.O_CLOEXEC)
    if instance < 0:
        return explain(ctypes.get_errno())
    try:
        if library.inotify_add_watch(instance, _ANY_DIRECTORY, _IN_ONLYDIR | _IN_DELETE_SELF) < 0:
            return explain(ctypes.get_errno())
    finally:
        os.close(instance)
    return None


def explain(code: int) -> str | None:
    """What an error number of inotify means, with the remedy; None where it has nothing to do with limits."""
    if code == errno.ENOSPC:
        return "all watches of this user are taken; raise fs.inotify.max_user_watches (sysctl)"
    if code == errno.EMFILE:
        return (
            "all inotify instances of this user are taken; raise fs.inotify.max_user_instances (sysctl), "
            "or the limit of open files (ulimit -n)"
        )
    return None
