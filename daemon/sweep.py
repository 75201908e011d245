"""Sweep: the tree against the catalog, which is where truth comes from.

A sweep only says which paths do not look as they were published; what is true of each is decided by a look.
"""

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from ckptd.catalog.entry import Health, Identities, Record
from ckptd.catalog.roots import DEFAULT_SUFFIXES, Root
from ckptd.catalog.scan import Found, Scan, scan_tree

from .completeness import Completeness, SweepSchedule, Ticket
from .look import could_not_read
from .mounts import Mount, MountTable, is_beneath, mount_holding, mount_of, mounts_beneath, mounts_of_root, read_mounts
from .moves import KEPT, Mark, mark_of_path

__all__ = [
    "Completeness",
    "KnownPaths",
    "SweepReport",
    "SweepSchedule",
    "Ticket",
    "sweep_root",
    "sweep_unasked",
    "sweep_unopened",
]

_REFUSED = frozenset({errno.EACCES, errno.EPERM})


class KnownPaths(Protocol):
    """What a sweep asks of the catalog, from its own thread."""

    def find(self, root: str, relative_path: bytes) -> Record | None:
        """The published record of a path, or None."""
        ...

    def paths(self, root: str) -> list[bytes]:
        """A copy of all relative paths under a root."""
        ...

    def has_beneath(self, root: str, directory: bytes) -> bool:
        """Whether anything is published beneath a directory of a root."""
        ...


class SweepReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one sweep of a root, or of a subtree of it, found. Paths are relative to the root."""

    root: Root
    subtree: bytes = b""
    started_at: float
    """Wall clock, epoch seconds."""
    seconds: float = 0.0
    cpu_s: float = 0.0
    """Of the sweeping thread."""
    checkpoints: int = 0
    """Found, as published or not."""
    directories: int = 0
    suspects: tuple[bytes, ...] = ()
    """To be looked at: new, changed, not settled, or missing."""
    sightings: Mapping[Mark, bytes] = {}
    """Of the suspects, where files are that are new there: they may have left other places. At most `moves.KEPT`."""
    missing: tuple[bytes, ...] = ()
    """Published, but not found; those among them that are not known to be offline are suspects too."""
    unreachable: Mapping[bytes, str] = {}
    """Directories that could not be listed, and why."""
    vanished_mounts: tuple[bytes, ...] = ()
    """Directories where something else is mounted than was known, or nothing any more."""
    attribute_cache_s: float = 0.0
    """For how long a network filesystem in the tree may hide changes."""
    orphans: tuple[bytes, ...] = ()
    """Sidecars without a checkpoint."""
    leftovers: tuple[bytes, ...] = ()
    """Temporary files that an interrupted write of ours left behind."""
    skipped_links: int = 0
    odd: Mapping[bytes, str] = {}
    """Things with a checkpoint's name that are none, and what they are."""
    asked: bool = True
    """False where the tree was not asked at all, for want of a descriptor: that says nothing of its disk."""
    error: str | None = None
    """Why the sweep proves nothing: it was stopped, a disk failed, or mounts changed while it ran."""

    @property
    def ok(self) -> bool:
        """It ended without error: once its suspects were looked at, the catalog is complete as of its start.

        Directories that may not be read do not spoil this: what is in them is nobody's to list, on any day.
        """
        return self.error is None


