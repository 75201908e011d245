"""Frames are shared among those who listen at the same time, and take no memory once nobody needs them."""

from pathlib import Path

import pytest

from ckptd.catalog.store import Catalog
from ckptd.daemon.http import frames
from ckptd.daemon.http.frames import KEPT_S, Changes, Frame, FrameCache, Group, View
from ckptd.daemon.settings import Settings
from tests.catalog.catalog_records import put, record_of
from tests.daemon.fakes import FakeBackend, serving, until

EVERYTHING = View("0", lambda _: True)


class Clock:
    """A time that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_frame_is_made_once_for_all_who_ask_soon_and_is_forgotten_then() -> None:
    clock = Clock()
    cache = FrameCache(clock=clock)
    made: list[Frame] = []

    def make() -> Frame:
        made.append(Frame(b"x" * 100))
        return made[-1]

    first = cache.get("a", make)
    clock.now += KEPT_S
    assert cache.get("a", make) is first
    clock.now += KEPT_S
    assert cache.get("a", make) is first, "it was of use in between"
    clock.now += KEPT_S * 1.01
    cache.forget_unused()
    assert not len(cache)
    assert cache.get("a", make) is not first
    assert len(made) == 2


def test_in_a_burst_the_frames_used_last_stay_within_the_limit() -> None:
    cache = FrameCache(limit_bytes=1000, clock=Clock())
    for number in range(50):
        cache.get("wanted", lambda: Frame(b"w" * 100))
        cache.get(number, lambda: Frame(b"x" * 100))
    assert len(cache) == 10
    assert cache.get("wanted", lambda: Frame(b"another")).size == 100


def test_what_changes_cost_a_listener_does_not_grow_with_their_number() -> None:
    """It did, by 2 KB a change: until 32 MB of frames were kept that nobody would ask for again."""
    clock = Clock()
    cache = FrameCache(clock=clock)
    catalog = Catalog("i")
    changes, group, kept = Changes(catalog, cache), Group(EVERYTHING, gzip=False), []
    for number in range(3000):
        cursor = catalog.revision
        batch = catalog.prepare([put(record_of(f"run/{number % 7}.ckpt", epoch=number))])
        assert batch is not None
        catalog.publish(batch)
        assert changes.frame(cursor, catalog.revision, group).cursor == catalog.revision
        clock.now += 0.02
        kept.append(len(cache))
    assert max(kept) <= KEPT_S / 0.02 + 2
    assert kept[-1] == kept[999]


@pytest.mark.anyio
async def test_once_nothing_changes_any_more_nothing_is_kept_for_those_who_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "KEPT_S", 0.05)
    settings = Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state"))
    backend = FakeBackend(settings, heartbeat_s=3600, send_timeout_s=0.2)
    kept = backend.hub._source.frames
    async with serving(backend) as server:
        listener = await server.listen()
        await listener.until("complete")
        for number in range(20):
            backend.put("run/last.ckpt", epoch=number)
            await listener.until("upsert")
        await until(lambda: len(kept) == 0, "the frames are forgotten")
        await listener.close()
