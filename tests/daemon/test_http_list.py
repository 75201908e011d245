"""The list over real sockets: what its filters, facets and cursors show, what is refused, and what is kept for it."""

import gzip
import http.client
from typing import Any

import anyio
import pytest

from ckptd.catalog.entry import Health
from ckptd.daemon.http.parameter_types import MAX_PARAMETERS, check_query
from ckptd.daemon.http.problems import ProblemError
from ckptd.daemon.settings import Settings
from tests.catalog.catalog_records import put, record_of
from tests.catalog.searched import LinesInMemory, searching
from tests.daemon.fakes import FakeBackend, Server, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def backend(tmp_path: Any) -> FakeBackend:
    return FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")))


@pytest.fixture
def lines(backend: FakeBackend) -> LinesInMemory:
    backend.lines = LinesInMemory()
    return backend.lines


async def test_a_filter_that_is_sent_several_times_lets_any_of_its_values_through(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as client:
        for name in ("a", "b", "c"):
            backend.put(f"{name}.ckpt", exp_name=name, format="torch_zip" if name == "a" else "dcp")
        assert (await client.get("/checkpoints?exp_name=a&exp_name=b")).json()["total"] == 2
        assert (await client.get("/checkpoints?exp_name=a&exp_name=b&format=dcp")).json()["total"] == 1
        assert (await client.get("/checkpoints?format=dcp&format=torch_zip")).json()["total"] == 3
        assert (await client.get("/checkpoints?verified=checksum,weights&has_metadata=false")).json()["total"] == 0


@pytest.mark.parametrize(
    ("query", "field", "value"),
    [
        ("page=1&page=2", "page", "2"),
        ("q=a&q=b", "q", "b"),
        ("min_hmean=1&min_hmean=1", "min_hmean", "1"),
        ("health=valid&health=writing", "health", "writing"),
        ("q=", "q", ""),
        ("exp_name=", "exp_name", ""),
        ("exp_name=a&exp_name=", "exp_name", ""),
        ("sort_by=", "sort_by", ""),
        ("health=", "health", ""),
        ("after=", "after", ""),
        ("facets=", "facets", ""),
        ("modified_after=", "modified_after", ""),
        ("q=" + "x" * 5000, "q", "x" * 200),
        ("architecture=" + "x" * 5000, "architecture", "x" * 200),
        ("page=" + "9" * 5000, "page", "9" * 200),
        ("after=" + "A" * 9000, "after", "A" * 200),
        ("q=caf%E9", "q", r"caf\xe9"),
        ("exp_name=%ff%fe", "exp_name", r"\xff\xfe"),
        ("caf%E9=1", r"caf\xe9", "1"),
        ("format=hdf5", "format", "hdf5"),
        ("finding=metadata.absent", "finding", "metadata.absent"),
        ("facets=epoch", "facets", "epoch"),
        ("verified=twice", "verified", "twice"),
        ("has_metadata=maybe", "has_metadata", "maybe"),
        ("after=AAAA", "after", "AAAA"),
        ("q=hmean%3Ehigh", "q", "hmean>high"),
        ("&".join(f"min_m{n}=1" for n in range(MAX_PARAMETERS + 1)), "query", ""),
    ],
)
async def test_what_cannot_be_asked_is_a_problem_with_field_value_and_remedy(
    backend: FakeBackend, query: str, field: str, value: str
) -> None:
    async with serving(backend) as server, server.client() as client:
        for path in ("/checkpoints", "/checkpoints/events", "/checkpoints/stream"):
            if path != "/checkpoints" and field in ("page", "sort_by", "after", "facets"):
                continue
            answer = await client.get(f"{path}?{query}", headers={"If-None-Match": "*"})
            problem = answer.json()
            assert answer.headers["content-type"] == "application/problem+json"
            assert (answer.status_code, problem["field"], problem["value"]) == (400, field, value)
            assert problem["remedy"]


@pytest.mark.parametrize("query", [b"q=caf\xe9", b"q=caf\xc3\xa9", b"caf\xc3\xa9=1"])
def test_bytes_that_are_not_escaped_are_refused_whatever_server_lets_them_through(query: bytes) -> None:
    with pytest.raises(ProblemError, match="is not UTF-8"):
        check_query(query)
    check_query(b"q=caf%C3%A9&caf%C3%A9=")


async def test_facets_are_counted_when_they_are_asked_for_and_kept_current(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as client:
        backend.put("a.ckpt", exp_name="one", architecture="dbnet")
        backend.put("b.ckpt", exp_name="one")
        backend.put("c.ckpt", exp_name="two", health=Health.INVALID)
        assert "facets" not in (await client.get("/checkpoints")).json()
        url = "/checkpoints?facets=exp_name,%20health,architecture&exp_name=two"
        for count in (2, 3):
            page = (await client.get(url)).json()
            assert page["facets"] == {
                "exp_name": [{"value": "one", "count": count}],
                "health": [{"value": "invalid", "count": 1}],
                "architecture": [],
            }
            assert page["total"] == 0
            backend.put("d.ckpt", exp_name="one")


async def test_cursors_lead_through_a_list_that_changes(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as client:
        backend.put_many(20)
        parameters: dict[str, Any] = {"sort_by": "epoch", "sort_order": "asc", "page_size": 6, "q": "run"}
        seen = []
        while True:
            page = (await client.get("/checkpoints", params=parameters)).json()
            seen += [entry["epoch"] for entry in page["checkpoints"]]
            if page["next"] is None:
                break
            parameters["after"] = page["next"]
            backend.drop(f"run/{seen[-1]:06d}.ckpt")  # what was shown goes, and all others move up
        assert seen == list(range(20))
        other = await client.get("/checkpoints", params=parameters | {"q": "run/"})
        assert (other.status_code, other.json()["field"]) == (400, "after")
        both = await client.get("/checkpoints", params=parameters | {"page": 2})
        assert (both.status_code, both.json()["field"]) == (400, "page")


async def test_what_is_searched_besides_entries_is_found_by_list_and_streams_alike(
    backend: FakeBackend, lines: LinesInMemory
) -> None:
    async with serving(backend) as server, server.client() as client:
        adam, sgd = {"optimizer": {"name": "AdamW", "lr": 0.001}}, {"optimizer": {"name": "SGD", "lr": 0.1}}
        backend.publish(
            put(searching(record_of("a.ckpt"), lines, adam)), put(searching(record_of("b.ckpt"), lines, sgd))
        )
        query = "?q=optimizer.lr:0.001"
        listener = await server.listen(query)
        snapshot = await listener.until("complete")
        assert b"a.ckpt" in snapshot
        assert b"b.ckpt" not in snapshot
        backend.publish(put(searching(record_of("c.ckpt"), lines, adam | {"seed": 1})))  # a line of its own
        assert b"c.ckpt" in await listener.until("upsert")
        backend.publish(put(searching(record_of("a.ckpt"), lines, sgd)))
        assert b"a.ckpt" in await listener.until("delete")
        listed = (await client.get(f"/checkpoints{query}")).json()["checkpoints"]
        assert [entry["path"] for entry in listed] == ["c.ckpt"]
        ending = (await client.get(f"/checkpoints/stream{query}")).text
        assert ("c.ckpt" in ending, "a.ckpt" in ending) == (True, False)
        await listener.close()


async def test_listeners_of_one_filter_ask_the_index_once(backend: FakeBackend, lines: LinesInMemory) -> None:
    asked = []
    find = lines.find
    lines.find = lambda term: (asked.append(term.canonical), find(term))[1]  # type: ignore[method-assign]
    async with serving(backend) as server:
        listeners = [await server.listen(query) for query in ("?q=lr:1%20adam", "?q=adam%20lr:1", "?q=adam")]
        for listener in listeners:
            await listener.until("complete")
        assert sorted(asked) == ["pair lr:1", "word adam", "word adam"]
        for listener in listeners:
            await listener.close()


async def test_a_list_is_made_once_for_all_who_ask_for_it_at_the_same_time(backend: FakeBackend) -> None:
    backend.publish(
        *(put(record_of(f"{n:05d}.ckpt", modified_ns=n, epoch=n % 7, exp_name=f"{n % 3}")) for n in range(6_000))
    )
    made = 0
    snapshot = backend.catalog.snapshot

    def counting() -> Any:
        nonlocal made
        made += 1
        return snapshot()

    backend.catalog.snapshot = counting  # type: ignore[method-assign]
    async with serving(backend) as server, server.client() as client:
        totals = []

        async def ask() -> None:
            page = (await client.get("/checkpoints?sort_by=epoch&exp_name=1&facets=health")).json()
            totals.append((page["total"], page["facets"]["health"][0]["count"]))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(ask)
        assert set(totals) == {(2_000, 2_000)}
        assert made == 2, "one for the list, one for its facet"


async def test_lists_are_compressed_from_a_kilobyte_on_and_their_cache_control_is_a_setting(tmp_path: Any) -> None:
    settings = Settings(
        roots=(str(tmp_path),), state_dir=str(tmp_path / "state"), list_cache_control="private, max-age=2"
    )
    backend = FakeBackend(settings)
    async with serving(backend) as server, server.client() as client:
        assert "content-encoding" not in (await client.get("/checkpoints")).headers
        backend.put_many(2)
        answer = await client.get("/checkpoints")
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["cache-control"] == "private, max-age=2"
        same = await client.get("/checkpoints", headers={"If-None-Match": answer.headers["etag"]})
        assert (same.status_code, same.headers["cache-control"]) == (304, "private, max-age=2")
        assert "x-complete-as-of" in same.headers
        plain, packed = await bodies(server)
        assert gzip.decompress(packed) == plain
        head = await client.head("/checkpoints")
        assert head.headers["content-length"] == str(len(packed))


async def bodies(server: Server) -> tuple[bytes, bytes]:
    """The list as it is, and compressed, as they are on the wire."""

    def ask(encoding: str) -> bytes:
        connection = http.client.HTTPConnection(*server.address)
        connection.request("GET", "/checkpoints", headers={"Host": "localhost", "Accept-Encoding": encoding})
        body = connection.getresponse().read()
        connection.close()
        return body

    return await anyio.to_thread.run_sync(ask, "identity"), await anyio.to_thread.run_sync(ask, "gzip")
