"""RootLock: one writer per root, by flock on the root directory itself, so that no file is left behind."""

import errno
import fcntl
import os
import threading

from ckptd.catalog.roots import Root


class RootLock:
    """The right to write into one root. Taken when first asked for, and anew when the root was re-made.

    May be asked by several threads at a time: a second flock of the same process would be refused like a stranger's.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._fd: int | None = None
        self._guard = threading.Lock()

    def held(self) -> bool:
        """Whether this process may write there now; tries to take the lock if it does not hold it.

        A filesystem without locks (ENOLCK, EOPNOTSUPP) counts as held: there is no better answer to be had.
        """
        with self._guard:
            return self._held()

    def release(self) -> None:
        """Give the lock back."""
        with self._guard:
            self._release()

    def _held(self) -> bool:
        try:
            status = os.stat(self._root.path)
        except OSError:
            self._release()
            return False
        if self._fd is not None:
            mine = os.fstat(self._fd)
            if (mine.st_dev, mine.st_ino) == (status.st_dev, status.st_ino):
                return True
            self._release()
        return self._take()

    def _release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _take(self) -> bool:
        try:
            fd = os.open(self._root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                os.close(fd)
                return False
        self._fd = fd
        return True
