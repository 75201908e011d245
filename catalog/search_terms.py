"""The terms of a search: what each asks of an entry, and of the line of tokens behind it."""

import datetime as dt
import functools
import re
from collections.abc import Callable, Sequence

import msgspec

from ckptd.validators.findings import CATALOGUE
from ckptd.validators.inspection import Format, Level, Safety

from .entry import CheckpointEntry, Health, MetadataSource, Record
from .metric_names import SLOTS, metric_key
from .search_text import fold, key_tokens, number_word, value_token, words_of

Test = Callable[[Record], bool]


class SearchError(ValueError):
    """Raised when a token of a search cannot be used: names it, and what may stand there."""

    def __init__(self, token: str, remedy: str) -> None:
        super().__init__(f"{token}: {remedy}")
        self.token = token
        self.remedy = remedy


class Phrase(msgspec.Struct, frozen=True):
    """Consecutive tokens of a line."""

    tokens: str
    """Separated by single spaces."""
    is_prefix: bool = False
    """The last token may go on."""

    @property
    def match(self) -> str:
        """As an FTS5 string (sqlite.org/fts5.html, 3.2). Tokens hold no quotes."""
        return f'"{self.tokens}" *' if self.is_prefix else f'"{self.tokens}"'

    def is_in(self, line: str) -> bool:
        """Whether `line`, with a space at both ends, holds the tokens."""
        return (f" {self.tokens}" if self.is_prefix else f" {self.tokens} ") in line


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """One condition. It holds where any of its parts does."""

    canonical: str
    """Equal for terms that say the same."""
    literal: str | None = None
    """Occurs in `entry_text`."""
    pattern: re.Pattern[str] | None = None
    """And in the right place of it; whatever it finds contains `literal`."""
    test: Test | None = None
    """Holds of the entry's fields."""
    phrases: tuple[Phrase, ...] = ()
    """One of them is in the line of tokens."""
    is_negated: bool = False

    def negated(self) -> "Term":
        """The opposite."""
        return msgspec.structs.replace(self, is_negated=True, canonical=f"-{self.canonical}")

    def in_entry(self, record: Record, text: str) -> bool:
        """Whether the entry alone makes it hold. `text` is its `entry_text`; negation is not looked at."""
        if self.test is not None and self.test(record):
            return True
        literal = self.literal
        return literal is not None and literal in text and (self.pattern is None or bool(self.pattern.search(text)))

    def in_line(self, text: str) -> bool:
        """Whether a line of tokens makes it hold; negation is not looked at."""
        line = f" {text} "
        return any(phrase.is_in(line) for phrase in self.phrases)


def entry_text(entry: CheckpointEntry) -> str:
    """What words are looked for in, in folded case."""
    named = (entry.exp_name, entry.run_id, entry.architecture, entry.backbone)
    return fold("\n".join([entry.path, entry.display_name, *filter(None, named)]))


# ---- words -----------------------------------------------------------------------------------------------------


class WordTerm:
    """Makes terms of words; they have no field."""

    @staticmethod
    def word(body: str) -> Term:
        """Anywhere in the entry's text, or the beginning of a word in the line."""
        literal = fold(body)
        return Term(canonical=f"word {literal}", literal=literal, phrases=_beginnings(body))

    @staticmethod
    def prefix(stem: str) -> Term:
        """The beginning of a word, here and there."""
        literal = fold(stem)
        pattern = re.compile(rf"(?<![^\W_]){re.escape(literal)}")
        return Term(canonical=f"prefix {literal}", literal=literal, pattern=pattern, phrases=_beginnings(stem))

    @staticmethod
    def phrase(text: str) -> Term:
        """These characters in the entry's text, or exactly these words in the line."""
        literal = fold(" ".join(text.split()))
        words = list(map(number_word, words_of(text)))
        phrases = (Phrase(" ".join(words)),) if words else ()
        return Term(canonical=f"phrase {literal}", literal=literal, phrases=phrases)

    @staticmethod
    def pair(name: str, value: str, body: str) -> Term:
        """A key with its value in the line, a metric of that value, or the same characters in the entry's text.

        Most pairs are of keys: with a colon, only a range or a name of ours or `metrics.` makes it a metric's.
        """
        literal = fold(body.replace('"', ""))
        is_metric = f"{name}=" in body or name.startswith("metrics.") or ".." in value or metric_key(name) in SLOTS
        test = _metric_is(name, value) if is_metric else None
        return Term(canonical=f"pair {literal}", literal=literal, phrases=_pairs(name, value), test=test)


def _beginnings(body: str) -> tuple[Phrase, ...]:
    words = words_of(body)
    if not words:
        return ()
    whole = list(map(number_word, words))
    open_end = Phrase(" ".join([*whole[:-1], words[-1]]), is_prefix=True)
    # `1e-3` begins no word of a line that has 0.001, and is one.
    return (open_end,) if whole[-1] == words[-1] else (open_end, Phrase(" ".join(whole)))


