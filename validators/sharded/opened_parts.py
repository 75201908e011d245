"""Opening the files of a checkpoint directory, for callers of the library who name one by its path."""

import contextlib
import os
import stat
from collections.abc import Iterator

import msgspec

from ..errors import Changed, Unreadable
from ..formats.sharded import DEPTH, Part, wants
from ..inspection import FileIdentity
from ..reader import identity_of

MAX_OPENED = 200
"""Files of one directory that are open at once; a process may often have no more than 1,024."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class _File(msgspec.Struct, frozen=True):
    name: bytes
    """Relative to the checkpoint."""
    base: bytes
    directory_fd: int
    identity: FileIdentity


@contextlib.contextmanager
def opened_parts(directory_fd: int) -> Iterator[tuple[list[Part], FileIdentity]]:
    """Open the regular files of a directory, down to `DEPTH`; no link in it is followed.

    Args:
        directory_fd: the directory, opened for reading.

    Yields:
        Its files, of which the most telling ones are open, and its own identity.

    Raises:
        Changed: a file vanished meanwhile, or files came and went until the end.
        Unreadable: the system refused to list or to open.
    """
    with contextlib.ExitStack() as stack:
        identity = identity_of(os.fstat(directory_fd))
        try:
            files = sorted(_files(directory_fd, b"", DEPTH, stack), key=lambda file: file.name)
            chosen = {file.name for file in sorted(files, key=lambda file: wants(file.name))[:MAX_OPENED]}
            parts = [_part(file, stack, is_chosen=file.name in chosen) for file in files]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Changed(f"a file of the directory vanished while it was opened: {error.strerror}") from error
        except OSError as error:
            raise Unreadable(f"a file of the directory cannot be opened: {error.strerror}", error.errno) from error
        yield parts, identity
        if identity_of(os.fstat(directory_fd)) != identity:
            raise Changed("files came or went in the directory while it was read")


def _files(directory_fd: int, prefix: bytes, depth: int, stack: contextlib.ExitStack) -> Iterator[_File]:
    with os.scandir(directory_fd) as listing:
        entries = list(listing)
    for entry in entries:
        base = os.fsencode(entry.name)
        if entry.is_dir(follow_symlinks=False):
            if depth > 1:
                inner = os.open(base, _DIRECTORY, dir_fd=directory_fd)
                stack.callback(os.close, inner)
                yield from _files(inner, prefix + base + b"/", depth - 1, stack)
            continue
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            yield _File(prefix + base, base, directory_fd, identity_of(status))


def _part(file: _File, stack: contextlib.ExitStack, *, is_chosen: bool) -> Part:
    shown = file.name.decode("utf-8", "backslashreplace")
    if not is_chosen:
        return Part(shown, file.identity, None)
    fd = os.open(file.base, _FILE, dir_fd=file.directory_fd)
    stack.callback(os.close, fd)
    return Part(shown, identity_of(os.fstat(fd)), fd)
