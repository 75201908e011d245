"""Numbers with their nouns: one place where the grammar of counts is decided."""

import pytest

from ckptd.validators.text import counted


@pytest.mark.parametrize(
    ("number", "told"),
    [(0, "0 entries"), (1, "1 entry"), (2, "2 entries"), (12_345, "12,345 entries")],
)
def test_a_count_has_its_noun_in_the_right_number(number: int, told: str) -> None:
    assert counted(number, "entry", "entries") == told


def test_a_noun_is_put_into_the_plural_by_an_s() -> None:
    assert [counted(number, "checkpoint") for number in (1, 2)] == ["1 checkpoint", "2 checkpoints"]
