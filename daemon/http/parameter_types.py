"""Parameter types: one declaration of a parameter both reads what clients send and documents it in /openapi.json."""

import dataclasses
import datetime as dt
import difflib
import enum
import math
import re
import sys
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.datastructures import QueryParams

from .problems import ProblemError

MAX_TEXT = 1000
"""Characters of a text."""
MAX_METRIC_NAME = 200
MAX_PARAMETERS = 100
"""Of one request, repeated ones counted."""
_JSON_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MOMENT = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)\s*([Zz]|[+ -]\d{2}:\d{2})?)?", re.ASCII
)
_LEAP_SECOND = re.compile(r"^(\d\d:\d\d):60")
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999 in epoch seconds."""
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """What a client may send under one name."""

    name: str
    """As in the query; of `bounds`, the prefix before the metric's name."""
    description: str
    schema: dict[str, Any]
    """JSON schema of the value. True to what `read` takes: /openapi.json is tested against the live service."""
    read: Callable[[str], Any]
    """The value of a text; ValueError where it has none."""
    wanted: str
    """What the remedy tells whoever sent something else to use."""
    default: Any = None
    """The value where it is not sent; None: nothing is asked for."""
    repeatable: bool = False
    """Sent several times, it has several values, read as a tuple."""
    array_schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of a repeatable one: keywords for the array of its values, as `maxItems`."""
    comma_separated: bool = False
    is_prefix: bool = False
    """Stands for all names that begin with its name; the value is a mapping from the rests."""
    location: str = "query"
    """`query`, `header` or `path`."""
    required: bool = False
    examples: tuple[Any, ...] = ()

    def takes(self, name: str) -> bool:
        """Whether it is meant by that name in a query."""
        if not self.is_prefix:
            return name == self.name
        return name.startswith(self.name) and 0 < len(name) - len(self.name) <= MAX_METRIC_NAME

    @property
    def shown_name(self) -> str:
        """The name, as remedies and the documentation show it."""
        return f"{self.name}<metric>" if self.is_prefix else self.name

    def value_of(self, name: str, texts: Sequence[str]) -> Any:
        """The value that was sent under `name`.

        Raises:
            ProblemError: 400, naming the parameter, what was sent and what may be.
        """
        if len(texts) > 1 and not self.repeatable:
            raise ProblemError(
                400, f"{name} is there {len(texts)} times", remedy=f"send {name} once", field=name, value=texts[1]
            )
        values = tuple(self._read(name, text) for text in texts)
        return values if self.repeatable else values[0]

    def _read(self, name: str, text: str) -> Any:
        try:
            return self.read(text)
        except (ValueError, OverflowError):
            shown = text if len(text) <= 100 else f"{text[:100]}…"
            raise ProblemError(
                400, f"{name} cannot be {shown!r}", remedy=f"use {self.wanted}", field=name, value=text
            ) from None


def read_parameters(parameters: QueryParams, declared: Sequence[Parameter]) -> dict[str, Any]:
    """What a query says: a value for each declared parameter that was sent or has a default.

    Those that stand for many names (`min_<metric>`) have mappings as values, under their prefix.

    Raises:
        ProblemError: 400, for a name that is not declared (a misspelt filter must not pass for none) or for a value
            that cannot be used.
    """
    values: dict[str, Any] = {p.name: p.default for p in declared if p.default is not None}
    for name in parameters:
        declaration = next((p for p in declared if p.takes(name)), None)
        if declaration is None:
            raise _unknown(name, parameters[name], declared)
        value = declaration.value_of(name, parameters.getlist(name))
        if declaration.is_prefix:
            values.setdefault(declaration.name, {})[name.removeprefix(declaration.name)] = value
        else:
            values[name] = value
    return values


def check_query(query_string: bytes) -> None:
    """Refuse a query of very many parameters, and one whose bytes are not UTF-8, escaped: its text would be a guess.

    Raises:
        ProblemError: 400, naming the parameter.
    """
    if query_string.count(b"&") >= MAX_PARAMETERS:
        raise ProblemError(
            400, "there are too many parameters", remedy=f"send at most {MAX_PARAMETERS}", field="query", value=""
        )
    if b"%" not in query_string and query_string.isascii():
        return
    given = query_string.decode("ascii", "surrogateescape")  # what is not escaped is not text either
    for name, value in urllib.parse.parse_qsl(given, keep_blank_values=True, errors="surrogateescape"):
        if not _is_text(name) or not _is_text(value):
            shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            wrong = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            remedy = "escape the bytes of its UTF-8 form, e.g. %C3%A9 for é"
            raise ProblemError(400, f"{shown[:100]} is not UTF-8", remedy=remedy, field=shown[:200], value=wrong)


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# ---- kinds of values -------------------------------------------------------------------------------------------


def text(name: str, description: str, *, min_length: int = 0, max_length: int = MAX_TEXT, **more: Any) -> Parameter:
    """Any text of so many characters; further arguments as `Parameter`'s."""

    def read(given: str) -> str:
        if not min_length <= len(given) <= max_length:
            raise ValueError(given)
        return given

    schema: dict[str, Any] = {"type": "string", "maxLength": max_length}
    if min_length:
        schema["minLength"] = min_length
    wanted = f"{min_length or 'no more than'}{' to' if min_length else ''} {max_length} characters"
    return Parameter(name=name, description=description, schema=schema, read=read, wanted=wanted, **more)


