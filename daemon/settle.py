"""Settle: when a path is looked at, and what a look means; a pure machine without clock or I/O.

A path is *hinted* (something may have changed there), becomes *due*, is handed out for a look, and the look's
outcome is told to `looked`, which answers with what to publish and decides whether to look again. A path that
needs no further look is forgotten, so memory is bounded by what is happening, not by what exists.

Whole means sealed by structure, not by quiet time; quiet time decides only where a format has no end mark or a
writer cannot be ruled out.
"""

import collections
import enum
import heapq
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

import msgspec

from ckptd.validators.inspection import FileIdentity, Seal

CONFIRM_S = 0.05
"""A sealed file whose writers cannot be found out is whole if unchanged for so long."""
HELD_LADDER_S = (0.01, 0.05, 0.25)
"""Sealed, but a writer has it open: the close follows the last byte within milliseconds, usually."""
OPEN_LADDER_S = (0.1, 0.25, 0.5, 1.0, 2.0)
"""Bytes are missing: events tell of more; polling serves filesystems without events."""
OFFLINE_LADDER_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
OFFLINE_LOOKS_PER_S = 100
"""A lost disk may hold 100,000 paths: together they are not looked at more often than this."""
SOONEST_S = 0.001
"""No look is scheduled closer than this, so that rounding can never make a busy loop."""

Key = TypeVar("Key", bound=Hashable)


class LookKind(enum.Enum):
    """What a look found."""

    GONE = enum.auto()
    """The name is not in its directory, and the directory could be read."""
    UNREACHABLE = enum.auto()
    """It could not be found out: permissions, I/O error, or another mount than before."""
    UNCHANGED = enum.auto()
    """What the catalog holds was made from this very state and is settled: nothing needs doing."""
    SEEN = enum.auto()
    """The file is there, with an identity, a seal and perhaps a writer."""


class Look(msgspec.Struct, frozen=True, gc=False):
    """The outcome of one look at one path. `identity` and `seal` are given if it was SEEN."""

    kind: LookKind
    identity: FileIdentity | None = None
    seal: Seal | None = None
    writer: bool | None = None
    """Somebody has it open for writing; None: it could not be found out."""


class Verdict(enum.Enum):
    """What is to be published of a path after a look."""

    NOTHING = enum.auto()
    """What is published stands, for now."""
    WHOLE = enum.auto()
    """Describe the file and publish that."""
    WRITING = enum.auto()
    """Not whole yet; it is looked at again."""
    ABANDONED = enum.auto()
    """Incomplete, and nobody goes on with it: invalid, until it changes."""
    REMOVE = enum.auto()
    OFFLINE = enum.auto()
    """Keep what is known, marked as not readable just now; it is looked at again."""


class Phase(enum.StrEnum):
    """Where a path stands between two looks; for status and metrics."""

    NEW = "new"
    """Hinted, not looked at yet."""
    WRITING = "writing"
    CONFIRMING = "confirming"
    """Sealed, to be seen unchanged once more; or published while too young for coarse clocks."""
    OFFLINE = "offline"


class _Wait(NamedTuple):
    """A file that is there is given `verdict` once it was unchanged for `need_s`, and `meanwhile` until then."""

    verdict: Verdict
    need_s: float
    unchanged_s: float
    meanwhile: Verdict
    ladder_s: tuple[float, ...]


class _Times(NamedTuple):
    """A look takes time, and what it saw may be as old as its beginning."""

    began_at: float
    ended_at: float
    wall_ended_ns: int

    def age_s(self, *times_ns: int) -> float:
        """How long before the look began the latest of `times_ns` was; negative for a later time."""
        return (self.wall_ended_ns - max(times_ns)) / 1e9 - (self.ended_at - self.began_at)


