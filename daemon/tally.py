"""Tally: how many entries stand where, kept up with the log instead of counted anew."""

import collections
from collections.abc import Iterable

from ckptd.catalog.entry import CheckpointId, Health, MetadataSource, Record
from ckptd.catalog.store import Batch, Tombstone
from ckptd.validators.inspection import Level, Safety

_Mark = tuple[Health, MetadataSource, Level, Safety, tuple[str, ...]]
_BESIDE = (MetadataSource.SIDECAR, MetadataSource.DAEMON)


class Tally:
    """Counts by health, metadata source, level of verification, safety and finding code.

    Subscribe `publish` to the catalog.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._marks: dict[CheckpointId, _Mark] = {}
        self._shared: dict[_Mark, _Mark] = {}
        self.by_health: collections.Counter[Health] = collections.Counter()
        self.by_level: collections.Counter[Level] = collections.Counter()
        self.by_safety: collections.Counter[Safety] = collections.Counter()
        self.by_finding: collections.Counter[str] = collections.Counter()
        self._valid_by_source: collections.Counter[MetadataSource] = collections.Counter()
        for record in records:
            self._add(record)

    def publish(self, batch: Batch) -> None:
        """Take a published batch into account."""
        for item in batch.items:
            self._drop(item.id if isinstance(item, Tombstone) else item.entry.id)
            if not isinstance(item, Tombstone):
                self._add(item)

    @property
    def with_sidecar(self) -> int:
        """Valid entries whose metadata lies beside the checkpoint."""
        return sum(self._valid_by_source[source] for source in _BESIDE)

    @property
    def with_state_metadata(self) -> int:
        """Valid entries whose metadata could only be kept in the state."""
        return self._valid_by_source[MetadataSource.STATE]

    def _add(self, record: Record) -> None:
        entry = record.entry
        codes = tuple(sorted({ref.code for ref in entry.findings}))
        # Few combinations exist: sharing them keeps the tally of 100,000 entries at about 10 MB.
        mark = (entry.health, entry.metadata_source, entry.verified, entry.safety, codes)
        mark = self._shared.setdefault(mark, mark)
        self._marks[entry.id] = mark
        self._count(mark, 1)

    def _drop(self, checkpoint_id: CheckpointId) -> None:
        mark = self._marks.pop(checkpoint_id, None)
        if mark is not None:
            self._count(mark, -1)

    def _count(self, mark: _Mark, by: int) -> None:
        health, source, level, safety, codes = mark
        self.by_health[health] += by
        self.by_level[level] += by
        self.by_safety[safety] += by
        if health is Health.VALID:
            self._valid_by_source[source] += by
        for code in codes:
            self.by_finding[code] += by
