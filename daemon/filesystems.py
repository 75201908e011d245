"""Filesystems: which one a directory is on, asked for every absent path; the mount table is read when it changed."""

import os
import select
import threading
import weakref

from .mounts import MOUNTINFO, Mount, MountTable, filesystem_id, mount_holding, read_mounts


class Filesystems:
    """Tells a deletion from an absence because something was unmounted. For any number of threads at once."""

    def __init__(self) -> None:
        self._known: _Known | None = None
        self._reading = threading.Lock()
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
        known = self._now()
        holding = mount_holding(directory, known.mounts)
        return holding is not None and mounts.is_gone_from(path, known.id_of(holding))

    def _now(self) -> "_Known":
        # A poll object refuses a second thread, and a change of the table is told to one poll only. What follows may
        # hang on a disk that is gone: the lock is not held for that.
        with self._reading:
            if self._poll.poll(0) or self._known is None:
                self._known = _Known(read_mounts())
            return self._known


class _Known:
    """One state of the mount table, with the filesystems that were asked for their ids."""

    def __init__(self, mounts: tuple[Mount, ...]) -> None:
        self.mounts = mounts
        self._ids: dict[Mount, str] = {}

    def id_of(self, mount: Mount) -> str:
        if mount not in self._ids:
            self._ids[mount] = filesystem_id(mount)
        return self._ids[mount]
