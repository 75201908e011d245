"""Targets: the checkpoints that the paths on a command line stand for."""

import fcntl
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ckptd.catalog.directories import checkpoint_directory
from ckptd.catalog.roots import Root, RootError, resolve_roots
from ckptd.catalog.scan import Found, scan_tree

from ..rootlock import RootLock
from .exits import USAGE, CommandError


class Target(NamedTuple):
    """One checkpoint to work on."""

    root: Root
    path: bytes
    """Relative to the root."""
    is_directory: bool = False
    """It is a directory that a sharded format claims."""
    found: Found | None = None
    """What a walk saw of it; None where it was named itself."""

    @property
    def absolute(self) -> bytes:
        """Where it is."""
        return self.root.join(self.path)


class Targets(NamedTuple):
    """What was found, and what could not be looked at."""

    found: list[Target]
    problems: list[str]
    """Directories that could not be listed: they make the answer incomplete."""
    links: int = 0
    """Links to checkpoints, which are no targets."""
    orphans: Sequence[tuple[Root, bytes]] = ()
    """What has a sidecar's name, and no checkpoint of a listed suffix beside it."""
    leftovers: Sequence[tuple[Root, bytes]] = ()
    """Temporary files of ckptd."""


def find_targets(paths: Iterable[str], suffixes: Sequence[str]) -> Targets:
    """The checkpoints under directories, and what is named itself: files of any suffix, checkpoint directories.

    Links inside a tree are left out: what they lead to is found under its own name, or lies outside.

    Raises:
        CommandError: a path does not exist, or is a link that leads nowhere; exit code 2.
    """
    named: list[Target] = []
    directories: list[str] = []
    for path in paths:
        absolute = os.path.realpath(os.fsencode(path))
        is_directory = os.path.isdir(absolute)
        if is_directory and checkpoint_directory(absolute) is None:
            directories.append(path)
        elif os.path.exists(absolute):
            # Its config may lie some directories above: no nearer root is known.
            named.append(Target(Root(b"/"), absolute.lstrip(b"/"), is_directory))
        elif os.path.islink(path):
            raise CommandError(f"{path!r} is a link that leads nowhere; remove it or restore its target", USAGE)
        else:
            raise CommandError(f"{path!r} does not exist; name a checkpoint or a directory", USAGE)
    trees = [_scan(root, suffixes) for root in directory_roots(directories)]
    found = [target for tree in trees for target in tree.found]
    in_trees = {target.absolute for target in found}
    return Targets(
        [*(each for each in dict.fromkeys(named) if each.absolute not in in_trees), *found],
        [problem for tree in trees for problem in tree.problems],
        sum(tree.links for tree in trees),
        [orphan for tree in trees for orphan in tree.orphans],
        [leftover for tree in trees for leftover in tree.leftovers],
    )


def holding_roots(paths: Iterable[str]) -> list[Root]:
    """Directories as roots, as `directory_roots`; of a checkpoint directory the one that holds it.

    Raises:
        CommandError: one is not a directory, or does not exist; exit code 2.
    """
    return directory_roots([_holder(path) for path in paths])


def _holder(path: str) -> str:
    absolute = os.path.realpath(os.fsencode(path))
    return path if checkpoint_directory(absolute) is None else os.fsdecode(os.path.dirname(absolute))


def directory_roots(paths: Iterable[str]) -> list[Root]:
    """Directories as roots, nested ones merged.

    Raises:
        CommandError: one is not a directory, or does not exist; exit code 2.
    """
    given = list(paths)
    for path in given:
        if not os.path.isdir(path):
            raise CommandError(f"{path!r} is not a directory; name the directory that holds the checkpoints", USAGE)
    try:
        roots, _ = resolve_roots(given)
    except RootError as error:
        raise CommandError(str(error), USAGE) from None
    return roots


@contextmanager
def opened(root: Root) -> Iterator[int]:
    """The root's descriptor, for opening beneath it."""
    fd = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def writing_in(roots: Sequence[Root]) -> Iterator[None]:
    """Hold the right to write sidecars and indexes into `roots`: one writer per tree.

    Raises:
        CommandError: a daemon or another command holds it, there or on a directory above; exit code 3.
    """
    locks = [RootLock(root) for root in roots]
    try:
        for root, lock in zip(roots, locks, strict=True):
            if not lock.held() or _is_locked_above(root.path):
                raise CommandError(
                    f"{root.name} is being written by a daemon or another command, which does this itself; "
                    "stop it first, or use `ckptd rebuild` with a running daemon"
                )
        yield
    finally:
        for lock in locks:
            lock.release()


def _scan(root: Root, suffixes: Sequence[str]) -> Targets:
    with opened(root) as root_fd:
        scan = scan_tree(root, root_fd, suffixes=tuple(suffixes), noted=sys.maxsize)
    targets = [
        Target(root, found.path, found.identities.shards is not None, found)
        for found in scan.found
        if found.link is None
    ]
    problems = [
        f"{os.fsdecode(root.join(directory))}: cannot be looked at ({error.strerror})"
        for directory, error in scan.unreachable.items()
    ]
    return Targets(
        sorted(targets, key=lambda target: target.path),
        problems,
        len(scan.found) - len(targets),
        [(root, path) for path in sorted(scan.orphans)],
        [(root, path) for path in scan.leftovers],
    )


def _is_locked_above(path: bytes) -> bool:
    """Whether somebody writes in a tree that contains `path`. The question itself stops nobody for long."""
    directory = os.path.dirname(path)
    while directory != b"/":
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False  # nor could a daemon of ours have opened it
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # a filesystem without locks
        finally:
            os.close(fd)
        directory = os.path.dirname(directory)
    return False
