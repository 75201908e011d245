"""Sharing values: less memory, and nothing that anybody could see."""

from ckptd.catalog.entry import Identities, Record
from ckptd.catalog.sharing import VALUES_KEPT, SharedValues
from ckptd.validators.inspection import FileIdentity
from tests.catalog.catalog_records import record_of


def record(n: int, **fields: object) -> Record:
    made = record_of(f"exp/{n}.ckpt", modified_ns=10**18 + n, exp_name="".join(["ex", "p"]), size_bytes=10**9, **fields)
    config = FileIdentity(5, 6, 10**18, 10**18)
    return Record(
        entry=made.entry,
        relative_path=made.relative_path,
        identities=Identities(FileIdentity(n, 1, 10**18 + n, 10**18), config=config),
        modified_ns=int(str(10**18 + n)),
    )


def test_records_of_one_run_are_made_of_the_same_values() -> None:
    shared = SharedValues()
    first, second = record(1, n_parameters=int("12345678")), record(2, n_parameters=int("12345678"))
    assert first.entry.exp_name is not second.entry.exp_name
    for each in (first, second):
        before = each.encoded, str(each)
        shared.share(each)
        assert (each.encoded, str(each)) == before
    assert first.entry.exp_name is second.entry.exp_name
    assert first.entry.n_parameters is second.entry.n_parameters
    assert first.identities.config is second.identities.config
    assert first.modified_ns is first.identities.file.mtime_ns


def test_equal_values_of_other_types_stay_apart() -> None:
    shared = SharedValues()
    first = record(1, monitor="m", metrics={"m": 1.0}, monitor_value=1.0, n_parameters=1)
    second = record(2, run_id="1", architecture="1", n_parameters=1, weights_bytes=True)
    for each in (first, second):
        shared.share(each)
    assert type(first.entry.monitor_value) is float
    assert type(second.entry.n_parameters) is int
    assert second.entry.weights_bytes is True


def test_the_tables_are_bounded() -> None:
    shared = SharedValues()
    for n in range(VALUES_KEPT + 10):
        each = record(1, run_id=str(n))
        shared.share(each)
        assert each.entry.run_id == str(n)
    assert sum(map(len, shared._tables.values())) < VALUES_KEPT
