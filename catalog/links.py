"""Links: where one leads, and what a file that is no regular one is."""

import os
import stat
from collections.abc import Sequence

import msgspec


class Link(msgspec.Struct, frozen=True):
    """Where a checkpoint that is a link leads."""

    base: bytes | None
    """The root or allowed directory that holds the target, absolute; None where the link is dangling."""
    target: bytes | None
    """Beneath `base`."""

    @property
    def dangling(self) -> bool:
        """The target does not exist."""
        return self.target is None


def resolve_link(path: bytes, roots: Sequence[bytes], follow_links: Sequence[bytes]) -> Link | None:
    """Where a path leads, if that is inside the roots or a directory that links may lead to; else None.

    Args:
        path: absolute.
        roots: their paths, absolute and resolved.
        follow_links: the same of the allowed directories.

    Raises:
        OSError: it leads nowhere (ENOENT, ELOOP), or could not be followed.
    """
    target = os.path.realpath(path, strict=True)
    for base in (*roots, *follow_links):
        if target == base or target.startswith(base.rstrip(b"/") + b"/"):
            return Link(base, target[len(base.rstrip(b"/")) + 1 :])
    return None


def kind_of(mode: int) -> str:
    """What a file that is not a regular one is, in words."""
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    )
    return next((words for test, words in kinds if test(mode)), "no regular file")
