"""Queries: what each filter lets through, how lists are ordered, and what is refused."""

import base64
import datetime as dt
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.catalog.entry import CheckpointEntry, FindingRef, Health, Record
from ckptd.catalog.entry_texts import EntryTexts
from ckptd.catalog.facets import FacetValue
from ckptd.catalog.query import MAX_PAGE_SIZE, NO_FILTER, SORT_FIELDS, Query, QueryError, filter_hash, run_query
from ckptd.catalog.store import REPLACED_KEPT, Catalog, Snapshot
from ckptd.catalog.views import KEPT, FacetView, Part, View, Views, page_of, parts_of
from ckptd.validators.findings import Severity
from ckptd.validators.inspection import Level, Safety
from tests.catalog.catalog_records import drop, put, record_of

S = 1_000_000_000


def snapshot_of(*records: Record) -> Snapshot:
    catalog = Catalog("test")
    batch = catalog.prepare([put(record) for record in records])
    if batch is not None:
        catalog.publish(batch)
    return catalog.snapshot()


TREE = snapshot_of(
    record_of(
        "dbnet/a.ckpt",
        modified_ns=1 * S,
        epoch=1,
        metrics={"hmean": 0.8},
        exp_name="dbnet",
        architecture="dbnet",
        format="safetensors",
        findings=(FindingRef("metadata.missing", Severity.WARNING),),
    ),
    record_of(
        "dbnet/b.ckpt",
        modified_ns=3 * S,
        epoch=2,
        metrics={"hmean": 0.9, "loss": 0.1},
        exp_name="dbnet",
        format="torch_zip",
        has_metadata=True,
    ),
    record_of("craft/c.ckpt", modified_ns=2 * S, health=Health.INVALID, exp_name="craft", architecture="craft"),
    record_of("craft/D.ckpt", modified_ns=4 * S, health=Health.WRITING, safety=Safety.UNSAFE, verified=Level.CHECKSUM),
    record_of(
        "craft/e.ckpt",
        modified_ns=2 * S,
        health=Health.OFFLINE,
        epoch=0,
        metrics={"hmean": math.inf},
        findings=(FindingRef("run.failed", Severity.WARNING), FindingRef("metadata.stale", Severity.WARNING)),
    ),
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
        ({"exp_name": ("dbnet", "craft"), "include_invalid": True}, "bca"),
        ({"architecture": ("craft", "dbnet")}, "a"),
        ({"verified": "checksum"}, "D"),
        ({"verified": "none, structure"}, "bea"),
        ({"format": "torch_zip"}, "b"),
        ({"format": ("safetensors", "torch_zip")}, "ba"),
        ({"has_metadata": True}, "b"),
        ({"has_metadata": False}, "Dea"),
        ({"finding": "metadata.missing"}, "a"),
        ({"finding": ("metadata.stale", "metadata.missing")}, "ea"),
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


def test_cursors_lead_through_the_whole_list_and_name_the_page_they_are_on() -> None:
    for query in (
        Query(include_invalid=True, page_size=2),
        Query(page_size=1, sort_by="hmean", sort_order="asc"),
        Query(page_size=3, sort_by="display_name", sort_order="desc"),
        Query(page_size=1, sort_by="exp_name"),
        Query(page_size=2, sort_by="has_metadata"),
        Query(page_size=2, sort_by="health"),
        Query(page_size=2, sort_by="modified_at", sort_order="asc", q="ckpt"),
    ):
        whole = run_query(TREE, msgspec.structs.replace(query, page_size=100))
        seen, pages, after = [], 0, None
        while pages == 0 or after is not None:
            page = run_query(TREE, msgspec.structs.replace(query, after=after))
            seen += page.records
            pages, after = pages + 1, page.next
            assert (page.page, page.total) == (pages, whole.total)
        assert seen == whole.records
        assert pages == page.total_pages
        assert whole.next is None


def test_a_cursor_stays_good_while_entries_come_go_and_change() -> None:
    records = [record_of(f"{n}.ckpt", epoch=n) for n in range(6)]
    query = Query(sort_by="epoch", page_size=2)
    first = run_query(snapshot_of(*records), query)
    assert [record.entry.epoch for record in first.records] == [5, 4]
    # the last one shown has gone, one has come ahead of it and one behind
    now = [*records[:4], record_of("new.ckpt", epoch=9), record_of("2b.ckpt", epoch=2)]
    second = run_query(snapshot_of(*now), msgspec.structs.replace(query, after=first.next))
    assert [record.entry.epoch for record in second.records] == [3, 2]
    third = run_query(snapshot_of(*now), msgspec.structs.replace(query, after=second.next))
    assert [record.entry.epoch for record in third.records] == [2, 1]


@pytest.mark.parametrize(
    "change",
    [{"sort_by": "path"}, {"sort_order": "asc"}, {"q": "ckpt"}, {"include_invalid": False}, {"after": "AAAA"}],
)
def test_a_cursor_of_another_list_or_of_none_is_refused(change: dict[str, object]) -> None:
    query = Query(include_invalid=True, page_size=2)
    query = msgspec.structs.replace(query, after=run_query(TREE, query).next)
    with pytest.raises(QueryError) as refused:
        run_query(TREE, msgspec.structs.replace(query, **change))
    assert refused.value.field == "after"
    with pytest.raises(QueryError, match="page or after"):
        run_query(TREE, msgspec.structs.replace(query, page=2))


@given(st.binary(max_size=40))
def test_garbage_is_no_cursor(garbage: bytes) -> None:
    for text in (base64.urlsafe_b64encode(garbage).decode().rstrip("="), garbage.decode("latin-1")):
        with pytest.raises(QueryError):
            Query(after=text).check()


def test_facets_count_the_values_under_all_other_filters() -> None:
    def counts(**fields: object) -> dict[str, dict[object, int]]:
        facets = run_query(TREE, Query(**fields)).facets  # type: ignore[arg-type]
        assert facets is not None
        return {name: {one.value: one.count for one in values} for name, values in facets.items()}

    assert counts(facets=("exp_name",)) == {"exp_name": {"dbnet": 2, None: 2}}
    assert counts(facets=("exp_name", "safety"), exp_name="dbnet") == {
        "exp_name": {"dbnet": 2, None: 2},
        "safety": {"unknown": 2},
    }
    everything = {"valid": 2, "invalid": 1, "writing": 1, "offline": 1}
    assert counts(facets=("health",)) == counts(facets=("health",), health="valid") == {"health": everything}
    assert counts(facets=("architecture",), q="craft", include_invalid=True) == {"architecture": {None: 2, "craft": 1}}
    assert run_query(TREE, Query()).facets is None


def test_facets_show_the_most_frequent_values_by_count_then_name() -> None:
    names = [f"exp{n:03d}" for n in range(120)] + ["exp007", "Exp100x", None]
    snapshot = snapshot_of(*(record_of(f"{n}.ckpt", exp_name=name) for n, name in enumerate(names)))
    facets = run_query(snapshot, Query(facets=("exp_name",))).facets
    assert facets is not None
    values = [one.value for one in facets["exp_name"]]
    assert values[:3] == ["exp007", "exp000", "exp001"]
    assert len(values) == 100
    by_finding = snapshot_of(
        record_of("a.ckpt", findings=(FindingRef("metadata.missing", Severity.INFO),) * 2, dtypes=("float32", "int8")),
        record_of("b.ckpt", dtypes=("int8",)),
    )
    facets = run_query(by_finding, Query(facets=("finding", "dtype"))).facets
    assert facets == {
        "finding": [FacetValue("metadata.missing", 1)],
        "dtype": [FacetValue("int8", 2), FacetValue("float32", 1)],
    }


RUNS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from([None, "a", "b", "B"]),
        st.sampled_from([None, 0.5, 1.5, math.nan]),
        st.integers(0, 2),
        st.sampled_from([Health.VALID, Health.INVALID, None]),
    ),
    max_size=12,
)


