"""`watch` against daemons that break off, restart, forget and fall silent: nothing is lost, and nothing made up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ckptd.daemon.client import CatalogClient, Change, ChangeKind
from tests.daemon.fakes import DEADLINE_S
from tests.daemon.scripted_daemons import HOLD, entry, event, scripted, snapshot

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def watched(url: str, **options: Any) -> AsyncIterator[AsyncIterator[Change]]:
    with CatalogClient(url) as client:
        changes = client.watch(**options)
        try:
            async with asyncio.timeout(DEADLINE_S):
                yield changes
        finally:
            await changes.aclose()  # type: ignore[attr-defined]


async def take(changes: AsyncIterator[Change], count: int) -> list[Change]:
    return [await anext(changes) for _ in range(count)]


async def until_synced(changes: AsyncIterator[Change]) -> list[tuple[str, str | None]]:
    """Kinds and paths (of deletions the ids) of all changes up to the next `synced`."""
    told: list[tuple[str, str | None]] = []
    async for change in changes:
        if change.kind is ChangeKind.SYNCED:
            break
        told.append((change.kind.value, change.id))
    return told


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\u00e9", "\U0001f600"])
async def test_a_name_with_any_kind_of_line_break_arrives_whole(character: str) -> None:
    """Bytes of a stream are lines by CR and LF alone, whatever else Unicode calls a line break."""
    name = f"a{character}b.ckpt"
    async with scripted([snapshot(entry(name), event_id="i.1.0"), HOLD]) as daemon, watched(daemon.url) as changes:
        change = await anext(changes)
        assert change.entry is not None
        assert change.entry.path == name


async def test_a_cursor_never_runs_ahead_of_what_was_delivered() -> None:
    """The connection breaks between an event's id and the end of its data: that event is asked for again."""
    first = entry("a.ckpt")
    cut = event("upsert", "i.2.0", checkpoints=[entry("b.ckpt", 2)])[:-1]
    rest = event("resumed", "i.1.0", revision=1) + event("upsert", "i.2.0", checkpoints=[entry("b.ckpt", 2)])
    scripts = [[snapshot(first, event_id="i.1.0"), cut], [rest, HOLD]]
    async with scripted(*scripts) as daemon, watched(daemon.url) as changes:
        told = await take(changes, 4)
        assert told[3].entry is not None
        assert told[3].entry.path == "b.ckpt"
        assert daemon.cursors() == [None, "i.1.0"]


async def test_only_the_last_change_of_a_message_carries_its_cursor() -> None:
    """Whoever has worked off the first of three must not go on behind the third."""
    three = event("upsert", "i.4.0", checkpoints=[entry(f"{n}.ckpt", n) for n in (2, 3, 4)])
    async with scripted([snapshot(event_id="i.1.0"), three, HOLD]) as daemon, watched(daemon.url) as changes:
        told = await take(changes, 4)
        assert [change.event_id for change in told] == ["i.1.0", "i.1.0", "i.1.0", "i.4.0"]


async def test_after_the_daemon_lost_its_state_equal_revisions_do_not_hide_a_change() -> None:
    """Revisions begin again with a new state: only what an entry says tells whether it is the same."""
    scripts = [
        [snapshot(entry("a.ckpt", 1), entry("b.ckpt", 2), event_id="old.2.0", revision=2)],
        [snapshot(entry("a.ckpt", 1, epoch=5), entry("b.ckpt", 7), event_id="new.7.0", revision=7), HOLD],
    ]
    async with scripted(*scripts) as daemon, watched(daemon.url) as changes:
        await until_synced(changes)
        assert await until_synced(changes) == [("upsert", entry("a.ckpt")["id"])]
