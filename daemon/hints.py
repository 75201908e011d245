"""Hints: where something may have changed in a root, sorted out of what was told of it."""

import os
import stat
from collections.abc import Iterable, Mapping

import msgspec
import watchfiles

from ckptd.catalog.roots import Root
from ckptd.validators.reader import identity_of

from .mounts import is_beneath
from .moves import Mark, mark_of
from .tree_events import Change


class Hints(msgspec.Struct, frozen=True, kw_only=True):
    """Where something may have changed in one root. Paths are relative to it."""

    root: Root
    files: frozenset[bytes] = frozenset()
    """To be looked at: checkpoints, sidecars, configs, sentinels, anything."""
    links: frozenset[bytes] = frozenset()
    """Of the files, those that are links: they may lead to a directory that is a checkpoint."""
    sightings: Mapping[Mark, bytes] = {}
    """Of the files, where those are that appeared: they may have left other places."""
    directories: frozenset[bytes] = frozenset()
    """To be scanned with all that is beneath them; `b""` is the root."""
    everything: bool = False
    """Events were or may have been lost: only a sweep of the root tells."""


class SortedChanges(msgspec.Struct, frozen=True):
    """What one batch of events names, relative to the root."""

    files: frozenset[bytes]
    directories: frozenset[bytes]
    """The outermost ones: a scan takes in everything beneath."""
    made: frozenset[bytes]
    """Of the directories, those that appeared just now."""
    links: frozenset[bytes] = frozenset()
    """Of the files, those that are links."""
    sightings: Mapping[Mark, bytes] = {}
    """Of the files, those that appeared just now."""


def sort_changes(root: Root, changes: Iterable[Change]) -> SortedChanges:
    """Sort what is reported into files and directories; what lies outside the root is dropped.

    A name that is there is asked what it is; one that is gone may have been either, and counts as both. What is told
    of by way of a link to a directory is told again under its real path, if that lies in the root: the kernel knows
    one watch for both, and watchfiles names only one of the ways.
    """
    prefix = root.path.rstrip(b"/") + b"/"
    files: set[bytes] = set()
    directories: set[bytes] = set()
    made: set[bytes] = set()
    links: set[bytes] = set()
    sightings: dict[Mark, bytes] = {}
    places: dict[bytes, bytes] = {}
    for change, path in changes:
        absolute = _real_path(path, prefix, places)
        if absolute != root.path and not absolute.startswith(prefix):
            continue
        relative = absolute[len(prefix) :]
        status = None if change is watchfiles.Change.deleted else _status(absolute)
        mode = None if status is None else status.st_mode
        if mode is None or not stat.S_ISDIR(mode):
            files.add(relative)
            if mode is not None and stat.S_ISLNK(mode):
                links.add(relative)
            if status is not None and change is watchfiles.Change.added:
                sightings[mark_of(identity_of(status))] = relative
        if mode is None or stat.S_ISDIR(mode):
            directories.add(relative)
        if mode is not None and stat.S_ISDIR(mode) and change is watchfiles.Change.added:
            made.add(relative)
    return SortedChanges(
        files=frozenset(files - {b""}),
        directories=outermost(directories),
        made=outermost(made),
        links=frozenset(links),
        sightings=sightings,
    )


def _real_path(path: bytes, prefix: bytes, places: dict[bytes, bytes]) -> bytes:
    """`path` with the links in its directory resolved, unless that leads out of `prefix`. `places`: those known."""
    directory, name = os.path.split(path)
    if directory not in places:
        places[directory] = os.path.realpath(directory)
    real = os.path.join(places[directory], name)
    return real if real.startswith(prefix) else path


def outermost(directories: Iterable[bytes]) -> frozenset[bytes]:
    """Without those inside another: a scan takes in everything beneath."""
    kept: list[bytes] = []
    for directory in sorted(directories, key=lambda path: path.split(b"/")):
        if not kept or not is_beneath(directory, kept[-1]):
            kept.append(directory)
    return frozenset(kept)


def _status(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None
