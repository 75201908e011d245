"""`.checkpoint_index.json`: the portable index of a tree, for readers without a daemon.

`{"version": "2.0", "last_updated", "checkpoints": {exp_name: {"checkpoints", "metadata_files", "last_modified"}}}`;
paths are relative to the directory that holds the index. It is a convenience: whoever needs the truth walks the tree.
"""

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterable

import msgspec

from .entry import MetadataSource, Record, rfc3339
from .experiment import sidecar_names
from .temporary import temporary_name

INDEX_NAME = b".checkpoint_index.json"
VERSION = "2.0"
MAX_BYTES = 256 << 20
"""Larger files are not read: 100,000 checkpoints take 20 MB."""
MAX_EXPERIMENTS, MAX_FILES = 1_000_000, 5_000_000
"""Indexes of more are not read: decoded, an empty experiment takes 30 times its bytes."""

_TIME = re.compile(rb'^ "last_updated": "[^"\\]*",$', re.MULTILINE)
_TIME_MAX_BYTES = 64

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Experiment(msgspec.Struct):
    """The files of one experiment."""

    checkpoints: list[str] = []
    metadata_files: list[str] = []
    last_modified: str | float | None = None
    """Of its newest checkpoint, RFC 3339; older writers put seconds since the epoch."""


class Index(msgspec.Struct):
    """A whole index."""

    version: str
    last_updated: str | float | None = None
    checkpoints: dict[str, Experiment] = {}
    """Experiment name → its files; what has no experiment is under the empty name."""

    def paths(self) -> list[str]:
        """Every checkpoint, in the order of the file."""
        return [path for experiment in self.checkpoints.values() for path in experiment.checkpoints]


class IndexRead(msgspec.Struct, frozen=True):
    """An index, or why there is none."""

    index: Index | None
    reason: str | None = None
    is_there: bool = True
    """Something of its name is there, whatever it may be."""
    is_newer: bool = False
    """A later ckptd wrote it."""


def index_of(records: Iterable[Record], root_fd: int | None = None) -> Index:
    """Build the index of one root from its entries.

    Args:
        records: of one root.
        root_fd: the opened root; sidecars are then listed as they are there, also those that cannot be read as
            metadata. Without it, the name that ckptd writes by default is taken for each checkpoint that has one.
    """
    # Sorted one by one: sorting 100,000 at once keeps the interpreter for 22 ms, from the event loop as well.
    by_experiment: dict[str, list[Record]] = {}
    for record in records:
        by_experiment.setdefault(record.entry.exp_name or "", []).append(record)
    index = Index(VERSION)
    for name, members in sorted(by_experiment.items()):
        experiment = index.checkpoints[name] = Experiment()
        for record in sorted(members, key=lambda each: each.relative_path):
            experiment.checkpoints.append(record.entry.path)
            experiment.metadata_files += [_text(path) for path in _sidecars(record, root_fd)]
        experiment.last_modified = rfc3339(max(record.modified_ns for record in members))
    return index


def read_index(root_fd: int) -> IndexRead:
    """Read the index of a root. Never raises for what is, or is not, in it."""
    try:
        data = _read(root_fd)
    except FileNotFoundError:
        return IndexRead(None, "there is no index", is_there=False)
    except OSError as error:
        return IndexRead(None, f"the index cannot be read: {error.strerror}")
    if data.count(b"{") > MAX_EXPERIMENTS or data.count(b'"') > 2 * MAX_FILES:
        return IndexRead(None, f"the index has more experiments or files than {MAX_EXPERIMENTS} and {MAX_FILES}")
    try:
        index = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return IndexRead(None, f"the index is torn or not one: {error}")
    if _major(index.version) != _major(VERSION):
        reason = f"the index has version {index.version[:20]}; this ckptd knows {VERSION}"
        return IndexRead(None, reason, is_newer=_major(index.version) > _major(VERSION))
    return IndexRead(index)


def write_index(root_fd: int, index: Index, *, now: float | None = None) -> bool:
    """Put an index in place, whole or not at all, and durable.

    Args:
        root_fd: the opened root (O_PATH will do).
        index: from `index_of`; its `last_updated` is set here.
        now: epoch seconds; the present by default.

    Returns:
        False if the one that is there says the same and was left alone.

    Raises:
        OSError: the system refused; nothing of ours is left behind.
    """
    index.last_updated = rfc3339(int((time.time() if now is None else now) * 1e9))
    data = msgspec.json.format(msgspec.json.encode(index), indent=1)
    if _says_the_same(root_fd, data):
        return False
    _replace(root_fd, data)
    return True


def _says_the_same(root_fd: int, data: bytes) -> bool:
    """Whether an index that was written before differs in its time alone.

    It is compared, never decoded: anybody may have put it there, and it would take the daemon's memory.
    """
    try:
        there = _read(root_fd, len(data) + _TIME_MAX_BYTES)
    except OSError:
        return False
    return _TIME.sub(b"", there, count=1) == _TIME.sub(b"", data, count=1)


def _major(version: str) -> int:
    major = version.split(".")[0]
    return int(major) if major.isdecimal() and len(major) < 10 else 0


def _sidecars(record: Record, root_fd: int | None) -> list[bytes]:
    if record.identities.link is not None:
        return []
    names = sidecar_names(record.relative_path)
    if root_fd is not None:
        return [name for name in names if _exists(root_fd, name)]
    return [names[0]] if record.entry.metadata_source in (MetadataSource.SIDECAR, MetadataSource.DAEMON) else []


def _exists(root_fd: int, path: bytes) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.stat(path, dir_fd=root_fd, follow_symlinks=False).st_mode)
    return False


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _read(root_fd: int, max_bytes: int = MAX_BYTES) -> bytes:
    fd = os.open(INDEX_NAME, _READ, dir_fd=root_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if status.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"it is larger than {max_bytes} bytes")
        with open(fd, "rb", closefd=False) as file:
            return file.read(status.st_size + 1)  # more than that would be reserved at once
    finally:
        os.close(fd)


def _replace(root_fd: int, data: bytes) -> None:
    directory = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    temporary = temporary_name(INDEX_NAME)
    try:
        fd = os.open(temporary, _WRITE, 0o644, dir_fd=directory)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, INDEX_NAME, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    finally:
        os.close(directory)


_decoder = msgspec.json.Decoder(Index)
