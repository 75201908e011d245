"""rename(2) that does not replace, and rename(2) that exchanges; Linux has both, Python has neither."""

import ctypes
import errno
import functools
import os
from collections.abc import Callable

_NOREPLACE = 1  # include/uapi/linux/fs.h
_EXCHANGE = 2
# The filesystem or the kernel does not know the flag; EPERM: a seccomp filter that forbids what it does not know.
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})


def rename_no_replace(directory_fd: int, source: bytes, target: bytes) -> None:
    """Rename within a directory unless `target` exists, as one step.

    Without RENAME_NOREPLACE (some network filesystems): link(2) and unlink(2), which is safe as well.

    Raises:
        FileExistsError: `target` is there.
        OSError: as rename(2).
    """
    if _renameat2(directory_fd, source, target, _NOREPLACE):
        return
    os.link(source, target, src_dir_fd=directory_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
    os.unlink(source, dir_fd=directory_fd)


def exchange(directory_fd: int, one: bytes, other: bytes) -> bool:
    """Exchange two files of a directory as one step; False where the filesystem cannot.

    Raises:
        FileNotFoundError: one of them is not there.
        OSError: as rename(2).
    """
    return _renameat2(directory_fd, one, other, _EXCHANGE)


def _renameat2(directory_fd: int, source: bytes, target: bytes, flags: int) -> bool:
    function = _function()
    if function is None:
        return False
    if function(directory_fd, source, directory_fd, target, flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), os.fsdecode(target))


@functools.cache
def _function() -> Callable[..., int] | None:
    """renameat2 of the C library (glibc 2.28, musl 1.2.5), or None."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return function
