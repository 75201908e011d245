"""Queries: what each filter lets through, how lists are ordered, and what is refused."""

import datetime as dt
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.catalog.entry import CheckpointEntry, Health, Record
from ckptd.catalog.query import MAX_PAGE_SIZE, NO_FILTER, SORT_FIELDS, Query, QueryError, filter_hash, run_query
from ckptd.catalog.store import Catalog, Snapshot
from ckptd.validators.inspection import Level, Safety
from tests.catalog.catalog_records import put, record_of

S = 1_000_000_000


def snapshot_of(*records: Record) -> Snapshot:
    catalog = Catalog("test")
    batch = catalog.prepare([put(record) for record in records])
    if batch is not None:
        catalog.publish(batch)
    return catalog.snapshot()


TREE = snapshot_of(
    record_of(
        "dbnet/a.ckpt", modified_ns=1 * S, epoch=1, metrics={"hmean": 0.8}, exp_name="dbnet", architecture="dbnet"
    ),
    record_of("dbnet/b.ckpt", modified_ns=3 * S, epoch=2, metrics={"hmean": 0.9, "loss": 0.1}, exp_name="dbnet"),
    record_of("craft/c.ckpt", modified_ns=2 * S, health=Health.INVALID, exp_name="craft", architecture="craft"),
    record_of("craft/D.ckpt", modified_ns=4 * S, health=Health.WRITING, safety=Safety.UNSAFE, verified=Level.CHECKSUM),
    record_of("craft/e.ckpt", modified_ns=2 * S, health=Health.OFFLINE, epoch=0, metrics={"hmean": math.inf}),
)


def paths(**fields: object) -> list[str]:
    page = run_query(TREE, Query(page_size=MAX_PAGE_SIZE, **fields))  # type: ignore[arg-type]
    assert page.total == len(page.records)
    return [record.entry.path.rpartition("/")[2][0] for record in page.records]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "Dbea"),
        ({"include_invalid": True, "q": "c.ckpt"}, "c"),
        ({"health": "invalid"}, "c"),
        ({"health": "valid, writing"}, "Dba"),
        ({"safety": "unsafe"}, "D"),
        ({"safety": "unsafe,safe,unknown"}, "Dbea"),
        ({"exp_name": "dbnet"}, "ba"),
        ({"exp_name": "dbn"}, ""),
        ({"architecture": "dbnet"}, "a"),
        ({"q": "CRAFT"}, "De"),
        ({"q": "craft d.ckpt"}, "D"),
        ({"q": "  "}, "Dbea"),
        ({"min_metrics": {"hmean": 0.85}}, "be"),
        ({"min_metrics": {"hmean": 0.8}, "max_metrics": {"hmean": 0.8}}, "a"),
        ({"max_metrics": {"loss": 0.1}}, "b"),
        ({"min_metrics": {"absent": 0}}, ""),
        ({"modified_after": dt.datetime.fromtimestamp(2, dt.UTC)}, "Dbe"),
        ({"modified_before": dt.datetime.fromtimestamp(3, dt.UTC)}, "ea"),
        ({"modified_after": dt.datetime.fromtimestamp(1, dt.UTC), "q": "dbnet", "min_metrics": {"loss": 0}}, "b"),
    ],
)
def test_each_filter_lets_through_what_it_names(fields: dict[str, object], expected: str) -> None:
    assert "".join(paths(**fields)) == expected


@pytest.mark.parametrize(
    ("sort_by", "order", "expected"),
    [
        ("modified_at", "desc", "Dbea"),
        ("path", "asc", "Deab"),
        ("path", "desc", "baeD"),
        ("epoch", "asc", "eabD"),
        ("epoch", "desc", "baeD"),
        ("hmean", "asc", "abeD"),
        ("hmean", "desc", "ebaD"),
        ("hmean", None, "ebaD"),
        ("metrics.hmean", None, "ebaD"),
        ("display_name", None, "abDe"),
        ("verified", "desc", "Dbea"),
        ("health", "asc", "Dbae"),
        ("nothing_has_this", "asc", "Dbea"),
        (None, "asc", "aebD"),
    ],
)
def test_sorting_puts_nulls_last_in_both_orders_and_ties_newest_first(
    sort_by: str, order: str | None, expected: str
) -> None:
    assert "".join(paths(sort_by=sort_by, sort_order=order)) == expected


@pytest.mark.parametrize("field", SORT_FIELDS)
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_every_field_that_is_offered_for_sorting_sorts(field: str, order: str) -> None:
    assert sorted(paths(sort_by=field, sort_order=order)) == sorted("Dbea")


def test_pages_cut_the_list_without_gap_or_overlap() -> None:
    everything = [record.entry.id for record in run_query(TREE, Query(include_invalid=True)).records]
    pages = [run_query(TREE, Query(include_invalid=True, page=n, page_size=2)) for n in (1, 2, 3, 4)]
    assert [record.entry.id for page in pages for record in page.records] == everything
    assert {(page.total, page.total_pages, page.page_size) for page in pages} == {(5, 3, 2)}
    assert [len(page.records) for page in pages] == [2, 2, 1, 0]
    assert pages[0].revision == TREE.revision
    assert run_query(snapshot_of(), Query()).total_pages == 0


