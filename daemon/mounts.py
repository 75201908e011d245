"""Mounts: which filesystem holds a path, told by /proc/self/mountinfo, and what is known to be mounted where.

A name that is gone from a directory is deleted only if that directory is on the filesystem that held the name;
on another one (unmounted, or mounted over) the checkpoint is offline.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import msgspec

MOUNTINFO = "/proc/self/mountinfo"

# fmt: off
NETWORK_FILESYSTEMS = frozenset((
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "virtiofs", "wekafs",
))
# fmt: on
"""Filesystems whose files change on other machines: no event tells of that."""
LOCAL_FUSE = frozenset(("fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.bindfs", "fuse.mergerfs"))
"""Everything else of FUSE (sshfs, s3fs, rclone, …) is taken for a network filesystem, `fuseblk` (NTFS) is not."""

DEFAULT_ATTRIBUTE_CACHE_S = 60.0
"""How old a network filesystem's attributes may be: `acregmax` and `acdirmax` of nfs(5)."""
_CACHE_OPTIONS = ("acregmax", "acdirmax", "actimeo")


class Mount(msgspec.Struct, frozen=True, gc=False):
    """One line of mountinfo (proc_pid_mountinfo(5))."""

    path: bytes
    """Where it is mounted, absolute."""
    device: str
    """`major:minor`; changes when it is mounted anew."""
    subtree: bytes
    """Which directory of the filesystem is mounted there: `/`, except for bind mounts and subvolumes."""
    fstype: str
    source: bytes
    options: tuple[str, ...] = ()
    """Of the mount and of the filesystem."""

    @property
    def is_network(self) -> bool:
        """Whether files may change there without an event."""
        if self.fstype == "fuse" or self.fstype.startswith("fuse."):
            return self.fstype not in LOCAL_FUSE
        return self.fstype in NETWORK_FILESYSTEMS

    @property
    def attribute_cache_s(self) -> float:
        """For how long a change may stay unseen because attributes are cached, in seconds; 0 where local."""
        if not self.is_network:
            return 0.0
        if "noac" in self.options:
            return 0.0
        pairs = (option.partition("=") for option in self.options)
        given = [float(value) for name, _, value in pairs if name in _CACHE_OPTIONS and value.isdigit()]
        return max(given, default=DEFAULT_ATTRIBUTE_CACHE_S)


def read_mounts(mountinfo: str = MOUNTINFO) -> tuple[Mount, ...]:
    """Everything mounted in this process's namespace, in the order of mounting.

    Raises:
        OSError: the table cannot be read.
    """
    with open(mountinfo, "rb") as file:
        return tuple(mount for line in file.read().splitlines() if (mount := _parse(line)) is not None)


def mount_holding(path: bytes, mounts: Iterable[Mount]) -> Mount | None:
    """The mount that holds an absolute path; the latest of those stacked on one directory."""
    holding = None
    for mount in mounts:
        if is_beneath(path, mount.path) and (holding is None or len(mount.path) >= len(holding.path)):
            holding = mount
    return holding


def mounts_beneath(path: bytes, mounts: Iterable[Mount]) -> dict[bytes, Mount]:
    """Mount points strictly beneath an absolute path, relative to it, each with the mount that is visible there."""
    prefix = path.rstrip(b"/") + b"/"
    return {
        mount.path[len(prefix) :]: mount for mount in mounts if mount.path.startswith(prefix) and mount.path != prefix
    }


def filesystem_id(mount: Mount) -> str:
    """A name for what is mounted that survives a reboot and tells two filesystems at one place apart.

    Blocks while a filesystem hangs, except for network ones, which are known by their source and not asked.
    """
    name = os.fsdecode(mount.source)
    if not mount.is_network:
        try:
            # For ext4 and btrfs made from the UUID; for tmpfs random per instance; 0 where there is none.
            fsid = os.statvfs(mount.path).f_fsid
        except OSError:
            fsid = 0
        name = f"{fsid:x}" if fsid else f"{name}@{mount.device}"
    return f"{mount.fstype}:{name}:{os.fsdecode(mount.subtree)}"


def mount_of(path: bytes, mounts: Mapping[bytes, str]) -> tuple[bytes, str] | None:
    """The deepest of `mounts` (directory → filesystem id) that holds `path`; both relative to one root.

    The root itself is `b""`. None if it is not among them and no other holds the path.
    """
    directory = path
    while True:
        if directory in mounts:
            return directory, mounts[directory]
        if not directory:
            return None
        directory = directory.rpartition(b"/")[0]


