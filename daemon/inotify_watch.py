"""Inotify watch: the events of a tree by the bytes of its names, for trees in which some are not UTF-8.

watchfiles cannot say such a name, and its watch ends with the first one. This one is slower (Python reads each event)
and knows inotify(7) only; it says when the kernel's queue overflowed, and misses nothing in directories that were just
made: each is listed after it is watched.
"""

import contextlib
import ctypes
import errno
import os
import select
import struct
import time
from collections.abc import Callable, Generator, Iterator, Sequence

import watchfiles

from .inotify import explain
from .mounts import is_beneath
from .tree_events import Change, Events

# include/uapi/linux/inotify.h
_IN_MODIFY = 0x00000002
_IN_ATTRIB = 0x00000004
_IN_CLOSE_WRITE = 0x00000008
_IN_MOVED_FROM = 0x00000040
_IN_MOVED_TO = 0x00000080
_IN_CREATE = 0x00000100
_IN_DELETE = 0x00000200
_IN_DELETE_SELF = 0x00000400
_IN_MOVE_SELF = 0x00000800
_IN_Q_OVERFLOW = 0x00004000
_IN_IGNORED = 0x00008000
_IN_ONLYDIR = 0x01000000

_CAME = _IN_CREATE | _IN_MOVED_TO
_WENT = _IN_DELETE | _IN_MOVED_FROM
_ITSELF_WENT = _IN_DELETE_SELF | _IN_MOVE_SELF
_MASK = _CAME | _WENT | _ITSELF_WENT | _IN_MODIFY | _IN_ATTRIB | _IN_CLOSE_WRITE | _IN_ONLYDIR
_EVENT = struct.Struct("iIII")
"""`struct inotify_event` without its name: wd, mask, cookie, len."""
_MAY_BE_READ = _IN_ATTRIB | 0x40000000  # IN_ISDIR
"""Of a directory whose permissions have changed."""
_BUFFER_BYTES = 256 * 1024
"""About 8,000 events with short names; half of the kernel's default queue."""
IDLE_MS = 100
"""How often the end of the watch is asked for while nothing happens."""


