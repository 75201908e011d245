"""The routes over real sockets: answers, conditions, problems."""

import datetime as dt
import os
from typing import Any

import msgspec
import pytest

from ckptd.catalog.entry import Health
from ckptd.daemon.http.backend import RebuildMode
from ckptd.daemon.settings import Settings
from tests.daemon.fakes import COMPLETE_AS_OF, FakeBackend, description_of, serving, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def backend(tmp_path: Any) -> FakeBackend:
    return FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")))


async def test_list_is_one_page_newest_first_with_the_envelope(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        backend.put_many(30)
        page = (await http.get("/checkpoints", params={"page": 2, "page_size": 10})).json()
        assert [entry["epoch"] for entry in page["checkpoints"]] == list(range(19, 9, -1))
        assert {name: page[name] for name in page if name not in ("checkpoints", "next")} == {
            "total": 30,
            "page": 2,
            "page_size": 10,
            "total_pages": 3,
            "revision": 30,
        }
        last = (await http.get("/checkpoints", params={"after": page["next"], "page_size": 10})).json()
        assert [entry["epoch"] for entry in last["checkpoints"]] == list(range(9, -1, -1))
        assert (last["page"], last["next"]) == (3, None)


async def test_list_hides_invalid_checkpoints_until_they_are_asked_for(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        backend.put("good.ckpt")
        backend.put("bad.ckpt", health=Health.INVALID)
        assert (await http.get("/checkpoints")).json()["total"] == 1
        assert (await http.get("/checkpoints?include_invalid=true")).json()["total"] == 2
        assert (await http.get("/checkpoints?health=invalid")).json()["checkpoints"][0]["path"] == "bad.ckpt"


async def test_list_is_filtered_by_metric_bounds_and_time(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        for number, hmean in enumerate((0.2, 0.5, 0.9)):
            backend.put(f"{number}.ckpt", metrics={"hmean": hmean}, modified_ns=(1000 + number) * 10**9)
        found = await http.get("/checkpoints", params={"min_hmean": 0.4, "max_hmean": 0.6})
        assert [entry["path"] for entry in found.json()["checkpoints"]] == ["1.ckpt"]
        after = dt.datetime.fromtimestamp(1000.5, dt.UTC).isoformat()
        found = await http.get("/checkpoints", params={"modified_after": after})
        assert [entry["path"] for entry in found.json()["checkpoints"]] == ["2.ckpt", "1.ckpt"]


async def test_304_for_the_same_revision_and_200_after_a_change(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        backend.put("a.ckpt")
        first = await http.get("/checkpoints")
        same = await http.get("/checkpoints", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
        assert (same.status_code, same.content) == (304, b"")
        assert same.headers["x-complete-as-of"] == first.headers["x-complete-as-of"]
        assert dt.datetime.fromisoformat(same.headers["x-complete-as-of"]).timestamp() == COMPLETE_AS_OF
        assert same.headers["cache-control"] == first.headers["cache-control"] == "no-cache"
        other_query = await http.get("/checkpoints?page_size=7", headers={"If-None-Match": first.headers["etag"]})
        assert other_query.status_code == 200
        backend.put("b.ckpt")
        changed = await http.get("/checkpoints", headers={"If-None-Match": first.headers["etag"]})
        assert (changed.status_code, changed.json()["total"]) == (200, 2)


async def test_a_compressed_list_is_the_same_list_under_another_etag(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        backend.put_many(500)
        url = "/checkpoints?page_size=500"
        plain = await http.get(url, headers={"Accept-Encoding": "identity"})
        packed = await http.get(url, headers={"Accept-Encoding": "gzip"})
        assert packed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert packed.json() == plain.json()
        assert packed.headers["etag"] != plain.headers["etag"]
        refused = await http.get(url, headers={"Accept-Encoding": "gzip;q=0"})
        assert "content-encoding" not in refused.headers


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("sort=epoch", "sort"),
        ("page=0", "page"),
        ("page=x", "page"),
        ("page_size=1001", "page_size"),
        ("sort_order=up", "sort_order"),
        ("min_hmean=high", "min_hmean"),
        ("max_hmean=nan", "max_hmean"),
        ("modified_after=yesterday", "modified_after"),
        ("include_invalid=maybe", "include_invalid"),
        ("health=ill", "health"),
        ("safety=quite", "safety"),
    ],
)
async def test_a_parameter_that_cannot_be_used_is_named_with_value_and_remedy(
    backend: FakeBackend, query: str, field: str
) -> None:
    async with serving(backend) as server, server.client() as http:
        for path in ("/checkpoints", "/checkpoints/events", "/checkpoints/stream"):
            if path != "/checkpoints" and field.startswith(("page", "sort")):
                continue
            answer = await http.get(f"{path}?{query}")
            problem = answer.json()
            assert answer.headers["content-type"] == "application/problem+json"
            assert (answer.status_code, problem["status"], problem["field"]) == (400, 400, field)
            assert problem["value"] == query.partition("=")[2]
            assert problem["remedy"]


async def test_an_unknown_parameter_lists_the_known_ones(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        remedy = (await http.get("/checkpoints?exp_nam=x")).json()["remedy"]
        assert "did you mean exp_name?" in remedy
        assert "page_size" in remedy
        assert "min_<metric>" in remedy


async def test_detail_adds_to_the_entry_what_its_description_knows(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        checkpoint_id = backend.put("a.ckpt", epoch=3)
        backend.descriptions[checkpoint_id] = description_of("a.ckpt")
        detail = (await http.get(f"/checkpoints/{checkpoint_id}")).json()
        assert (detail["id"], detail["epoch"]) == (checkpoint_id, 3)
        assert detail["findings"][0]["message"] == "no sidecar lies beside the checkpoint"
        assert detail["findings"][0]["remedy"]
        assert detail["metadata"]["training"]["epoch"] is None, "absent values are explicit"
        assert detail["provenance"] == {"exp_name": "layout"}
        assert detail["hyper_parameters"] == {"lr": 0.001}
        assert "tensors" not in detail
        table = (await http.get(f"/checkpoints/{checkpoint_id}/tensors")).json()
        assert (table["total"], table["tensors"][0]["shape"]) == (1, [2, 3])


async def test_a_kept_detail_is_asked_for_anew_when_the_bytes_were_read_again(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        checkpoint_id = backend.put("a.ckpt")
        description = description_of("a.ckpt")
        etag = '"none"'
        for verified_at in ("2025-10-11T00:00:00.000Z", "2025-11-11T00:00:00.000Z"):
            # No new revision: the second reading found everything as it was.
            backend.descriptions[checkpoint_id] = msgspec.structs.replace(description, verified_at=verified_at)
            answer = await http.get(f"/checkpoints/{checkpoint_id}", headers={"If-None-Match": etag})
            etag = answer.headers["etag"]
            assert (answer.status_code, answer.json()["verified_at"]) == (200, verified_at)
        again = await http.get(f"/checkpoints/{checkpoint_id}", headers={"If-None-Match": etag})
        assert again.status_code == 304


async def test_an_entry_without_a_kept_description_still_has_a_detail(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        checkpoint_id = backend.put("a.ckpt")
        assert (await http.get(f"/checkpoints/{checkpoint_id}")).json()["path"] == "a.ckpt"
        assert (await http.get(f"/checkpoints/{checkpoint_id}/tensors")).json()["tensors"] == []


async def test_a_deleted_id_is_gone_with_when_and_why_and_an_unknown_one_was_never_there(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        checkpoint_id = backend.put("a.ckpt")
        backend.drop("a.ckpt")
        for path in (f"/checkpoints/{checkpoint_id}", f"/checkpoints/{checkpoint_id}/tensors"):
            answer = await http.get(path)
            gone = answer.json()
            assert (answer.status_code, gone["reason"], gone["path"]) == (410, "removed", "a.ckpt")
            assert dt.datetime.fromisoformat(gone["deleted_at"]).tzinfo is not None
        unknown = await http.get("/checkpoints/abcdefghijklmnop")
        assert (unknown.status_code, unknown.json()["field"]) == (404, "id")
        backend.put("a.ckpt")
        assert (await http.get(f"/checkpoints/{checkpoint_id}")).status_code == 200, "the slot survives"


async def test_the_stream_that_ends_sends_batches_and_then_complete(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        backend.put_many(30)
        answer = await http.get("/checkpoints/stream?limit=25&batch_size=10")
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        counts = [line for line in answer.text.split("\n\n") if line]
        assert [b.count('"path":') for b in counts] == [10, 10, 5, 0]
        assert ['"has_more":true' in b for b in counts] == [True, True, False, False]
        assert '"type":"complete","total":25,"revision":30' in counts[-1]
        assert "id:" not in answer.text


async def test_rebuild_hands_out_a_token_and_starts_the_mode_asked_for(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        answer = await http.post("/rebuild?mode=full")
        assert (answer.status_code, answer.json()) == (202, {"token": "token-1", "mode": "full"})
        assert (await http.post("/rebuild")).json()["mode"] == "sweep"
        assert backend.rebuilds == [RebuildMode.FULL, RebuildMode.SWEEP]
        assert (await http.post("/rebuild?mode=hard")).json()["field"] == "mode"


async def test_wrong_methods_and_paths_are_problems_that_say_what_is_right(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        for method, path, allowed in (
            ("POST", "/checkpoints", "GET"),
            ("GET", "/rebuild", "POST"),
            ("DELETE", "/checkpoints/events", "GET"),
        ):
            answer = await http.request(method, path)
            assert answer.status_code == 405
            assert allowed in answer.headers["allow"]
            assert answer.json()["field"] == "method"
        lost = await http.get("/checkpoint")
        assert (lost.status_code, lost.json()["value"]) == (404, "/checkpoint")
        assert lost.headers["content-type"] == "application/problem+json"


async def test_head_has_the_headers_of_get_and_no_body(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        backend.put("a.ckpt")
        for path in ("/checkpoints", "/health", "/"):
            get, head = await http.get(path), await http.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers.get("etag") == get.headers.get("etag")
            assert head.headers["content-length"] == get.headers["content-length"]
        live = await http.head("/checkpoints/events")
        assert live.headers["content-type"].startswith("text/event-stream")


async def test_health_tells_state_reasons_roots_and_times(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        assert (await http.get("/health")).json() == {"status": "ok"}
        backend.put("a.ckpt")
        health = (await http.get("/health/checkpoints")).json()
        assert health["catalog_status"] == "degraded"
        assert health["reasons"] == ["metadata coverage is 50 %"]
        assert (health["checkpoint_count"], health["metadata_coverage"]) == (1, 0.0)
        assert dt.datetime.fromisoformat(health["complete_as_of"]).timestamp() == COMPLETE_AS_OF
        assert health["roots"][0]["watching"] is True
        assert health["recent_errors"][0]["message"] == "no space left"
        assert health["last_build_time_seconds"] == 0.15


async def test_metrics_count_what_happened_under_bounded_labels(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        backend.put("a.ckpt")
        listener = await server.listen()
        await listener.until("complete")
        await http.get("/checkpoints/abcdefghijklmnop")
        await http.get("/nowhere/at/all")
        await http.request("PROPFIND", "/checkpoints")
        text = (await http.get("/metrics")).text
        assert 'ckptd_checkpoints{health="valid"} 1.0' in text
        assert 'ckptd_status{status="degraded"} 1.0' in text
        assert "ckptd_revision 1.0" in text
        assert "ckptd_stream_listeners 1.0" in text
        assert 'route="/checkpoints/{id}",status="4xx"' in text
        assert 'method="GET",route="other",status="4xx"' in text
        assert 'method="other",route="/checkpoints"' in text
        assert "nowhere" not in text
        await listener.close()
        await until(lambda: len(backend.hub) == 0)


async def test_the_first_page_names_the_endpoints(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        page = await http.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "checkpoints/events" in page.text


async def test_everything_is_served_on_a_unix_socket_too(backend: FakeBackend, tmp_path: Any) -> None:
    async with serving(backend, uds=os.path.join(tmp_path, "sock")) as server, server.client() as http:
        backend.put("a.ckpt")
        assert (await http.get("/checkpoints")).json()["total"] == 1
        listener = await server.listen()
        await listener.until("complete")
        backend.put("b.ckpt")
        assert b"b.ckpt" in await listener.until("upsert")
        await listener.close()


async def test_an_error_inside_is_a_problem_without_details(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        checkpoint_id = backend.put("a.ckpt")

        async def broken(_: object) -> None:
            raise OSError("the disk is on fire")

        backend.description = broken  # type: ignore[method-assign, assignment]
        answer = await http.get(f"/checkpoints/{checkpoint_id}")
        assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
        assert "fire" not in answer.text
