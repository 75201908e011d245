"""A real tree and a real catalog of it, to be swept."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from ckptd.catalog.entry import CheckpointEntry, Health, Record, checkpoint_id
from ckptd.catalog.experiment import DirectFiles, find_companions
from ckptd.catalog.opening import open_checkpoint
from ckptd.catalog.roots import Root
from ckptd.catalog.store import Catalog, Change, Removal
from ckptd.daemon.mounts import MountTable
from ckptd.daemon.sweep import SweepReport, sweep_root


class SweptTree:
    """One root with a catalog, which holds what was published and nothing of what happened since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = Root(os.fsencode(path))
        self.catalog = Catalog("test")
        self.mounts = MountTable()

    def write(self, *names: str) -> None:
        """Write files with some bytes; their directories are made."""
        for name in names:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(os.urandom(8))

    def publish(self, paths: Iterable[bytes], health: Health = Health.VALID) -> None:
        """Put paths into the catalog as a look would find them now."""
        self._put([self._record(path, health) for path in paths])

    def mark(self, path: bytes, health: Health) -> None:
        """Give a published path another health."""
        record = self.catalog.find(self.root.name, path)
        assert record is not None
        self._put([msgspec.structs.replace(record, entry=msgspec.structs.replace(record.entry, health=health))])

    def remove(self, path: bytes) -> None:
        """Take a path out of the catalog."""
        wish = Removal(checkpoint_id(self.root.name, path))
        self._publish([Change(wish.id, lambda _: wish)])

    def sweep(self, subtree: bytes = b"", **options: Any) -> SweepReport:
        """Sweep the tree as it is now."""
        root_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sweep_root(self.root, root_fd, self.catalog, mounts=self.mounts, subtree=subtree, **options)
        finally:
            os.close(root_fd)

    def settle(self) -> SweepReport:
        """Publish what a sweep suspects, and sweep again."""
        self.publish(self.sweep().suspects)
        return self.sweep()

    def _record(self, path: bytes, health: Health) -> Record:
        root_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _, files, identities = open_checkpoint(root_fd, path, find_companions(DirectFiles(root_fd), path))
        finally:
            os.close(root_fd)
        for fd in files.all():
            os.close(fd)
        entry = CheckpointEntry(
            id=checkpoint_id(self.root.name, path),
            path=os.fsdecode(path),
            root=self.root.name,
            checkpoint_path=os.fsdecode(self.root.join(path)),
            display_name="x",
            size_bytes=identities.file.size,
            modified_at="2026-01-01T00:00:00Z",
            health=health,
        )
        return Record(entry=entry, relative_path=path, identities=identities, modified_ns=identities.file.mtime_ns)

    def _put(self, records: list[Record]) -> None:
        self._publish([Change(record.entry.id, lambda _, record=record: record) for record in records])

    def _publish(self, changes: list[Change]) -> None:
        batch = self.catalog.prepare(changes)
        if batch is not None:
            self.catalog.publish(batch)
