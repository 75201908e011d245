"""The endpoints of existing studios, over real sockets: their paths, fields and order."""

import json
from typing import Any

import pytest

from ckptd.daemon.settings import Settings
from tests.daemon.fakes import FakeBackend, serving

pytestmark = pytest.mark.anyio

FIELDS = [
    "display_name",
    "checkpoint_path",
    "modified_at",
    "size_mb",
    "exp_name",
    "architecture",
    "backbone",
    "epoch",
    "global_step",
    "precision",
    "recall",
    "hmean",
]


@pytest.fixture
def backend(tmp_path: Any) -> FakeBackend:
    return FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")))


@pytest.mark.parametrize("path", ["/api/inference/checkpoints", "/api/v1/checkpoints"])
async def test_a_studio_gets_a_bare_array_of_its_own_fields_newest_first(backend: FakeBackend, path: str) -> None:
    async with serving(backend) as server, server.client() as http:
        backend.put_many(30)
        backend.put("scored.ckpt", metrics={"hmean": 0.8756, "loss": 0.1}, modified_ns=2**62)
        answer = (await http.get(path, params={"limit": 3})).json()
        assert [list(entry) for entry in answer] == [FIELDS] * 3
        assert (answer[0]["hmean"], answer[0]["precision"]) == (0.8756, None)
        assert [entry["epoch"] for entry in answer[1:]] == [29, 28]
        listed = (await http.get("/checkpoints", params={"page_size": 1})).json()["checkpoints"][0]
        assert answer[0]["size_mb"] == round(listed["size_bytes"] / 2**20, 2)
        assert answer[0]["checkpoint_path"] == listed["checkpoint_path"]


async def test_with_a_page_a_studio_gets_the_envelope(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        backend.put_many(30)
        page = (await http.get("/api/inference/checkpoints?page=2&page_size=20")).json()
        assert (page["total"], page["total_pages"], len(page["checkpoints"])) == (30, 2, 10)
        assert list(page["checkpoints"][0]) == FIELDS


async def test_a_studio_streams_batches_of_its_fields_and_then_complete(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        backend.put_many(25)
        answer = await http.get("/api/inference/checkpoints/stream?limit=20&batch_size=8")
        events = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: ")]
        assert [event["type"] for event in events] == ["batch", "batch", "batch", "complete"]
        assert [event.get("count") for event in events] == [8, 8, 4, None]
        assert list(events[0]["checkpoints"][0]) == FIELDS
        assert events[-1]["total"] == 20


async def test_an_unchanged_array_is_a_304_and_a_misspelt_parameter_a_problem(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        backend.put_many(3)
        first = await http.get("/api/v1/checkpoints")
        same = await http.get("/api/v1/checkpoints", headers={"If-None-Match": first.headers["etag"]})
        assert same.status_code == 304
        wrong = await http.get("/api/v1/checkpoints?limt=3")
        assert (wrong.status_code, wrong.json()["field"]) == (400, "limt")
        assert "limit" in wrong.json()["remedy"]
        stream = await http.get("/api/inference/checkpoints/stream?batchsize=3")
        assert "batch_size" in stream.json()["remedy"]
