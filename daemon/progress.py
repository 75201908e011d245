"""Progress: the number of pending paths as "done of total", for spells of work that are worth showing."""

PROGRESS_FROM = 100
"""Fewer pending paths are not worth a progress bar."""


class Progress:
    """Turns the number of pending paths into "done of total", for spells of work that are worth showing."""

    def __init__(self) -> None:
        self._total = 0
        self._before = 0

    def step(self, pending: int) -> tuple[int, int] | None:
        """What to announce now, given how many paths are pending; None for nothing."""
        if not self._total and pending < PROGRESS_FROM:
            return None
        self._total += max(0, pending - self._before) if self._total else pending
        self._before = pending
        done = self._total - pending
        told = (done, self._total)
        if not pending:
            self._total = self._before = 0
        return told
