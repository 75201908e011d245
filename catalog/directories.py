"""Checkpoints that are directories: which ones a sharded format claims, and which files they consist of."""

import collections
import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence

import msgspec

from ckptd.validators.formats.sharded import DEPTH, LATEST, Part, claim, directory_identity, shards_digest
from ckptd.validators.inspection import FileIdentity, Format
from ckptd.validators.reader import identity_of

from .description import ShardFile
from .entry import shown_path
from .roots import open_directory_beneath

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_YOUNG_NS = 2_000_000_000
"""A directory that changed so recently may change again without its time moving: clocks of file systems are coarse."""
_REMEMBERED = 20_000


class Listing(msgspec.Struct, frozen=True):
    """The files of one checkpoint directory at one moment."""

    directory: FileIdentity
    """Of the directory itself."""
    device: int
    """`st_dev` of the directory."""
    files: tuple[ShardFile, ...]
    """Sorted by name; none is opened."""

    @property
    def identity(self) -> FileIdentity:
        """Of the whole: the directory's inode, the sum of the sizes, the latest times."""
        return directory_identity(self.directory, parts_of(self.files))

    @property
    def digest(self) -> str:
        """Changes with each name and each file's identity."""
        return shards_digest(parts_of(self.files))


def parts_of(files: Sequence[ShardFile], descriptors: Sequence[int] = ()) -> list[Part]:
    """The files as the validators take them.

    Args:
        files: of one directory.
        descriptors: of those that are `opened`, in their order.
    """
    remaining = iter(descriptors)
    return [
        Part(shown_path(file.name)[0], file.identity, next(remaining, None) if file.opened else None) for file in files
    ]


def list_directory(directory_fd: int) -> Listing:
    """List the regular files of a directory, down to the depth at which sharded formats keep them.

    No link is followed, and nothing is opened but directories. What vanishes meanwhile is left out.

    Raises:
        OSError: the directory, or one beneath it, cannot be listed.
    """
    status = os.fstat(directory_fd)
    files = sorted(_files(directory_fd, b"", DEPTH), key=lambda file: file.name)
    return Listing(identity_of(status), status.st_dev, tuple(files))


def list_beneath(base_fd: int, path: bytes) -> Listing:
    """List the files of the checkpoint directory at `path` beneath an open directory; see `list_directory`.

    Raises:
        OSError: it cannot be listed, leads through a link, or is no directory.
    """
    fd = open_directory_beneath(base_fd, path)
    try:
        return list_directory(fd)
    finally:
        os.close(fd)


def _files(directory_fd: int, prefix: bytes, depth: int) -> Iterator[ShardFile]:
    with os.scandir(directory_fd) as entries:
        found = list(entries)
    for entry in found:
        name = os.fsencode(entry.name)
        try:
            if entry.is_dir(follow_symlinks=False):
                if depth > 1:
                    yield from _files_beneath(directory_fd, name, prefix, depth - 1)
                continue
            status = entry.stat(follow_symlinks=False)
        except OSError as error:
            if error.errno in _GONE:
                continue
            raise
        if stat.S_ISREG(status.st_mode):
            yield ShardFile(prefix + name, identity_of(status), False)


def _files_beneath(directory_fd: int, name: bytes, prefix: bytes, depth: int) -> list[ShardFile]:
    fd = os.open(name, _DIRECTORY, dir_fd=directory_fd)
    try:
        return list(_files(fd, prefix + name + b"/", depth))
    finally:
        os.close(fd)


def is_checkpoint_directory(base_fd: int, path: bytes, directory_fd: int) -> bool:
    """Whether a format claims the opened directory at `path`, by the names in it. The base itself never is one.

    Raises:
        OSError: it cannot be listed.
    """
    names = [os.fsencode(name) for name in os.listdir(directory_fd)]
    return bool(path) and claim(os.path.basename(path), names, has_latest(base_fd, os.path.dirname(path))) is not None


def checkpoint_directory(path: bytes) -> Format | None:
    """The format that claims a directory which somebody named; None for any other directory, and for no directory.

    Args:
        path: absolute, links resolved: the name counts.
    """
    directory, name = os.path.split(path)
    try:
        base_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return Claims().format_of(base_fd, name)
    except OSError:
        return None
    finally:
        os.close(base_fd)


def directories_above(path: bytes) -> Iterator[bytes]:
    """The directories that a relative path leads through, the nearest first; not the base itself."""
    directory = os.path.dirname(path)
    while directory:
        yield directory
        directory = os.path.dirname(directory)


def is_hidden(path: bytes) -> bool:
    """Whether a directory has a name of temporary ones: as with files, it is not listed, nor what is in it."""
    return os.path.basename(path).startswith(b".")


class Claims:
    """Answers which directories are checkpoints, and remembers it for as long as they do not change.

    Without that, each look at one of many checkpoints in a directory would list that directory again. Safe to use
    from many threads, and for many roots: directories are known by device and inode.
    """

    def __init__(self) -> None:
        self._known: collections.OrderedDict[tuple[int, int], tuple[tuple[object, ...], Format | None]] = (
            collections.OrderedDict()
        )

    def format_of(self, base_fd: int, path: bytes) -> Format | None:
        """The format that claims a directory, by the names in it; None for any other directory, and for the base.

        Raises:
            OSError: it cannot be listed, is a link, or is no directory.
        """
        if not path:
            return None
        fd = os.open(path, _DIRECTORY, dir_fd=base_fd)
        try:
            status = os.fstat(fd)
            key, latest = (status.st_dev, status.st_ino), has_latest(base_fd, os.path.dirname(path))
            state = os.path.basename(path), status.st_mtime_ns, status.st_ctime_ns, latest
            known = self._known.get(key)
            if known is not None and known[0] == state:
                return known[1]
            names = [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)
        answer = claim(os.path.basename(path), names, latest)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _YOUNG_NS:
            self._remember(key, (state, answer))
        return answer

    def is_checkpoint(self, base_fd: int, path: bytes) -> bool:
        """Whether a directory is listed: a format claims it, and it neither is hidden nor lies inside another one.

        Raises:
            OSError: it cannot be listed, is a link, or is no directory.
        """
        if is_hidden(path):
            return False
        return self.format_of(base_fd, path) is not None and self.holder(base_fd, path) is None

    def holder(self, base_fd: int, path: bytes) -> bytes | None:
        """The checkpoint directory that `path` lies inside, the outermost one; None where there is none.

        A directory above that cannot be listed holds nothing: whatever may be in it is not to be seen either.
        """
        parts = path.split(b"/")[:-1]
        for depth in range(1, len(parts) + 1):
            directory = b"/".join(parts[:depth])
            try:
                if self.format_of(base_fd, directory) is not None:
                    return directory
            except OSError:
                continue
        return None

    def _remember(self, key: tuple[int, int], answer: tuple[tuple[object, ...], Format | None]) -> None:
        self._known[key] = answer
        while len(self._known) > _REMEMBERED:
            try:
                self._known.popitem(last=False)
            except KeyError:  # another thread was faster
                return


def has_latest(base_fd: int, directory: bytes) -> bool:
    """Whether a `latest` of DeepSpeed lies in a directory."""
    try:
        os.stat(os.path.join(directory, LATEST), dir_fd=base_fd, follow_symlinks=False)
    except OSError:
        return False
    return True
