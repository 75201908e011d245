"""CatalogClient against a real server: requests, and a watch that no restart can make lose a change."""

import asyncio
import contextlib
import datetime as dt
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ckptd.catalog.compare import Sameness
from ckptd.catalog.entry import CheckpointEntry, Health
from ckptd.catalog.store import Catalog
from ckptd.daemon.client import AsyncCatalogClient, CatalogClient, Change, ChangeKind, ClientError, Rebuild, find_daemon
from ckptd.daemon.client_types import CheckpointDetail
from ckptd.daemon.http import AccessPolicy
from ckptd.daemon.http.checkpoints import DETAIL_OF_DESCRIPTION, DETAIL_OF_INSPECTION
from ckptd.daemon.settings import Settings
from tests.daemon.compared_backend import put_models
from tests.daemon.fakes import DEADLINE_S, FakeBackend, description_of, serving
from tests.daemon.scripted_daemons import scripted

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
                assert (await _in_thread(client.list, q="a", include_invalid=True, exp_name=None)).total == 1
                assert (await _in_thread(client.get, checkpoint_id)).epoch == 3
                assert (await _in_thread(client.tensors, checkpoint_id))[0].name == "state_dict.w"
                assert (await _in_thread(client.health))["catalog_status"] == "degraded"
                assert (await _in_thread(client.rebuild, "full")).mode == "full"
        backend = _restarted(backend)
        backend.descriptions[checkpoint_id] = description_of("a.ckpt")


async def test_iterate_gives_every_entry_of_all_pages(backend: FakeBackend) -> None:
    backend.put_many(25)
    async with serving(backend) as server:
        with CatalogClient(server.url) as client:
            entries = await _in_thread(lambda: list(client.iterate(page_size=10)))
            assert [entry.epoch for entry in entries] == list(range(24, -1, -1))
            assert await _in_thread(lambda: list(client.iterate(q="nothing"))) == []


async def test_the_async_client_answers_alike(backend: FakeBackend, tmp_path: Path) -> None:
    ids = put_models(backend, tmp_path)
    async with serving(backend) as server, AsyncCatalogClient(server.url) as client:
        with CatalogClient(server.url) as blocking:
            assert await client.list() == await _in_thread(blocking.list)
            assert [entry async for entry in client.iterate(page_size=1)] == await _in_thread(
                lambda: list(blocking.iterate())
            )
            assert await client.get(ids[0]) == await _in_thread(blocking.get, ids[0])
            assert await client.tensors(ids[0]) == await _in_thread(blocking.tensors, ids[0])
            assert await client.compare(*ids) == await _in_thread(blocking.compare, *ids)
            assert await client.compare_text(*ids) == await _in_thread(blocking.compare_text, *ids)
            assert (await client.health())["revision"] == (await _in_thread(blocking.health))["revision"]
            assert (await client.rebuild()).token == "token-1"
        with pytest.raises(ClientError, match="no checkpoint has this id") as refused:
            await client.get("aaaaaaaaaaaaaaaa")
        assert refused.value.status == 404


async def test_details_tensors_and_comparisons_are_typed(backend: FakeBackend, tmp_path: Path) -> None:
    ids = put_models(backend, tmp_path)
    async with serving(backend) as server, AsyncCatalogClient(server.url) as client:
        detail = await client.get(ids[1])
        assert (detail.health, detail.epoch, detail.hyper_parameters) == (Health.VALID, 1, {"lr": 0.1, "seed": 1})
        assert detail.findings[0].remedy
        bare = await client.get(backend.put("bare.ckpt"))
        assert (bare.can_load, bare.metadata, bare.n_tensors) == (None, None, 0)
        assert [t.name for t in await client.tensors(ids[0], prefix="state_dict.head")] == ["state_dict.head.weight"]
        comparison = await client.compare(*ids, tensor_change="changed")
        assert (comparison.verdict, len(comparison.tensors.rows)) == (Sameness.DIFFERENT, 1)
        assert (await client.compare_text(*ids, media_type="text/csv")).startswith("section,name,status,best,")


def test_the_detail_has_every_member_that_is_sent() -> None:
    sent = {*CheckpointEntry.__struct_fields__, *DETAIL_OF_DESCRIPTION, *DETAIL_OF_INSPECTION, "n_tensors"}
    assert set(CheckpointDetail.__struct_fields__) == sent


