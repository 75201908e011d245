"""Rounds: when all listeners are next told what is new; changes of the same moment go together."""

import asyncio
from collections.abc import Callable


class Rounds:
    """A round is due when it was asked for, but not sooner than a least time after the last one."""

    def __init__(self, coalesce_ms: float, on_due: Callable[[], None]) -> None:
        """Args:
        coalesce_ms: least time between the beginnings of two rounds.
        on_due: called when a round is due; `begin` it then.
        """
        self._coalesce_s = coalesce_ms / 1000
        self._on_due = on_due
        self._began_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.is_due = False

    def request(self) -> None:
        """Have a round as soon as may be."""
        if self.is_due or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        wait_s = self._began_at + self._coalesce_s - loop.time()
        if wait_s > 0:
            self._timer = loop.call_later(wait_s, self._due)
        else:
            self._due()

    def begin(self) -> None:
        """The round that was due begins now."""
        self.is_due = False
        self._began_at = asyncio.get_running_loop().time()

    def _due(self) -> None:
        self._timer = None
        self.is_due = True
        self._on_due()
