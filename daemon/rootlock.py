"""RootLock: one writer per root, by flock on the root directory itself, so that no file is left behind."""

import errno
import fcntl
import os

from ckptd.catalog.roots import Root


class RootLock:
    """The right to write into one root. Taken when first asked for, and anew when the root was re-made."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._fd: int | None = None

    def held(self) -> bool:
        """Whether this process may write there now; tries to take the lock if it does not hold it.

        A filesystem without locks (ENOLCK, EOPNOTSUPP) counts as held: there is no better answer to be had.
        """
        try:
            status = os.stat(self._root.path)
        except OSError:
            self.release()
            return False
        if self._fd is not None:
            mine = os.fstat(self._fd)
            if (mine.st_dev, mine.st_ino) == (status.st_dev, status.st_ino):
                return True
            self.release()
        return self._take()

    def release(self) -> None:
        """Give the lock back."""
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