class InotifyWatch:
    """A watch on a directory and all that are beneath it. Everything blocks; for one thread."""

    def __init__(self, top: bytes, *, follow: Sequence[bytes] = (), should_stop: Callable[[], bool]) -> None:
        """Begin to watch.

        Args:
            top: absolute path.
            follow: directories into which links to directories are followed; no others are.
            should_stop: asked for each directory while the tree is walked.

        Raises:
            OSError: there is no instance or no watch to be had, or `top` cannot be watched.
        """
        self._top = top
        self._follow = follow
        self._should_stop = should_stop
        self._library = ctypes.CDLL(None, use_errno=True)
        self._library.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
        self._fd = -1
        self._paths: dict[int, bytes] = {}
        self._numbers: dict[bytes, int] = {}
        self._begin()

    def __len__(self) -> int:
        """How many directories are watched."""
        return len(self._paths)

    def close(self) -> None:
        """End the watch; may be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def events(self, *, step_ms: int, debounce_ms: int, is_over: Callable[[], bool]) -> Generator[Events]:
        """Yield what happens until `is_over` says so. It is asked first when all is watched, then now and then.

        Args:
            step_ms: a group of events ends when nothing has happened for so long.
            debounce_ms: the longest that a group lasts.
            is_over: whether to end.
        """
        try:
            while not is_over():
                if self._wait(IDLE_MS):
                    yield self._gather(step_ms, debounce_ms)
        finally:
            self.close()

    # ---- reading -------------------------------------------------------------------------------------------

    def _wait(self, timeout_ms: int) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(timeout_ms))

    def _gather(self, step_ms: int, debounce_ms: int) -> Events:
        changes: set[Change] = set()
        count, lost = 0, False
        end = time.monotonic() + debounce_ms / 1000
        while True:
            for number, mask, name in self._read():
                count += 1
                lost = lost or bool(mask & _IN_Q_OVERFLOW)
                changes.update(self._take(number, mask, name))
            if lost:  # directories that were made meanwhile are not known
                self.close()
                self._begin()
            if time.monotonic() >= end or not self._wait(step_ms):
                return Events(frozenset(changes), count, lost)

    def _read(self) -> Iterator[tuple[int, int, bytes]]:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, _BUFFER_BYTES)
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                yield number, mask, data[at : at + length].partition(b"\0")[0]
                at += length

    def _take(self, number: int, mask: int, name: bytes) -> Iterator[Change]:
        directory = self._paths.get(number)
        if mask & _IN_IGNORED:
            self._forget_number(number)
        elif directory is not None and not name:
            if directory == self._top:  # any other one is told of by the directory that it is in
                yield watchfiles.Change.deleted if mask & _ITSELF_WENT else watchfiles.Change.modified, directory
        elif directory is not None:
            path = os.path.join(directory, name)
            if mask & (_CAME | _WENT):
                self._forget(path)  # what had this name before, or has it no longer
            if mask & _CAME or (mask & _MAY_BE_READ == _MAY_BE_READ and path not in self._numbers):
                with contextlib.suppress(OSError):  # no watch is left: others see to that
                    self._add(path)
            yield _kind_of(mask), path

    # ---- what is watched -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._paths.clear()
        self._numbers.clear()
        self._fd = self._library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, explain(code) or os.strerror(code))
        try:
            self._add(self._top)
            if self._top not in self._numbers:
                raise OSError(errno.ENOENT, "it cannot be watched", os.fsdecode(self._top))
        except BaseException:
            self.close()
            raise

    def _add(self, path: bytes) -> None:
        """Watch a directory and all beneath it; anything else is passed over.

        Links come last: what is in the tree itself is watched under its own name.

        Raises:
            OSError: there are no watches left.
        """
        waiting, links = [path], list[bytes]()
        while waiting or links:
            if self._should_stop():
                return
            is_link = not waiting
            each = waiting.pop() if waiting else links.pop()
            if os.path.islink(each) and not is_link:
                links.append(each)
            elif self._watch(each, is_link=is_link):
                for entry in _entries(each):
                    if entry.is_symlink():
                        links.append(entry.path)
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)

    def _watch(self, path: bytes, *, is_link: bool) -> bool:
        """Whether this directory is watched from now on, and was not before."""
        if is_link and not self._may_follow(path):
            return False
        number = self._library.inotify_add_watch(self._fd, path, _MASK)
        if number < 0:
            code = ctypes.get_errno()
            if code in (errno.ENOSPC, errno.ENOMEM):
                raise OSError(code, explain(code) or os.strerror(code))
            return False  # it is none, or gone, or not to be read
        if number in self._paths:
            if is_link:
                return False
            self._forget_number(number)
        if path in self._numbers:
            self._forget_number(self._numbers[path])
        self._paths[number] = path
        self._numbers[path] = number
        return True

    def _may_follow(self, link: bytes) -> bool:
        try:
            target = os.path.realpath(link, strict=True)
        except OSError:
            return False
        return os.path.isdir(target) and any(is_beneath(target, each) for each in self._follow)

    def _forget(self, path: bytes) -> None:
        """Watch no longer what had this name, and what was beneath it: it may have another one now."""
        if path in self._numbers:
            for each in [known for known in self._numbers if is_beneath(known, path)]:
                number = self._numbers.pop(each)
                del self._paths[number]
                self._library.inotify_rm_watch(self._fd, number)  # fails where it is gone, which is as well

    def _forget_number(self, number: int) -> None:
        path = self._paths.pop(number, None)
        if path is not None:
            del self._numbers[path]


def _kind_of(mask: int) -> watchfiles.Change:
    if mask & _CAME:
        return watchfiles.Change.added
    return watchfiles.Change.deleted if mask & _WENT else watchfiles.Change.modified


def _entries(directory: bytes) -> "list[os.DirEntry[bytes]]":
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []
