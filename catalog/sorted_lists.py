"""Sorted lists: replacing items of a long one, and sorting one without holding up other threads."""

import bisect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")

IN_PLACE_UP_TO = 8
"""Changes; each moves half of the list (30 µs at 100,000), where one pass over all copies it once (0.4 ms)."""
STEP = 16_384
"""Items that are sorted at a time: 2 to 4 ms in which no other thread runs, where 100,000 at once take 15 to 50."""


class Edit(NamedTuple):
    """One change of a list."""

    at: int
    goes: bool
    """The item there; otherwise one comes before it."""
    number: int
    """Of what is added."""


def replace_items(items: list[_T], removed: Sequence[_T], added: Sequence[_T], key: Callable[[_T], Any]) -> list[_T]:
    """`items` without `removed` and with `added`, which is `items` itself, changed, or a new list.

    Args:
        items: sorted by `key`, no two with an equal one.
        removed: may hold what is not in the list, also under a key that is.
        added: none of it in the list, unless it is removed as well.
        key: what is compared.
    """
    if len(removed) + len(added) > IN_PLACE_UP_TO:
        added = sorted(added, key=key)
        return edited(items, edits_of(items, removed, added, key), added)
    for item in removed:
        at = _index(items, item, key)
        if at is not None:
            del items[at]
    for item in added:
        bisect.insort(items, item, key=key)
    return items


def edits_of(items: Sequence[_T], removed: Sequence[_T], added: Sequence[_T], key: Callable[[_T], Any]) -> list[Edit]:
    """What turns one list into the other, for others beside it as well. As `replace_items`; `added` is sorted."""
    gone = [Edit(at, True, 0) for item in removed if (at := _index(items, item, key)) is not None]
    new = [Edit(bisect.bisect_left(items, key(item), key=key), False, n) for n, item in enumerate(added)]
    # What is added comes before what goes at the same place: the pass does not go back.
    return sorted([*gone, *new])


def edited(items: Sequence[_T], edits: Sequence[Edit], added: Sequence[_T]) -> list[_T]:
    """A new list, in one pass."""
    result: list[_T] = []
    start = 0
    for at, goes, number in edits:
        result += items[start:at]
        start = at + goes
        if not goes:
            result.append(added[number])
    result += items[start:]
    return result


def sort_in_steps(items: list[_T], key: Callable[[_T], Any], *, reverse: bool = False) -> None:
    """Sort in place, as `list.sort`, stable; other threads get their turn in between."""
    for start in range(0, len(items) if len(items) > STEP else 0, STEP):
        items[start : start + STEP] = sorted(items[start : start + STEP], key=key, reverse=reverse)
    items.sort(key=key, reverse=reverse)  # of sorted runs this is a merge


def _index(items: Sequence[_T], item: _T, key: Callable[[_T], Any]) -> int | None:
    at = bisect.bisect_left(items, key(item), key=key)
    return at if at < len(items) and items[at] is item else None