@given(st.lists(RUNS, max_size=6), st.sampled_from(["asc", "desc"]), st.sampled_from(["m", "exp_name", "modified_at"]))
def test_views_that_are_kept_equal_views_that_are_made_anew(
    batches: list[list[tuple[int, str | None, float | None, int, Health | None]]], order: str, by: str
) -> None:
    catalog = Catalog("test")
    views = Views(catalog)
    queries = [
        Query(sort_by=by, sort_order=order, facets=("health", "exp_name"), page_size=100),
        Query(q="-b", include_invalid=True, sort_by=by, sort_order=order, page_size=100),
        Query(exp_name=("a", "B"), facets=("exp_name",), min_metrics={"m": 1}, page_size=100),
    ]
    for batch in batches:
        changes = [
            drop(f"{number}.ckpt")
            if health is None
            else put(
                record_of(
                    f"{number}.ckpt",
                    modified_ns=modified_ns,
                    exp_name=name,
                    metrics={} if value is None else {"m": value},
                    health=health,
                )
            )
            for number, name, value, modified_ns, health in batch
        ]
        prepared = catalog.prepare(changes)
        if prepared is not None:
            catalog.publish(prepared)
        for query in queries:
            parts = parts_of(query)
            made = [views.current(part) or keep(views, part, part.make(source_of(catalog), None)) for part in parts]
            kept, anew = page_of(query, made), run_query(catalog.snapshot(), query)
            assert [r.entry.id for r in kept.records] == [r.entry.id for r in anew.records]
            assert (kept.facets, kept.total, kept.revision) == (anew.facets, anew.total, anew.revision)


