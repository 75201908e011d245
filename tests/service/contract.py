"""The contract of the wire: holds every answer that a test sees against the description of the API."""

import functools
import json
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import jsonschema_rs

from ckptd.daemon.http import AccessPolicy
from ckptd.daemon.http.endpoints import endpoints
from ckptd.daemon.http.openapi import describe
from ckptd.daemon.settings import Settings

OTHER_REFUSALS = frozenset({405, 408, 413, 431, 500})
"""What the `default` answer stands for; everything else is declared by its status."""


class Contract:
    """A description of the API, and whether answers are as it says."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self._validators: dict[str, Any] = {}
        self.seen: set[tuple[str, str, int]] = set()
        """(method, path, status) of what was checked."""

    def check(
        self,
        method: str,
        url: str,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        prefix: str = "",
        kept: Collection[str] = (),
    ) -> None:
        """Fail where an answer is not declared as it is.

        Args:
            method: of the request.
            url: of the request.
            status: of the answer.
            headers: of the answer; names in lower case.
            body: of the answer, decompressed.
            prefix: under which the catalog is mounted.
            kept: headers that a proxy keeps for itself.
        """
        path = urlsplit(url).path.removeprefix(prefix)
        declared = self._declared(method, path, status)
        if declared is None:
            assert status in (401, 403, 404, 405, 421, 429), f"{method} {path} is not declared and answers {status}"
            declared = self.document["components"]["responses"]["Problem"]
        self._check_headers(declared, {**headers, **dict.fromkeys(kept, "")}, f"{method} {path} {status}")
        content = {} if method == "HEAD" else declared.get("content", {})
        if not content:
            assert body == b"", f"{method} {path} {status} is declared without a body"
            return
        media_type = headers.get("content-type", "").partition(";")[0]
        assert media_type in content, f"{method} {path} {status}: {media_type} is not declared"
        self._check_body(content[media_type], media_type, body, f"{method} {path} {status}")

    def validate(self, model: str, value: Any) -> None:
        """Fail unless `value` is valid for a model of the description."""
        self._validate({"$ref": f"#/components/schemas/{model}"}, value, model)

    def _declared(self, method: str, path: str, status: int) -> dict[str, Any] | None:
        template = next((p for p in self.document["paths"] if _pattern(p).fullmatch(path)), None)
        item = self.document["paths"].get(template, {})
        operation = item.get(method.lower())
        if operation is None:
            return None
        self.seen.add((method, str(template), status))
        responses = operation["responses"]
        assert str(status) in responses or status in OTHER_REFUSALS, f"{method} {path}: {status} is not declared"
        return self._resolved(responses.get(str(status)) or responses["default"])

    def _resolved(self, node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in node:
            return node
        target: Any = self.document
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return dict(target)

    def _check_headers(self, declared: dict[str, Any], headers: Mapping[str, str], what: str) -> None:
        for name, header in declared.get("headers", {}).items():
            required = self._resolved(header).get("required", False)
            assert not required or name.lower() in headers, f"{what}: the header {name} is missing"

    def _check_body(self, content: dict[str, Any], media_type: str, body: bytes, what: str) -> None:
        if media_type == "text/event-stream":
            data = content["schema"]["properties"]["data"]["contentSchema"]
            for line in body.decode().splitlines():
                if line.startswith("data:"):
                    self._validate(data, json.loads(line[5:]), what)
        elif media_type.endswith("json"):
            self._validate(content["schema"], json.loads(body), what)
        else:
            self._validate(content["schema"], body.decode(), what)

    def _validate(self, schema: dict[str, Any], value: Any, what: str) -> None:
        key = json.dumps(schema)
        if key not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[key] = jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
        errors = [f"{list(e.instance_path)}: {e.message[:500]}" for e in self._validators[key].iter_errors(value)]
        assert not errors, f"{what} is not as /openapi.json says: {errors[:3]}"


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)))


@functools.cache
def contract(token: str | None = "0123456789abcdef0123456789abcdef") -> Contract:
    """The contract of a service that is read with a token, or of one that is open to all."""
    from tests.daemon.fakes import FakeBackend  # it holds its own answers against this

    access = AccessPolicy(token, hosts=frozenset({"localhost"}))
    settings = Settings(roots=("/outputs",), state_dir="/state")
    return Contract(json.loads(json.dumps(describe(endpoints(FakeBackend(settings), access), access))))


def checked(response: httpx.Response, prefix: str = "") -> httpx.Response:
    """The response, which is as the description says."""
    request = response.request
    contract().check(request.method, str(request.url), response.status_code, response.headers, response.content, prefix)
    return response


class CheckedClient(httpx.AsyncClient):
    """A client whose every answer must be as the description says. Streams that are left open are not looked at."""

    async def request(self, *args: Any, **options: Any) -> httpx.Response:
        """See `httpx.AsyncClient`."""
        return checked(await super().request(*args, **options))