def is_beneath(path: bytes, directory: bytes) -> bool:
    """Whether `path` is `directory` or inside it; both absolute or both relative, without a trailing slash."""
    return not directory or path == directory or path.startswith(directory.rstrip(b"/") + b"/")


class MountTable:
    """What is known to be mounted at and beneath one root, and which lost paths were on what.

    Learns from sweeps; asked by looks, from any thread.
    """

    def __init__(self, known: Mapping[bytes, str] | None = None, lost: Mapping[bytes, str] | None = None) -> None:
        """Args:
        known: directory relative to the root → filesystem id, `b""` for the root itself.
        lost: path relative to the root → id of the filesystem that held it.
        """
        self.known: dict[bytes, str] = dict(known or {})
        self.lost: dict[bytes, str] = dict(lost or {})

    @classmethod
    def parse(cls, text: str) -> Self:
        """The table that `render` wrote; an empty one if the text is anything else."""
        try:
            kept = msgspec.json.decode(text, type=_KeptTable)
        except msgspec.MsgspecError:
            return cls()
        return cls(dict(kept.known), dict(kept.lost))

    def render(self) -> str:
        """The table as text, the same for equal tables."""
        kept = _KeptTable(sorted(self.known.items()), sorted(self.lost.items()))
        return msgspec.json.encode(kept).decode()

    def expected(self, path: bytes) -> str | None:
        """The id of the filesystem that held `path` when it was last seen; None if nothing is known."""
        lost = self.lost.get(path)
        if lost is not None:
            return lost
        held = mount_of(path, self.known)
        return None if held is None else held[1]

    def is_gone_from(self, path: bytes, filesystem: str) -> bool:
        """Whether the absence of `path` from a directory on `filesystem` is a deletion."""
        expected = self.expected(path)
        return expected is None or expected == filesystem

    def changed(self, met: Mapping[bytes, str]) -> frozenset[bytes]:
        """Directories where something is mounted now, or was, that is not what is known; empty if nothing is known."""
        if not self.known:
            return frozenset()
        return frozenset(d for d in self.known.keys() | met.keys() if self.known.get(d) != met.get(d))

    def learn(self, met: Mapping[bytes, str], missing: Iterable[bytes], found: Iterable[bytes]) -> None:
        """Take over what a complete sweep met.

        Args:
            met: what is mounted now, as `known`.
            missing: known paths that were not found; where the mount changed they are remembered as lost on the
                old one, so that they stay offline while new files there come and go as usual.
            found: paths that were found; they are lost no more.
        """
        lost = dict(self.lost)
        for path in missing:
            held, now = mount_of(path, self.known), mount_of(path, met)
            if held is not None and path not in lost and (now is None or now[1] != held[1]):
                lost[path] = held[1]
        for path in found:
            lost.pop(path, None)
        self.lost, self.known = lost, dict(met)

    def forget(self, path: bytes) -> None:
        """`path` left the catalog."""
        self.lost.pop(path, None)

    def accept(self) -> None:
        """Take what is mounted now for what belongs there: what is missing from it is deleted."""
        self.lost, self.known = {}, {}


class _KeptTable(msgspec.Struct, frozen=True):
    """Pairs, because JSON's keys are text and paths are bytes."""

    known: list[tuple[bytes, str]]
    lost: list[tuple[bytes, str]]


def mounts_of_root(root: bytes, mounts: Sequence[Mount]) -> dict[bytes, str]:
    """What is mounted at and beneath the root: directory relative to it (`b""`: itself) → filesystem id."""
    met = {directory: filesystem_id(mount) for directory, mount in mounts_beneath(root, mounts).items()}
    holding = mount_holding(root, mounts)
    if holding is not None:
        met[b""] = filesystem_id(holding)
    return met


def _parse(line: bytes) -> Mount | None:
    before, separator, after = line.partition(b" - ")
    fields, tail = before.split(b" "), after.split(b" ")
    if not separator or len(fields) < 6 or len(tail) < 2:
        return None
    options = fields[5] + b"," + (tail[2] if len(tail) > 2 else b"")
    return Mount(
        path=_unescape(fields[4]),
        device=fields[2].decode("ascii"),
        subtree=_unescape(fields[3]),
        fstype=tail[0].decode("ascii", "replace"),
        source=_unescape(tail[1]),
        options=tuple(options.decode("utf-8", "replace").split(",")),
    )


def _unescape(field: bytes) -> bytes:
    """Space, tab, newline and backslash are written as three octal digits."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
