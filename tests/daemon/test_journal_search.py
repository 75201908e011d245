"""What the journal does for searches: a record is found by its line once the line is in the state, and not before."""

import contextlib
import pathlib
import sqlite3
from collections.abc import AsyncIterator

import anyio
import msgspec
import pytest
import structlog

from ckptd.catalog.description import Description
from ckptd.catalog.entry import CheckpointId, Record
from ckptd.catalog.matching import Matcher
from ckptd.catalog.query import Query
from ckptd.catalog.search_text import text_key, text_of
from ckptd.catalog.state import State
from ckptd.catalog.store import Catalog, Change
from ckptd.daemon.journal import RETRY_S, Journal
from ckptd.validators.inspection import Plain
from tests.catalog.catalog_records import id_at, record_of
from tests.catalog.state_files import description_of
from tests.daemon.verified_trees import RefusingState

pytestmark = pytest.mark.anyio


class Stage:
    """A journal on a state whose disk may be full."""

    def __init__(self, state: State) -> None:
        loaded = state.load()
        self.state = RefusingState(state)
        self.catalog = Catalog(loaded.instance)
        self.catalog.load(loaded.records, loaded.tombstones, loaded.revision, loaded.floor)
        self.now = 0.0
        log = structlog.stdlib.get_logger()
        self.journal = Journal(self.catalog, self.state, log, clock=lambda: self.now)  # type: ignore[arg-type]

    async def describe(self, path: str, config: Plain) -> None:
        """A look at a checkpoint with this config."""
        record, description = described(path, config)
        await self.journal.submit(Change(record.entry.id, lambda _: record), description)

    async def found(self, q: str) -> set[str]:
        """What a search finds now."""
        matcher = Matcher(Query(q=q), self.state.texts)
        await anyio.to_thread.run_sync(matcher.prepare)
        return {record.entry.path for record in self.catalog if matcher(record)}


@contextlib.asynccontextmanager
async def staged(directory: pathlib.Path) -> AsyncIterator[Stage]:
    state = await anyio.to_thread.run_sync(lambda: State.open(str(directory), boot_id="boot", clock=lambda: 0.0))
    stage = Stage(state)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.journal.run)
        yield stage
        stage.journal.close()
    await anyio.to_thread.run_sync(state.close)


def described(path: str, config: Plain) -> tuple[Record, Description]:
    description = msgspec.structs.replace(description_of(path), search_text=text_of([config]))
    return msgspec.structs.replace(record_of(path), text_key=text_key(description.search_text)), description


async def test_while_the_disk_is_full_new_entries_are_found_by_their_own_fields_and_later_by_their_configs_too(
    tmp_path: pathlib.Path,
) -> None:
    async with staged(tmp_path) as stage:
        await stage.describe("a.ckpt", {"lr": 0.5})
        stage.state.full.set()
        await stage.describe("b.ckpt", {"lr": 0.5})
        await stage.describe("c.ckpt", {"lr": 0.25})
        assert not stage.journal.durable
        assert await stage.found("lr:0.5") == {"a.ckpt"}
        assert await stage.found("c.ckpt") == {"c.ckpt"}
        stage.state.full.clear()
        stage.now = RETRY_S + 1
        before = stage.catalog.revision
        await stage.describe("d.ckpt", {})
        lost: set[CheckpointId] = stage.journal.take_undescribed()
        assert lost == {id_at("b.ckpt"), id_at("c.ckpt")}
        for path, lr in (("b.ckpt", 0.5), ("c.ckpt", 0.25)):
            await stage.describe(path, {"lr": lr})
        assert await stage.found("lr:0.5") == {"a.ckpt", "b.ckpt"}
        assert await stage.found("lr:0.25") == {"c.ckpt"}
        told = [item.entry.path for item in stage.catalog.since(before) if isinstance(item, Record)]
        assert told == ["d.ckpt", "b.ckpt", "c.ckpt"], "those who listen are told that they can be found now"


async def test_what_a_damaged_state_knew_is_read_again(tmp_path: pathlib.Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.describe("a.ckpt", {"lr": 0.5})
        stage.state.full.set()
        await stage.describe("b.ckpt", {"lr": 0.5})
        with sqlite3.connect(tmp_path / "state.sqlite3") as connection:
            connection.execute("DROP TABLE texts")  # an SQLite error that no time heals
        connection.close()
        stage.state.full.clear()
        stage.now = RETRY_S + 1
        await stage.describe("c.ckpt", {"lr": 0.25})
        assert not stage.journal.durable, "the damage was found by the first new line"
        stage.now += 2 * RETRY_S
        await stage.describe("d.ckpt", {})
        assert stage.journal.durable
        lost = stage.journal.take_undescribed()
        assert lost >= {id_at("a.ckpt"), id_at("b.ckpt")}
        for path in ("a.ckpt", "b.ckpt"):
            await stage.describe(path, {"lr": 0.5})
        assert await stage.found("lr:0.5") == {"a.ckpt", "b.ckpt"}
