"""Positioned reads of an opened file, bracketed by fstat: the same file before and after.

Reading is apart from opening: whoever parses needs no right to open. `pread`, never mmap, because a file that
is truncated while mapped kills the process by SIGBUS.
"""

import os
import stat
from collections.abc import Sequence

from .errors import Changed, Unreadable
from .inspection import FileIdentity


def identity_of(status: os.stat_result) -> FileIdentity:
    """The identity of the file that `status` describes."""
    return FileIdentity(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class FileReader:
    """Random access to one regular file through a descriptor that the caller owns and closes.

    Raises:
        Unreadable: the descriptor is not a regular file, or the system refused a read.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        status = self._fstat()
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("not a regular file")
        self.identity = identity_of(status)
        self.size = status.st_size
        self.bytes_read = 0

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end of the file as it is now."""
        data = self._pread(offset, size)
        while 0 < len(data) < size:  # a signal, or the end of the file
            piece = self._pread(offset + len(data), size - len(data))
            if not piece:
                break
            data += piece
        return data

    def read_exactly(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset`.

        Raises:
            Changed: the file ended earlier than it did when it was opened.
        """
        data = self.read(offset, size)
        if len(data) != size:
            raise Changed(f"the file shrank while it was read: {size} bytes wanted at {offset}, {len(data)} there")
        return data

    def read_each(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Return `sizes[i]` bytes from each `offsets[i]`: `read_exactly` without its cost per call.

        Raises:
            Changed: the file ended earlier than it did when it was opened.
        """
        fd, pread = self._fd, os.pread
        try:
            pieces = [pread(fd, size, offset) for offset, size in zip(offsets, sizes, strict=True)]
        except OSError as error:
            raise Unreadable(f"reading failed: {error.strerror}", error.errno) from error
        if list(map(len, pieces)) != list(sizes):
            return [self.read_exactly(offset, size) for offset, size in zip(offsets, sizes, strict=True)]
        self.bytes_read += sum(sizes)
        return pieces

    def check_unchanged(self) -> None:
        """Compare the file with its state at construction.

        Raises:
            Changed: size, modification or change time differ.
        """
        if identity_of(self._fstat()) != self.identity:
            raise Changed("the file was modified while it was read")

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._fd, size, offset)
        except OSError as error:
            raise Unreadable(f"reading at byte {offset} failed: {error.strerror}", error.errno) from error
        self.bytes_read += len(data)
        return data

    def _fstat(self) -> os.stat_result:
        try:
            return os.fstat(self._fd)
        except OSError as error:
            raise Unreadable(f"fstat failed: {error.strerror}", error.errno) from error
