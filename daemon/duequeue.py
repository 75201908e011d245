"""DueQueue: things that are to be done at some time, each once, the earliest first; pure, without a clock."""

import heapq
import itertools
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class DueQueue(Generic[T]):
    """Items with the time at which each is due. Scheduled twice, an item keeps the earlier time."""

    def __init__(self) -> None:
        self._due: dict[T, float] = {}
        self._heap: list[tuple[float, int, T]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._due)

    def schedule(self, item: T, due_at: float) -> bool:
        """Have `item` done at `due_at`; False if it is due earlier anyway."""
        if due_at >= self._due.get(item, math.inf):
            return False
        self._due[item] = due_at
        heapq.heappush(self._heap, (due_at, next(self._order), item))
        return True

    def next_due(self) -> float | None:
        """When the first item is due; None if there is none."""
        while self._heap:
            due_at, _, item = self._heap[0]
            if self._due.get(item) == due_at:
                return due_at
            heapq.heappop(self._heap)  # left over: it was brought forward, and is done
        return None

    def take(self, now: float) -> T | None:
        """Take out the first item if it is due; None otherwise."""
        due_at = self.next_due()
        if due_at is None or due_at > now:
            return None
        item = heapq.heappop(self._heap)[2]
        del self._due[item]
        return item
