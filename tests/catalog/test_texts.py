"""Lines in the state: kept once for all who share them, found after a restart, upgraded, damaged, and let go."""

import pathlib
import sqlite3

import msgspec
import pytest

from ckptd.catalog.description import Description
from ckptd.catalog.entry import Record
from ckptd.catalog.matching import Matcher
from ckptd.catalog.query import Query
from ckptd.catalog.search_text import MAX_TEXT, text_key, text_of
from ckptd.catalog.state import State
from ckptd.validators.inspection import Plain
from tests.catalog.catalog_records import drop, id_at, put, record_of
from tests.catalog.state_files import Run, description_of, running

ADAM: Plain = {"optimizer": {"name": "adamw", "lr": 0.001}}
SGD: Plain = {"optimizer": {"name": "sgd", "lr": 0.1}}


def described(path: str, config: Plain, *, n: int = 0) -> tuple[Record, Description]:
    """What a look at a checkpoint with this config comes to."""
    description = msgspec.structs.replace(description_of(path), search_text=text_of([config]))
    record = msgspec.structs.replace(record_of(path, modified_ns=n), text_key=text_key(description.search_text))
    return record, description


def add(run: Run, **configs: Plain) -> None:
    """List checkpoints with these configs."""
    made = {f"{name}.ckpt": described(f"{name}.ckpt", config) for name, config in configs.items()}
    run.change(*(put(record) for record, _ in made.values()), descriptions={id_at(p): d for p, (_, d) in made.items()})


def found(run: Run, q: str) -> set[str]:
    """What is found by a list."""
    matcher = Matcher(Query(q=q), run.state.texts)
    matcher.prepare()
    assert {record.entry.path for record in matcher.select(list(run.catalog))} == {
        record.entry.path for record in run.catalog if matcher(record)
    }, "lists and streams agree"
    return {record.entry.path for record in run.catalog if matcher(record)}


