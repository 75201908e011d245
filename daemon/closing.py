"""Closing: descriptors of users' files are closed in threads of their own, one for each root.

close(2) may wait for as long as the disk does not answer: FUSE flushes at each close, also of what was only read. Here
such a disk keeps its own thread, and the descriptors that wait for it, and nothing else.
"""

import contextlib
import queue
import threading
from collections.abc import Callable

from ckptd.catalog.roots import Root

_Queue = queue.SimpleQueue[Callable[[], None]]


class Closer:
    """Closes what it is given, in order, each root apart; never blocks. Its threads end with the process."""

    def __init__(self) -> None:
        self._queues: dict[Root, _Queue] = {}

    def close(self, root: Root, close: Callable[[], None]) -> None:
        """Have `close` called soon, which closes files beneath a root. Meant for one thread, the event loop's."""
        waiting = self._queues.get(root)
        if waiting is None:
            waiting = self._queues[root] = _Queue()
            threading.Thread(target=_close_all, args=(waiting,), name=f"close {root.name}", daemon=True).start()
        waiting.put(close)


def _close_all(waiting: _Queue) -> None:
    while True:
        close = waiting.get()
        with contextlib.suppress(OSError):  # what was only read has nothing to lose; it is closed all the same
            close()
        del close  # else what it held lives until the next one