async def test_a_long_tensor_table_is_fetched_in_pieces(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptd.daemon.client_requests.TENSORS_AT_ONCE", 7)
    description = description_of("a.ckpt")
    tensor = description.tensors[0]
    table = tuple(msgspec.structs.replace(tensor, name=f"t{n:02d}") for n in range(23))
    inspection = msgspec.structs.replace(description.inspection, tensors=table)
    checkpoint_id = backend.put("a.ckpt")
    backend.descriptions[checkpoint_id] = msgspec.structs.replace(description, inspection=inspection)
    async with serving(backend) as server, AsyncCatalogClient(server.url) as client:
        assert [tensor.name for tensor in await client.tensors(checkpoint_id)] == [f"t{n:02d}" for n in range(23)]
        assert [t.name for t in await client.tensors(checkpoint_id, offset=20)] == ["t20", "t21", "t22"]
        assert [t.name for t in await client.tensors(checkpoint_id, offset=3, limit=2)] == ["t03", "t04"]


async def test_filters_of_every_kind_are_written_as_the_daemon_reads_them(backend: FakeBackend) -> None:
    backend.put("one.ckpt", exp_name="one", metrics={"hmean": 0.9}, modified_ns=10**18)
    backend.put("two.ckpt", exp_name="two", metrics={"hmean": 0.5}, modified_ns=10**18)
    backend.put("three.ckpt", exp_name="three")
    async with serving(backend) as server, AsyncCatalogClient(server.url) as client:
        for filters, total in (
            ({"exp_name": ["one", "two"]}, 2),
            ({"health": ("valid", Health.WRITING)}, 3),
            ({"min_hmean": 0.6}, 1),
            ({"modified_after": dt.datetime(2001, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))}, 2),
            ({"modified_after": dt.date(2001, 1, 1), "include_invalid": True, "q": None}, 2),
        ):
            assert (await client.list(**filters)).total == total
        page = await client.list(facets=["exp_name", "health"])
        assert page.facets is not None
        assert [(value.value, value.count) for value in page.facets["health"]] == [("valid", 3)]


@pytest.mark.parametrize("odd", ["", "..", ".", "../health", "a/b", "?x=1", "%2e%2e", "\udcff", "#"])
async def test_an_id_leads_nowhere_but_to_a_checkpoint(backend: FakeBackend, odd: str) -> None:
    async with serving(backend) as server, AsyncCatalogClient(server.url) as client:
        for ask in (client.get, client.tensors):
            with pytest.raises(ClientError) as refused:
                await ask(odd)
            assert (refused.value.status, refused.value.problem["status"]) == (404, 404)


@pytest.mark.parametrize("url", ["localhost:8765", "ftp://x", "", "/run/ckptd.sock"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ClientError, match="http://HOST:PORT"):
        CatalogClient(url)


async def test_an_answer_of_something_else_is_an_error_that_says_so() -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"
    proxy = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>"
    async with scripted([page], [proxy], raw=True) as daemon, AsyncCatalogClient(daemon.url) as client:
        with pytest.raises(ClientError, match="is it a ckptd"):
            await client.list()
        with pytest.raises(ClientError, match="answered 502"):
            await client.list()


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
        await _in_thread(find_daemon, str(state_dir), {})
    async with serving(backend, uds=os.path.join(state_dir, "ckptd.sock")):
        with await _in_thread(find_daemon, str(state_dir), {}) as client:
            assert (await _in_thread(client.list)).total == 0
    backend = _restarted(backend)
    (state_dir / "token").write_text(TOKEN + "\n")
    async with serving(backend, AccessPolicy(TOKEN, hosts=frozenset({"localhost"}))) as server:
        for env in ({"CKPTD_URL": server.url, "CKPTD_TOKEN": TOKEN}, {"CKPTD_URL": server.url}):
            with await _in_thread(find_daemon, str(state_dir), env) as client:
                assert (await _in_thread(client.list)).total == 0


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
            assert answer == Rebuild(token="mine", mode="sweep", revision=1)
            assert asked.is_set()


async def test_watch_tells_what_exists_and_then_what_happens(backend: FakeBackend) -> None:
    backend.put("a.ckpt")
    async with serving(backend) as server, watching(server.url) as heard:
        assert path_of(await heard.next()) == "a.ckpt"
        synced = await heard.next()
        assert (synced.kind, synced.revision, synced.event_id) == (ChangeKind.SYNCED, 1, "testing.1.0")
        backend.put("b.ckpt")
        assert path_of(await heard.next()) == "b.ckpt"
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
        assert path_of(await heard.next()) == "b.ckpt"
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
        assert {change.entry.path for change in changes[1:3] if change.entry} == {"changed.ckpt", "new.ckpt"}
        assert changes[3].kind is ChangeKind.SYNCED
        await heard.close()


async def test_watch_under_a_filter_is_silent_about_what_never_matched(backend: FakeBackend) -> None:
    async with serving(backend) as server, watching(server.url, exp_name="one") as heard:
        await heard.next()
        backend.put("other.ckpt", exp_name="two")
        backend.put("mine.ckpt", exp_name="one")
        assert path_of(await heard.next()) == "mine.ckpt"
        backend.put("mine.ckpt", exp_name="two")
        assert (await heard.next()).reason == "filtered"


def path_of(change: Change) -> str:
    assert change.entry is not None
    return change.entry.path


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
