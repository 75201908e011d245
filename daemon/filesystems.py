"""Filesystems: which one a directory is on; the mount table is read again only when it must have changed."""

import os

from .mounts import Mount, MountTable, filesystem_id, mount_holding, read_mounts


class Filesystems:
    """Answers for one thread at a time whether an absence is a deletion."""

    def __init__(self) -> None:
        self._table: tuple[Mount, ...] = ()
        self._ids: dict[Mount, str] = {}

    def is_deletion(self, mounts: MountTable, path: bytes, directory: bytes) -> bool:
        """Whether `path`, absent from what is now mounted at `directory`, was deleted rather than unmounted.

        Args:
            mounts: what is known of the root.
            path: relative to the root.
            directory: the nearest existing directory above it, absolute.

        Raises:
            OSError: the directory or the mount table cannot be read.
        """
        if mounts.expected(path) is None:
            return True
        return mounts.is_gone_from(path, self._id_of(directory))

    def _id_of(self, directory: bytes) -> str:
        device = os.stat(directory).st_dev
        numbers = f"{os.major(device)}:{os.minor(device)}"
        mount = mount_holding(directory, self._table)
        if mount is None or mount.device != numbers:
            self._table, self._ids = read_mounts(), {}
            mount = mount_holding(directory, self._table)
        if mount is None:
            raise FileNotFoundError(f"no mount holds {os.fsdecode(directory)}")
        if mount not in self._ids:
            self._ids[mount] = filesystem_id(mount)
        return self._ids[mount]
