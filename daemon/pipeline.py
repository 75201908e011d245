"""Pipeline: hints → settle → looks → workers → journal → sidecars. The way of a change, in one direction.

Whoever believes that a path may have changed calls `hint`; nothing else enters. Every path is judged by `settle` alone,
and every outcome leaves through the journal.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from ckptd.catalog.description import Description
from ckptd.catalog.entry import CheckpointId
from ckptd.catalog.roots import Root
from ckptd.catalog.store import Catalog

from .aliases import Aliases
from .describer import Describer, LookAgain
from .journal import Journal
from .key import Key
from .look import Sight, Viewer
from .lookout import Lookout, Seen, Wanted
from .metrics import Metrics
from .mounts import is_beneath
from .moves import Mark, Moves, mark_of_path
from .publisher import Publisher
from .settle import Look, LookKind, Phase, Settle, Verdict
from .sidecars import SidecarWriter
from .workers import PoolClosed, WorkerPool

LOOKS_AT_ONCE = 192
"""Paths that are opened and described at the same time; each holds at most six descriptors."""

WRITING_NEWS_S = 1.0
"""A file that grows is news at most this often."""

INTERNAL_ERROR_RETRY_S = 30.0


class Counts(msgspec.Struct, frozen=True):
    """What was done since the start, for status and metrics."""

    looks: int = 0
    described: int = 0
    unchanged: int = 0
    removed: int = 0


class Pipeline:
    """Owns `settle` and every look under way."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        journal: Journal,
        pool: WorkerPool,
        sidecars: SidecarWriter,
        viewers: Sequence[Viewer],
        settle: Settle[Key],
        sweeps_begun: Callable[[Root], int],
        on_looked: Callable[[Key, int], None],
        on_problem: Callable[[str, str, str], None],
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """Args:
        sweeps_begun: how many sweeps of a root have begun.
        on_looked: called when a look at a path ended and its outcome is visible, with the number of sweeps of its root
            that had begun when the look began.
        on_problem: called with (what, path, message) for the operator's list of recent errors.
        """
        self._catalog = catalog
        self._settle = settle
        self._sweeps_begun = sweeps_begun
        self._on_looked = on_looked
        self._on_problem = on_problem
        self._log = log
        self._wake = anyio.Event()
        self._in_flight = 0
        self._forced: set[Key] = set()
        self._told_writing: dict[Key, float] = {}
        self._closing = False
        self._looks = 0
        self._unchanged = 0
        self._lookout = Lookout(viewers, journal.verification, log)
        self._describer = Describer(
            catalog=catalog, pool=pool, lookout=self._lookout, on_problem=on_problem, metrics=metrics, log=log
        )
        self._moves = Moves(catalog)
        self._publisher = Publisher(
            catalog=catalog, journal=journal, sidecars=sidecars, moves=self._moves, recall=self._lookout.recall
        )
        self._aliases = Aliases(catalog, self._lookout.roots, self.hint)

    @property
    def counts(self) -> Counts:
        """What was done so far."""
        return Counts(self._looks, self._describer.described, self._unchanged, self._publisher.removed)

    @property
    def pending(self) -> int:
        """Paths that need a look or are being looked at."""
        return len(self._settle)

    @property
    def waiting(self) -> int:
        """Paths that were never looked at since they changed."""
        return self._settle.phases()[Phase.NEW]

    @property
    def phases(self) -> dict[Phase, int]:
        """How many paths stand where."""
        return self._settle.phases()

    # ---- what enters ---------------------------------------------------------------------------------------

    def hint(self, keys: Iterable[Key], *, must_read: bool = False) -> None:
        """Something may have changed at these paths. Cheap; never blocks."""
        now = anyio.current_time()
        for key in keys:
            if must_read:
                self._forced.add(key)
            self._settle.hint(key, now)
        self._wake.set()

    def sighted(self, sightings: Iterable[tuple[Mark, Key]]) -> None:
        """Files were seen at these paths just now, and may have left others; to be told before `hint`."""
        self._moves.seen((mark, key.id) for mark, key in sightings)

    def is_pending(self, key: Key) -> bool:
        """Whether a look at this path is due or under way, or its outcome not visible yet."""
        return key in self._settle or key in self._publisher.under_way

    def hint_aliases(self, target: CheckpointId) -> None:
        """More is known of a file's bytes: the links to it are to show that as well."""
        self.hint(self._aliases.of(target), must_read=True)

    def repeat_looks_under_way(self, root: Root, subtrees: Collection[bytes] = (b"",)) -> list[Key]:
        """Have every look under way in a root repeated, and return their keys. To be called when a sweep begins.

        A look counts as under way until its outcome is visible: the sweep compares the tree with what is published,
        and cannot see that an older outcome, published after the comparison, is out of date.

        Args:
            root: the tree.
            subtrees: only looks at what lies in these directories.
        """

        def is_concerned(key: Key) -> bool:
            return key.root == root and any(is_beneath(key.path, subtree) for subtree in subtrees)

        keys = dict.fromkeys(self._settle.hint_under_way(anyio.current_time(), is_concerned))
        keys |= dict.fromkeys(filter(is_concerned, self._publisher.under_way))
        concerned = list(keys)
        self.hint(concerned)
        return concerned

    # ---- taking up what is due -----------------------------------------------------------------------------

    def close(self) -> None:
        """Take up no more looks; those under way end."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Look at what is due until closed."""
        async with anyio.create_task_group() as looks:
            while not self._closing:
                await self._take_due(looks)
                await self._wait()

    async def _wait(self) -> None:
        due = self._settle.next_due() if self._in_flight < LOOKS_AT_ONCE else None
        with anyio.CancelScope(deadline=math.inf if due is None else due):
            await self._wake.wait()
        self._wake = anyio.Event()

    async def _take_due(self, looks: anyio.abc.TaskGroup) -> None:
        while not self._closing and self._in_flight < LOOKS_AT_ONCE:
            keys = self._settle.due(anyio.current_time(), min(64, LOOKS_AT_ONCE - self._in_flight))
            if not keys:
                return
            self._in_flight += len(keys)
            looks.start_soon(self._look_at, keys)

    # ---- one look: see, describe, conclude -----------------------------------------------------------------

    async def _look_at(self, keys: Sequence[Key]) -> None:
        """Look at a handful of paths in one thread, then describe each by itself."""
        wanted = [Wanted(key, self._catalog.get(key.id), self._must_read(key)) for key in keys]
        begun = [self._sweeps_begun(key.root) for key in keys]
        seen = await anyio.to_thread.run_sync(self._lookout.look_at, wanted)
        self._looks += len(keys)
        sights = zip(keys, (one.sight.identities for one in seen), strict=True)
        self.sighted((mark_of_path(identities), key) for key, identities in sights if identities is not None)
        async with anyio.create_task_group() as group:
            for key, one, sweeps in zip(keys, seen, begun, strict=True):
                group.start_soon(self._judge, key, one, sweeps)

    def _must_read(self, key: Key) -> bool:
        return key in self._forced or self._settle.must_read(key)

    async def _judge(self, key: Key, seen: Seen, sweeps: int) -> None:
        try:
            sight, description = await self._describer.describe(key, seen.sight)
            if sight.kind is LookKind.GONE:
                await self._seek_elsewhere(key)
            if await self._conclude(key, seen._replace(sight=sight), description):
                self._on_looked(key, sweeps)
        except LookAgain as again:
            self._settle.abort(key, anyio.current_time(), retry_in_s=again.in_s)
        except PoolClosed:  # the service stops; the next run looks at it anew
            self._settle.abort(key, anyio.current_time(), retry_in_s=INTERNAL_ERROR_RETRY_S)
        except Exception as error:  # noqa: BLE001
            # The rim of one file: whatever went wrong with it must not stop the others. It is tried again.
            self._log.exception("a checkpoint could not be processed", path=os.fsdecode(key.root.join(key.path)))
            self._on_problem("internal error", os.fsdecode(key.root.join(key.path)), repr(error))
            # An outcome that settle has taken already is not looked at again here: the next sweep asks for it.
            with contextlib.suppress(KeyError):
                self._settle.abort(key, anyio.current_time(), retry_in_s=INTERNAL_ERROR_RETRY_S)
        finally:
            self._in_flight -= 1
            self._wake.set()

    async def _seek_elsewhere(self, key: Key) -> None:
        """Give a file that left its place a moment to be seen at another one.

        The look is still under way meanwhile, so that no other look at this path overtakes it, but holds up nobody's.
        """
        known = self._catalog.get(key.id)
        if known is None:
            return
        self._in_flight -= 1
        self._wake.set()
        try:
            await self._moves.seek(known.identities, key.id)
        finally:
            self._in_flight += 1

    async def _conclude(self, key: Key, seen: Seen, description: Description | None) -> bool:
        """Publish what a look means; False if that is not clear yet, and another look will tell."""
        look = _as_look(seen.sight, description)
        verdict = self._settle.looked(key, look, anyio.current_time(), time.time_ns())
        self._note_end(key, seen.sight.kind, verdict)
        match verdict:
            case Verdict.REMOVE:
                self._forced.discard(key)
                await self._publisher.remove(key)
            case Verdict.OFFLINE:
                await self._publisher.offline(key)
            case Verdict.WRITING if not self._is_news(key):
                return False  # what is published of it is older than this look
            case Verdict.WHOLE | Verdict.ABANDONED | Verdict.WRITING:
                assert description is not None
                await self._publisher.publish(key, seen, description, verdict)
            case Verdict.NOTHING if look.kind is LookKind.SEEN:
                return False
            case Verdict.NOTHING:
                pass
        return True

    def _note_end(self, key: Key, kind: LookKind, verdict: Verdict) -> None:
        self._describer.concluded(key)
        if kind is LookKind.UNCHANGED:
            self._unchanged += 1
        if kind is LookKind.SEEN:
            self._forced.discard(key)
        if verdict is not Verdict.WRITING:
            self._told_writing.pop(key, None)

    def _is_news(self, key: Key) -> bool:
        now = anyio.current_time()
        if now - self._told_writing.get(key, -math.inf) < WRITING_NEWS_S:
            return False
        self._told_writing[key] = now
        return True


def _as_look(sight: Sight, description: Description | None) -> Look:
    if sight.kind is not LookKind.SEEN or sight.identities is None or description is None:
        return Look(kind=sight.kind)
    if sight.opened is None:  # it exists and cannot be opened: there is nothing to wait for but a change
        return Look(kind=LookKind.SEEN, identity=sight.identities.file, seal=sight.seal, writer=False)
    return Look(
        kind=LookKind.SEEN,
        identity=description.inspection.identity,
        seal=description.inspection.seal,
        writer=sight.opened.writer,
    )
