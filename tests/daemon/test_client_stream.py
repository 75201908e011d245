"""`watch` against daemons that break off, restart, forget and fall silent: nothing is lost, and nothing made up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ckptd.daemon.client import CatalogClient, Change, ChangeKind, ClientError, StreamState, StreamStatus
from ckptd.daemon.client_stream import FIRST_RETRY_S, LAST_RETRY_S, LONGEST_RETRY_S, _pause
from tests.daemon.fakes import DEADLINE_S
from tests.daemon.scripted_daemons import HOLD, entry, event, scripted, snapshot

pytestmark = pytest.mark.anyio


@pytest.fixture
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses before a new connection are a millisecond."""
    monkeypatch.setattr("ckptd.daemon.client_stream._pause", lambda failures, asked_s: 0.001)


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


# ---- breaking off ------------------------------------------------------------------------------------------------


async def test_wherever_a_stream_breaks_off_the_reader_ends_up_with_what_the_daemon_has(in_haste: None) -> None:
    """Cut at and around the end of each line of a snapshot, changes and a deletion, and in between; resumed where the
    cursor allows it, else anew."""
    first, second, third = entry("a.ckpt", 1), entry("b.ckpt", 2), entry("c.ckpt", 3)
    gone = {"id": first["id"], "path": "a.ckpt", "reason": "removed"}
    changes = [
        event("upsert", "i.2.0", checkpoints=[second]),
        event("upsert", "i.3.0", checkpoints=[third]),
        event("delete", "i.4.0", checkpoints=[gone]),
    ]
    whole = snapshot(first, event_id="i.1.0") + b"".join(changes)

    def rest(cursor: str | None) -> list[Any]:
        if cursor is None:
            return [snapshot(second, third, event_id="i.4.0", revision=4), HOLD]
        revision = int(cursor.split(".")[1])
        return [event("resumed", cursor, revision=revision), *changes[revision - 1 :], HOLD]

    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in sorted({*range(0, len(whole), 97), *(end + step for end in ends for step in (-1, 0, 1))}):
        async with scripted([whole[:cut]], rest) as daemon, watched(daemon.url) as told:
            held: dict[str, int] = {}
            async for change in told:
                if change.entry is not None:
                    held[change.entry.path] = change.entry.revision
                elif change.kind is ChangeKind.DELETE:
                    held = {path: revision for path, revision in held.items() if entry(path)["id"] != change.id}
                if len(daemon.requests) == 2 and held == {"b.ckpt": 2, "c.ckpt": 3}:
                    break


async def test_half_a_first_snapshot_is_told_and_what_is_gone_from_the_next_is_told_as_deleted(in_haste: None) -> None:
    half = event("reset", "", reason="new") + event("batch", checkpoints=[entry("a.ckpt"), entry("b.ckpt")])
    scripts = [[half], [snapshot(entry("b.ckpt"), event_id="i.1.0"), HOLD]]
    async with scripted(*scripts) as daemon, watched(daemon.url) as changes:
        assert [change.id for change in await take(changes, 2)] == [entry("a.ckpt")["id"], entry("b.ckpt")["id"]]
        assert await until_synced(changes) == [("delete", entry("a.ckpt")["id"])]


async def test_half_of_a_later_snapshot_is_not_told(in_haste: None) -> None:
    half = event("reset", "", reason="cursor too old") + event("batch", checkpoints=[entry("b.ckpt")])
    scripts = [
        [snapshot(entry("a.ckpt"), event_id="i.1.0")],
        [half],
        [snapshot(entry("a.ckpt"), event_id="i.2.0"), HOLD],
    ]
    async with scripted(*scripts) as daemon, watched(daemon.url) as changes:
        await until_synced(changes)
        assert await until_synced(changes) == []
        assert daemon.cursors() == [None, "i.1.0", None]


async def test_entries_of_an_earlier_process_that_are_gone_are_told_as_deleted() -> None:
    """The daemon cannot go on behind the kept cursor; the kept entries make up for it."""
    before = [snapshot(entry("a.ckpt"), entry("b.ckpt", 2), event_id="i.2.0"), HOLD]
    async with scripted(before) as daemon, watched(daemon.url) as changes:
        kept = [change.entry for change in await take(changes, 2)]
    changed = entry("b.ckpt", 9, epoch=3)
    after = [snapshot(changed, event_id="j.9.0"), HOLD]
    async with scripted(after) as daemon, watched(daemon.url, last_event_id="i.2.0", known=kept) as changes:
        assert await until_synced(changes) == [("delete", entry("a.ckpt")["id"]), ("upsert", changed["id"])]
        assert daemon.cursors() == ["i.2.0"]


async def test_a_daemon_that_hangs_is_left_after_two_and_a_half_heartbeats(in_haste: None) -> None:
    scripts = [[snapshot(event_id="i.1.0"), HOLD], [event("resumed", "i.1.0", revision=1), HOLD]]
    seen: list[StreamStatus] = []
    async with scripted(*scripts, headers=b"X-Heartbeat-Interval: 0.02\r\n") as daemon:
        async with watched(daemon.url, on_status=seen.append) as changes:
            await until_synced(changes)
            await until_synced(changes)
        assert daemon.cursors() == [None, "i.1.0"]
    (left,) = (status for status in seen if status.state is StreamState.WAITING)
    assert left.reason == "no heartbeat for 0.05 s"


