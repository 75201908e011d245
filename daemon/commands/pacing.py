"""How far a long job is: a bar on a terminal, a plain line now and then in a pipe."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from . import output

EVERY_S = 10.0
"""Between two lines in a pipe: few enough for a log that is kept."""


@contextlib.contextmanager
def pacing(what: str, total: int, *, shown: bool | None) -> Iterator[output.Progress]:
    """Show on standard error how far a job is.

    Args:
        what: the job.
        total: how many there are.
        shown: False for nothing; True also for a line at the end of a short job; None for what fits.
    """
    if shown is False or total == 0:
        yield _Nothing()
    elif sys.stderr.isatty():
        with output.progress(what, total) as bar:
            yield bar
    else:
        lines = _Lines(what, total)
        yield lines
        if shown:
            lines.tell()


class _Nothing:
    def advance(self, size_bytes: int = 0) -> None:
        """Nobody looks."""


class _Lines:
    """May be advanced by several threads."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._began = self._told = time.monotonic()
        self._guard = threading.Lock()

    def advance(self, size_bytes: int = 0) -> None:
        """One more is done."""
        with self._guard:
            self._done += 1
            now = time.monotonic()
            due = now - self._told >= EVERY_S
            if due:
                self._told = now
        if due:
            self.tell()

    def tell(self) -> None:
        """Print how far it is."""
        took_s = max(time.monotonic() - self._began, 1e-3)
        rate = self._done / took_s
        left = f", {output.duration((self._total - self._done) / rate)} left" if 0 < self._done < self._total else ""
        print(f"ckptd: {self._what}: {self._done:,} of {self._total:,}, {rate:,.0f}/s{left}", file=sys.stderr)
