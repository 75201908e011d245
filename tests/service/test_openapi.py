"""/openapi.json: what it says is what is served, and what is served is what it says."""

import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import pytest

from ckptd.catalog.entry import CheckpointEntry
from ckptd.daemon.http.endpoints import EVENTS_PATH
from ckptd.daemon.http.models import model_of
from ckptd.daemon.http.openapi import describe
from tests.service.api_examples import collect, same_shape
from tests.service.api_trees import NAMES, write_odd_tree, write_tree
from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.contract import Contract, contract
from tests.service.daemons import DEADLINE_S, Daemon, eventually

NEVER = "aaaaaaaaaaaaaaaa"
EXAMPLES = pathlib.Path(describe.__code__.co_filename).with_name("examples.json")
REGENERATE = os.environ.get("CKPTD_REGENERATE_EXAMPLES") == "1"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A service over one of everything; `gone.ckpt` was there."""
    tmp_path = tmp_path_factory.mktemp("api")
    roots = [tmp_path / "outputs", tmp_path / "odd"]
    for root, write in zip(roots, (write_tree, write_odd_tree), strict=True):
        root.mkdir()
        write(root)
    config = tmp_path / "ckptd.yaml"
    config.write_text("suffixes: [.ckpt, .safetensors]\n")
    with Daemon(roots, tmp_path / "state", config=config, sidecar_delay_s=0.05, quiet_s=0.2, abandoned_s=0.5) as daemon:
        daemon.wait_complete()
        eventually(lambda: len(daemon.entries()) == NAMES, "all are listed")
        eventually(lambda: not daemon.health()["pending"], "all are described")
        yield daemon


@pytest.fixture(scope="module")
def served(daemon: Daemon) -> Contract:
    """What this service says of itself."""
    return Contract(daemon.get("/openapi.json").json())


@pytest.fixture(scope="module")
def gone(daemon: Daemon) -> str:
    """The id of a checkpoint that was there."""
    path = daemon.roots[0] / "gone.ckpt"
    rename_in(path, checkpoint_bytes(9))
    entry = eventually(lambda: daemon.entries().get("gone.ckpt"), "it is listed")
    path.unlink()
    eventually(lambda: "gone.ckpt" not in daemon.entries(), "it is gone")
    return str(entry["id"])


def ask(daemon: Daemon, served: Contract, method: str, path: str, **options: Any) -> httpx.Response:
    """One request, whose answer must be as described."""
    answer = httpx.request(method, daemon.url + path, timeout=DEADLINE_S, **options)
    served.check(method, str(answer.request.url), answer.status_code, answer.headers, answer.content)
    return answer


def test_every_answer_of_a_broad_walk_is_as_described(daemon: Daemon, served: Contract, gone: str) -> None:
    """Every path by every method, ids of every kind, conditional, compressed, refused."""
    ids = [entry["id"] for entry in daemon.entries().values()]
    for template in served.document["paths"]:
        concrete = [template.replace("{id}", name) for name in (ids[0], gone, NEVER, "%FF")]
        for path in dict.fromkeys(concrete):
            for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"):
                if (method, path) != ("GET", EVENTS_PATH):
                    ask(daemon, served, method, path)
    for path in (f"/checkpoints/{name}{rest}" for name in ids for rest in ("", "/tensors")):
        etag = ask(daemon, served, "GET", path).headers["etag"]
        assert ask(daemon, served, "GET", path, headers={"If-None-Match": etag}).status_code == 304
    for query in ("page_size=2&page=2", "include_invalid=true", "page=0", "nonsense=1", "min_hmean=0.5", "health=ill"):
        for path in ("/checkpoints", "/checkpoints/stream", "/api/inference/checkpoints", "/api/v1/checkpoints"):
            for coding in ("gzip", "identity"):
                ask(daemon, served, "GET", f"{path}?{query}", headers={"Accept-Encoding": coding})
                ask(daemon, served, "HEAD", f"{path}?{query}", headers={"Accept-Encoding": coding})
    listed = {(m, p, str(s)) for m, p, s in served.seen}
    declared = {
        (method.upper(), path, status)
        for path, item in served.document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
        for status in operation["responses"]
    }
    unseen = {(m, p, s) for m, p, s in declared - listed if s in ("200", "202", "204", "304", "404", "410")}
    assert {p for m, p, _ in unseen if m == "GET"} <= {EVENTS_PATH, "/openapi.json"} | {
        p for _, p, s in unseen if s == "304"
    }, "every declared answer is one that is given"


@pytest.mark.parametrize("path", ["/checkpoints", "/checkpoints/events", "/rebuild", "/health", "/"])
def test_other_methods_are_405_with_what_is_allowed_and_options_says_the_same(daemon: Daemon, path: str) -> None:
    options = httpx.options(daemon.url + path)
    refused = httpx.delete(daemon.url + path)
    assert (options.status_code, options.content) == (204, b"")
    assert (refused.status_code, refused.json()["field"]) == (405, "method")
    assert refused.headers["allow"] == options.headers["allow"]
    assert options.headers["allow"] == ("OPTIONS, POST" if path == "/rebuild" else "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("path", ["/checkpoints?page_size=3", "/checkpoints/stream", "/checkpoints/events", "/health"])
def test_head_has_the_headers_of_get_and_no_body(daemon: Daemon, path: str) -> None:
    head = httpx.head(daemon.url + path)
    with httpx.stream("GET", daemon.url + path) as got:
        shown = {name: got.headers[name] for name in got.headers if name not in ("date", "transfer-encoding")}
    assert head.content == b""
    assert {name: head.headers.get(name) for name in shown if name != "content-length"} == {
        name: value for name, value in shown.items() if name != "content-length"
    }
    assert head.headers.get("content-length") in (None, shown.get("content-length"))


def test_every_live_message_is_as_described(daemon: Daemon, served: Contract) -> None:
    seen = set()
    path = daemon.roots[0] / "coming.ckpt"
    with daemon.events(include_invalid="true") as events:
        for message in events:
            cursor = message.pop("_id")
            served.validate("LiveMessage", message)
            seen.add(message["type"])
            if message["type"] == "complete":
                rename_in(path, checkpoint_bytes(11))
            elif message["type"] == "upsert" and message["checkpoints"][0]["path"] == path.name and path.exists():
                path.unlink()
            elif message["type"] == "delete":
                daemon.rebuild()
            elif message["type"] == "rebuilt":
                break
    with daemon.events(include_invalid="true", last_event_id=cursor) as events:
        message = next(events)
        message.pop("_id")
        served.validate("LiveMessage", message)
        seen.add(message["type"])
    assert seen >= {"reset", "batch", "complete", "upsert", "delete", "rebuilt", "resumed"}


def test_the_description_is_valid_openapi_and_its_schemas_are_valid(served: Contract) -> None:
    document = served.document
    assert document["openapi"] == "3.1.0"
    assert document["servers"] == [{"url": "/"}]
    for name, schema in document["components"]["schemas"].items():
        jsonschema_rs.meta.validate(schema), name
    for node in _nodes(document):
        if isinstance(node.get("$ref"), str):
            served._resolved(node)  # KeyError: it leads nowhere
    names = [op["operationId"] for item in document["paths"].values() for m, op in item.items() if m != "parameters"]
    assert len(names) == len(set(names))


def test_the_model_of_an_entry_has_exactly_the_fields_that_are_encoded(served: Contract) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(CheckpointEntry)}
    schema = served.document["components"]["schemas"]["CheckpointEntry"]
    assert list(schema["properties"]) == list(fields)
    unset = {name for name, field in fields.items() if field.default is msgspec.UNSET}
    assert set(schema["required"]) == set(fields) - unset
    assert schema["additionalProperties"] is False
    assert schema["properties"]["path"]["description"].startswith("Relative to its root")
    assert model_of(CheckpointEntry).__name__ == "CheckpointEntry"


def test_entries_are_valid_for_the_pydantic_model_as_well(daemon: Daemon) -> None:
    for entry in daemon.entries().values():
        assert model_of(CheckpointEntry).model_validate_json(json.dumps(entry))


def test_the_examples_are_what_a_service_answers(served: Contract, tmp_path: pathlib.Path) -> None:
    """`CKPTD_REGENERATE_EXAMPLES=1` writes them anew."""
    answers = collect(tmp_path)
    if REGENERATE:
        EXAMPLES.write_text(json.dumps(answers, indent=1) + "\n")
    kept = json.loads(EXAMPLES.read_text())
    assert kept.keys() == answers.keys()
    for name, answer in answers.items():
        assert same_shape(kept[name], answer), f"{name} is not what is answered"
    contents = [node for node in _nodes(served.document["paths"]) if "example" in node]
    assert contents
    for content in contents:
        if isinstance(content["example"], str):
            served._check_body(content, "text/event-stream", content["example"].encode(), "an example")
        else:
            served._validate(content["schema"], content["example"], "an example")


def test_an_answer_that_is_not_as_described_is_noticed(served: Contract) -> None:
    """The check itself: a missing, an additional and a mistyped member."""
    entry = json.loads(EXAMPLES.read_text())["list"]["checkpoints"][0]
    served.validate("CheckpointEntry", entry)
    for wrong in (entry | {"more": 1}, entry | {"epoch": "3"}, {k: v for k, v in entry.items() if k != "root"}):
        with pytest.raises(AssertionError, match="openapi"):
            served.validate("CheckpointEntry", wrong)


def test_with_a_token_it_says_how_to_prove_it_and_what_needs_none() -> None:
    document = contract("a" * 32).document
    schemes = document["components"]["securitySchemes"]
    assert schemes["token"]["scheme"] == "bearer"
    assert re.fullmatch("ckptd_[0-9a-f]{8}", schemes["cookie"]["name"])
    assert document["paths"]["/checkpoints"]["get"]["security"] == [{"token": []}, {"cookie": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "401" in document["paths"]["/checkpoints"]["get"]["responses"]
    assert "securitySchemes" not in contract(None).document["components"]


def test_the_description_is_compressed_and_cached(daemon: Daemon) -> None:
    first = daemon.get("/openapi.json")
    assert first.headers["content-encoding"] == "gzip"
    again = httpx.get(f"{daemon.url}/openapi.json", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(inner)
