"""IndexExport: the portable index of each root, written again when what it lists has changed."""

import os
from collections.abc import Callable, Sequence

import anyio
import anyio.to_thread
import structlog

from ckptd.catalog.entry import Health, Record
from ckptd.catalog.index import index_of, write_index
from ckptd.catalog.roots import Root
from ckptd.catalog.store import Batch, Catalog, Tombstone

INDEX_DELAY_S = 5.0
"""The portable index is written at most this often."""
INDEX_SHARE = 0.05
"""Nor may writing it take more than this share of the time: in a large tree under change it waits longer."""


class IndexExport:
    """Follows the catalog, and knows of which roots the index is out of date: at first, of all."""

    def __init__(
        self,
        catalog: Catalog,
        roots: Sequence[Root],
        *,
        may_write: Callable[[Root], bool],
        enabled: bool,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """Args:
        may_write: whether this process is the one that writes into a root; called in a thread.
        """
        self._catalog = catalog
        self._roots = roots
        self._may_write = may_write
        self._enabled = enabled
        self._log = log
        self._outdated = {root.name for root in roots}
        self._due_at: float | None = None
        catalog.on_publish(self._follow)

    async def export_if_due(self) -> None:
        """Write what is out of date, unless that was done a moment ago. The first time is not at once."""
        now = anyio.current_time()
        if self._due_at is None:
            self._due_at = now + INDEX_DELAY_S
        if now < self._due_at:
            return
        await self.export()
        took_s = anyio.current_time() - now
        self._due_at = anyio.current_time() + max(INDEX_DELAY_S, took_s / INDEX_SHARE)

    async def export(self) -> None:
        """Write what is out of date."""
        if not self._enabled:
            return
        due, self._outdated = self._outdated, set()
        for root in self._roots:
            if root.name in due:
                await anyio.to_thread.run_sync(self._write, root, list(self._catalog))

    def _write(self, root: Root, everything: Sequence[Record]) -> None:
        """Runs in a thread."""
        records = [record for record in everything if record.entry.root == root.name]
        if records and all(record.entry.health is Health.OFFLINE for record in records):
            return  # its disk is unmounted: what can be written to now is the bare directory beneath
        if not self._may_write(root):
            return
        try:
            root_fd = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                write_index(root_fd, index_of(records, root_fd))
            finally:
                os.close(root_fd)
        except OSError as error:
            self._log.warning(
                "the portable index was not written",
                root=root.name,
                error=error.strerror,
                remedy="give the daemon write access there, or set export_index: off",
            )

    def _follow(self, batch: Batch) -> None:
        for item in batch.items:
            if not isinstance(item, Tombstone):
                self._outdated.add(item.entry.root)
            else:
                self._outdated.update(root.name for root in self._roots)