def _pairs(name: str, value: str) -> tuple[Phrase, ...]:
    for where in ("config.", "hyper_parameters.", "hparams."):
        name = name.removeprefix(where) or name
    keys = key_tokens(name)
    if not keys:
        return ()
    if value == "*":
        return (Phrase(" ".join(keys)),)
    if value.endswith("*"):
        return (Phrase(" ".join([*keys, value_token(value[:-1])]), is_prefix=True),)
    wanted = "null" if fold(value) in ("none", "null") else value
    return (Phrase(" ".join([*keys, value_token(wanted)])),)


def _metric_is(name: str, value: str) -> Test | None:
    low, dots, high = value.partition("..")
    try:
        bounds = float(low), float(high if dots else low)
    except ValueError:
        return None
    get = _metric(name)
    return lambda record: (known := get(record)) is not None and bounds[0] <= known <= bounds[1]


def exact_pair(name: str, value: str, body: str, token: str) -> Term | None:
    """`name=value`: a field, metric or key of that value; None where a numeric field is given something else.

    Raises:
        SearchError: as `number_term`.
    """
    if name not in NUMERIC and name not in TIMES:
        return WordTerm.pair(name, value, body)
    try:
        exact = number_term(name, "=", value, token)
    except SearchError:
        return None
    literal = fold(body)
    # epoch=2 is also found in a name, and epoch=28 is another epoch.
    pattern = re.compile(rf"{re.escape(literal)}(?![^\W_]|\.\d)")
    return msgspec.structs.replace(exact, canonical=f"{exact.canonical} {literal}", literal=literal, pattern=pattern)


# ---- fields ----------------------------------------------------------------------------------------------------

_EQUAL = ("exp_name", "architecture", "backbone", "run_id", "monitor")
_CONTAINS = ("path", "display_name", "checkpoint_path", "root", "config_path")
_MEMBERS: dict[str, tuple[str, ...]] = {
    "health": tuple(Health),
    "safety": tuple(Safety),
    "verified": tuple(Level),
    "format": tuple(member for member in Format if member is not Format.UNKNOWN),
    "metadata_source": tuple(MetadataSource),
}
_FLAGS = ("has_metadata", "has_config")
_YES, _NO = frozenset(("true", "yes", "1")), frozenset(("false", "no", "0"))

_SIZE = {"": 1, "b": 1} | {f"{u}{b}": 1000 ** (n + 1) for n, u in enumerate("kmgt") for b in ("", "b")}
_SIZE |= {f"{u}i{b}": 1024 ** (n + 1) for n, u in enumerate("kmgt") for b in ("", "b")}
_COUNT = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_PLAIN = {"": 1}
NUMERIC: dict[str, tuple[str, dict[str, int]]] = {
    "epoch": ("epoch", _PLAIN),
    "global_step": ("global_step", _COUNT),
    "step": ("global_step", _COUNT),
    "monitor_value": ("monitor_value", _PLAIN),
    "size": ("size_bytes", _SIZE),
    "size_bytes": ("size_bytes", _SIZE),
    "weights_bytes": ("weights_bytes", _SIZE),
    "optimizer_bytes": ("optimizer_bytes", _SIZE),
    "n_parameters": ("n_parameters", _COUNT),
    "parameters": ("n_parameters", _COUNT),
    "revision": ("revision", _PLAIN),
}
"""Name → field of the entry, and the units that its values may have."""
TIMES = ("modified", "modified_at", "created", "created_at")
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)([a-z]*)\Z")
FIELDS = (*_EQUAL, *_CONTAINS, *_MEMBERS, *_FLAGS, "finding", "dtype", *NUMERIC, *TIMES)


def field_term(name: str, value: str, token: str) -> Term | None:
    """`name:value` of an entry's field; None where the entry has no such field.

    Raises:
        SearchError: the field cannot have this value.
    """
    if name in NUMERIC or name in TIMES:
        return number_term(name, ":", value, token)
    test = _field_test(name, value, token)
    return None if test is None else Term(canonical=f"{name} {fold(value)}", test=test)


def _field_test(name: str, value: str, token: str) -> Test | None:
    wanted = fold(value)
    if name in _EQUAL:
        return _equal(lambda entry: (getattr(entry, name),), wanted)
    if name in _CONTAINS:
        inner = wanted.removesuffix("*")
        return lambda record: inner in fold(getattr(record.entry, name) or "")
    if name in _MEMBERS:
        members = _members(wanted, _MEMBERS[name], token)
        return lambda record: getattr(record.entry, name) in members
    if name in _FLAGS:
        if wanted not in _YES | _NO:
            raise SearchError(token, f"use {name}:true or {name}:false")
        return lambda record: getattr(record.entry, name) is (wanted in _YES)
    if name == "finding":
        if not any(code == wanted or (wanted.endswith("*") and code.startswith(wanted[:-1])) for code in CATALOGUE):
            raise SearchError(token, f"use one of {', '.join(CATALOGUE)}, or a beginning such as archive.*")
        return _equal(lambda entry: [found.code for found in entry.findings], wanted)
    if name == "dtype":
        return _equal(lambda entry: entry.dtypes, wanted)
    return None


