"""Filesystems: which one a directory is on, asked for every absent path; the mount table is read when it changed."""

import os
import select
import weakref

from .mounts import MOUNTINFO, Mount, MountTable, filesystem_id, mount_holding, read_mounts


class Filesystems:
    """Tells a deletion from an absence because something was unmounted. For one thread at a time."""

    def __init__(self) -> None:
        self._table: tuple[Mount, ...] | None = None
        self._ids: dict[Mount, str] = {}
        # The kernel marks the open table with POLLPRI when it changes (proc_pid_mountinfo(5)): asking costs 1 µs,
        # reading it anew 100 times that.
        self._watched = os.open(MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._watched)
        self._poll = select.poll()
        self._poll.register(self._watched, select.POLLPRI | select.POLLERR)

    def is_deletion(self, mounts: MountTable, path: bytes, directory: bytes) -> bool:
        """Whether `path`, absent from what is now mounted at `directory`, was deleted rather than unmounted.

        Args:
            mounts: what is known of the root.
            path: relative to the root.
            directory: the nearest existing directory above it, absolute.

        Raises:
            OSError: the mount table cannot be read.
        """
        if mounts.expected(path) is None:
            return True
        holding = mount_holding(directory, self._mounts())
        return holding is not None and mounts.is_gone_from(path, self._id_of(holding))

    def _mounts(self) -> tuple[Mount, ...]:
        if self._poll.poll(0) or self._table is None:
            self._table, self._ids = read_mounts(), {}
        return self._table

    def _id_of(self, mount: Mount) -> str:
        if mount not in self._ids:
            self._ids[mount] = filesystem_id(mount)
        return self._ids[mount]
