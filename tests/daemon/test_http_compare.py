"""`/checkpoints/compare` and `/checkpoints/{id}/tensors` over real sockets: forms, limits and every bad value."""

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import torch

from ckptd.catalog.store import Change, DeleteReason, Removal
from ckptd.daemon.settings import Settings
from tests.catalog.catalog_records import id_at
from tests.daemon.compared_backend import put_file, put_models
from tests.daemon.fakes import FakeBackend, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    return FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")))


async def ask(http: httpx.AsyncClient, ids: list[Any], accept: str = "", **parameters: Any) -> httpx.Response:
    query = [*(("id", str(each)) for each in ids), *((k, str(v)) for k, v in parameters.items())]
    return await http.get("/checkpoints/compare", params=query, headers={"Accept": accept} if accept else {})


# ---- compare -------------------------------------------------------------------------------------------------------


async def test_checkpoints_are_compared_in_the_order_in_which_they_are_named(
    backend: FakeBackend, tmp_path: Path
) -> None:
    ids = put_models(backend, tmp_path, 3)
    async with serving(backend) as server, server.client() as http:
        answer = await ask(http, [ids[2], ids[0]])
        assert answer.headers["content-type"] == "application/json"
        found = answer.json()
        assert [entry["id"] for entry in found["checkpoints"]] == [ids[2], ids[0]]
        assert (found["verdict"], found["weights"]) == ("different", ["different"])
        seed = next(row for row in found["hyper_parameters"]["rows"] if row["name"] == "seed")
        assert (seed["values"], seed["status"]) == ([2, 0], "differing")
        (hmean,) = found["metrics"]["rows"]
        assert (hmean["direction"], hmean["best"]) == ("max", [0])
        assert [row["changes"] for row in found["tensors"]["rows"]] == [["changed"], ["same"]]


async def test_the_form_is_negotiated_and_format_overrides_it(backend: FakeBackend, tmp_path: Path) -> None:
    ids = put_models(backend, tmp_path)
    async with serving(backend) as server, server.client() as http:
        for accept, parameters, expected in (
            ("text/csv;q=0.9, text/markdown;q=0.1", {}, "text/csv; charset=utf-8; header=present"),
            ("text/markdown", {}, "text/markdown; charset=utf-8; variant=GFM"),
            ("text/markdown", {"format": "csv"}, "text/csv; charset=utf-8; header=present"),
            ("text/csv", {"format": "json"}, "application/json"),
            ("image/png", {"format": "markdown"}, "text/markdown; charset=utf-8; variant=GFM"),
        ):
            answer = await ask(http, ids, accept, **parameters)
            assert (answer.status_code, answer.headers["content-type"]) == (200, expected)
            assert "Accept" in answer.headers["vary"].split(", ")
        table = list(csv.reader(io.StringIO((await ask(http, ids, "text/csv")).text)))
        assert table[0] == ["section", "name", "status", "best", "0.ckpt", "1.ckpt"]
        refused = await ask(http, ids, "image/png, application/json;q=0")
        assert (refused.status_code, refused.json()["field"]) == (406, "accept")
        assert refused.json()["available"] == ["application/json", "text/csv", "text/markdown"]


async def test_an_unchanged_comparison_is_a_304_for_its_form_alone(backend: FakeBackend, tmp_path: Path) -> None:
    ids = put_models(backend, tmp_path)
    async with serving(backend) as server, server.client() as http:
        known = {"If-None-Match": (await ask(http, ids)).headers["etag"]}
        url = f"/checkpoints/compare?id={ids[0]}&id={ids[1]}"
        same = await http.get(url, headers=known)
        assert (same.status_code, same.content) == (304, b"")
        assert "Accept" in same.headers["vary"]
        assert (await http.get(url, headers=known | {"Accept": "text/csv"})).status_code == 200
        backend.put("other.ckpt")
        assert (await http.get(url, headers=known)).status_code == 304, "another checkpoint's change is none of these"
        description = backend.descriptions[ids[0]]
        read_through = msgspec.structs.replace(description.inspection, digest="blake3:0")
        backend.descriptions[ids[0]] = msgspec.structs.replace(description, inspection=read_through)
        anew = await http.get(url, headers=known)
        assert anew.status_code == 200, "a file without checksums was read: its entry stays as it was"
        known = {"If-None-Match": anew.headers["etag"]}
        backend.put("0.ckpt", epoch=77)
        assert (await http.get(url, headers=known)).status_code == 200