def _equal(values: Callable[[CheckpointEntry], Sequence[str | None]], wanted: str) -> Test:
    if wanted.endswith("*"):
        stem = wanted[:-1]
        return lambda record: any(value is not None and fold(value).startswith(stem) for value in values(record.entry))
    return lambda record: any(value is not None and fold(value) == wanted for value in values(record.entry))


def _members(wanted: str, known: Sequence[str], token: str) -> frozenset[str]:
    members = frozenset(wanted.split(","))
    if not members <= frozenset(known):
        raise SearchError(token, f"use one or more of {', '.join(known)}, separated by commas")
    return members


# ---- numbers and times -----------------------------------------------------------------------------------------


def number_term(name: str, operator: str, value: str, token: str) -> Term:
    """A comparison, or with `:` a number or a range `low..high`, both ends included.

    Raises:
        SearchError: the value is no number, or the field has none.
    """
    if name in TIMES:
        low, high = _interval(operator, value, functools.partial(_time_bounds, token=token))
        return Term(canonical=f"{name} {low} {high}", test=_time_within(name.startswith("modified"), low, high))
    if name in FIELDS and name not in NUMERIC:
        raise SearchError(token, f"compare a metric or one of {', '.join((*NUMERIC, *TIMES))}; {name} takes a colon")
    units = NUMERIC[name][1] if name in NUMERIC else _PLAIN
    bounds = _interval(operator, value, functools.partial(_number_bounds, units=units, token=token))
    get = _getter(name)
    strict = {">": (True, False), "<": (False, True)}.get(operator, (False, False))
    return Term(canonical=f"{name} {bounds} {strict}", test=lambda record: _within(get(record), bounds, strict))


_Bounds = tuple[float, float]
"""Of a value: a number is both its bounds, a day begins and ends."""
_INF = float("inf")


def _interval(operator: str, value: str, bounds: Callable[[str], _Bounds]) -> _Bounds:
    if operator == ":" and ".." in value:
        low, _, high = value.partition("..")
        return (bounds(low)[0] if low else -_INF), (bounds(high)[1] if high else _INF)
    begin, end = bounds(value)
    return {">": (end, _INF), ">=": (begin, _INF), "<": (-_INF, begin), "<=": (-_INF, end)}.get(operator, (begin, end))


def _within(value: float | None, bounds: _Bounds, strict: tuple[bool, bool]) -> bool:
    if value is None or not bounds[0] <= value <= bounds[1]:
        return False
    return not (strict[0] and value == bounds[0]) and not (strict[1] and value == bounds[1])


def _getter(name: str) -> Callable[[Record], float | None]:
    if name in NUMERIC:
        field = NUMERIC[name][0]
        return lambda record: getattr(record.entry, field)
    return _metric(name)


def _metric(name: str) -> Callable[[Record], float | None]:
    """As `metric_names.value_of`, with its other name looked up once."""
    known_as = name.removeprefix("metrics.")
    slot = metric_key(known_as)

    def get(record: Record) -> float | None:
        metrics = record.entry.metrics
        value = metrics.get(known_as)
        return metrics.get(slot) if value is None else value

    return get


def _number_bounds(text: str, *, units: dict[str, int], token: str) -> _Bounds:
    found = _NUMBER.match(text.lower())
    if found is None or found[2] not in units:
        suffixes = "" if units is _PLAIN else f", with or without a unit ({', '.join(filter(None, units))})"
        raise SearchError(token, f"use a number{suffixes}, e.g. epoch>=10 or size<10MB")
    value = float(found[1]) * units[found[2]]
    return value, value


def _time_bounds(text: str, *, token: str) -> _Bounds:
    """Nanoseconds since the epoch: from the beginning of a day or second to the beginning of the next."""
    try:
        begin = dt.datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        raise SearchError(token, "use a day or a time, e.g. modified:2025-10-11..2025-10-12") from None
    length_s = 1 if "T" in text.upper() else 86_400
    begin = begin if begin.tzinfo is not None else begin.replace(tzinfo=dt.UTC)
    ns = (begin - _EPOCH) // dt.timedelta(microseconds=1) * 1000
    return ns, ns + length_s * 1_000_000_000


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _time_within(is_modified: bool, low: float, high: float) -> Test:
    if is_modified:
        return lambda record: low <= record.modified_ns < high

    def within(record: Record) -> bool:
        try:
            begin, _ = _time_bounds(record.entry.created_at or "", token="")
        except SearchError:
            return False
        return low <= begin < high

    return within