class _Path:
    """What is remembered of one path while it is not settled."""

    __slots__ = ("again", "confirm_at", "due_at", "identity", "phase", "rung", "seal", "since", "ticket", "witnessed")

    def __init__(self) -> None:
        self.phase = Phase.NEW
        self.due_at = 0.0
        self.ticket = 0
        """Of the one valid entry in the heap; 0 while it is being looked at."""
        self.again = False
        """Hinted while a look was under way."""
        self.identity: FileIdentity | None = None
        self.seal: Seal | None = None
        self.since = 0.0
        """When the look that first saw `identity` ended."""
        self.witnessed = False
        """The file changed under our eyes: only our own clock says for how long it has been quiet."""
        self.rung = 0
        self.confirm_at: float | None = None
        """Published while young; to be read once more from then on."""


class Settle(Generic[Key]):
    """The paths that are not settled, each with the time of its next look.

    Every operation costs O(log n) or less. Times are seconds of one monotonic clock, given by the caller.
    """

    def __init__(self, *, quiet_s: float = 2.0, abandoned_s: float = 60.0, young_s: float = 2.0) -> None:
        self._quiet_s = quiet_s
        self._abandoned_s = abandoned_s
        self._young_s = young_s
        self._paths: dict[Key, _Path] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._looking: dict[Key, float] = {}
        """Since when; in the order of their start."""
        self._tickets = 0
        self._phases: collections.Counter[Phase] = collections.Counter()

    # ---- events --------------------------------------------------------------------------------------------

    def hint(self, key: Key, now: float) -> None:
        """Something may have changed at `key`: look at it now, or again right after the look under way."""
        path = self._paths.get(key)
        if path is None:
            path = self._paths[key] = _Path()
            self._phases[path.phase] += 1
        elif not path.ticket:
            path.again = True
            return
        elif path.due_at <= now:
            return
        self._schedule(key, path, now)

    def hint_under_way(self, now: float, is_concerned: Callable[[Key], bool] = lambda _: True) -> list[Key]:
        """Hint every path that is being looked at and is concerned, and return them. To be called when a sweep begins.

        A sweep compares the tree with what is published. A look that began earlier publishes after that
        comparison what it saw before it, and nobody would notice.
        """
        keys = list(filter(is_concerned, self._looking))
        for key in keys:
            self.hint(key, now)
        return keys

    def due(self, now: float, limit: int) -> list[Key]:
        """Hand out at most `limit` keys to look at now, the longest overdue first.

        A key that was handed out is not handed out again before `looked` or `abort` was called for it.
        """
        keys: list[Key] = []
        while self._heap and len(keys) < limit and self._heap[0][0] <= now:
            _, ticket, key = heapq.heappop(self._heap)
            path = self._paths.get(key)
            if path is not None and path.ticket == ticket:
                path.ticket = 0
                self._looking[key] = now
                keys.append(key)
        return keys

    def looked(self, key: Key, look: Look, now: float, wall_now_ns: int) -> Verdict:
        """Take the outcome of a look at `key`, and say what to publish.

        Args:
            key: one that `due` handed out.
            look: what was found.
            now: monotonic seconds.
            wall_now_ns: wall clock, in nanoseconds since the epoch, to compare with the file's own times.

        Raises:
            KeyError: the key is not being looked at.
        """
        began_at = self._looking.pop(key)
        path = self._paths[key]
        verdict, delay_s = self._judge(path, look, _Times(began_at, now, wall_now_ns))
        if path.again:
            path.again = False
            self._schedule(key, path, now)
        elif delay_s is None:
            self._enter(path, None)
            del self._paths[key]
        else:
            self._schedule(key, path, now + max(delay_s, SOONEST_S))
        return verdict

    def abort(self, key: Key, now: float, retry_in_s: float) -> None:
        """The look itself failed (the worker pool is restarting, …) and says nothing: try again later.

        Raises:
            KeyError: the key is not being looked at.
        """
        del self._looking[key]
        path = self._paths[key]
        path.again = False
        self._schedule(key, path, now + max(retry_in_s, SOONEST_S))

    # ---- questions -----------------------------------------------------------------------------------------

    def must_read(self, key: Key) -> bool:
        """Whether an identity equal to the catalog's proves nothing here, so that UNCHANGED is no answer.

        True for a file that was published within `young_s` of its modification (it may have been modified again
        within one tick of a coarse clock), and for one that is being written (what is published of it is not
        settled).
        """
        path = self._paths.get(key)
        return path is not None and (path.confirm_at is not None or path.phase is Phase.WRITING)

    def next_due(self) -> float | None:
        """When the next look is due; None while nothing waits (looks may be under way)."""
        while self._heap:
            due_at, ticket, key = self._heap[0]
            path = self._paths.get(key)
            if path is not None and path.ticket == ticket:
                return due_at
            heapq.heappop(self._heap)
        return None

    def __len__(self) -> int:
        """The number of paths that are not settled, those being looked at included."""
        return len(self._paths)

    def __contains__(self, key: Key) -> bool:
        return key in self._paths

    @property
    def looking(self) -> int:
        """The number of looks under way."""
        return len(self._looking)

    def phases(self) -> dict[Phase, int]:
        """How many paths stand where."""
        return {phase: self._phases[phase] for phase in Phase}

    def overdue_s(self, now: float) -> float:
        """For how long the longest waiting key has been due and not handed out; 0 if none is."""
        due_at = self.next_due()
        return 0.0 if due_at is None else max(0.0, now - due_at)

    def longest_look_s(self, now: float) -> float:
        """For how long the oldest look has been under way; 0 if none is."""
        return now - next(iter(self._looking.values())) if self._looking else 0.0

    # ---- judgement -----------------------------------------------------------------------------------------

    def _judge(self, path: _Path, look: Look, times: _Times) -> tuple[Verdict, float | None]:
        """What to publish, and in how many seconds to look again; None: never, it is settled."""
        match look.kind:
            case LookKind.GONE:
                path.identity, path.confirm_at, path.witnessed = None, None, False
                self._enter(path, Phase.NEW)
                return Verdict.REMOVE, None
            case LookKind.UNREACHABLE:
                self._enter(path, Phase.OFFLINE)
                crowd_s = self._phases[Phase.OFFLINE] / OFFLINE_LOOKS_PER_S
                return Verdict.OFFLINE, max(self._climb(path, OFFLINE_LADDER_S), crowd_s)
            case LookKind.UNCHANGED:
                self._enter(path, Phase.CONFIRMING)
                if path.confirm_at is None or path.confirm_at <= times.began_at:
                    return Verdict.NOTHING, None
                return Verdict.NOTHING, path.confirm_at - times.ended_at
            case LookKind.SEEN:
                if look.identity is None or look.seal is None:
                    raise ValueError("a file that was seen has an identity and a seal")
                return self._judge_seen(path, look, look.identity, times)

    def _judge_seen(
        self, path: _Path, look: Look, identity: FileIdentity, times: _Times
    ) -> tuple[Verdict, float | None]:
        changed = self._observe(path, identity, look.seal, times.ended_at)
        wait = self._wait_for(path, look, identity, times, changed=changed)
        if wait.unchanged_s < wait.need_s:
            self._enter(path, Phase.CONFIRMING if wait.meanwhile is Verdict.NOTHING else Phase.WRITING)
            path.confirm_at = None
            return wait.meanwhile, min(self._climb(path, wait.ladder_s), wait.need_s - wait.unchanged_s)
        if wait.verdict is not Verdict.WHOLE:
            return wait.verdict, None
        self._enter(path, Phase.CONFIRMING)
        return Verdict.WHOLE, self._confirm_in_s(path, identity, times)

    def _wait_for(self, path: _Path, look: Look, identity: FileIdentity, times: _Times, *, changed: bool) -> _Wait:
        own_s = max(0.0, times.began_at - path.since)
        # The file's own times count for what was not watched: a daemon that starts on an old tree need not wait.
        # ctime cannot be set back, so a copy that restores an old mtime at its end does not look quiet.
        trust_file = not path.witnessed and look.writer is not True
        quiet_s = max(own_s, times.age_s(identity.mtime_ns, identity.ctime_ns)) if trust_file else own_s
        match look.seal, look.writer:
            case Seal.SEALED, False:
                return _Wait(Verdict.WHOLE, 0.0, own_s, Verdict.NOTHING, HELD_LADDER_S)
            case Seal.SEALED, None:
                unchanged_s = quiet_s if quiet_s >= self._young_s else own_s
                meanwhile = Verdict.WRITING if changed or path.phase is Phase.WRITING else Verdict.NOTHING
                return _Wait(Verdict.WHOLE, CONFIRM_S, unchanged_s, meanwhile, (CONFIRM_S,))
            case Seal.SEALED, _:
                return _Wait(Verdict.WHOLE, self._quiet_s, own_s, Verdict.WRITING, HELD_LADDER_S)
            case Seal.NONE, True:
                return _Wait(Verdict.WHOLE, self._abandoned_s, own_s, Verdict.WRITING, OPEN_LADDER_S)
            case Seal.NONE, _:
                return _Wait(Verdict.WHOLE, self._quiet_s, quiet_s, Verdict.WRITING, (self._quiet_s,))
            case _:
                stale_s = max(own_s, times.age_s(identity.mtime_ns)) if trust_file else own_s
                return _Wait(Verdict.ABANDONED, self._abandoned_s, stale_s, Verdict.WRITING, OPEN_LADDER_S)

    def _observe(self, path: _Path, identity: FileIdentity, seal: Seal | None, now: float) -> bool:
        """Take note of what was seen; True if it is another state than that of the look before."""
        if seal is not path.seal:
            path.seal, path.rung = seal, 0
        if identity == path.identity:
            return False
        changed = path.identity is not None
        path.witnessed = path.witnessed or changed
        path.identity, path.since, path.confirm_at = identity, now, None
        return changed

    def _confirm_in_s(self, path: _Path, identity: FileIdentity, times: _Times) -> float | None:
        if path.confirm_at is None:
            # A time in the future counts as just now; the second look ends it in any case.
            age_s = max(0.0, times.age_s(identity.mtime_ns, identity.ctime_ns))
            if age_s >= self._young_s:
                return None
            path.confirm_at = times.began_at + self._young_s - age_s
        elif times.began_at >= path.confirm_at:
            path.confirm_at = None
            return None
        return path.confirm_at - times.ended_at

    # ---- bookkeeping ---------------------------------------------------------------------------------------

    def _enter(self, path: _Path, phase: Phase | None) -> None:
        """Move to another phase, beginning its ladder anew; None: the path is forgotten."""
        if phase is path.phase:
            return
        self._phases[path.phase] -= 1
        if phase is not None:
            self._phases[phase] += 1
            path.phase, path.rung = phase, 0

    @staticmethod
    def _climb(path: _Path, ladder_s: tuple[float, ...]) -> float:
        delay_s = ladder_s[min(path.rung, len(ladder_s) - 1)]
        path.rung += 1
        return delay_s

    def _schedule(self, key: Key, path: _Path, due_at: float) -> None:
        self._tickets += 1
        path.ticket, path.due_at = self._tickets, due_at
        heapq.heappush(self._heap, (due_at, path.ticket, key))
        if len(self._heap) > 2 * len(self._paths) + 64:
            # Hints bring looks forward and leave the old places behind; drop those before they add up.
            self._heap = [place for place in self._heap if self._is_valid(place)]
            heapq.heapify(self._heap)

    def _is_valid(self, place: tuple[float, int, Key]) -> bool:
        path = self._paths.get(place[2])
        return path is not None and path.ticket == place[1]
