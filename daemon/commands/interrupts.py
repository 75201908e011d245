"""Interrupts: Ctrl-C and SIGTERM end a long job after what is in hand; the second one ends it at once."""

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from typing import Self

import anyio

_POLL_S = 0.02
_AT_ONCE_S = 2.0
"""What hangs on a dead disk gets so long to put its things in order."""


class Interrupts:
    """While the context lasts, the first signal is remembered and the second one raises KeyboardInterrupt."""

    def __init__(self, what: str) -> None:
        """Args:
        what: is to be done with the job in hand, for people: `writing what is in hand`.
        """
        self._what = what
        self._before: dict[int, object] = {}
        self.received: int | None = None
        """The signal that came first."""
        self.at_once = False
        """A second one came."""
        self._raises = True

    @property
    def exit_code(self) -> int:
        """128 + the signal, as shells report it; 0 without one."""
        return 0 if self.received is None else 128 + self.received

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """While the context lasts, a second signal raises nothing: whoever runs an event loop waits for it instead."""
        self._raises = False
        try:
            yield
        finally:
            self._raises = True

    async def second(self) -> None:
        """Wait for the second signal."""
        while not self.at_once:  # noqa: ASYNC110 - a signal handler may set no event of the loop that it interrupts
            await anyio.sleep(_POLL_S)

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Who started us with a signal ignored (nohup, a shell's background job) wants it ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _take(self, number: int, _: types.FrameType | None) -> None:
        if self.received is None:
            self.received = number
            # Not print: the signal may have come in the midst of one.
            os.write(sys.stderr.fileno(), f"\nckptd: {self._what}; again to end at once\n".encode())
            return
        self.at_once = True
        self.received = number
        timer = threading.Timer(_AT_ONCE_S, os._exit, (self.exit_code,))
        timer.daemon = True
        timer.start()
        if self._raises:
            raise KeyboardInterrupt