async def test_rows_of_tensors_are_paged_chosen_and_left_out(backend: FakeBackend, tmp_path: Path) -> None:
    ids = put_models(backend, tmp_path)
    async with serving(backend) as server, server.client() as http:
        second = (await ask(http, ids, tensor_limit=1, tensor_offset=1)).json()["tensors"]
        assert ([row["name"] for row in second["rows"]], second["total"]) == (["state_dict.body.weight"], 2)
        assert (second["limit"], second["offset"]) == (1, 1)
        chosen = (await ask(http, ids, tensor_change="changed,added")).json()["tensors"]
        assert ([row["name"] for row in chosen["rows"]], chosen["total"]) == (["state_dict.head.weight"], 1)
        none = (await ask(http, ids, tensor_limit=0)).json()["tensors"]
        assert (none["rows"], none["counts"][0]["same"]) == ([], 1)


@pytest.mark.parametrize("query", ["", "id={0}", "id={0}&id={0}", "id={0}&id={1}&id={2}&id={3}&id={4}", "id=,"])
async def test_fewer_than_two_more_than_four_or_the_same_twice_are_refused(
    backend: FakeBackend, tmp_path: Path, query: str
) -> None:
    ids = put_models(backend, tmp_path, 5)
    async with serving(backend) as server, server.client() as http:
        refused = await http.get(f"/checkpoints/compare?{query.format(*ids)}")
        assert (refused.status_code, refused.json()["field"]) == (400, "id")
        assert "2 to 4 different ids" in refused.json()["remedy"]


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        *(("tensor_limit", value) for value in ("-1", "10001", "x", "", "1e3", "٣", "9" * 5000)),
        *(("tensor_offset", value) for value in ("-1", "x", "", "1.5")),
        *(("tensor_change", value) for value in ("", "odd", "same,odd", "%FF", "same;changed")),
        *(("format", value) for value in ("", "xml", "JSON", "%00")),
        ("tensor_limits", "3"),
    ],
)
async def test_every_bad_value_is_a_problem_that_names_it(
    backend: FakeBackend, tmp_path: Path, parameter: str, value: str
) -> None:
    first, second = put_models(backend, tmp_path)
    async with serving(backend) as server, server.client() as http:
        refused = await http.get(f"/checkpoints/compare?id={first}&id={second}&{parameter}={value}")
        assert (refused.status_code, refused.json()["field"]) == (400, parameter)
        assert refused.headers["content-type"] == "application/problem+json"
        twice = await http.get(f"/checkpoints/compare?id={first}&id={second}&format=csv&format=json")
        assert (twice.status_code, twice.json()["field"]) == (400, "format")


async def test_ids_that_never_were_or_are_gone_are_named(backend: FakeBackend, tmp_path: Path) -> None:
    ids = put_models(backend, tmp_path)
    async with serving(backend) as server, server.client() as http:
        for odd, status in (
            *((odd, 404) for odd in ("aaaaaaaaaaaaaaaa", "x" * 5000, "..%2f..%2fetc%2fpasswd", "%00", "\N{SNOWMAN}")),
            *((odd, 400) for odd in ("%FF", "%FF%00")),
        ):
            unknown = await http.get(f"/checkpoints/compare?id={ids[0]}&id={odd}")
            assert (unknown.status_code, unknown.json()["field"]) == (status, "id")
            assert len(unknown.content) < 1000
        backend.drop("1.ckpt")
        gone = await ask(http, ids)
        assert (gone.status_code, gone.json()["value"], gone.json()["reason"]) == (410, ids[1], "removed")
        assert "deleted_at" in gone.json()


async def test_a_checkpoint_without_a_description_is_compared_by_its_entry(
    backend: FakeBackend, tmp_path: Path
) -> None:
    (known,) = put_models(backend, tmp_path, 1)
    bare = backend.put("bare.ckpt", epoch=5)
    async with serving(backend) as server, server.client() as http:
        found = (await ask(http, [known, bare])).json()
        assert (found["tensors"]["known"], found["weights"]) == ([True, False], ["unknown"])
        assert found["training"]["rows"][0]["values"] == [0, 5]


async def test_a_moved_checkpoint_is_gone_and_says_where_to(backend: FakeBackend) -> None:
    old, new = backend.put("old.ckpt"), backend.put("new.ckpt")
    backend.publish(Change(old, lambda _: Removal(old, DeleteReason.MOVED, new)))
    async with serving(backend) as server, server.client() as http:
        gone = (await http.get(f"/checkpoints/{old}")).json()
        assert (gone["status"], gone["reason"], gone["moved_to"]) == (410, "moved", new)
        assert "new.ckpt" in gone["remedy"]
        backend.drop("new.ckpt")
        assert "moved_to" not in (await http.get(f"/checkpoints/{old}")).json(), "it is not there either"


