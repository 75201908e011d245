"""What a catalog remembers of the past is bounded by what is there, however long it has been changing."""

from ckptd.catalog.store import Catalog, Retention
from tests.catalog.catalog_records import drop, put, record_of

ENTRIES = 60
RETENTION = Retention(tombstones_kept=50, compact_holes=16)


def _changed(catalog: Catalog, name: str, *, gone: bool = False) -> None:
    batch = catalog.prepare([drop(name) if gone else put(record_of(name))])
    assert batch is not None
    catalog.publish(batch)


def _with_entries(count: int, retention: Retention) -> Catalog:
    catalog = Catalog("i", lambda: 1000.0, retention)
    for number in range(count):
        _changed(catalog, f"stays/{number}.ckpt")
    return catalog


def test_under_ever_new_names_no_more_is_remembered_than_there_are_entries() -> None:
    """However young they are: a day of changes would be 100,000 of them."""
    catalog = _with_entries(ENTRIES, RETENTION)
    sizes = []
    for number in range(2000):
        name = f"run{number}/last.ckpt"
        _changed(catalog, name)
        _changed(catalog, name, gone=True)
        containers = (catalog._tombstones, catalog._log, catalog._paths[record_of("a").entry.root])
        sizes.append([len(each) for each in (*containers, catalog._directories, catalog._replaced)])
    assert len(catalog.tombstones()) == ENTRIES
    assert max(map(max, sizes)) <= 1024, "the log of replacements is the longest"
    assert [max(column) for column in zip(*sizes[1000:1500], strict=True)] == [
        max(column) for column in zip(*sizes[1500:], strict=True)
    ]


def test_in_a_small_tree_the_least_number_of_deletions_is_remembered_all_the_same() -> None:
    catalog = _with_entries(3, RETENTION)
    for number in range(200):
        _changed(catalog, f"{number}.ckpt")
        _changed(catalog, f"{number}.ckpt", gone=True)
    assert len(catalog.tombstones()) == RETENTION.tombstones_kept


def test_what_a_snapshot_needs_is_kept_beyond_that() -> None:
    catalog = _with_entries(3, RETENTION)
    pinned = catalog.revision
    catalog.pin(pinned)
    for number in range(200):
        _changed(catalog, f"{number}.ckpt")
        _changed(catalog, f"{number}.ckpt", gone=True)
    assert catalog.can_resume(pinned)
    assert len(catalog.tombstones()) == 200
    catalog.unpin(pinned)
    _changed(catalog, "another.ckpt")
    assert len(catalog.tombstones()) == RETENTION.tombstones_kept
