"""The description of the API at /openapi.json (OpenAPI 3.1), put together from the routes' own declarations."""

import hashlib
import http
import importlib.metadata
import json
import os
from collections.abc import Iterable
from typing import Any

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from . import problems
from .endpoint import EVENT_STREAM, NO_CONTENT, Answer, Endpoint
from .parameter_types import Parameter
from .responses import JSON, is_current, json_response, not_modified
from .security import AccessPolicy

_REFERENCE = "#/components/schemas/{model}"
_EXAMPLES = os.path.join(os.path.dirname(__file__), "examples.json")
"""What a real tree answered; tests/service/test_openapi.py writes it and holds it true."""
HEADERS = {
    "Access-Control-Allow-Headers": "What a page elsewhere may send.",
    "Access-Control-Allow-Methods": "What a page elsewhere may ask for.",
    "Allow": "Methods that the path answers to.",
    "Cache-Control": "Whether and how the answer may be kept.",
    "Content-Encoding": "`gzip`, where asked for and worth it.",
    "ETag": "Names this answer: send it as `If-None-Match` to be told when nothing has changed.",
    "Location": "Where to go on.",
    "Retry-After": "Seconds after which to come back.",
    "Set-Cookie": "Keeps the browser signed in.",
    "Vary": "Request headers that the answer depends on.",
    "WWW-Authenticate": "How to prove that one may read.",
    "X-Accel-Buffering": "`no`: has nginx pass events on at once.",
    "X-Heartbeat-Interval": "Seconds between two heartbeats; a stream that is silent for 2.5 of them is dead.",
    "X-Complete-As-Of": "Nothing that was on disk by then is missing; RFC 3339. Not there before a first sweep ended.",
}
_PROBLEMS = {
    400: "A parameter is unknown, is there twice or has a value that cannot be used.",
    401: "The token is missing or wrong.",
    403: "A page of another origin asks for a change.",
    404: "There is nothing at this path, or no checkpoint ever had this id.",
    405: "The path does not answer to this method; `Allow` says to which it does.",
    406: "None of the media types that are accepted can be had.",
    410: "The checkpoint was there and is gone: when, and why.",
    421: "The request names a host that this catalog does not answer for.",
    429: "Too many wrong tokens came from there; the right one is let in at once.",
    503: "The service is not ready, or too many clients are connected.",
}
_PROBLEM_MODELS = {406: "NotAcceptable", 410: "Gone"}
_PROBLEM_HEADERS = {401: ("WWW-Authenticate",), 405: ("Allow",), 429: ("Retry-After",), 503: ("Retry-After",)}
_ABOUT = """A live catalog of PyTorch checkpoints.

Every refusal is `application/problem+json` and says which field is to blame, what it held and what to do. Times are
RFC 3339 in UTC. HEAD is answered wherever GET is, OPTIONS everywhere; other methods are a 405 with `Allow`. Parameters
that are not declared are refused, so that a misspelt filter never passes for none."""


class ApiDescription:
    """Answers `/openapi.json`. It is made when it is first asked for: most services never are."""

    def __init__(self, access: AccessPolicy) -> None:
        self._access = access
        self._endpoints: tuple[Endpoint, ...] = ()
        self._made: tuple[str, str, bytes] | None = None
        """(prefix, entity tag, body) of the answer made last."""

    def of(self, endpoints: Iterable[Endpoint]) -> None:
        """Describe these."""
        self._endpoints = tuple(endpoints)

    async def answer(self, request: Request) -> Response:
        """The description, for clients that come by the prefix of this request."""
        prefix = request.scope.get("root_path", "")
        if self._made is None or self._made[0] != prefix:
            body = await anyio.to_thread.run_sync(self._encoded, prefix)
            self._made = (prefix, f'"{hashlib.blake2b(body, digest_size=8).hexdigest()}"', body)
        _, etag, body = self._made
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        return not_modified(headers) if is_current(request, etag) else await json_response(request, body, headers)

    def _encoded(self, prefix: str) -> bytes:
        return msgspec.json.encode(describe(self._endpoints, self._access, prefix))


