"""What the writer of sidecars remembers of directories that refuse them stays bounded, however many there are."""

import pathlib
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import structlog

from ckptd.catalog.describe import describe_checkpoint
from ckptd.catalog.description import SidecarStatus
from ckptd.catalog.entry import Health, Identities, MetadataSource, Record, make_record
from ckptd.catalog.roots import resolve_roots
from ckptd.catalog.store import Catalog, Change, DeleteReason, Removal
from ckptd.daemon import sidecars
from ckptd.daemon.sidecars import SidecarWriter
from tests.daemon.fakes import until
from tests.service.checkpoints import checkpoint_bytes, rename_in

pytestmark = pytest.mark.anyio
DIRECTORIES = 30


class Refused:
    """A catalog of checkpoints, each in a directory of its own, and a writer that may not write into any of them."""

    def __init__(self, tmp_path: pathlib.Path) -> None:
        rename_in(tmp_path / "a.ckpt", checkpoint_bytes(1))
        (self.root,), _ = resolve_roots((str(tmp_path),))
        self.description = describe_checkpoint(str(tmp_path / "a.ckpt"), root=str(tmp_path))
        self.catalog = Catalog("instance")
        self.writer = SidecarWriter(
            catalog=self.catalog,
            journal=self,  # type: ignore[arg-type]
            describe=lambda _: self.description,
            digest_of=lambda _id, _file: None,
            may_write=lambda _: False,
            is_busy=lambda: False,
            enabled=True,
            long_name=True,
            delay_s=0.0,
            log=structlog.get_logger(),
        )

    async def submit(self, change: Change, **_: Any) -> None:
        """As the journal, which keeps nothing here."""
        batch = self.catalog.prepare([change])
        if batch is not None:
            self.catalog.publish(batch)

    def records(self) -> Iterator[Record]:
        identities = Identities(file=self.description.inspection.identity)
        for number in range(DIRECTORIES):
            path = b"%d/a.ckpt" % number
            yield make_record(
                self.root,
                path,
                self.description,
                Health.VALID,
                identities=identities,
                metadata_source=MetadataSource.NONE,
            )

    async def delete(self, record: Record) -> None:
        """A checkpoint has gone."""
        removal = Removal(record.entry.id, DeleteReason.REMOVED)
        await self.submit(Change(record.entry.id, lambda _: removal))

    async def refuse_all(self) -> None:
        """Have a sidecar refused in each directory."""
        for record in self.records():
            await self.submit(Change(record.entry.id, lambda _, record=record: record))  # type: ignore[misc]
            self.writer.consider(self.root, record, SidecarStatus.NONE)
        await until(lambda: self.writer.skipped == DIRECTORIES, "each directory has refused")


@pytest.fixture
async def refused(tmp_path: pathlib.Path):
    made = Refused(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.writer.run)
        yield made
        made.writer.close()


async def test_only_so_many_directories_are_remembered_as_told_of(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecars, "WARNED_KEPT", 4)
    await refused.refuse_all()
    assert 0 < len(refused.writer._warned) <= 4


async def test_a_refusal_is_forgotten_when_the_checkpoints_of_its_directory_have_gone(refused: Refused) -> None:
    await refused.refuse_all()
    assert refused.writer.can_write(refused.root) is False
    assert len(refused.writer._refusals) == DIRECTORIES
    for record in list(refused.catalog):
        await refused.delete(record)
    refused.writer.retry_refused()
    await until(lambda: not refused.writer._refusals, "nothing is remembered of them")
    assert not refused.writer._warned
    assert refused.writer.can_write(refused.root) is None
