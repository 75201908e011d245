"""Sorted lists: replacing items of a long one, and sorting one without holding up other threads."""

import bisect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")

IN_PLACE_UP_TO = 8
"""Changes; each moves half of the list (30 µs at 100,000), where one pass over all copies it once (0.4 ms)."""
STEP = 16_384
"""Items that are sorted at a time: 2 to 4 ms in which no other thread runs, where 100,000 at once take 15 to 50."""


def replace_items(items: list[_T], removed: Sequence[_T], added: Sequence[_T], key: Callable[[_T], Any]) -> list[_T]:
    """`items` without `removed` and with `added`, which is `items` itself, changed, or a new list.

    Args:
        items: sorted by `key`, no two with an equal one.
        removed: may hold what is not in the list, also under a key that is.
        added: none of it in the list, unless it is removed as well.
        key: what is compared.
    """
    gone = [at for item in removed if (at := _index(items, item, key)) is not None]
    if len(gone) + len(added) <= IN_PLACE_UP_TO:
        for at in sorted(gone, reverse=True):
            del items[at]
        for item in added:
            bisect.insort(items, item, key=key)
        return items
    return _rebuilt(items, gone, sorted(added, key=key), key)


def sort_in_steps(items: list[_T], key: Callable[[_T], Any], *, reverse: bool = False) -> None:
    """Sort in place, as `list.sort`, stable; other threads get their turn in between."""
    for start in range(0, len(items) if len(items) > STEP else 0, STEP):
        items[start : start + STEP] = sorted(items[start : start + STEP], key=key, reverse=reverse)
    items.sort(key=key, reverse=reverse)  # of sorted runs this is a merge


def _index(items: Sequence[_T], item: _T, key: Callable[[_T], Any]) -> int | None:
    at = bisect.bisect_left(items, key(item), key=key)
    return at if at < len(items) and items[at] is item else None


def _rebuilt(items: list[_T], gone: Sequence[int], added: Sequence[_T], key: Callable[[_T], Any]) -> list[_T]:
    # What is added comes before what goes at the same place: the pass does not go back.
    cuts: list[tuple[int, bool, int]] = [(at, True, 0) for at in gone]
    cuts += [(bisect.bisect_left(items, key(item), key=key), False, number) for number, item in enumerate(added)]
    rebuilt: list[_T] = []
    start = 0
    for at, goes, number in sorted(cuts):
        rebuilt += items[start:at]
        start = at + goes
        if not goes:
            rebuilt.append(added[number])
    rebuilt += items[start:]
    return rebuilt