def describe(endpoints: Iterable[Endpoint], access: AccessPolicy, prefix: str = "") -> dict[str, Any]:
    """The whole document.

    Args:
        endpoints: what is served.
        access: who gets in.
        prefix: of all paths, as clients see them: of a mount or a proxy.
    """
    endpoints = tuple(endpoints)
    with open(_EXAMPLES, encoding="utf-8") as file:
        examples = json.load(file)
    operations = _Operations(access, examples)
    return {
        "openapi": "3.1.0",
        "info": {"title": "ckptd", "version": importlib.metadata.version("ckptd"), "description": _ABOUT},
        "servers": [{"url": prefix or "/"}],
        "tags": [
            {"name": "checkpoints", "description": "The catalog."},
            {"name": "compatible", "description": "The catalog with the field names of existing studios."},
            {"name": "service", "description": "The service itself."},
        ],
        "paths": {endpoint.path: operations.of(endpoint) for endpoint in endpoints},
        "components": {
            "schemas": _schemas(answer.model for endpoint in endpoints for answer in endpoint.answers),
            "responses": {_problem_name(status): _problem(status, text) for status, text in _PROBLEMS.items()}
            | {"Problem": _problem(None, "Any other refusal.")},
            "headers": {n: {"description": text, "schema": {"type": "string"}} for n, text in HEADERS.items()},
            **_security(access),
        },
    }


class _Operations:
    """Endpoints → path items."""

    def __init__(self, access: AccessPolicy, examples: dict[str, Any]) -> None:
        self._access = access
        self._examples = examples

    def of(self, endpoint: Endpoint) -> dict[str, Any]:
        """What can be done at its path."""
        item: dict[str, Any] = {
            "parameters": [_parameter(p) for p in endpoint.parameters if p.location == "path"],
            endpoint.method.lower(): self._operation(endpoint),
            "options": self._options(endpoint),
        }
        if endpoint.method == "GET":
            item["head"] = _without_bodies(item["get"]) | {
                "operationId": f"{endpoint.name}_head",
                "summary": "the headers of GET",
            }
        return {key: value for key, value in item.items() if value}

    def _operation(self, endpoint: Endpoint) -> dict[str, Any]:
        parameters = [_parameter(p) for p in endpoint.parameters if p.location != "path"]
        if any(answer.status == 304 for answer in endpoint.answers):
            parameters.append(_IF_NONE_MATCH)
        by_query = [400] if endpoint.parameters and endpoint.checks_query else []
        refusals = {*self._refusals(endpoint), *endpoint.problems, *by_query}
        refusals -= {answer.status for answer in endpoint.answers}
        return {
            "operationId": endpoint.name,
            "tags": [endpoint.tag],
            "summary": endpoint.summary,
            **({"description": endpoint.description} if endpoint.description else {}),
            "parameters": parameters,
            "responses": self._responses(endpoint) | _refused(refusals),
            **self._security(endpoint),
        }

    def _options(self, endpoint: Endpoint) -> dict[str, Any]:
        allowed = Answer(
            status=204,
            description=f"{endpoint.allow}. To a page of a named origin that asks whether it may: what it may.",
            media_type=NO_CONTENT,
            headers=("Cache-Control",),
            may_have=("Allow", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers"),
        )
        of_path = {404 for parameter in endpoint.parameters if parameter.location == "path"}
        return {
            "operationId": f"{endpoint.name}_options",
            "tags": [endpoint.tag],
            "summary": "the methods that this path answers to",
            "responses": {"204": self._response(allowed)} | _refused(self._refusals(endpoint) | of_path),
            **self._security(endpoint),
        }

    def _responses(self, endpoint: Endpoint) -> dict[str, Any]:
        """By status; answers of one status in several media types are one response."""
        responses: dict[str, Any] = {}
        for answer in endpoint.answers:
            shown = self._response(answer)
            known = responses.setdefault(str(answer.status), shown)
            known.setdefault("content", {}).update(shown.get("content", {}))
        return {status: {k: v for k, v in shown.items() if v or k != "content"} for status, shown in responses.items()}

    def _response(self, answer: Answer) -> dict[str, Any]:
        response: dict[str, Any] = {"description": answer.description}
        headers = {name: _header(name, required=True) for name in answer.headers}
        headers |= {name: _header(name) for name in answer.may_have}
        if headers:
            response["headers"] = headers
        if answer.links:
            response["links"] = {
                name: {"operationId": name, "parameters": {"id": f"$response.body#{pointer}"}}
                for name, pointer in answer.links.items()
            }
        if answer.media_type != NO_CONTENT:
            example = {"example": self._examples[answer.example]} if answer.example in self._examples else {}
            response["content"] = {answer.media_type: _content(answer) | example}
        return response

    def _refusals(self, endpoint: Endpoint) -> set[int]:
        """By whoever stands at the door."""
        if endpoint.is_public:
            return {503}
        by_token = set() if self._access.is_open else {401, 429}
        by_host = set() if self._access.hosts is None else {421}
        return {503, *by_token, *by_host, *({403} if endpoint.method == "POST" else ())}

    def _security(self, endpoint: Endpoint) -> dict[str, Any]:
        if self._access.is_open:
            return {}
        return {"security": [] if endpoint.is_public else [{"token": []}, {"cookie": []}]}


# ---- pieces ----------------------------------------------------------------------------------------------------


def _parameter(parameter: Parameter) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": parameter.shown_name,
        "in": parameter.location,
        "description": parameter.description,
        "required": parameter.required,
        "schema": dict(parameter.schema),
    }
    if parameter.default is not None:
        shown["schema"]["default"] = parameter.default
    if parameter.repeatable:
        shown["schema"] = {"type": "array", "items": shown["schema"], "minItems": 1, **parameter.array_schema}
    if parameter.repeatable or parameter.comma_separated or parameter.is_prefix:
        shown |= {"style": "form", "explode": not parameter.comma_separated}
    if parameter.examples:
        shown["examples"] = {str(example): {"value": example} for example in parameter.examples}
    return shown


