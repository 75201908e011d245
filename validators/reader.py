"""Positioned reads of an opened file, bracketed by fstat: the same file before and after.

Reading is apart from opening: whoever parses needs no right to open. `pread`, never mmap, because a file that
is truncated while mapped kills the process by SIGBUS.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Callable, Sequence

from .errors import Changed, Unreadable
from .inspection import FileIdentity

PIECE_BYTES = 1 << 20
LARGE_PIECE_BYTES = 4 << 20
ALIGNMENT = 4096
"""Offsets, sizes and addresses of unbuffered reads (O_DIRECT) are multiples of a disk's logical block: this at most."""

_RWF_DONTCACHE = 0x80  # include/uapi/linux/fs.h, since Linux 6.14
_libc = ctypes.CDLL(None)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_MAP_FAILED = ctypes.c_void_p(-1).value
_PROBES = 16
_MAX_HOLES = 10_000
_DROP_BYTES = 8 << 20
"""Pages are given back in such pieces where the kernel does not do it by itself."""


def identity_of(status: os.stat_result) -> FileIdentity:
    """The identity of the file that `status` describes."""
    return FileIdentity(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Reading:
    """How much may be read at once, shared by all readers of one job: a bandwidth, and what becomes of the page cache.

    Args:
        mb_per_s: 10^6 bytes per second that bulk reads may take; None for as fast as it goes.
        spare_cache: leave the page cache as it was, for reads that nobody waits for.
        fresh: read the disk, not the page cache: through descriptors that were opened with O_DIRECT, reads of whole
            blocks only; of other files the cache is dropped first, as far as it has been written back.
    """

    def __init__(self, *, mb_per_s: float | None = None, spare_cache: bool = False, fresh: bool = False) -> None:
        self.spare_cache = spare_cache
        self.fresh = fresh
        self._s_per_byte = 1 / (mb_per_s * 1e6) if mb_per_s else 0.0
        self._paid_until = 0.0

    def pay(self, size: int) -> None:
        """Sleep until `size` more bytes fit into the bandwidth. Idle time is not saved up."""
        if self._s_per_byte:
            now = time.monotonic()
            self._paid_until = max(now, self._paid_until) + size * self._s_per_byte
            time.sleep(self._paid_until - now)


class FileReader:
    """Random access to one regular file through a descriptor that the caller owns and closes.

    The descriptor may be opened with O_DIRECT if `reading` is `fresh`: reads are then widened to whole blocks.

    Args:
        fd: of the file.
        reading: how much at once, and how bulk reads (`read_into`) are made.

    Raises:
        Unreadable: the descriptor is not a regular file, or the system refused a read.
    """

    def __init__(self, fd: int, reading: Reading | None = None) -> None:
        self._fd = fd
        self._reading = Reading() if reading is None else reading
        self._bulk: _Bulk | None = None
        self._direct = self._reading.fresh and _is_direct(fd)
        status = self._fstat()
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("not a regular file")
        if self._reading.fresh and not self._direct:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
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
        if self._direct:
            return [self.read_exactly(offset, size) for offset, size in zip(offsets, sizes, strict=True)]
        try:
            pieces = [pread(fd, size, offset) for offset, size in zip(offsets, sizes, strict=True)]
        except OSError as error:
            raise Unreadable(f"reading failed: {error.strerror}", error.errno) from error
        if list(map(len, pieces)) != list(sizes):
            return [self.read_exactly(offset, size) for offset, size in zip(offsets, sizes, strict=True)]
        self.bytes_read += sum(sizes)
        return pieces

    @property
    def piece_bytes(self) -> int:
        """How much to ask of `read_into` at once. What fits into a core's cache is checked fastest; unbuffered reads,
        and those past the page cache, are not read ahead and want to be larger."""
        return LARGE_PIECE_BYTES if self._reading.spare_cache or self._direct else PIECE_BYTES

    def read_into(self, offset: int, buffer: memoryview, size: int) -> None:
        """Fill the first `size` bytes of `buffer` from `offset`; for reading a file through, piece after piece.

        Whole blocks at whole offsets into a buffer of whole blocks (an anonymous mmap) are the fastest where the
        descriptor is opened with O_DIRECT.

        Raises:
            Changed: the file ended earlier than it did when it was opened.
            Unreadable: the system refused the read.
        """
        self._reading.pay(size)
        if self._bulk is None:
            self._bulk = _Bulk(self._fd, self.size, self._reading, direct=self._direct)
        done = 0
        try:
            while done < size:  # a signal, or the last block of an unbuffered read
                count = self._bulk.read(offset + done, buffer[done:], size - done)
                if not count:
                    raise Changed(f"the file shrank while it was read: it ends at byte {offset + done:,}")
                done += count
        except OSError as error:
            raise Unreadable(f"reading at byte {offset + done} failed: {error.strerror}", error.errno) from error
        self.bytes_read += size

    def holes(self, begin: int, end: int) -> list[tuple[int, int]]:
        """The parts between `begin` and `end` for which no space was ever taken, as far as the file system says.

        Moves the descriptor's position and puts it back: no other reader here uses it.
        """
        found: list[tuple[int, int]] = []
        fd, position = self._fd, begin
        try:
            before = os.lseek(fd, 0, os.SEEK_CUR)
            try:
                while position < end and len(found) < _MAX_HOLES:
                    hole = os.lseek(fd, position, os.SEEK_HOLE)  # the end of the file is a hole, too
                    if hole >= end:
                        break
                    try:
                        position = os.lseek(fd, hole, os.SEEK_DATA)
                    except OSError as error:
                        if error.errno != errno.ENXIO:  # else: nothing but a hole up to the end
                            raise
                        position = end
                    found.append((hole, min(position, end)))
            finally:
                os.lseek(fd, before, os.SEEK_SET)
        except OSError:  # not every file system can say
            return []
        return found

    def check_unchanged(self) -> None:
        """Compare the file with its state at construction.

        Raises:
            Changed: size, modification or change time differ.
        """
        if identity_of(self._fstat()) != self.identity:
            raise Changed("the file was modified while it was read")

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            data = _pread_blocks(self._fd, size, offset) if self._direct else os.pread(self._fd, size, offset)
        except OSError as error:
            raise Unreadable(f"reading at byte {offset} failed: {error.strerror}", error.errno) from error
        self.bytes_read += len(data)
        return data

    def _fstat(self) -> os.stat_result:
        try:
            return os.fstat(self._fd)
        except OSError as error:
            raise Unreadable(f"fstat failed: {error.strerror}", error.errno) from error


class _Bulk:
    """Reads of a whole file from front to back, by the cheapest way that leaves the page cache as it should be.

    `read(offset, buffer, size)` reads up to `size` bytes into `buffer`, which may be longer; 0 at the end of the file.
    """

    def __init__(self, fd: int, size: int, reading: Reading, *, direct: bool) -> None:
        self._fd = fd
        self._size = size
        self._given_back = 0
        self.read: Callable[[int, memoryview, int], int] = self._cached
        if direct:
            self.read = self._blocks
        elif reading.spare_cache:
            self.read = self._uncached
        else:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)  # doubles the kernel's reading ahead

    def _cached(self, offset: int, buffer: memoryview, size: int) -> int:
        return os.preadv(self._fd, [buffer[:size]], offset)

    def _uncached(self, offset: int, buffer: memoryview, size: int) -> int:
        """What was cached stays so, and what was not does not become so."""
        try:
            return os.preadv(self._fd, [buffer[:size]], offset, _RWF_DONTCACHE)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        # An older kernel, or a file system that cannot. DONTNEED would also drop what others have cached.
        self.read = self._given_back_after if _is_absent(self._fd, self._size) else self._cached
        return self.read(offset, buffer, size)

    def _given_back_after(self, offset: int, buffer: memoryview, size: int) -> int:
        count = self._cached(offset, buffer, size)
        end = offset + count
        if end - self._given_back >= _DROP_BYTES or end >= self._size:
            os.posix_fadvise(self._fd, self._given_back, end - self._given_back, os.POSIX_FADV_DONTNEED)
            self._given_back = end
        return count

    def _blocks(self, offset: int, buffer: memoryview, size: int) -> int:
        whole = -(-size // ALIGNMENT) * ALIGNMENT
        if offset % ALIGNMENT == 0 and whole <= len(buffer):
            try:
                return min(size, os.preadv(self._fd, [buffer[:whole]], offset))
            except OSError as error:
                if error.errno != errno.EINVAL:  # the buffer does not begin where a block may
                    raise
        data = _pread_blocks(self._fd, size, offset)
        buffer[: len(data)] = data
        return len(data)


def _is_direct(fd: int) -> bool:
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
    except OSError as error:
        raise Unreadable(f"fcntl failed: {error.strerror}", error.errno) from error


def _is_absent(fd: int, size: int) -> bool:
    """Whether most of a file is not in the page cache, by the look of a few places; nothing is read for it.

    (RWF_NOWAIT would do without a mapping, but it makes the kernel read ahead.) Of a file that is neither ours nor
    writable the kernel says that all is there (mm/mincore.c, `can_do_mincore`).
    """
    absent = 0
    resident = ctypes.c_ubyte()
    for probe in range(_PROBES):
        offset = size * probe // _PROBES // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        # Not by Python's mmap, which duplicates the descriptor: nothing that a sandboxed process may do.
        page = _libc.mmap(None, 1, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
        if page == _MAP_FAILED:
            return False
        absent += not _libc.mincore(page, 1, ctypes.byref(resident)) and not resident.value & 1
        _libc.munmap(page, 1)
    return absent > _PROBES // 2


def _pread_blocks(fd: int, size: int, offset: int) -> bytes:
    """`os.pread` of any range through a descriptor that reads whole blocks only."""
    begin = offset // ALIGNMENT * ALIGNMENT
    end = -(-(offset + size) // ALIGNMENT) * ALIGNMENT
    if end == begin:
        return b""
    with mmap.mmap(-1, end - begin) as blocks:
        count = os.preadv(fd, [blocks], begin)
        return blocks[offset - begin : max(offset - begin, min(count, offset - begin + size))]
