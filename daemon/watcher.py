"""Watcher: file system events as hints of where to look; it may miss things, and knows when it does.

Events come from watchfiles in a thread. What it is known to lose or hide is made up for by wider hints: whatever
breaks, restarts or stands still ends in `everything`, which asks for a sweep.
"""

import contextlib
import enum
import heapq
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
import structlog
import watchfiles

from ckptd.catalog.roots import Root

from .glance import Glance, glance_at, wait_for_answer
from .hints import Hints, SortedChanges, sort_changes
from .inotify import why_no_watch
from .inotify_watch import InotifyWatch
from .retries import BACKOFF_S, retry_in_s
from .tree_events import UNSAYABLE, Events, Stop, events_of_watchfiles

TICK_S = 0.5
"""How often the root and its mounts are compared with what is watched."""
STALL_S = 2.0
"""A gap between two ticks from which on the kernel's queue may have overflowed without a word."""
SECOND_LOOK_S = 0.5
"""Files made inside a directory that was itself just made are often not reported: it is scanned twice."""
TOLD_EACH_S = 600.0
"""A watch that keeps breaking is logged for its first few failures, then this often; health says so all the time."""
PROBE_S = 2.0
"""How often the kernel is asked for one more watch: watchfiles leaves out, silently, what it cannot watch."""
STEADY_S = 30.0
"""A watch that lasted so long was well: the next failure is retried at once again."""


class WatcherState(msgspec.Struct, kw_only=True):
    """How a watch is doing; for status. Written by `watch_root` alone."""

    watching: bool = False
    """Events arrive from the whole root, as far as is known."""
    last_error: str | None = None
    """Why it is not watching, or why it last stopped."""
    restarts: int = 0
    events: int = 0
    """Received since the start."""
    overflows: int = 0
    """Times that events were, or may have been, lost without a word, since the start."""
    polled: tuple[bytes, ...] = ()
    """Directories on network filesystems, which are scanned every `poll_s` instead; `b""` is the root."""


class _End(enum.Enum):
    """Why one watch ended."""

    NAMES = "a name there is not UTF-8: events are received by the bytes of the names from now on"
    REPLACED = "the root was replaced by another directory"
    MOUNTS = "what is mounted beneath the root has changed"
    WATCHES = "there are free watches again"


class _RootReplaced(Exception):
    """Raised when the root's directory was deleted or renamed under the watch."""


async def watch_root(
    root: Root,
    on_hints: Callable[[Hints], None],
    *,
    log: structlog.stdlib.BoundLogger,
    state: WatcherState,
    step_ms: int = 5,
    debounce_ms: int = 50,
    poll_s: float = 15.0,
    follow: Sequence[bytes] = (),
) -> None:
    """Watch one root until cancelled, and call `on_hints` on the event loop's thread.

    A root that does not exist is waited for. Whatever breaks is started anew, followed by `everything`.

    Args:
        root: the tree.
        on_hints: must not block and must not raise.
        log: gets one line for each restart.
        state: kept up to date.
        step_ms: how often new events are asked for.
        debounce_ms: longest wait to group events.
        poll_s: time between two scans of what lies on a network filesystem, in seconds.
        follow: directories outside the root into which links may lead.
    """
    watch = _Watch(
        root, on_hints, state, log=log, step_ms=step_ms, debounce_ms=debounce_ms, poll_s=poll_s, follow=follow
    )
    failures = 0
    told_at = -TOLD_EACH_S
    while True:
        began_at = anyio.current_time()
        end = None
        try:
            end = await watch.run()
            reason = end.value
        except Exception as error:  # noqa: BLE001 - the rim: watchfiles raises many kinds, each ends one watch
            reason = _explain(error)
            if UNSAYABLE in reason and not watch.by_bytes:
                watch.by_bytes, end = True, _End.NAMES
        finally:
            started, state.watching = state.watching, False
        started = started or end in (_End.WATCHES, _End.NAMES)
        lasted_s = anyio.current_time() - began_at
        failures = 0 if end is _End.NAMES or (started and lasted_s > STEADY_S) else failures + 1
        delay_s = retry_in_s(failures, lasted_s if watch.start_s is None else watch.start_s, started=started)
        state.restarts += 1
        state.last_error = reason
        watch.tell(everything=True)
        if failures < len(BACKOFF_S) or anyio.current_time() - told_at >= TOLD_EACH_S:
            told_at = anyio.current_time()
            log.warning("the watch ended and is started anew", root=root.name, reason=reason, retry_in_s=delay_s)
        await anyio.sleep(delay_s)