_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "entity tags of answers that the client has",
    "schema": {"type": "string"},
}


def _header(name: str, *, required: bool = False) -> dict[str, Any]:
    if not required:
        return {"$ref": f"#/components/headers/{name}"}
    return {"description": HEADERS[name], "required": True, "schema": {"type": "string"}}


def _content(answer: Answer) -> dict[str, Any]:
    if answer.model is None:
        return {"schema": {"type": "string"}}
    model = {"$ref": _REFERENCE.format(model=answer.model)}
    if answer.media_type != EVENT_STREAM:
        return {"schema": model}
    # OpenAPI 3.1 has no word for the items of a stream; tools read the schema as that of one event.
    data = {"type": "string", "contentMediaType": JSON, "contentSchema": model}
    event = {"data": data, "id": {"type": "string"}, "retry": {"type": "integer", "description": "milliseconds"}}
    return {"schema": {"type": "object", "description": "One event.", "properties": event, "required": ["data"]}}


def _refused(statuses: Iterable[int]) -> dict[str, Any]:
    named = {str(status): _problem_name(status) for status in sorted(statuses)} | {"default": "Problem"}
    return {status: {"$ref": f"#/components/responses/{name}"} for status, name in named.items()}


def _problem_name(status: int) -> str:
    return http.HTTPStatus(status).phrase.title().replace(" ", "")


def _problem(status: int | None, description: str) -> dict[str, Any]:
    model = _PROBLEM_MODELS.get(status or 0, "Problem")
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model=model)}}}
    required = ("Cache-Control", *_PROBLEM_HEADERS.get(status or 0, ()))
    headers = {name: _header(name, required=True) for name in required}
    return {"description": description, "headers": headers, "content": content}


def _without_bodies(operation: dict[str, Any]) -> dict[str, Any]:
    """The same for HEAD."""
    described = {}
    for status, response in operation["responses"].items():
        if "$ref" in response:
            text = _PROBLEMS.get(int(status), "") if status.isdigit() else "Any other refusal."
            described[status] = {"description": text}
        else:
            described[status] = {key: value for key, value in response.items() if key not in ("content", "links")}
    return operation | {"responses": described}


def _security(access: AccessPolicy) -> dict[str, Any]:
    if access.is_open:
        return {}
    token = {
        "type": "http",
        "scheme": "bearer",
        "description": "`ckptd token` prints it; `ckptd token --read` prints one that may only read.",
    }
    cookie = {"type": "apiKey", "in": "cookie", "name": access.cookie_name, "description": "Set by `/?token=…`."}
    return {"securitySchemes": {"token": token, "cookie": cookie}}


def _schemas(names: Iterable[str | None]) -> dict[str, Any]:
    """The schemas of models, and of all that they refer to."""
    from .wire_schema import schemas_of  # takes longer than all the rest, and nobody else needs it

    wanted = [*(name for name in dict.fromkeys(names) if name is not None), "Problem", *_PROBLEM_MODELS.values()]
    return schemas_of(wanted, _REFERENCE)
