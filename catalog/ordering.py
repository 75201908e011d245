"""Ordering: by what lists are sorted, and cursors that name a place in such an order.

An order is total: nulls last in both directions, ties newest first, then by id. So the place of an entry is its key
alone, whichever other entries come and go.
"""

import base64
import binascii
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ckptd.validators.inspection import Level, Safety

from .entry import CheckpointEntry, CheckpointId, Health, Record
from .sorted_lists import sort_in_steps
from .store import newest_first

MAX_KEY_TEXT = 1_000
"""Characters that texts are compared by; two longer ones that begin alike are a tie."""

_UNSORTABLE = frozenset(("path_base64", "metrics", "dtypes", "findings"))
SORT_FIELDS = tuple(name for name in CheckpointEntry.__struct_fields__ if name not in _UNSORTABLE)
_NUMBERS = frozenset(
    (
        "epoch",
        "global_step",
        "monitor_value",
        "size_bytes",
        "modified_at",
        "n_parameters",
        "weights_bytes",
        "optimizer_bytes",
        "has_metadata",
        "has_config",
        "revision",
    )
)
_DOWNWARDS = _NUMBERS | {"created_at"}
_METRIC_NAME = re.compile(r"[^\x00-\x1f]{1,200}\Z")
_RANKS: dict[str, dict[str, int]] = {
    name: {member.value: rank for rank, member in enumerate(kind)}
    for name, kind in (("health", Health), ("verified", Level), ("safety", Safety))
}

Key = tuple[Any, ...]
"""What an order compares."""


class Order(msgspec.Struct, frozen=True):
    """By which value, and in which direction."""

    by: str = "modified_at"
    """An entry's field or a metric's name."""
    is_descending: bool = True

    @property
    def is_newest_first(self) -> bool:
        """Whether it is the order that snapshots have anyway."""
        return self.by == "modified_at" and self.is_descending

    def key(self) -> Callable[[Record], Key]:
        """What a record is compared by with others, for looking up a place. `sort` is faster for many."""
        if self.is_newest_first:
            return newest_first
        value_of, place = _value_getter(self.by), self._place
        return lambda record: place(value_of(record), record.modified_ns, record.entry.id)

    def sort(self, records: Sequence[Record]) -> list[Record]:
        """`records`, which are newest first, in this order."""
        if self.is_newest_first:
            return list(records)
        # Both sorts are stable, so ties stay newest first.
        values = _values(self.by, records)
        known = [(value, record) for value, record in zip(values, records, strict=True) if value is not None]
        sort_in_steps(known, operator.itemgetter(0), reverse=self.is_descending)
        unknown = [record for value, record in zip(values, records, strict=True) if value is None]
        return [record for _, record in known] + unknown

    def place_of(self, record: Record) -> "Place":
        """The place of a record."""
        value = record.modified_ns if self.is_newest_first else _value_getter(self.by)(record)
        return Place(value, record.modified_ns, record.entry.id)

    def key_of(self, place: "Place") -> Key:
        """The key of a place.

        Raises:
            TypeError: its value is none of this order's.
        """
        if self.is_newest_first:
            return -place.modified_ns, place.id
        example = "" if _is_text(self.by) else 0
        if place.value is not None and isinstance(place.value, str) is not isinstance(example, str):
            raise TypeError(f"{self.by} is not compared with {place.value!r}")
        return self._place(place.value, place.modified_ns, place.id)

    def _place(self, value: Any, modified_ns: int, checkpoint_id: str) -> Key:
        if value is None:
            return True, 0, -modified_ns, checkpoint_id
        return False, (_Backwards(value) if self.is_descending else value), -modified_ns, checkpoint_id


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where an entry stands in an order, whether it is still there or not."""

    value: str | int | float | None
    modified_ns: int
    id: CheckpointId


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Behind which entry the next page begins, and of which list."""

    place: Place
    list: str
    """Digest of filter and order; a cursor of another list means nothing here."""

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(_encode(self)).decode("ascii").rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read back what `str` made.

        Raises:
            ValueError: it is none.
        """
        try:
            return _decode(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
        except (binascii.Error, msgspec.DecodeError, ValueError) as error:
            raise ValueError(f"not a cursor: {error}") from error


def order_of(by: str | None, direction: str | None) -> Order:
    """The order of `sort_by` and `sort_order`; without them newest first.

    Without a direction, text goes up; times and numbers go down.
    """
    name = by or "modified_at"
    if name not in SORT_FIELDS:
        name = f"metrics.{name.removeprefix('metrics.')}"
    upwards = name in SORT_FIELDS and name not in _DOWNWARDS
    return Order(name, not upwards if direction is None else direction == "desc")


def is_sortable(by: str) -> bool:
    """Whether lists can be sorted by this: a field of one value, or whatever may be a metric's name."""
    return by not in _UNSORTABLE and _METRIC_NAME.match(by) is not None


class _Backwards:
    """Compares the other way round; texts have no negative."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: "_Backwards") -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Backwards) and bool(other.value == self.value)

    def __hash__(self) -> int:
        return hash(self.value)


def _value_getter(by: str) -> Callable[[Record], Any]:
    if by == "modified_at":
        return lambda record: record.modified_ns
    if by not in SORT_FIELDS:
        metric = by.removeprefix("metrics.")
        return lambda record: _number(record.entry.metrics.get(metric))
    ranks = _RANKS.get(by)
    if ranks is not None:
        return lambda record: ranks[getattr(record.entry, by)]
    if _is_text(by):
        return lambda record: _text(getattr(record.entry, by))
    return lambda record: _number(getattr(record.entry, by))


def _values(by: str, records: Sequence[Record]) -> list[Any]:
    """What `_value_getter` says of each; of a metric without a call for each."""
    if by in SORT_FIELDS:
        return list(map(_value_getter(by), records))
    metric = by.removeprefix("metrics.")
    values = [record.entry.metrics.get(metric) for record in records]
    return [None if value != value else value for value in values]


def _is_text(by: str) -> bool:
    return by in SORT_FIELDS and by not in _NUMBERS and by not in _RANKS


def _text(value: str | None) -> str | None:
    return None if value is None else value.lower()[:MAX_KEY_TEXT]


def _number(value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    return int(value) if isinstance(value, bool) else value


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Cursor).decode
