"""Tree events: what happens in a tree, group by group, from watchfiles or by the bytes of names."""

import contextlib
import os
from collections.abc import Callable, Generator

import msgspec
import watchfiles

LARGE_BATCH = 4096
"""A quarter of the kernel's default queue within one debounce: more may have been lost."""
RUST_TIMEOUT_MS = 1000
UNSAYABLE = "Unable to decode path"
"""What watchfiles says of a name that is not UTF-8 (`RustNotify.watch`, src/lib.rs)."""


Change = tuple[watchfiles.Change, bytes]
"""What happened, and to which absolute path."""


class Events(msgspec.Struct, frozen=True):
    """What happened within one debounce."""

    changes: frozenset[Change]
    count: int
    """Of the events; several of one kind at one path are one change."""
    lost: bool = False
    """Some were, or may have been, lost: only a sweep tells what else happened."""


class Stop:
    """A stop event that is asked again and again by what watches; being asked at all shows that the watch stands."""

    def __init__(self, on_started: Callable[[], None]) -> None:
        self._on_started: Callable[[], None] | None = on_started
        self.stopped = False

    def is_set(self) -> bool:
        """Whether to end; the first call says that events are being received."""
        if self._on_started is not None:
            on_started, self._on_started = self._on_started, None
            on_started()
        return self.stopped


def events_of_watchfiles(top: bytes, stop: Stop, *, step_ms: int, debounce_ms: int) -> Generator[Events]:
    """Yield what happens in a tree until `stop` is set. Blocks; for a thread.

    Links to directories are followed, wherever they lead.

    Raises:
        Exception: whatever watchfiles raises; where its message contains `UNSAYABLE`, a name is not UTF-8.
    """
    batches = watchfiles.watch(
        os.fsdecode(top),
        watch_filter=None,
        step=step_ms,
        debounce=debounce_ms,
        rust_timeout=RUST_TIMEOUT_MS,
        stop_event=stop,
        raise_interrupt=False,
        force_polling=False,
        debug=False,
        recursive=True,
        ignore_permission_denied=True,
    )
    with contextlib.closing(batches):
        for changes in batches:
            by_bytes = frozenset((change, os.fsencode(path)) for change, path in changes)
            # Its queue overflows without a word.
            yield Events(by_bytes, len(by_bytes), lost=len(by_bytes) >= LARGE_BATCH)
