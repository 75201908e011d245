"""Sorted lists: what replacing and sorting in steps come to."""

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.catalog import sorted_lists
from ckptd.catalog.sorted_lists import IN_PLACE_UP_TO, replace_items, sort_in_steps

PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers()), unique_by=operator.itemgetter(0), max_size=30)
first = operator.itemgetter(0)


@given(PAIRS, PAIRS, st.lists(st.integers(0, 30), max_size=30), PAIRS)
def test_replacing_is_taking_away_and_sorting_in(
    items: list[tuple[int, int]], more: list[tuple[int, int]], gone: list[int], strangers: list[tuple[int, int]]
) -> None:
    items.sort()
    removed = [item for item in items if item[0] in gone]
    kept = [item for item in items if item[0] not in gone]
    added = [item for item in more if item[0] not in {key for key, _ in kept}]
    # Equal keys, other objects: those are not in the list.
    missing = [(key, value) for key, value in strangers if (key, value) not in items]
    assert replace_items(list(items), [*removed, *missing], added, first) == sorted([*kept, *added])


def test_few_changes_are_made_in_place_and_many_in_one_pass() -> None:
    items = list(range(100))
    few = replace_items(items, [], [0.5] * IN_PLACE_UP_TO, float)
    assert few is items
    assert replace_items(items, [], [n + 0.25 for n in range(IN_PLACE_UP_TO + 1)], float) is not items


@pytest.mark.parametrize("reverse", [False, True])
@given(st.lists(st.tuples(st.integers(0, 3), st.integers()), max_size=40))
def test_sorting_in_steps_is_sorting_and_stable(reverse: bool, items: list[tuple[int, int]]) -> None:
    expected = sorted(items, key=first, reverse=reverse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_lists, "STEP", 7)
        sort_in_steps(items, first, reverse=reverse)
    assert items == expected
