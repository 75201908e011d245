"""Checkpoints written whole or not at all, and their digest taken while the bytes are on their way to the disk."""

import collections
import contextlib
import io
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import blake3
import msgspec

from ckptd.validators.checks.checksum import digest_file
from ckptd.validators.formats.torch_zip import Source
from ckptd.validators.inspection import FileIdentity
from ckptd.validators.reader import FileReader, identity_of

from ..temporary import temporary_name

ALONGSIDE_BYTES = 1 << 20
"""Pieces of this size and more are digested by a second thread while the first one writes them: BLAKE3 is several times
as fast as any disk, so it costs the writer nothing but the hand-over. Smaller ones are collected up to it."""


REMEMBERED = 1024
"""Files written in this process whose digests are kept until their metadata is written."""

_remembered: "collections.OrderedDict[tuple[int, int, int], str]" = collections.OrderedDict()
_lock = threading.Lock()


class WrittenFile(msgspec.Struct, frozen=True):
    """A file in its place."""

    digest: str
    """Of every byte: `blake3:` and 64 hexadecimal digits, as `Inspection.digest` of a file has it."""
    identity: FileIdentity


class DigestingFile(io.RawIOBase):
    """A file to be written from front to back, digested on the way.

    `torch.save` writes so: its archive is streamed, directory last. Who seeks all the same gets what he writes, and the
    file is digested once more when it is finished.
    """

    # No `fileno`: with one, torch's format before 1.6 would write storages past us (torch.serialization,
    # `_should_read_directly`).

    def __init__(self, fd: int) -> None:
        """Args:
        fd: opened for reading and writing, empty; the caller closes it, after `finish`.
        """
        super().__init__()
        self._fd = fd
        self._digest = blake3.blake3()
        self._is_stream = True
        self._small = bytearray()
        self._helper: ThreadPoolExecutor | None = None
        self.failure: OSError | None = None
        """Why the disk refused. `torch.save`, which goes on to write its directory then, raises something else."""

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is, at the price of a second reading."""
        return True

    def write(self, data: Any) -> int:
        """Write all of it.

        Raises:
            OSError: the disk refused.
        """
        view = memoryview(data).cast("B")
        if len(self._small) + len(view) < ALONGSIDE_BYTES:
            self._small += view
        else:
            self._put(bytes(self._small))
            self._small.clear()
            self._put(view)
        return len(view)

    def tell(self) -> int:
        """Where the next byte goes."""
        return os.lseek(self._fd, 0, os.SEEK_CUR) + len(self._small)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go elsewhere."""
        if (offset, whence) == (0, os.SEEK_CUR):
            return self.tell()
        self.flush()
        self._is_stream = False
        return os.lseek(self._fd, offset, whence)

    def flush(self) -> None:
        """Give everything to the kernel."""
        if not self.closed and self._small:
            self._put(bytes(self._small))
            self._small.clear()

    def finish(self) -> str:
        """Write what is left; nothing more may be written.

        Returns:
            The digest of the whole file.

        Raises:
            OSError: the disk refused.
        """
        self.flush()
        if self._is_stream:
            return f"blake3:{self._digest.hexdigest()}"
        return digest_file(Source(FileReader(self._fd)))

    def close(self) -> None:
        """End the second thread. What was not flushed is lost: a save that failed leaves nothing to write."""
        self._small.clear()
        if self._helper is not None:
            self._helper.shutdown()
            self._helper = None
        super().close()

    def _put(self, data: memoryview | bytes) -> None:
        try:
            self._put_and_digest(data)
        except OSError as error:
            self.failure = self.failure or error
            raise

    def _put_and_digest(self, data: memoryview | bytes) -> None:
        if not self._is_stream or len(data) < ALONGSIDE_BYTES:
            _write_all(self._fd, data)
            if self._is_stream:
                self._digest.update(data)
            return
        if self._helper is None:
            self._helper = ThreadPoolExecutor(1, "ckptd-digest")
        digested = self._helper.submit(self._digest.update, data)
        try:
            _write_all(self._fd, data)
        finally:
            digested.result()  # whoever called owns the bytes, and may reuse them


@contextlib.contextmanager
def written_whole(path: str, *, durable: bool = True) -> Iterator[tuple[DigestingFile, list[WrittenFile]]]:
    """Write a file beside its place and rename it in when the block ends well; else nothing is left of it.

    A file that is there is replaced at once, and keeps its mode; a link is replaced, not followed. A temporary file
    of a killed process is removed by the daemon.

    Args:
        path: where it goes; its directory is made if need be.
        durable: wait until the disk has it: after a power cut either the old file or the new one is there, whole.

    Yields:
        The file to write to, and a list that holds the file in its place once the block has ended.

    Raises:
        OSError: the system refused.
    """
    directory, name = os.path.split(os.path.abspath(os.fsencode(path)))
    os.makedirs(directory, exist_ok=True)
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = temporary_name(name)
    results: list[WrittenFile] = []
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=directory_fd)
        try:
            with contextlib.closing(DigestingFile(fd)) as file, _refusals_of(file, path):
                yield file, results
                digest = file.finish()
            _keep_mode(fd, directory_fd, name)
            if durable:
                os.fsync(fd)
            os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
            results.append(WrittenFile(digest, identity_of(os.fstat(fd))))
            _remember(results[0])
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory_fd)
        if durable:
            with contextlib.suppress(OSError):  # some network filesystems cannot; the rename is all they offer
                os.fsync(directory_fd)
    finally:
        os.close(directory_fd)


@contextlib.contextmanager
def _refusals_of(file: DigestingFile, path: str) -> Iterator[None]:
    """Have what the disk said reach the caller, whatever the writer made of it."""
    try:
        yield
    except Exception as error:
        if file.failure is None:
            raise
        raise OSError(file.failure.errno, file.failure.strerror, path) from error


def remembered_digest(identity: FileIdentity) -> str | None:
    """The digest of a file that this process wrote, while it is the same file; None for others."""
    with _lock:
        return _remembered.get(_key(identity))


def _remember(written: WrittenFile) -> None:
    with _lock:
        _remembered[_key(written.identity)] = written.digest
        while len(_remembered) > REMEMBERED:
            _remembered.popitem(last=False)


def _key(identity: FileIdentity) -> tuple[int, int, int]:
    # Not the change time: a link or another mode does not make it another file.
    return identity.inode, identity.size, identity.mtime_ns


def _keep_mode(fd: int, directory_fd: int, name: bytes) -> None:
    with contextlib.suppress(OSError):
        before = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        if stat.S_ISREG(before.st_mode):
            os.fchmod(fd, stat.S_IMODE(before.st_mode))


def _write_all(fd: int, data: memoryview | bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