class _Watch:
    """One watch after another on one root."""

    by_bytes = False
    """watchfiles met a name that it cannot say; such a tree will hold more of them."""

    def __init__(
        self,
        root: Root,
        on_hints: Callable[[Hints], None],
        state: WatcherState,
        *,
        log: structlog.stdlib.BoundLogger,
        step_ms: int,
        debounce_ms: int,
        poll_s: float,
        follow: Sequence[bytes],
    ) -> None:
        self._root = root
        self._follow = follow
        self._log = log
        self._on_hints = on_hints
        self._state = state
        self._step_ms = step_ms
        self._debounce_ms = debounce_ms
        self._poll_s = poll_s
        self.start_s: float | None = None
        """Seconds that it took until events arrived, the last time that it began; None if it did not get there."""
        self._began_at = 0.0
        self._seen_alive_at = _alive_s()
        self._second_looks: list[tuple[float, bytes]] = []
        self._poll_at = 0.0
        self._probe_at = 0.0
        self._lacks_watches = False
        # Threads of its own: a root on a hanging disk must not use up those that others wait for.
        self._event_thread = anyio.CapacityLimiter(1)
        self._glance_thread = anyio.CapacityLimiter(1)

    async def run(self) -> _End:
        """Watch until the root or its mounts are no longer what is watched.

        Raises:
            OSError: the root cannot be opened, or the system's watches are used up.
            Exception: whatever watchfiles raises.
        """
        self.start_s = None
        glance = await self._wait_for_root()
        self._state.polled = glance.polled
        self._poll_at = anyio.current_time() + self._poll_s
        self._probe_at, self._lacks_watches = 0.0, False
        if b"" in glance.polled:
            self._state.last_error = "network filesystem: no events, it is scanned on a timer"
            self.tell(everything=True)
            return await self._guard(glance)
        await self._wait_for_answers(glance)
        self._began_at = anyio.current_time()
        stop = Stop(partial(anyio.from_thread.run_sync, self._started))
        async with anyio.create_task_group() as group:
            group.start_soon(self._receive_events, stop)
            try:
                # A failing thread cancels this; the exception comes out of the group.
                end = await self._guard(glance)
            finally:
                stop.stopped = True
        return end

    # ---- the root ------------------------------------------------------------------------------------------

    async def _wait_for_root(self) -> Glance:
        told = False
        while True:
            try:
                return await self._glance()
            except (FileNotFoundError, NotADirectoryError):
                self._state.last_error = f"{self._root.name} does not exist; waiting for it to appear"
                if not told:
                    self.tell(everything=True)
                    told = True
            await anyio.sleep(TICK_S)

    async def _wait_for_answers(self, glance: Glance) -> None:
        """Wait until every filesystem beneath the root answers.

        watchfiles walks the tree while it holds the interpreter's lock: one that hangs would hang the whole process.
        """
        for directory in (b"", *(directory for directory, _ in glance.mounts)):
            path = os.path.join(self._root.path, directory)
            self._state.last_error = f"waiting for the filesystem at {os.fsdecode(path)} to answer"
            await anyio.to_thread.run_sync(
                wait_for_answer, path, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
            )

    async def _glance(self) -> Glance:
        return await anyio.to_thread.run_sync(
            glance_at, self._root.path, abandon_on_cancel=True, limiter=self._glance_thread
        )

    async def _guard(self, watched: Glance) -> _End:
        """Compare the root with what is watched, tick by tick, and give the hints that are due by time."""
        while True:
            await anyio.sleep(self._next_tick_s())
            self._check_alive()
            self._give_timed_hints()
            try:
                now = await self._glance()
            except (FileNotFoundError, NotADirectoryError):
                return _End.REPLACED
            if (now.device, now.inode) != (watched.device, watched.inode):
                return _End.REPLACED
            if now != watched:
                return _End.MOUNTS
            if self._state.watching or self._lacks_watches:
                lacked = self._lacks_watches
                await self._probe()
                if lacked and not self._lacks_watches:
                    return _End.WATCHES

    async def _probe(self) -> None:
        """Find out whether directories may have been left out for want of watches, now and then."""
        if anyio.current_time() < self._probe_at:
            return
        self._probe_at = anyio.current_time() + PROBE_S
        lacking = await anyio.to_thread.run_sync(why_no_watch, abandon_on_cancel=True, limiter=self._glance_thread)
        if lacking is not None:
            # Events of what is watched go on; what is made from now on is found by sweeps.
            self._state.watching, self._state.last_error = False, lacking
            if not self._lacks_watches:
                self._log.warning("directories are not watched", root=self._root.name, reason=lacking)
                self.tell(everything=True)
        self._lacks_watches = lacking is not None

    def _next_tick_s(self) -> float:
        next_look_at = self._second_looks[0][0] if self._second_looks else anyio.current_time() + TICK_S
        return max(0.0, min(TICK_S, next_look_at - anyio.current_time()))

    def _check_alive(self) -> None:
        """The process was stopped, or the machine slept: the kernel's queue may have overflowed meanwhile."""
        now = _alive_s()
        if now - self._seen_alive_at > STALL_S + TICK_S:
            self._state.overflows += 1
            self.tell(everything=True)
        self._seen_alive_at = now

    def _give_timed_hints(self) -> None:
        now = anyio.current_time()
        due = set()
        while self._second_looks and self._second_looks[0][0] <= now:
            due.add(heapq.heappop(self._second_looks)[1])
        if self._state.polled and now >= self._poll_at:
            self._poll_at = now + self._poll_s
            if b"" in self._state.polled:
                self.tell(everything=True)
            else:
                due.update(self._state.polled)
        if due:
            self.tell(directories=due)

    # ---- events --------------------------------------------------------------------------------------------

    async def _receive_events(self, stop: Stop) -> None:
        await anyio.to_thread.run_sync(self._watch_in_thread, stop, limiter=self._event_thread)

    def _watch_in_thread(self, stop: Stop) -> None:
        # ignore_permission_denied also ignores a path that does not exist, or that cannot be read at all.
        os.close(os.open(self._root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        batches = self._events_until(stop)
        with contextlib.closing(batches):
            for events in batches:
                if (watchfiles.Change.deleted, self._root.path) in events.changes:
                    # Made again within the tick it may have the same inode number: only this event tells.
                    raise _RootReplaced(_End.REPLACED.value)
                found = sort_changes(self._root, events.changes)
                anyio.from_thread.run_sync(self._receive, found, events.count, events.lost)

    def _events_until(self, stop: Stop) -> Generator[Events]:
        top, step_ms, debounce_ms = self._root.path, self._step_ms, self._debounce_ms
        if not self.by_bytes:
            return events_of_watchfiles(top, stop, step_ms=step_ms, debounce_ms=debounce_ms)
        watch = InotifyWatch(top, follow=self._follow, should_stop=lambda: stop.stopped)
        return watch.events(step_ms=step_ms, debounce_ms=debounce_ms, is_over=stop.is_set)

    def _started(self) -> None:
        """Events are being received: what changed before can be found by a sweep from now on, without a gap."""
        self._state.watching = True
        self._state.last_error = None
        self.start_s = anyio.current_time() - self._began_at
        self.tell(everything=True)

    def _receive(self, found: SortedChanges, events: int, lost: bool) -> None:
        self._state.events += events
        self._state.overflows += lost
        again_at = anyio.current_time() + SECOND_LOOK_S
        for directory in found.made:
            heapq.heappush(self._second_looks, (again_at, directory))
        if found.files or found.directories or lost:
            hints = Hints(
                root=self._root,
                files=found.files,
                links=found.links,
                sightings=found.sightings,
                directories=found.directories,
                everything=lost,
            )
            self._on_hints(hints)

    def tell(self, *, directories: Iterable[bytes] = (), everything: bool = False) -> None:
        self._on_hints(Hints(root=self._root, directories=frozenset(directories), everything=everything))


def _alive_s() -> float:
    """Seconds that go on while the process is stopped and while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _explain(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and "watch" in str(error).lower() and "limit" in str(error).lower():
        return f"{error}; raise fs.inotify.max_user_watches (sysctl)"
    if "creating recommended watcher" in str(error) and "os error 24" in str(error):
        # inotify_init1(2) says EMFILE for both; which of them it was does not come through watchfiles.
        return f"{error}; raise fs.inotify.max_user_instances (sysctl), or the limit of open files (ulimit -n)"
    if UNSAYABLE in str(error):
        return f"{error}: {_End.NAMES.value}"
    return str(error) or repr(error)