@pytest.mark.parametrize("path", ["/checkpoints/compare?id={0}&id={1}", "/checkpoints/{0}", "/checkpoints/{0}/tensors"])
async def test_head_has_the_headers_of_get_and_other_methods_are_refused(
    backend: FakeBackend, tmp_path: Path, path: str
) -> None:
    url = path.format(*put_models(backend, tmp_path))
    async with serving(backend) as server, server.client() as http:
        get, head = await http.get(url), await http.head(url)
        assert (head.status_code, head.content) == (200, b"")
        for header in ("etag", "content-type", "vary", "cache-control"):
            assert head.headers[header] == get.headers[header]
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            refused = await http.request(method, url)
            assert (refused.status_code, refused.json()["field"]) == (405, "method")
            assert "GET" in refused.headers["allow"]


# ---- tensors -------------------------------------------------------------------------------------------------------


def put_model(backend: FakeBackend, root: Path) -> str:
    state = {"b.weight": torch.ones(4, 4), "a.weight": torch.ones(2), "a.bias": torch.ones(8, dtype=torch.float64)}
    checkpoint = {"state_dict": state, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(4, 4)}}}]}
    return put_file(backend, root, "m.ckpt", checkpoint)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["b.weight", "a.weight", "a.bias", "exp_avg"]),
        ("sort_order=desc", ["exp_avg", "a.bias", "a.weight", "b.weight"]),
        ("sort_by=name&role=weights", ["a.bias", "a.weight", "b.weight"]),
        ("sort_by=nbytes", ["b.weight", "a.bias", "exp_avg", "a.weight"]),
        ("sort_by=nbytes&sort_order=asc&limit=1", ["a.weight"]),
        ("sort_by=dtype&role=weights", ["b.weight", "a.weight", "a.bias"]),
        ("sort_by=role&sort_order=desc", ["exp_avg", "b.weight", "a.weight", "a.bias"]),
        ("sort_by=rank&sort_order=asc&role=weights", ["a.weight", "a.bias", "b.weight"]),
        ("prefix=state_dict.a.", ["a.weight", "a.bias"]),
        ("prefix=state_dict.a.&offset=1", ["a.bias"]),
        ("role=optimizer,other", ["exp_avg"]),
        ("offset=100", []),
        ("prefix=none", []),
    ],
)
async def test_tensors_are_filtered_sorted_and_cut_into_pieces(
    backend: FakeBackend, tmp_path: Path, query: str, names: list[str]
) -> None:
    checkpoint_id = put_model(backend, tmp_path)
    async with serving(backend) as server, server.client() as http:
        table = (await http.get(f"/checkpoints/{checkpoint_id}/tensors?{query}")).json()
        shown = [tensor["name"].removeprefix("state_dict.").rpartition("0.")[2] for tensor in table["tensors"]]
        assert shown == names


async def test_totals_are_those_of_all_that_fit(backend: FakeBackend, tmp_path: Path) -> None:
    checkpoint_id = put_model(backend, tmp_path)
    async with serving(backend) as server, server.client() as http:
        table = (await http.get(f"/checkpoints/{checkpoint_id}/tensors?role=weights&limit=1")).json()
        assert (table["total"], table["nbytes"], len(table["tensors"])) == (3, 64 + 8 + 64, 1)
        assert (table["tensors"][0]["storage_nbytes"], type(table["tensors"][0]["storage_crc32"])) == (64, int)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        *(("limit", value) for value in ("0", "-1", "10001", "x", "")),
        *(("offset", value) for value in ("-1", "x", "")),
        *(("sort_by", value) for value in ("", "shape", "metrics.x")),
        *(("sort_order", value) for value in ("", "up")),
        *(("role", value) for value in ("", "weight", "weights,odd")),
        *(("prefix", value) for value in ("", "p" * 5000)),
        ("page", "1"),
    ],
)
async def test_every_bad_value_of_a_tensor_query_is_a_problem(
    backend: FakeBackend, tmp_path: Path, parameter: str, value: str
) -> None:
    checkpoint_id = put_model(backend, tmp_path)
    async with serving(backend) as server, server.client() as http:
        refused = await http.get(f"/checkpoints/{checkpoint_id}/tensors?{parameter}={value}")
        assert (refused.status_code, refused.json()["field"]) == (400, parameter)


async def test_a_long_comparison_is_compressed(backend: FakeBackend, tmp_path: Path) -> None:
    state = {f"layer{n}.weight": torch.zeros(1) for n in range(2000)}
    ids = [put_file(backend, tmp_path, f"{n}.ckpt", {"state_dict": state}) for n in range(2)]
    assert ids[0] == id_at("0.ckpt")
    async with serving(backend) as server, server.client() as http:
        url = f"/checkpoints/compare?id={ids[0]}&id={ids[1]}"
        async with http.stream("GET", url, headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["content-encoding"] == "gzip"
            body = b"".join([chunk async for chunk in answer.aiter_raw()])
        plain = await http.get(url, headers={"Accept-Encoding": "identity"})
        assert gzip.decompress(body) == plain.content
        assert len(plain.json()["tensors"]["rows"]) == 1000
        assert plain.headers["etag"] != answer.headers["etag"]
