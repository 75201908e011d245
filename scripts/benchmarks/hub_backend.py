"""A catalog of checkpoints that nobody wrote, behind the real hub: what is measured is the wire alone."""

import datetime as dt
import gc
import time
from typing import Any

from stream_servers import PATHS

from ckptd.catalog.description import Description
from ckptd.catalog.entry import CheckpointEntry, CheckpointId, Health, Identities, Record, Revision, checkpoint_id
from ckptd.catalog.store import Catalog, Change
from ckptd.daemon.http import EventHub
from ckptd.daemon.http.backend import RebuildMode
from ckptd.daemon.loop import LoopMonitor, Phase
from ckptd.daemon.metrics import Metrics
from ckptd.daemon.settings import Settings
from ckptd.daemon.status import CatalogStatus, Status
from ckptd.validators.inspection import FileIdentity, Level

_ROOT = "/srv/outputs"
_NO_REVISION = Revision(0)


class HubBackend:
    """Implements `http.backend.Backend`."""

    def __init__(self, entries: int, monitor: LoopMonitor) -> None:
        self.catalog = Catalog("benchmark")
        self.lines = None
        self.settings = Settings(roots=(_ROOT,), state_dir="/nonexistent")
        self.metrics = Metrics()
        self._monitor = monitor
        records = (record(number, Revision(number + 1)) for number in range(entries))
        self.catalog.load(records, (), Revision(entries), Revision(0))
        self.catalog.snapshot()
        self.hub = EventHub(self.catalog, complete_as_of=time.time, monitor=monitor, max_listeners=15_000)

    def settle_memory(self) -> None:
        """As the daemon does once it is loaded."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)

    def publish_one(self, number: int) -> None:
        """A change of one checkpoint; its name says when."""
        changed = record(number % PATHS, name=f"t={time.monotonic_ns()}")
        self.publish([Change(changed.entry.id, lambda _: changed)])

    def publish(self, changes: list[Change]) -> None:
        """As the journal does, but for the disk."""
        with self._monitor.phase(Phase.PREPARE):
            batch = self.catalog.prepare(changes)
        if batch is not None:
            with self._monitor.phase(Phase.PUBLISH):
                self.catalog.publish(batch)

    def answer(self, question: str) -> Any:
        """What the benchmark asks: the loop's steps, or a batch of changes to be published."""
        if question == "steps":
            return self._monitor.steps()
        if question == "forget":  # what the start took
            self._monitor.__init__()  # type: ignore[misc]
            self._monitor.is_exact = True
            return None
        if question == "counts":
            return self.hub.counts
        size = int(question)
        changes = [record(number, name=f"batch {time.monotonic_ns()}") for number in range(size)]
        self.publish([Change(one.entry.id, lambda _, one=one: one) for one in changes])  # type: ignore[misc]
        return None

    def status(self) -> Status:
        """See `Backend`."""
        return Status(
            instance=self.catalog.instance, revision=self.catalog.revision, started_at=0, state=CatalogStatus.HEALTHY
        )

    async def description(self, _: CheckpointId) -> Description | None:
        """See `Backend`."""
        return None

    def request_rebuild(self, _: RebuildMode) -> str:
        """See `Backend`."""
        return "token"


def record(number: int, revision: Revision = _NO_REVISION, *, name: str | None = None) -> Record:
    """A checkpoint of 640 bytes as JSON, about what real ones have."""
    path = f"experiment_{number % 40}/2026-01-{number % 28 + 1:02d}_10-00-00/checkpoints/epoch-{number:06d}.ckpt"
    modified_ns = 1_760_000_000_000_000_000 + number * 10**9
    entry = CheckpointEntry(
        id=checkpoint_id(_ROOT, path.encode()),
        path=path,
        root=_ROOT,
        checkpoint_path=f"{_ROOT}/{path}",
        display_name=name or f"experiment_{number % 40}/epoch-{number:06d}",
        exp_name=f"experiment_{number % 40}",
        epoch=number,
        metrics={"hmean": number / 1e6, "precision": 0.5},
        size_bytes=200_000_000 + number,
        modified_at=dt.datetime.fromtimestamp(modified_ns / 1e9, dt.UTC).isoformat().replace("+00:00", "Z"),
        health=Health.VALID,
        verified=Level.CHECKSUM,
        revision=revision,
    )
    return Record(
        entry=entry,
        relative_path=path.encode(),
        identities=Identities(FileIdentity(number, 200_000_000, modified_ns, modified_ns)),
        modified_ns=modified_ns,
    )
