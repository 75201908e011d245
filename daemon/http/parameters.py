"""Parameters: query strings into typed queries; what is unknown or out of range is a problem that says so."""

import datetime as dt
import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.datastructures import QueryParams

from ckptd.catalog.query import Query, QueryError, filter_hash

from .frames import View
from .problems import ProblemError

PAGING = ("page", "page_size", "sort_by", "sort_order")
FILTERS = (
    "q",
    "exp_name",
    "architecture",
    "modified_after",
    "modified_before",
    "health",
    "safety",
    "include_invalid",
)
METRIC_BOUNDS = ("min_", "max_")
_KNOWN_BOUNDS = ("min_<metric>", "max_<metric>")
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})
MAX_PAGE_SIZE = 1000
LIMIT, BATCH_SIZE = 50, 10
"""Defaults of the stream that ends, as existing studios know them."""


def parse_list(parameters: QueryParams) -> Query:
    """The query of `GET /checkpoints`.

    Raises:
        ProblemError: 400, naming the parameter, its value and what it may be.
    """
    reject_unknown(parameters, (*PAGING, *FILTERS), metrics=True)
    fields = _filters(parameters)
    for name in ("page", "page_size"):
        if name in parameters:
            fields[name] = _integer(parameters, name)
    for name in ("sort_by", "sort_order"):
        if name in parameters:
            fields[name] = parameters[name]
    return _query(fields)


def parse_stream(parameters: QueryParams) -> tuple[Query, int]:
    """The query and the batch size of `GET /checkpoints/stream`.

    Raises:
        ProblemError: as `parse_list`.
    """
    query = parse_limited(parameters, LIMIT, further=("batch_size",))
    return query, _integer(parameters, "batch_size", BATCH_SIZE)


def parse_limited(parameters: QueryParams, default: int, *, further: Sequence[str] = ()) -> Query:
    """The query of a list that is not paged but cut off: `limit`, and the filters.

    Args:
        parameters: of the request.
        default: the limit where none is given.
        further: parameters that the caller reads itself.

    Raises:
        ProblemError: as `parse_list`.
    """
    reject_unknown(parameters, ("limit", *further, "sort_by", "sort_order", *FILTERS), metrics=True)
    fields = _filters(parameters)
    for name in ("sort_by", "sort_order"):
        if name in parameters:
            fields[name] = parameters[name]
    fields["page_size"] = _integer(parameters, "limit", default)
    return _query(fields)


def parse_events(parameters: QueryParams) -> View:
    """The filter of `GET /checkpoints/events`.

    Raises:
        ProblemError: as `parse_list`.
    """
    reject_unknown(parameters, ("last_event_id", *FILTERS), metrics=True)
    query = _query(_filters(parameters))
    return View(filter_hash(query), query.matches)


def reject_unknown(parameters: QueryParams, known: Iterable[str], *, metrics: bool = False) -> None:
    """Refuse parameters that the route does not have: a misspelt filter must not pass for none.

    Raises:
        ProblemError: 400, listing the known ones.
    """
    known = tuple(known)
    for name in parameters:
        if name in known or (metrics and name.startswith(METRIC_BOUNDS) and len(name) > 4):
            continue
        shown = (*known, *(_KNOWN_BOUNDS if metrics else ()))
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ProblemError(
            400,
            f"there is no parameter {name!r} here",
            remedy=f"{hint}known parameters: {', '.join(shown) or 'none'}",
            field=name,
            value=parameters[name],
        )


def _filters(parameters: QueryParams) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: parameters[name] for name in ("q", "exp_name", "architecture") if name in parameters
    }
    for name in ("health", "safety"):
        if name in parameters:
            fields[name] = parameters[name]
    for name in ("modified_after", "modified_before"):
        if name in parameters:
            fields[name] = _time(name, parameters[name])
    if "include_invalid" in parameters:
        fields["include_invalid"] = _flag("include_invalid", parameters["include_invalid"])
    for bound in METRIC_BOUNDS:
        limits = {
            name.removeprefix(bound): _number(name, value)
            for name, value in parameters.items()
            if name.startswith(bound)
        }
        if limits:
            fields[f"{bound}metrics"] = limits
    return fields


def _query(fields: dict[str, Any]) -> Query:
    try:
        query = Query(**fields)
        query.check()
    except QueryError as error:
        raise ProblemError(
            400,
            f"{error.field} cannot be {error.value}",
            remedy=error.remedy,
            field=error.field,
            value=str(error.value),
        ) from error
    return query


def _integer(parameters: QueryParams, name: str, default: int = 1) -> int:
    text = parameters.get(name, str(default))
    if text.isascii() and text.isdigit() and 1 <= len(text) <= 9:
        value = int(text)
        if value >= 1 and (name == "page" or value <= MAX_PAGE_SIZE):
            return value
    upper = "" if name == "page" else f" to {MAX_PAGE_SIZE}"
    raise _refused(name, text, f"a whole number from 1{upper}")


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _refused(name, text, "a finite number")
    return value


def _flag(name: str, text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise _refused(name, text, "true or false")


def _time(name: str, text: str) -> dt.datetime:
    """RFC 3339, a date, or seconds since the epoch; without a zone it is UTC."""
    try:
        # A `+` of a zone that was not escaped arrives as a space.
        moment = dt.datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text.strip())
    except ValueError:
        try:
            return dt.datetime.fromtimestamp(float(text), dt.UTC)
        except (ValueError, OverflowError, OSError):
            raise _refused(name, text, "a time such as 2025-10-11T00:44:42Z") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)


def _refused(name: str, text: str, wanted: str) -> ProblemError:
    return ProblemError(400, f"{name} cannot be {text!r}", remedy=f"use {wanted}", field=name, value=text)