@pytest.mark.parametrize("interval", ["", "x", "0", "-1", "nan", "inf", "1e9"])
async def test_an_interval_that_is_none_is_the_usual_one(interval: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptd.daemon.client_stream.HEARTBEAT_S", 0.02)
    monkeypatch.setattr("ckptd.daemon.client_stream._pause", lambda failures, asked_s: 0.001)
    scripts = [[snapshot(event_id="i.1.0"), HOLD], [event("resumed", "i.1.0", revision=1), HOLD]]
    header = f"X-Heartbeat-Interval: {interval}\r\n".encode()
    async with scripted(*scripts, headers=header) as daemon, watched(daemon.url) as changes:
        await until_synced(changes)
        await until_synced(changes)


async def test_how_the_watch_stands_is_told(in_haste: None) -> None:
    scripts = [
        [
            snapshot(event_id="i.1.0"),
            event("progress", done=1, total=4),
            event("heartbeat", "i.1.0", revision=1, complete_as_of="2026-01-01T00:00:00.000Z"),
        ],
        [event("resumed", "i.1.0", revision=1), HOLD],
    ]
    seen: list[StreamStatus] = []
    async with scripted(*scripts) as daemon, watched(daemon.url, on_status=seen.append) as changes:
        await until_synced(changes)
        await until_synced(changes)
    assert [status.state.value for status in seen] == [
        *("connecting", "snapshot", "live", "live", "live", "waiting", "connecting", "live")
    ]
    assert seen[3].progress == (1, 4)
    assert seen[4].complete_as_of == seen[-1].complete_as_of == "2026-01-01T00:00:00.000Z"


# ---- refusals and nonsense ---------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>",
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\nno gzip at all",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nff\r\ndata",
    ],
)
async def test_what_may_pass_is_waited_for(answer: bytes, in_haste: None) -> None:
    good = [OK + b"\r\n", snapshot(event_id="i.1.0"), HOLD]
    async with scripted([answer], good, raw=True) as daemon, watched(daemon.url) as changes:
        await until_synced(changes)
        assert len(daemon.requests) == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>", "text/html instead of"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "is it a ckptd"),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", "answered 302"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
        (OK + b"\r\ndata: no json\n\n", "not understood"),
        (OK + b'\r\ndata: {"no": "type"}\n\n', "not understood"),
        (OK + b'\r\ndata: {"type": "upsert", "checkpoints": [{"id": 1}]}\n\n', "not understood"),
    ],
)
async def test_what_will_not_pass_is_an_error_that_says_so(answer: bytes, message: str) -> None:
    async with scripted([answer], raw=True) as daemon, watched(daemon.url) as changes:
        with pytest.raises(ClientError, match=message):
            await anext(changes)


async def test_messages_of_a_later_version_are_passed_over() -> None:
    later = event("weather", "i.2.0", sky="blue", checkpoints=[1], revision=2) + event("note")
    script = [
        snapshot(event_id="i.1.0"),
        later,
        event("upsert", "i.3.0", checkpoints=[entry("a.ckpt", 3) | {"sky": 1}]),
    ]
    async with scripted([*script, HOLD]) as daemon, watched(daemon.url) as changes:
        assert [change.event_id for change in await take(changes, 2)] == ["i.1.0", "i.3.0"]


# ---- pauses ------------------------------------------------------------------------------------------------------


def test_pauses_grow_up_to_a_limit_and_have_jitter() -> None:
    pauses = [[_pause(failures, None) for _ in range(200)] for failures in range(40)]
    for failures, drawn in enumerate(pauses):
        usual = min(LAST_RETRY_S, FIRST_RETRY_S * 2**failures)
        assert 0.5 * usual <= min(drawn) < max(drawn) <= 1.5 * usual
        assert max(drawn) - min(drawn) > 0.5 * usual, "they are spread over most of the range"


def test_what_the_daemon_asks_for_is_the_least_within_reason() -> None:
    assert all(3 <= _pause(0, 3.0) <= 3.3 for _ in range(100))
    assert all(_pause(12, 0.001) >= LAST_RETRY_S / 2 for _ in range(100)), "it keeps breaking off: pauses grow"
    assert all(_pause(0, 1e12) <= LONGEST_RETRY_S * 1.1 for _ in range(100))


async def test_the_retry_of_a_farewell_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float | None]] = []

    def pause(failures: int, asked_s: float | None) -> float:
        asked.append((failures, asked_s))
        return 0.001

    monkeypatch.setattr("ckptd.daemon.client_stream._pause", pause)
    bye = b"retry: 2500\n" + event("bye", reason="shutdown")
    scripts: list[Any] = [[snapshot(event_id="i.1.0"), bye], [b""], [event("resumed", "i.1.0", revision=1), HOLD]]
    async with scripted(*scripts) as daemon, watched(daemon.url) as changes:
        await until_synced(changes)
        await until_synced(changes)
    assert asked == [(0, 2.5), (1, None)]
