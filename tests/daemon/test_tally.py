"""The tally says the same as counting anew, after every batch."""

import collections

from hypothesis import given
from hypothesis import strategies as st

from ckptd.catalog.entry import FindingRef, Health, MetadataSource
from ckptd.catalog.store import Catalog
from ckptd.daemon.tally import Tally
from ckptd.validators.findings import Severity
from ckptd.validators.inspection import Safety
from tests.catalog.catalog_records import drop, put, record_of

_FINDINGS = st.sampled_from(
    [(), (FindingRef("metadata.missing", Severity.INFO),), (FindingRef("archive.incomplete", Severity.ERROR),)]
)
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a.ckpt", "b.ckpt", "c/d.ckpt"]),
        st.none()
        | st.tuples(st.sampled_from(Health), st.sampled_from(MetadataSource), _FINDINGS, st.sampled_from(Safety)),
    ),
    max_size=30,
)


@given(_STEPS)
def test_the_tally_equals_a_fresh_count_after_every_batch(steps: list[tuple[str, tuple[object, ...] | None]]) -> None:
    catalog = Catalog("testing")
    tally = Tally()
    catalog.on_publish(tally.publish)
    for path, state in steps:
        if state is None:
            change = drop(path)
        else:
            health, source, findings, safety = state
            record = record_of(path, health=health, metadata_source=source, findings=findings, safety=safety)
            change = put(record)
        batch = catalog.prepare([change])
        if batch is not None:
            catalog.publish(batch)
        entries = [record.entry for record in catalog]
        assert +tally.by_health == collections.Counter(entry.health for entry in entries)
        assert +tally.by_safety == collections.Counter(entry.safety for entry in entries)
        assert +tally.by_level == collections.Counter(entry.verified for entry in entries)
        assert +tally.by_finding == collections.Counter(ref.code for entry in entries for ref in entry.findings)
        valid = [entry.metadata_source for entry in entries if entry.health is Health.VALID]
        assert tally.with_sidecar == sum(s in (MetadataSource.SIDECAR, MetadataSource.DAEMON) for s in valid)
        assert tally.with_state_metadata == valid.count(MetadataSource.STATE)


def test_a_tally_begins_with_the_records_that_it_is_given() -> None:
    assert Tally([record_of("a.ckpt", health=Health.INVALID)]).by_health[Health.INVALID] == 1
