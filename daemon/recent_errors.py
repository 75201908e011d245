"""RecentErrors: what went wrong lately, for the operator."""

import collections
import time

from .metrics import Metrics
from .status import RecentError

RECENT_ERRORS = 50


class RecentErrors:
    """The last of them; all are counted."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._errors: collections.deque[RecentError] = collections.deque(maxlen=RECENT_ERRORS)

    def note(self, what: str, path: str, message: str) -> None:
        """Something went wrong now."""
        self._metrics.count_problem(what)
        self._errors.append(RecentError(at=time.time(), what=what, path=path, message=message))

    def latest(self) -> tuple[RecentError, ...]:
        """The last ones, oldest first."""
        return tuple(self._errors)
