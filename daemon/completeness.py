"""Completeness: when the next sweep is due, and since when the catalog misses nothing; pure, without a clock."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

SOON_CPU = 0.2
"""Share of one core for sweeps that are asked for again and again, as by a watch that keeps breaking."""
SOON_S = 0.2
"""Requests within this time of a sweep's end are met by one sweep."""
TICKETS_KEPT = 8

Key = TypeVar("Key", bound=Hashable)


class SweepSchedule:
    """When one root is swept next. Times are seconds of one monotonic clock, given by the caller.

    On its own a sweep follows `min_s` after the end of the last one, and later where it is costly: it takes at most
    `cpu` of one core. A request brings the next one forward; requests add up to one sweep.
    """

    def __init__(self, *, min_s: float = 10.0, cpu: float = 0.02) -> None:
        """Args:
        min_s: least time between two sweeps that nobody asked for, in seconds.
        cpu: share of one core that these may take, above 0.
        """
        self._min_s = min_s
        self._cpu = cpu
        self._ended_at: float | None = None
        self._cost_s = 0.0
        self._is_running = False
        self._requested_at: float | None = 0.0

    @property
    def is_running(self) -> bool:
        """A sweep has begun and not ended."""
        return self._is_running

    @property
    def is_requested(self) -> bool:
        """Somebody asked for a sweep that has not begun; true at the start."""
        return self._requested_at is not None

    @property
    def gap_s(self) -> float:
        """From the end of one sweep to the beginning of the next, if nobody asks."""
        return max(self._min_s, self._cost_s / self._cpu)

    def request(self, now: float) -> None:
        """Sweep soon. A request during a sweep is met by the next one: the sweep may have passed the place already."""
        if self._requested_at is None:
            self._requested_at = now

    def due_at(self) -> float | None:
        """When the next sweep is to begin; None while one is running."""
        if self._is_running:
            return None
        if self._ended_at is None:
            return 0.0
        if self._requested_at is None:
            return self._ended_at + self.gap_s
        soon_s = max(SOON_S, self._cost_s / SOON_CPU)
        return max(self._requested_at, min(self._ended_at + soon_s, self._ended_at + self.gap_s))

    def began(self) -> None:
        """A sweep begins, and meets every request made so far."""
        self._is_running = True
        self._requested_at = None

    def ended(self, now: float, cpu_s: float) -> None:
        """The sweep ended, well or not.

        Args:
            now: monotonic seconds.
            cpu_s: processor time that it took, in seconds.
        """
        self._is_running = False
        self._ended_at = now
        self._cost_s = cpu_s


class Ticket(Generic[Key]):
    """One sweep on its way to be a proof: it must end well, and each of its suspects must be looked at."""

    def __init__(self, owner: "Completeness[Key]", root: str, started_at: float, number: int) -> None:
        self._owner = owner
        self.root = root
        self.started_at = started_at
        """Wall clock, epoch seconds."""
        self.number = number
        """Sweeps of the root are counted from 1."""
        self.outstanding = 0
        self.ended_well: bool | None = None
        """None while the sweep is running."""

    def expects(self, keys: Iterable[Key]) -> None:
        """The sweep is proof of nothing before a look at each of `keys`, suspects not hinted yet, has ended."""
        self._owner.await_looks(self, keys)

    def ended(self, ok: bool) -> None:
        """The sweep itself ended; `ok`: without error, all suspects told by `expects`."""
        self.ended_well = ok
        self._owner.settle(self)

    @property
    def is_proof(self) -> bool:
        """Ended well, every suspect looked at."""
        return self.ended_well is True and self.outstanding == 0


