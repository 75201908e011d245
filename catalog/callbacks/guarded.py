"""Guard: what a callback does for the catalog never fails a training; what went wrong is told once."""

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

log = logging.getLogger("ckptd.callbacks")

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Guard:
    """Calls functions whose failure must not reach the caller."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        """Call a function; None, with one warning for each kind of failure, where it raises."""
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the rim between a training and its description
            self.tell(type(error).__name__, f"metadata of a checkpoint is incomplete: {error!r}; the training goes on")
            return None

    def tell(self, kind: str, message: str) -> None:
        """Log a warning, once for each kind."""
        if kind not in self._told:
            self._told.add(kind)
            log.warning("%s", message)
