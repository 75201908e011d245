"""A sidecar that was met where ours was to be written, and that goes before anybody has looked at it."""

import os
import pathlib
from typing import Any

import anyio
import pytest
import structlog

from ckptd.catalog.describe import describe_checkpoint
from ckptd.catalog.description import SidecarStatus
from ckptd.catalog.entry import Health, Identities, MetadataSource, make_record
from ckptd.catalog.roots import resolve_roots
from ckptd.catalog.sidecar import write_sidecar
from ckptd.catalog.store import Catalog, Change
from ckptd.daemon import sidecars
from ckptd.daemon.sidecars import SidecarWriter
from tests.service.checkpoints import checkpoint_bytes, rename_in


class PlainJournal:
    """Publishes at once, and keeps nothing."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.written = anyio.Event()

    async def submit(self, change: Change, **named: Any) -> None:
        batch = self._catalog.prepare([change])
        if batch is not None:
            self._catalog.publish(batch)
        if named:
            self.written.set()


@pytest.mark.anyio
async def test_where_a_sidecar_that_was_met_has_gone_again_ours_is_written_all_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its going shows nobody anything new: there was none before, as far as is known."""
    rename_in(tmp_path / "a.ckpt", checkpoint_bytes(1))
    (root,), _ = resolve_roots((str(tmp_path),))
    description = describe_checkpoint(str(tmp_path / "a.ckpt"), root=str(tmp_path))
    identities = Identities(file=description.inspection.identity)
    record = make_record(
        root, b"a.ckpt", description, Health.VALID, identities=identities, metadata_source=MetadataSource.NONE
    )
    catalog = Catalog("instance")
    journal = PlainJournal(catalog)
    await journal.submit(Change(record.entry.id, lambda _: record))
    met = []

    def meets_one_at_first(*arguments: Any, **named: Any) -> Any:
        if not met:
            met.append(True)
            raise FileExistsError(os.strerror(17))
        return write_sidecar(*arguments, **named)

    monkeypatch.setattr(sidecars, "write_sidecar", meets_one_at_first)
    monkeypatch.setattr(sidecars, "RETRY_MET_S", 0.01)
    writer = SidecarWriter(
        catalog=catalog,
        journal=journal,
        describe=lambda _: description,
        digest_of=lambda _id, _file: None,
        may_write=lambda _: True,
        is_busy=lambda: False,
        enabled=True,
        long_name=True,
        delay_s=0.0,
        log=structlog.get_logger(),
    )
    writer.consider(root, record, SidecarStatus.NONE)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writer.run)
        with anyio.fail_after(30):
            await journal.written.wait()
        writer.close()
    assert met
    assert (tmp_path / "a.ckpt.metadata.yaml").exists()
    assert catalog.get(record.entry.id).entry.metadata_source is MetadataSource.DAEMON