class Completeness(Generic[Key]):
    """For each root the start of its last sweep that is a proof: what happened before is in the catalog."""

    def __init__(self, roots: Iterable[str]) -> None:
        self._proved: dict[str, float | None] = dict.fromkeys(roots)
        self._proved_by = dict.fromkeys(self._proved, 0)
        """The number of the sweep that is the proof: the wall clock may be set back, sweeps are counted on."""
        self._begun = dict.fromkeys(self._proved, 0)
        self._cache_s: dict[str, float] = {}
        self._tickets: dict[str, list[Ticket[Key]]] = {root: [] for root in self._proved}
        self._awaited: dict[Key, set[Ticket[Key]]] = {}
        """Key → the sweeps that wait for a look at it."""

    def begin(self, root: str, started_at: float) -> Ticket[Key]:
        """A sweep of all of `root` begins at `started_at` (wall clock, epoch seconds)."""
        self._begun[root] += 1
        ticket = Ticket(self, root, started_at, self._begun[root])
        tickets = self._tickets[root]
        tickets.append(ticket)
        if len(tickets) > TICKETS_KEPT:
            # The oldest is the nearest to being a proof, the newest the best one; those between can go.
            self._drop(tickets[len(tickets) // 2])
        return ticket

    def set_attribute_cache(self, root: str, seconds: float) -> None:
        """For how long changes in `root` may stay unseen because a network filesystem caches attributes."""
        self._cache_s[root] = seconds

    def begun(self, root: str) -> int:
        """How many sweeps of `root` have begun."""
        return self._begun[root]

    def looked(self, key: Key, begun: int | None = None) -> None:
        """A look at `key` ended and what it meant is published.

        Args:
            key: a path of some root.
            begun: what `begun` said of that root when the look began, by default what it says now. A sweep that began
                after the look is not met by it: the look may have seen what was there before.
        """
        waiting = self._awaited.get(key, set())
        met = {ticket for ticket in waiting if begun is None or ticket.number <= begun}
        waiting -= met
        if not waiting:
            self._awaited.pop(key, None)
        for ticket in met:
            ticket.outstanding -= 1
        for ticket in met:
            self.settle(ticket)

    def proved(self, root: str) -> float | None:
        """Start of the last sweep of `root` that is a proof, without regard to attribute caches."""
        return self._proved[root]

    def is_met(self, ticket: Ticket[Key]) -> bool:
        """Whether that sweep, or one that began after it, is a proof."""
        return self._proved_by[ticket.root] >= ticket.number

    def complete_as_of(self, root: str) -> float | None:
        """What happened in `root` before this is in the catalog; epoch seconds, None if nothing is proved."""
        proved = self._proved[root]
        return None if proved is None else proved - self._cache_s.get(root, 0.0)

    def overall(self) -> float | None:
        """The oldest over all roots; None while any root has never been proved complete, or there is none."""
        each = [self.complete_as_of(root) for root in self._proved]
        return min((known for known in each if known is not None), default=None) if None not in each else None

    # ---- from tickets --------------------------------------------------------------------------------------

    def await_looks(self, ticket: Ticket[Key], keys: Iterable[Key]) -> None:
        """See `Ticket.expects`."""
        if ticket not in self._tickets[ticket.root]:
            return
        for key in keys:
            waiting = self._awaited.setdefault(key, set())
            if ticket not in waiting:
                waiting.add(ticket)
                ticket.outstanding += 1

    def settle(self, ticket: Ticket[Key]) -> None:
        """Take a ticket for what it has become: a proof, a failure, or neither yet."""
        if ticket.is_proof:
            if ticket.number > self._proved_by[ticket.root]:
                self._proved[ticket.root], self._proved_by[ticket.root] = ticket.started_at, ticket.number
            for older in [t for t in self._tickets[ticket.root] if t.number <= ticket.number]:
                self._drop(older)
        elif ticket.ended_well is False:
            self._drop(ticket)

    def _drop(self, ticket: Ticket[Key]) -> None:
        if ticket not in self._tickets[ticket.root]:
            return
        self._tickets[ticket.root].remove(ticket)
        if ticket.outstanding:
            for key in [key for key, waiting in self._awaited.items() if ticket in waiting]:
                self._awaited[key].discard(ticket)
                if not self._awaited[key]:
                    del self._awaited[key]
