"""A queue by time: each item once, at its earliest time, in order."""

from hypothesis import given
from hypothesis import strategies as st

from ckptd.daemon.duequeue import DueQueue


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), max_size=60), st.integers(0, 20))
def test_items_come_once_each_at_their_earliest_time(scheduled: list[tuple[int, int]], now: int) -> None:
    queue: DueQueue[int] = DueQueue()
    earliest: dict[int, int] = {}
    for item, due_at in scheduled:
        assert queue.schedule(item, due_at) == (due_at < earliest.get(item, 21))
        earliest[item] = min(due_at, earliest.get(item, 21))
    assert len(queue) == len(earliest)
    assert queue.next_due() == min(earliest.values(), default=None)
    taken = []
    while (item := queue.take(now)) is not None:
        taken.append(item)
    assert sorted(taken) == sorted(item for item, due_at in earliest.items() if due_at <= now)
    assert [earliest[item] for item in taken] == sorted(earliest[item] for item in taken)
    assert len(queue) == len(earliest) - len(taken)