def pattern(name: str, description: str, regex: str, *, wanted: str, **more: Any) -> Parameter:
    """A text that matches `regex` from end to end; further arguments as `Parameter`'s."""

    def read(given: str) -> str:
        if not re.fullmatch(regex, given, re.ASCII):
            raise ValueError(given)
        return given

    schema = {"type": "string", "pattern": f"^{regex}$"}
    return Parameter(name=name, description=description, schema=schema, read=read, wanted=wanted, **more)


def integer(name: str, description: str, *, low: int = 1, high: int = 999_999_999, **more: Any) -> Parameter:
    """A whole number from `low` to `high`; further arguments as `Parameter`'s."""

    def read(given: str) -> int:
        # int() would also take underscores, blanks and other alphabets' digits.
        if not re.fullmatch(r"-?\d{1,18}", given, re.ASCII) or not low <= int(given) <= high:
            raise ValueError(given)
        return int(given)

    schema = {"type": "integer", "minimum": low, "maximum": high}
    wanted = f"a whole number from {low} to {high}"
    return Parameter(name=name, description=description, schema=schema, read=read, wanted=wanted, **more)


def flag(name: str, description: str, **more: Any) -> Parameter:
    """True or false; further arguments as `Parameter`'s."""

    def read(given: str) -> bool:
        if given.lower() not in _BOOLEANS:
            raise ValueError(given)
        return _BOOLEANS[given.lower()]

    schema = {"anyOf": [{"type": "boolean"}, {"enum": list(_BOOLEANS)}]}
    return Parameter(name=name, description=description, schema=schema, read=read, wanted="true or false", **more)


def choice(name: str, description: str, members: Sequence[str], **more: Any) -> Parameter:
    """One of `members`; further arguments as `Parameter`'s."""

    def read(given: str) -> str:
        if given not in members:
            raise ValueError(given)
        return given

    schema = {"type": "string", "enum": [str(member) for member in members]}
    wanted = ", ".join(members[:-1]) + f" or {members[-1]}"
    return Parameter(name=name, description=description, schema=schema, read=read, wanted=wanted, **more)


def choices(name: str, description: str, members: Sequence[str] | type[enum.StrEnum], **more: Any) -> Parameter:
    """One or more of `members`, separated by commas; the value stays one text. Further arguments as `Parameter`'s."""
    known = [str(member) for member in members]

    def read(given: str) -> str:
        if not {part.strip() for part in given.split(",")} <= set(known):
            raise ValueError(given)
        return given

    schema = {"type": "array", "items": {"type": "string", "enum": known}, "minItems": 1}
    wanted = f"one or more of {', '.join(known)}, separated by commas"
    return Parameter(
        name=name, description=description, schema=schema, read=read, wanted=wanted, comma_separated=True, **more
    )


def moment(name: str, description: str, **more: Any) -> Parameter:
    """RFC 3339, a date, or seconds since the epoch; without a zone it is UTC. Further arguments as `Parameter`'s."""
    schema = {
        "anyOf": [
            {"type": "string", "format": "date-time"},
            {"type": "string", "format": "date"},
            {"type": "number", "minimum": _FIRST_S, "maximum": _LAST_S},
        ]
    }
    wanted = "a time such as 2025-10-11T00:44:42Z, a date, or seconds since 1970"
    return Parameter(name=name, description=description, schema=schema, read=read_moment, wanted=wanted, **more)


def bounds(prefix: str, description: str, **more: Any) -> Parameter:
    """A finite number for each name that begins with `prefix`; further arguments as `Parameter`'s."""
    largest = sys.float_info.max
    schema = {
        "type": "object",
        "propertyNames": {
            "pattern": f"^{prefix}",
            "minLength": len(prefix) + 1,
            "maxLength": len(prefix) + MAX_METRIC_NAME,
        },
        "additionalProperties": {"type": "number", "minimum": -largest, "maximum": largest},
    }
    return Parameter(
        name=prefix,
        description=description,
        schema=schema,
        read=read_number,
        wanted="a finite number",
        is_prefix=True,
        **more,
    )


def read_number(given: str) -> float:
    """A finite number, written as in JSON or as people do (`.5`).

    Raises:
        ValueError: it is none.
    """
    value = float(given) if _JSON_NUMBER.fullmatch(given) else math.nan
    if not math.isfinite(value):
        raise ValueError(given)
    return value


def read_moment(given: str) -> dt.datetime:
    """A time with its zone, see `moment`.

    Raises:
        ValueError: it is none.
    """
    parts = _MOMENT.fullmatch(given.strip())
    if parts is None:
        seconds = read_number(given)
        if not _FIRST_S <= seconds <= _LAST_S:
            raise ValueError(given)
        return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)
    day, time, zone = parts.groups(default="")
    # The `+` of a zone that was not escaped arrives as a space; a leap second (RFC 3339, 5.7) is the one before.
    zone = zone.upper().replace(" ", "+") or "Z"
    time = _LEAP_SECOND.sub(r"\1:59", time) or "00:00"
    return dt.datetime.fromisoformat(f"{day}T{time}{zone}")


def _unknown(name: str, value: str, declared: Sequence[Parameter]) -> ProblemError:
    close = difflib.get_close_matches(name, [p.name for p in declared], n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    known = ", ".join(p.shown_name for p in declared) or "none"
    return ProblemError(
        400,
        f"there is no parameter {name[:100]!r} here",
        remedy=f"{hint}known parameters: {known}",
        field=name[:200],
        value=value,
    )
