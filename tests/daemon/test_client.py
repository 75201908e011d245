"""CatalogClient against a real server: requests, and a watch that no restart can make lose a change."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ckptd.catalog.store import Catalog
from ckptd.daemon.client import CatalogClient, Change, ChangeKind, ClientError, find_daemon
from ckptd.daemon.http import AccessPolicy
from ckptd.daemon.settings import Settings
from tests.daemon.fakes import DEADLINE_S, FakeBackend, description_of, serving

pytestmark = pytest.mark.anyio
TOKEN = "a-token-of-32-characters-or-more"


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    return FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")))


async def _in_thread(work: Any, *arguments: Any, **options: Any) -> Any:
    return await asyncio.to_thread(work, *arguments, **options)


async def test_requests_over_tcp_and_unix_socket(backend: FakeBackend, tmp_path: Path) -> None:
    checkpoint_id = backend.put("a.ckpt", epoch=3)
    backend.descriptions[checkpoint_id] = description_of("a.ckpt")
    for uds in (None, str(tmp_path / "sock")):
        async with serving(backend, uds=uds) as server:
            with CatalogClient(None if uds else server.url, uds=uds) as client:
                assert (await _in_thread(client.list, q="a", include_invalid=True, exp_name=None))["total"] == 1
                assert (await _in_thread(client.get, checkpoint_id))["epoch"] == 3
                assert (await _in_thread(client.tensors, checkpoint_id))[0]["name"] == "state_dict.w"
                assert (await _in_thread(client.health))["catalog_status"] == "degraded"
                assert (await _in_thread(client.rebuild, "full"))["mode"] == "full"
        backend = _restarted(backend)
        backend.descriptions[checkpoint_id] = description_of("a.ckpt")


async def test_iterate_gives_every_entry_of_all_pages(backend: FakeBackend) -> None:
    backend.put_many(25)
    async with serving(backend) as server:
        with CatalogClient(server.url) as client:
            entries = await _in_thread(lambda: list(client.iterate(page_size=10)))
            assert [entry["epoch"] for entry in entries] == list(range(24, -1, -1))
            assert await _in_thread(lambda: list(client.iterate(q="nothing"))) == []


async def test_a_refusal_says_what_the_daemon_said_and_no_daemon_says_what_to_do(backend: FakeBackend) -> None:
    async with serving(backend, AccessPolicy(TOKEN, hosts=frozenset({"localhost"}))) as server:
        url = server.url
        with CatalogClient(url) as stranger, CatalogClient(url, token=TOKEN) as friend:
            with pytest.raises(ClientError, match="ckptd token") as refused:
                await _in_thread(stranger.list)
            assert refused.value.status == 401
            with pytest.raises(ClientError, match="no checkpoint has this id"):
                await _in_thread(friend.get, "abcdefghijklmnop")
            with pytest.raises(ClientError, match="known parameters") as refused:
                await anext(friend.watch(colour="red"))
            assert refused.value.problem["field"] == "colour"
    with CatalogClient(url) as client, pytest.raises(ClientError, match="ckptd serve"):
        await _in_thread(client.list)


async def test_the_daemon_is_found_by_the_environment_else_in_the_state_directory(
    backend: FakeBackend, tmp_path: Path
) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    with pytest.raises(ClientError, match="ckptd serve"):
        find_daemon(str(state_dir), {})
    async with serving(backend, uds=os.path.join(state_dir, "ckptd.sock")):
        with find_daemon(str(state_dir), {}) as client:
            assert (await _in_thread(client.list))["total"] == 0
    backend = _restarted(backend)
    (state_dir / "token").write_text(TOKEN + "\n")
    async with serving(backend, AccessPolicy(TOKEN, hosts=frozenset({"localhost"}))) as server:
        for env in ({"CKPTD_URL": server.url, "CKPTD_TOKEN": TOKEN}, {"CKPTD_URL": server.url}):
            with find_daemon(str(state_dir), env) as client:
                assert (await _in_thread(client.list))["total"] == 0


async def test_rebuild_can_be_waited_for(backend: FakeBackend) -> None:
    loop = asyncio.get_running_loop()
    asked = threading.Event()

    def request_rebuild(_: Any) -> str:
        loop.call_soon(lambda: (backend.put("found.ckpt"), backend.hub.announce_rebuilt("other", 1)))
        loop.call_soon(lambda: backend.hub.announce_rebuilt("mine", backend.catalog.revision))
        asked.set()
        return "mine"

    backend.request_rebuild = request_rebuild  # type: ignore[method-assign]
    async with serving(backend) as server:
        with CatalogClient(server.url) as client:
            answer = await _in_thread(client.rebuild, wait=True, timeout_s=DEADLINE_S)
            assert answer == {"token": "mine", "mode": "sweep", "revision": 1}
            assert asked.is_set()


async def test_watch_tells_what_exists_and_then_what_happens(backend: FakeBackend) -> None:
    backend.put("a.ckpt")
    async with serving(backend) as server, watching(server.url) as heard:
        assert (await heard.next()).entry["path"] == "a.ckpt"  # type: ignore[index]
        synced = await heard.next()
        assert (synced.kind, synced.revision, synced.event_id) == (ChangeKind.SYNCED, 1, "testing.1.0")
        backend.put("b.ckpt")
        assert (await heard.next()).entry["path"] == "b.ckpt"  # type: ignore[index]
        backend.drop("a.ckpt")
        gone = await heard.next()
        assert (gone.kind, gone.reason, gone.event_id) == (ChangeKind.DELETE, "removed", "testing.3.0")


async def test_watch_resumes_after_a_clean_restart_without_telling_anything_twice(
    backend: FakeBackend, tmp_path: Path
) -> None:
    path = str(tmp_path / "sock")
    backend.put("a.ckpt")
    async with serving(backend, uds=path):
        heard = Watch(CatalogClient(uds=path))
        assert [change.kind for change in await heard.take(2)] == [ChangeKind.UPSERT, ChangeKind.SYNCED]
    os.unlink(path)
    backend = _restarted(backend)
    backend.put("b.ckpt")
    async with serving(backend, uds=path):
        assert (await heard.next()).kind is ChangeKind.SYNCED
        assert (await heard.next()).entry["path"] == "b.ckpt"  # type: ignore[index]
        await heard.close()


async def test_watch_tells_only_the_difference_after_an_unclean_restart(backend: FakeBackend, tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    for name in ("same", "changed", "gone"):
        backend.put(f"{name}.ckpt")
    async with serving(backend, uds=path):
        heard = Watch(CatalogClient(uds=path))
        await heard.take(4)
    os.unlink(path)
    backend.put("changed.ckpt", epoch=1)
    backend.drop("gone.ckpt")
    backend.put("new.ckpt")
    backend = _restarted(backend, instance="another")
    async with serving(backend, uds=path):
        changes = await heard.take(4)
        assert changes[0].kind is ChangeKind.DELETE
        assert changes[0].reason == "absent"
        assert {change.entry["path"] for change in changes[1:3] if change.entry} == {"changed.ckpt", "new.ckpt"}
        assert changes[3].kind is ChangeKind.SYNCED
        await heard.close()


async def test_watch_under_a_filter_is_silent_about_what_never_matched(backend: FakeBackend) -> None:
    async with serving(backend) as server, watching(server.url, exp_name="one") as heard:
        await heard.next()
        backend.put("other.ckpt", exp_name="two")
        backend.put("mine.ckpt", exp_name="one")
        assert (await heard.next()).entry["path"] == "mine.ckpt"  # type: ignore[index]
        backend.put("mine.ckpt", exp_name="two")
        assert (await heard.next()).reason == "filtered"


class Watch:
    """A watch that is read one change at a time, each within a deadline."""

    def __init__(self, client: CatalogClient, **filters: Any) -> None:
        self._client = client
        self._changes = client.watch(**filters)

    async def next(self) -> Change:
        async with asyncio.timeout(DEADLINE_S):
            return await anext(self._changes)

    async def take(self, count: int) -> list[Change]:
        return [await self.next() for _ in range(count)]

    async def close(self) -> None:
        await self._changes.aclose()  # type: ignore[attr-defined]
        self._client.close()


@contextlib.asynccontextmanager
async def watching(url: str, **filters: Any) -> AsyncIterator[Watch]:
    heard = Watch(CatalogClient(url), **filters)
    try:
        yield heard
    finally:
        await heard.close()


def _restarted(old: FakeBackend, instance: str = "testing") -> FakeBackend:
    """The same catalog in a new process, as its state would bring it back."""
    catalog = Catalog(instance)
    catalog.load(list(old.catalog), old.catalog.tombstones(), old.catalog.revision, old.catalog.floor)
    return FakeBackend(old.settings, catalog=catalog)