def test_a_view_is_sorted_once_for_a_revision_and_views_are_bounded() -> None:
    snapshot = snapshot_of(*(record_of(f"{n}.ckpt", epoch=n) for n in range(5)))
    for n in range(30):
        run_query(snapshot, Query(sort_by="epoch"))
        run_query(snapshot, Query(q=str(n)))
    assert len(snapshot.selections) == 8
    assert snapshot_of().selections == {}


@given(
    st.lists(st.tuples(st.sampled_from([None, 0.0, 1.0, -1.0, 5.5]), st.integers(0, 3)), max_size=20),
    st.sampled_from(["asc", "desc"]),
)
def test_sorting_equals_its_definition(rows: list[tuple[float | None, int]], order: str) -> None:
    records = [
        record_of(f"{n}.ckpt", modified_ns=ns, metrics={} if value is None else {"m": value})
        for n, (value, ns) in enumerate(rows)
    ]
    found = run_query(snapshot_of(*records), Query(sort_by="m", sort_order=order)).records
    sign = -1 if order == "desc" else 1

    def definition(record: Record) -> tuple[bool, float, int, str]:
        value = record.entry.metrics.get("m")
        return value is None, sign * (value or 0), -record.modified_ns, record.entry.id

    assert [r.entry.id for r in found] == [r.entry.id for r in sorted(records, key=definition)]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"page": 0}, "page"),
        ({"page_size": 0}, "page_size"),
        ({"page_size": MAX_PAGE_SIZE + 1}, "page_size"),
        ({"sort_order": "up"}, "sort_order"),
        ({"sort_by": "findings"}, "sort_by"),
        ({"sort_by": ""}, "sort_by"),
        ({"health": "fine"}, "health"),
        ({"health": "valid,fine"}, "health"),
        ({"safety": ""}, "safety"),
        ({"min_metrics": {"hmean": math.nan}}, "min_hmean"),
        ({"max_metrics": {"hmean": math.inf}}, "max_hmean"),
        ({"modified_after": dt.datetime(2025, 1, 1)}, "modified_after"),  # noqa: DTZ001 (that is the point)
    ],
)
def test_what_cannot_be_asked_is_refused_by_field_with_a_remedy(fields: dict[str, object], named: str) -> None:
    query = Query(**fields)  # type: ignore[arg-type]
    with pytest.raises(QueryError) as refused:
        query.check()
    assert refused.value.field == named
    assert refused.value.remedy.startswith(("use", "name"))
    with pytest.raises(QueryError):
        run_query(TREE, query)


def test_the_filter_hash_names_the_filter_and_nothing_else() -> None:
    assert filter_hash(Query()) == NO_FILTER
    assert filter_hash(Query(page=7, page_size=3, sort_by="epoch", sort_order="asc", q=" ")) == NO_FILTER
    hashes = {
        filter_hash(query)
        for query in (
            Query(q="a"),
            Query(exp_name="a"),
            Query(architecture="a"),
            Query(health="valid"),
            Query(safety="safe"),
            Query(include_invalid=True),
            Query(min_metrics={"a": 1}),
            Query(max_metrics={"a": 1}),
            Query(modified_after=dt.datetime(2025, 1, 1, tzinfo=dt.UTC)),
            Query(modified_before=dt.datetime(2025, 1, 1, tzinfo=dt.UTC)),
        )
    }
    assert len(hashes) == 10
    assert all(len(text) == 8 and int(text, 16) >= 0 for text in hashes)


def test_filters_that_say_the_same_have_the_same_hash() -> None:
    utc, berlin = dt.UTC, dt.timezone(dt.timedelta(hours=2))
    assert filter_hash(Query(health="valid,writing")) == filter_hash(Query(health="writing, valid"))
    assert filter_hash(Query(min_metrics={"a": 1, "b": 2})) == filter_hash(Query(min_metrics={"b": 2.0, "a": 1.0}))
    assert filter_hash(Query(q="Best  DBNet")) == filter_hash(Query(q="best dbnet"))
    assert filter_hash(Query(modified_after=dt.datetime(2025, 1, 1, tzinfo=utc))) == filter_hash(
        Query(modified_after=dt.datetime(2025, 1, 1, 2, tzinfo=berlin))
    )


def test_the_stream_and_the_list_agree_on_what_matches() -> None:
    for fields in ({}, {"q": "craft"}, {"health": "invalid"}, {"min_metrics": {"hmean": 0.85}}):
        query = Query(**fields)  # type: ignore[arg-type]
        listed = {record.entry.id for record in run_query(TREE, query).records}
        assert listed == {record.entry.id for record in TREE.records if query.matches(record)}


def test_every_field_of_an_entry_is_either_sortable_or_refused() -> None:
    for name in CheckpointEntry.__struct_fields__:
        if name in SORT_FIELDS:
            Query(sort_by=name).check()
        else:
            with pytest.raises(QueryError):
                Query(sort_by=name).check()