def rows(directory: pathlib.Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(directory / "state.sqlite3") as connection:
        found = connection.execute(query).fetchall()
    connection.close()
    return found


def test_a_line_is_kept_once_for_all_who_share_it_and_found_after_a_restart(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        add(run, a=ADAM, b=ADAM, c=SGD, d={})
        assert found(run, "lr:0.001") == {"a.ckpt", "b.ckpt"}
    assert rows(tmp_path, "SELECT COUNT(*) FROM texts") == [(2,)]
    with running(tmp_path) as run:
        assert found(run, "lr:1e-3") == {"a.ckpt", "b.ckpt"}
        assert found(run, "-adam") == {"c.ckpt", "d.ckpt"}
        assert run.state.notes == []


def test_a_search_that_was_begun_earlier_finds_what_came_later(tmp_path: pathlib.Path) -> None:
    """A live stream prepares once; each further line is judged by itself."""
    with running(tmp_path) as run:
        add(run, a=ADAM)
        matcher = Matcher(Query(q="adam"), run.state.texts)
        assert matcher.needs_preparing
        matcher.prepare()
        assert not matcher.needs_preparing
        add(run, b={**SGD, "other": "adam"}, c=SGD, a=SGD)
        assert {record.entry.path for record in run.catalog if matcher(record)} == {"b.ckpt"}
        assert [record.entry.path for record in matcher.select(list(run.catalog))] == ["b.ckpt"]


def test_a_record_says_by_its_key_what_its_line_was_when_it_was_published(tmp_path: pathlib.Path) -> None:
    """The state may be ahead of what is published; that must not show."""
    with running(tmp_path) as run:
        add(run, a=ADAM)
        record, description = described("a.ckpt", SGD, n=1)
        batch = run.catalog.prepare([put(record)])
        assert batch is not None
        run.state.commit(batch, {id_at("a.ckpt"): description}, run.catalog.floor)
        assert (found(run, "adam"), found(run, "sgd")) == ({"a.ckpt"}, set())
        run.catalog.publish(batch)
        assert (found(run, "adam"), found(run, "sgd")) == (set(), {"a.ckpt"})


def test_a_changed_line_alone_is_a_change(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        add(run, a=ADAM)
        revision = run.catalog.revision
        add(run, a=SGD)
        assert run.catalog.revision == revision + 1
        assert run.catalog.prepare([put(described("a.ckpt", SGD)[0])]) is None


def test_lines_that_no_entry_has_any_more_go_with_the_next_run(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        add(run, a=ADAM, b=SGD)
        run.change(drop("a.ckpt"))
        assert found(run, "adam") == set()
    with running(tmp_path) as run:
        assert rows(tmp_path, "SELECT COUNT(*) FROM texts") == [(1,)]
        assert found(run, "sgd") == {"b.ckpt"}
        add(run, a=ADAM)
        assert found(run, "adam") == {"a.ckpt"}


def test_a_change_that_cannot_be_committed_leaves_no_line(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        add(run, a=SGD)
        record, description = described("b.ckpt", ADAM)
        broken = msgspec.structs.replace(record, relative_path=bytearray(b"\xff"), modified_ns=2**70)
        batch = run.catalog.prepare([put(broken)])
        assert batch is not None
        with pytest.raises(OverflowError):
            run.state.commit(batch, {id_at("b.ckpt"): description}, run.catalog.floor)
        add(run, c=ADAM)
        assert found(run, "adam") == {"c.ckpt"}


def test_a_line_that_is_longer_than_ours_can_be_is_not_kept(tmp_path: pathlib.Path) -> None:
    """A worker's answer is only as good as what it read."""
    with running(tmp_path) as run:
        description = msgspec.structs.replace(description_of("a"), search_text="x" * (MAX_TEXT + 1))
        record = msgspec.structs.replace(record_of("a.ckpt"), text_key=text_key(description.search_text))
        run.change(put(record), descriptions={id_at("a.ckpt"): description})
        assert rows(tmp_path, "SELECT COUNT(*) FROM texts") == [(0,)]


def without_fts5(directory: pathlib.Path) -> State:
    """A state as a build of SQLite without FTS5 has it: the index was never made."""
    state = State.open(str(directory), boot_id="boot-1", clock=lambda: 0.0)
    state.texts.is_indexed = False
    return state


def test_without_fts5_the_answers_are_the_same_and_a_build_that_has_it_catches_up(tmp_path: pathlib.Path) -> None:
    run = Run(without_fts5(tmp_path))
    add(run, a=ADAM, b=SGD)
    assert found(run, "adam lr:0.001") == {"a.ckpt"}
    run.state.close()
    with running(tmp_path) as run:
        assert run.state.texts.is_indexed
        assert found(run, "adam lr:0.001") == {"a.ckpt"}
        assert run.state.notes == []


def test_a_damaged_index_is_noted_and_every_line_is_read_instead(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        add(run, **{f"c{n}": {"optimizer": f"adam{n}"} for n in range(300)})
    with sqlite3.connect(tmp_path / "state.sqlite3") as connection:
        # The content of the index, not its frame: what opens well may still be broken.
        connection.execute("UPDATE texts_index_data SET block = x'00ff00ff' WHERE id > 10")
    connection.close()
    with running(tmp_path) as run:
        assert found(run, "adam7") == {"c7.ckpt", *(f"c{n}.ckpt" for n in range(70, 80))}
        assert len(run.state.notes) == 1
        assert "cannot be searched" in run.state.notes[0]


def test_a_damaged_line_is_found_by_nothing_and_costs_nothing_else(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        add(run, a=ADAM, b=SGD)
    with sqlite3.connect(tmp_path / "state.sqlite3") as connection:
        connection.execute("UPDATE texts SET line = x'c1' WHERE number = 1")
    connection.close()
    with running(tmp_path) as run:
        run.state.texts.is_indexed = False
        assert found(run, "adam") == set()
        assert found(run, "sgd") == {"b.ckpt"}
