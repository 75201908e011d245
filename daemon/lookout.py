"""Lookout: a handful of paths looked at in one thread, each with what was known of it before."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from ckptd.catalog.entry import CheckpointId, Record, shown_path
from ckptd.catalog.experiment import DirectFiles
from ckptd.catalog.roots import Root
from ckptd.catalog.verification import Verification

from .key import Key
from .look import Sight, Viewer, unreachable
from .settle import LookKind


class Wanted(NamedTuple):
    """A path to look at."""

    key: Key
    known: Record | None
    must_read: bool
    """Do not trust equal identities."""


class Seen(NamedTuple):
    """What a look saw, and what was known before it."""

    sight: Sight
    known: Record | None
    verification: Verification | None
    """The last one of this file, or of the target of this alias, as it was when `known` was published."""


class Lookout:
    """Looks at paths of any root. Everything here blocks, and runs in a thread."""

    def __init__(
        self,
        viewers: Sequence[Viewer],
        verification: Callable[[CheckpointId], Verification | None],
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """Args:
        viewers: one a root.
        verification: the last one of an entry.
        """
        self._viewers = {viewer.root: viewer for viewer in viewers}
        self._verification = verification
        self._log = log

    @property
    def roots(self) -> Sequence[Root]:
        """Those that are looked at."""
        return tuple(self._viewers)

    def look_at(self, wanted: Sequence[Wanted]) -> list[Seen]:
        """See what is at each path now. Whatever goes wrong with one of them is told of that one alone."""
        opened_roots: dict[Root, int | OSError] = {}
        seen = []
        try:
            for one in wanted:
                root = one.key.root
                if root not in opened_roots:
                    opened_roots[root] = _open_root(root)
                sight = self._see(one, opened_roots[root])
                seen.append(Seen(sight, one.known, self.recall(one.key, sight, one.known)))
        finally:
            for fd in opened_roots.values():
                if isinstance(fd, int):
                    os.close(fd)
        return seen

    def recall(self, key: Key, sight: Sight, known: Record | None) -> Verification | None:
        """What is known of the bytes of a file that is described anew."""
        if sight.kind is not LookKind.SEEN or sight.identities is None:
            return None
        if sight.alias_of is not None:
            return self._verification(sight.alias_of)
        if known is None or known.identities.file.inode != sight.identities.file.inode:
            return None
        return self._verification(key.id)

    def open_directory(self, key: Key, sight: Sight) -> Sight:
        """Open a checkpoint directory that was seen, with its files."""
        return self._viewers[key.root].open_directory(key.path, sight)

    def _see(self, wanted: Wanted, root_fd: int | OSError) -> Sight:
        key = wanted.key
        viewer = self._viewers[key.root]
        try:
            if isinstance(root_fd, FileNotFoundError):
                return viewer.absent_root(key.path)
            if isinstance(root_fd, OSError):
                return unreachable(root_fd)
            return viewer.look(root_fd, key.path, wanted.known, must_read=wanted.must_read)
        except OSError as error:
            self._log.warning("a look failed", path=shown_path(key.root.join(key.path))[0], error=str(error))
            return unreachable(error)
        except Exception:  # noqa: BLE001
            # The rim of one path, as in the pipeline: the others in the same thread must not go with it.
            self._log.exception("a look failed", path=shown_path(key.root.join(key.path))[0])
            return Sight(kind=LookKind.UNREACHABLE)


def inode_at(key: Key) -> int | None:
    """The inode that a path leads to now; None where it leads to none, or nobody can say. Blocks."""
    root_fd = _open_root(key.root)
    if isinstance(root_fd, OSError):
        return None
    try:
        status = DirectFiles(root_fd).status(key.path)
    except OSError:
        return None
    finally:
        os.close(root_fd)
    return None if status is None else status.st_ino


def _open_root(root: Root) -> int | OSError:
    try:
        return os.open(root.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return error
