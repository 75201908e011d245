"""Requests: what the Python client asks the daemon, built in one place for both of its forms."""

import datetime as dt
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .client_types import CheckpointPage

LARGEST_PAGE = 1000
TENSORS_AT_ONCE = 10_000
_COMMA_SEPARATED = frozenset(("health", "safety", "verified", "facets", "role", "tensor_change"))


class Request(NamedTuple):
    """One request, as both clients make it."""

    path: str
    parameters: Mapping[str, Any]
    method: str = "GET"
    accept: str = "application/json"


HEALTH = Request("/health/checkpoints", {})


def list_request(parameters: Mapping[str, Any]) -> Request:
    """A page of the list."""
    return Request("/checkpoints", parameters)


def following(asked: Mapping[str, Any], page: CheckpointPage) -> Mapping[str, Any] | None:
    """Parameters of the page after this one; None where there is none."""
    if page.next is None:
        return None
    return {name: value for name, value in asked.items() if name not in ("page", "facets")} | {"after": page.next}


def detail_request(checkpoint_id: str) -> Request:
    """One checkpoint in full."""
    return Request(f"/checkpoints/{_segment(checkpoint_id)}", {})


def tensors_request(checkpoint_id: str, parameters: Mapping[str, Any], found: int) -> Request:
    """The next piece of a tensor table of which `found` tensors have been found."""
    offset = parameters.get("offset", 0) + found
    piece = {"limit": TENSORS_AT_ONCE, **parameters, "offset": offset}
    return Request(f"/checkpoints/{_segment(checkpoint_id)}/tensors", piece)


def compare_request(ids: Sequence[str], parameters: Mapping[str, Any], media_type: str = "application/json") -> Request:
    """A comparison."""
    return Request("/checkpoints/compare", {"id": ids, **parameters}, accept=media_type)


def rebuild_request(mode: str) -> Request:
    """A rebuild."""
    return Request("/rebuild", {"mode": mode}, method="POST")


def _segment(checkpoint_id: str) -> str:
    """An id as part of a path: whatever a person typed, it leads nowhere else."""
    return urllib.parse.quote(checkpoint_id, safe="", errors="surrogateescape").replace(".", "%2E") or "%00"


def query_of(parameters: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Parameters as they are written in a URL: several values as several parameters, or separated by commas."""
    written: dict[str, str | list[str]] = {}
    for name, value in parameters.items():
        if isinstance(value, (list, tuple, set, frozenset)):
            values = [_shown(each) for each in value]
            written[name] = ",".join(values) if name in _COMMA_SEPARATED else values
        elif value is not None:
            written[name] = _shown(value)
    return written


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, dt.date) else str(value)