def source_of(catalog: Catalog) -> Snapshot | EntryTexts:
    """With texts at hand or without: both ways of making lists take turns."""
    snapshot = catalog.snapshot()
    return snapshot if snapshot.revision % 2 else EntryTexts.of(snapshot)


def keep(views: Views, part: Part, view: View | FacetView) -> View | FacetView:
    views.keep(part, view)
    return view


def test_views_are_followed_over_some_changes_and_made_anew_after_many_and_are_bounded() -> None:
    catalog = Catalog("test")
    views = Views(catalog)
    part = parts_of(Query())[0]

    def publish(count: int) -> None:
        batch = catalog.prepare([put(record_of("a.ckpt", epoch=catalog.revision + n)) for n in (1,)] * count)
        assert batch is not None
        catalog.publish(batch)

    view = keep(views, part, part.make(source_of(catalog), None))
    for _ in range(REPLACED_KEPT):
        publish(1)
    assert views.current(part) is view
    assert view.revision == catalog.revision
    for _ in range(REPLACED_KEPT + 1):
        publish(1)
    assert views.current(part) is None
    for n in range(KEPT + 1):
        other = parts_of(Query(q=str(n)))[0]
        keep(views, other, other.make(catalog.snapshot(), None))
    assert [views.current(parts_of(Query(q=str(n)))[0]) is None for n in range(3)] == [True, False, False]


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
        ({"verified": "twice"}, "verified"),
        ({"format": "hdf5"}, "format"),
        ({"format": ("torch_zip", "unknown")}, "format"),
        ({"finding": "metadata.absent"}, "finding"),
        ({"facets": ("epoch",)}, "facets"),
        ({"q": "epoch>x"}, "q"),
        ({"after": "nothing"}, "after"),
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
    assert (
        filter_hash(Query(page=7, page_size=3, sort_by="epoch", sort_order="asc", q=" ", facets=("health",)))
        == NO_FILTER
    )
    hashes = {
        filter_hash(query)
        for query in (
            Query(q="a"),
            Query(exp_name="a"),
            Query(architecture="a"),
            Query(architecture=("a", "b")),
            Query(format="dcp"),
            Query(finding="run.failed"),
            Query(verified="none"),
            Query(has_metadata=True),
            Query(has_metadata=False),
            Query(q="-a"),
            Query(q='"a"'),
            Query(q="a*"),
            Query(q="epoch=1"),
            Query(q="epoch:1"),
            Query(health="valid"),
            Query(safety="safe"),
            Query(include_invalid=True),
            Query(min_metrics={"a": 1}),
            Query(max_metrics={"a": 1}),
            Query(modified_after=dt.datetime(2025, 1, 1, tzinfo=dt.UTC)),
            Query(modified_before=dt.datetime(2025, 1, 1, tzinfo=dt.UTC)),
        )
    }
    assert len(hashes) == 21
    assert all(len(text) == 12 and int(text, 16) >= 0 for text in hashes)


def test_filters_that_say_the_same_have_the_same_hash() -> None:
    utc, berlin = dt.UTC, dt.timezone(dt.timedelta(hours=2))
    assert filter_hash(Query(health="valid,writing")) == filter_hash(Query(health="writing, valid"))
    assert filter_hash(Query(min_metrics={"a": 1, "b": 2})) == filter_hash(Query(min_metrics={"b": 2.0, "a": 1.0}))
    assert filter_hash(Query(q="Best  DBNet")) == filter_hash(Query(q="dbnet best"))
    assert filter_hash(Query(exp_name=("b", "a"))) == filter_hash(Query(exp_name=("a", "b", "a")))
    assert filter_hash(Query(exp_name=("a",))) == filter_hash(Query(exp_name="a"))
    assert filter_hash(Query(modified_after=dt.datetime(2025, 1, 1, tzinfo=utc))) == filter_hash(
        Query(modified_after=dt.datetime(2025, 1, 1, 2, tzinfo=berlin))
    )


def test_the_stream_and_the_list_agree_on_what_matches() -> None:
    for fields in (
        {},
        {"q": "craft"},
        {"q": "-craft epoch>=1"},
        {"health": "invalid"},
        {"min_metrics": {"hmean": 0.85}},
    ):
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
