"""Roots: the watched trees, made absolute and resolved at start; names of checkpoints; opening beneath a root."""

import ctypes
import errno
import functools
import os
import stat
import struct
from collections.abc import Iterable, Sequence

import msgspec

from ckptd.validators.formats.sharded import LATEST, claim
from ckptd.validators.inspection import Format

from .link_owners import leads_its_owner

DEFAULT_SUFFIXES = (".ckpt",)

_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_SYS_OPENAT2 = 437  # the same number on every architecture (Linux 5.6, include/uapi/asm-generic/unistd.h)
_RESOLVE_NO_MAGICLINKS = 0x02  # include/uapi/linux/openat2.h
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08


class RootError(ValueError):
    """Raised when a configured root can never be watched: it is no directory, itself a checkpoint, or not UTF-8."""


class Root(msgspec.Struct, frozen=True):
    """One watched tree."""

    path: bytes
    """Absolute, links resolved."""

    @property
    def name(self) -> str:
        """What entries show, and what ids are derived from: the absolute path, escaped where it is not UTF-8."""
        return self.path.decode("utf-8", "backslashreplace")

    def join(self, relative_path: bytes) -> bytes:
        """The absolute path of something beneath this root."""
        return os.path.join(self.path, relative_path) if relative_path else self.path


def resolve_roots(paths: Iterable[str]) -> tuple[list[Root], list[str]]:
    """Make roots absolute, resolve links, merge nested ones into the outer one.

    A root that does not exist yet is kept: it is waited for.

    Returns:
        The roots in the order given, and warnings for people about what was merged.

    Raises:
        RootError: a path exists and is not a directory, is itself a checkpoint (which would be listed under no name),
            or is not UTF-8: no event could ever name a file there.
    """
    resolved: list[tuple[str, bytes]] = []
    for given in paths:
        path = os.path.realpath(os.fsencode(given))
        if os.path.exists(path) and not os.path.isdir(path):
            raise RootError(f"roots: {given!r} is not a directory; name the directory that holds the checkpoints")
        if (claimed := _claim(path)) is not None:
            holder = os.fsdecode(os.path.dirname(path))
            raise RootError(f"roots: {given!r} is itself a checkpoint ({claimed}); name what holds it, {holder!r}")
        if not _is_utf8(path):
            raise RootError(f"roots: the path {path!r} is not UTF-8 and cannot be watched; rename the directory")
        resolved.append((given, path))
    roots: list[Root] = []
    warnings: list[str] = []
    for given, path in resolved:
        outer = next((other for _, other in resolved if path != other and _beneath(path, other)), None)
        if outer is not None:
            warnings.append(f"root {given!r} lies inside {os.fsdecode(outer)!r} and is merged into it")
        elif Root(path) in roots:
            warnings.append(f"root {given!r} is named twice")
        else:
            roots.append(Root(path))
    return roots, warnings


def _claim(path: bytes) -> Format | None:
    directory, name = os.path.split(path)
    try:
        return claim(name, os.listdir(path), os.path.lexists(os.path.join(directory, LATEST)))
    except OSError:  # it does not exist yet, or is not to be listed now
        return None


def is_checkpoint_name(name: bytes, suffixes: Sequence[str] = DEFAULT_SUFFIXES) -> bool:
    """Whether a file of this name is listed as a checkpoint. Hidden files are not: they are temporary ones."""
    return not name.startswith(b".") and name.endswith(_encoded(tuple(suffixes)))


def open_beneath(root_fd: int, relative_path: bytes, *, follow_links: bool = True) -> int:
    """Open a regular file for reading, never leaving the root and never waiting.

    Links inside the root are followed as long as they stay inside and their owner may read what they lead to; absolute
    links are refused (EXDEV). FIFOs and devices open without blocking and are then refused.

    Args:
        root_fd: the open root (O_PATH will do).
        relative_path: of the file, beneath the root.
        follow_links: False refuses every link (ELOOP).

    Returns:
        A descriptor, close-on-exec; the caller closes it.

    Raises:
        OSError: as open(2), EXDEV for a path that leaves the root, EINVAL for what is not a regular file, EACCES for a
            link of somebody who may not read its target.
    """
    followed = False
    try:
        fd = _openat2(root_fd, relative_path, _OPEN_FLAGS, _RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if not follow_links or error.errno != errno.ELOOP:
            raise
        fd, followed = _openat2(root_fd, relative_path, _OPEN_FLAGS, 0), True
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(relative_path))
        if followed and not leads_its_owner(root_fd, relative_path, fd):
            raise PermissionError(
                errno.EACCES, "the owner of the link may not read what it leads to", os.fsdecode(relative_path)
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def has_link(root_fd: int, relative_path: bytes) -> bool:
    """Whether a path that exists is a link, or leads through one. Opens nothing for reading."""
    try:
        os.close(_openat2(root_fd, relative_path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, _RESOLVE_NO_SYMLINKS))
    except OSError as error:
        return error.errno in (errno.ELOOP, errno.ENOTDIR)  # the latter by the walk, where there is no openat2
    return False


def open_directory_beneath(root_fd: int, relative_path: bytes) -> int:
    """Open a directory to list it, never leaving the root and following no link.

    Returns:
        A descriptor, close-on-exec; the caller closes it.

    Raises:
        OSError: as open(2), ENOTDIR for what is no directory, ELOOP for a link on the way.
    """
    return _openat2(root_fd, relative_path, _OPEN_FLAGS | os.O_DIRECTORY, _RESOLVE_NO_SYMLINKS)


def _openat2(root_fd: int, relative_path: bytes, flags: int, resolve: int) -> int:
    if not _has_openat2():
        return _open_by_walk(root_fd, relative_path, flags)
    how = struct.pack("QQQ", flags, 0, resolve | _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    while True:
        fd = int(_libc().syscall(_SYS_OPENAT2, root_fd, relative_path, how, len(how)))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: a rename raced with the resolution
            raise OSError(code, os.strerror(code), os.fsdecode(relative_path))


def _open_by_walk(root_fd: int, relative_path: bytes, flags: int) -> int:
    """Where openat2 is missing or forbidden: component by component, following no link at all."""
    *directories, name = [part for part in relative_path.split(b"/") if part]
    if b".." in (*directories, name):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), os.fsdecode(relative_path))
    current = os.dup(root_fd)
    try:
        for directory in directories:
            step = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = step
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=current)
    finally:
        os.close(current)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@functools.cache
def _has_openat2() -> bool:
    how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_MAGICLINKS)
    fd = int(_libc().syscall(_SYS_OPENAT2, -100, b"/", how, len(how)))  # -100: AT_FDCWD
    if fd < 0:
        return False
    os.close(fd)
    return True


@functools.cache
def _encoded(suffixes: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(os.fsencode(suffix) for suffix in suffixes)


def _is_utf8(path: bytes) -> bool:
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _beneath(path: bytes, other: bytes) -> bool:
    return path.startswith(other.rstrip(b"/") + b"/")