def sweep_root(
    root: Root,
    root_fd: int,
    known: KnownPaths,
    *,
    mounts: MountTable,
    suffixes: Sequence[str] = DEFAULT_SUFFIXES,
    subtree: bytes = b"",
    roots: Sequence[Root] = (),
    follow_links: Sequence[bytes] = (),
    should_stop: Callable[[], bool] | None = None,
) -> SweepReport:
    """Walk a root, or a subtree of it, and compare it with what is published. Blocks; meant for a thread.

    A whole sweep without error also teaches `mounts` what is mounted now.

    Args:
        root: the tree.
        root_fd: the opened root.
        known: the catalog.
        mounts: what is known to be mounted in this tree.
        suffixes: of names that are checkpoints.
        subtree: relative directory; it may not exist (any more), what was known beneath it is then missing.
        roots: all roots, for links from one into another; `root` alone by default.
        follow_links: directories outside the roots into which links may lead.
        should_stop: asked now and then; True ends the sweep early, as an error.
    """
    started_at, clock_0, cpu_0 = time.time(), time.monotonic(), time.thread_time()
    table = read_mounts()
    met = mounts_of_root(root.path, table)
    found: set[bytes] = set()
    suspects: list[bytes] = []
    sightings: dict[Mark, bytes] = {}

    def compare(each: Found) -> None:  # as it is found: collected, they would take 90 MB for 100,000
        found.add(each.path)
        if not _is_as_published(known.find(root.name, each.path), each.identities):
            suspects.append(each.path)
            if len(sightings) < KEPT:
                sightings[mark_of_path(each.identities)] = each.path

    scan = scan_tree(
        root,
        root_fd,
        subtree=subtree,
        suffixes=suffixes,
        roots=roots,
        follow_links=follow_links,
        on_found=compare,
        should_stop=should_stop,
    )
    is_known = known.has_beneath(root.name, subtree) or known.find(root.name, subtree) is not None
    beneath = known.paths(root.name) if is_known else []
    missing = [path for path in beneath if is_beneath(path, subtree) and path not in found]
    suspects += _doubtful(root, known, missing, scan, met, mounts)
    vanished = tuple(sorted(d for d in mounts.changed(met) if d in mounts.known and is_beneath(d, subtree)))
    error = _error(scan, table)
    if error is None and not subtree:
        mounts.learn(met, missing, found)
    return SweepReport(
        root=root,
        subtree=subtree,
        started_at=started_at,
        seconds=time.monotonic() - clock_0,
        cpu_s=time.thread_time() - cpu_0,
        checkpoints=len(found),
        directories=scan.directories,
        suspects=tuple(suspects),
        sightings=sightings,
        missing=tuple(missing),
        unreachable={directory: str(why) for directory, why in scan.unreachable.items()},
        vanished_mounts=vanished,
        attribute_cache_s=_attribute_cache_s(root, table),
        orphans=tuple(scan.orphans),
        leftovers=tuple(scan.leftovers),
        skipped_links=scan.skipped_links,
        odd=dict(scan.odd),
        error=error,
    )


def sweep_unopened(root: Root, known: KnownPaths, error: OSError) -> SweepReport:
    """The report of a root that could not be opened: every path is to be looked at, unless it is offline already."""
    missing = known.paths(root.name)
    return SweepReport(
        root=root,
        started_at=time.time(),
        suspects=tuple(path for path in missing if _health(known, root, path) is not Health.OFFLINE),
        missing=tuple(missing),
        error=f"{root.name} cannot be opened: {error.strerror}",
    )


def sweep_unasked(root: Root, error: OSError) -> SweepReport:
    """The report of a sweep that could not begin because this process, not the tree, is short of something."""
    why = f"{root.name} cannot be swept: {error.strerror}"
    return SweepReport(root=root, started_at=time.time(), asked=False, error=why)


def _doubtful(
    root: Root,
    known: KnownPaths,
    missing: Iterable[bytes],
    scan: Scan,
    met: Mapping[bytes, str],
    mounts: MountTable,
) -> list[bytes]:
    """Of the missing paths those to look at: all but what is offline, and is where it could not be found anyway.

    A lost disk may hold 100,000 of those; `settle` asks for them again, at its own pace.
    """
    unreachable = dict.fromkeys(scan.unreachable, "")
    doubtful = []
    for path in missing:
        if _health(known, root, path) is Health.OFFLINE:
            here = mount_of(path, met)
            if mount_of(path, unreachable) or (here is not None and not mounts.is_gone_from(path, here[1])):
                continue
        doubtful.append(path)
    return doubtful


def _is_as_published(record: Record | None, identities: Identities) -> bool:
    """Whether a look would find nothing new: same files, and nothing about it was left open."""
    if record is None or record.entry.health in (Health.WRITING, Health.OFFLINE) or could_not_read(record):
        return False
    return record.identities.are_still(identities)


def _health(known: KnownPaths, root: Root, path: bytes) -> Health | None:
    record = known.find(root.name, path)
    return None if record is None else record.entry.health


def _error(scan: Scan, table: Sequence[Mount]) -> str | None:
    if scan.stopped:
        return "the sweep was stopped before its end"
    for directory, why in scan.unreachable.items():
        if why.errno not in _REFUSED:
            return f"{os.fsdecode(directory)!r} could not be listed: {why.strerror}"
    if read_mounts() != table:
        return "mounts changed during the sweep"
    return None


def _attribute_cache_s(root: Root, table: Sequence[Mount]) -> float:
    holding = mount_holding(root.path, table)
    concerned = [*mounts_beneath(root.path, table).values(), *([] if holding is None else [holding])]
    return max((mount.attribute_cache_s for mount in concerned), default=0.0)
