"""Settle against a simulated filesystem: whatever happens there, in the end the last verdicts are the truth."""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ckptd.daemon.settle import Look, LookKind, Settle, Verdict
from ckptd.validators.inspection import FileIdentity, Seal

PATHS = ("a", "b", "c")
TICK_S = 0.01
"""Granularity of file times: changes within one tick look the same."""
QUIET_S, ABANDONED_S, YOUNG_S = 2.0, 60.0, 2.0
WALL_S = 1_800_000_000.0
SETTLED = (Verdict.WHOLE, Verdict.ABANDONED)

paths = st.sampled_from(PATHS)
seals = st.sampled_from([Seal.SEALED, Seal.OPEN, Seal.NONE])


@dataclass
class SimFile:
    """A file as it is, and as stat shows it."""

    inode: int
    seal: Seal
    size: int
    version: int
    """Its true contents; stat does not show it."""
    changed_at: float
    mtime: float
    ctime: float
    writer: bool = False

    def identity(self) -> FileIdentity:
        def ns(seconds: float) -> int:
            return int(seconds / TICK_S) * int(TICK_S * 1e9)

        return FileIdentity(self.inode, self.size, ns(WALL_S + self.mtime), ns(WALL_S + self.ctime))


@dataclass
class Sight:
    """What one look captured, before its outcome is told."""

    look: Look
    version: int | None = None
    quiet_for: float = 0.0
    writer: bool = False


@dataclass
class Published:
    """What listeners were told last of one path."""

    verdict: Verdict
    version: int | None = None
    identity: FileIdentity | None = None


@dataclass
class SimDisk:
    files: dict[str, SimFile] = field(default_factory=dict)
    reachable: bool = True
    inodes: int = 0
    versions: int = 0


class SettleModel(RuleBasedStateMachine):
    """Files come, grow, are sealed, replaced, deleted and cut off, while hints get lost and looks take their time."""

    def __init__(self) -> None:
        super().__init__()
        self.settle = Settle[str](quiet_s=QUIET_S, abandoned_s=ABANDONED_S, young_s=YOUNG_S)
        self.disk = SimDisk()
        self.now = 100.0
        self.in_flight: dict[str, Sight] = {}
        self.published: dict[str, Published] = {}
        self.leases = True

    # ---- the world -----------------------------------------------------------------------------------------

    def touch(self, path: str, *, mtime: float | None = None) -> None:
        file = self.disk.files[path]
        self.disk.versions += 1
        file.version, file.changed_at = self.disk.versions, self.now
        file.mtime, file.ctime = self.now if mtime is None else mtime, self.now

    def hint(self, path: str, times: int) -> None:
        for _ in range(times):
            self.settle.hint(path, self.now)

    @rule(path=paths, seal=seals, writer=st.booleans(), age=st.sampled_from([0.0, 1.0, 500.0]), hints=st.integers(0, 2))
    def put(self, path: str, seal: Seal, writer: bool, age: float, hints: int) -> None:
        """A new file under the name: renamed over, or created and opened."""
        self.disk.inodes += 1
        self.disk.files[path] = SimFile(self.disk.inodes, seal, 100, 0, 0, 0, 0, writer)
        self.touch(path, mtime=self.now - age)
        self.hint(path, hints)

    @rule(path=paths, grow=st.integers(0, 1), seal=seals, hints=st.integers(0, 2))
    def write(self, path: str, grow: int, seal: Seal, hints: int) -> None:
        """Written in place by somebody who has it open; perhaps to the same size, perhaps within one tick."""
        file = self.disk.files.get(path)
        if file is not None:
            file.writer, file.seal, file.size = True, seal, file.size + grow
            self.touch(path)
            self.hint(path, hints)

    @rule(path=paths)
    def slip_in(self, path: str) -> None:
        """Modified once more within the tick of its last modification, to the same size, and nobody is told."""
        file = self.disk.files.get(path)
        if file is not None:
            before = file.identity()
            file.mtime = file.ctime = self.now
            if file.identity() == before:
                self.touch(path)
            else:
                file.mtime, file.ctime = before.mtime_ns / 1e9 - WALL_S, before.ctime_ns / 1e9 - WALL_S

    @rule(path=paths, back=st.booleans())
    def close(self, path: str, back: bool) -> None:
        """The writer closes it (no event), after it perhaps set mtime back."""
        file = self.disk.files.get(path)
        if file is not None and file.writer:
            if back:
                file.mtime, file.ctime = self.now - 5000, self.now
            file.writer = False

    @rule(path=paths, hints=st.integers(0, 1))
    def delete(self, path: str, hints: int) -> None:
        if self.disk.files.pop(path, None) is not None:
            self.hint(path, hints)

    @rule(reachable=st.booleans())
    def disk_fails_or_returns(self, reachable: bool) -> None:
        self.disk.reachable = reachable

    @rule(leases=st.booleans())
    def leases_permitted(self, leases: bool) -> None:
        self.leases = leases

    @rule(step_s=st.sampled_from([0.001, 0.02, 0.3, 2.0, 3.0, 61.0]))
    def time_passes(self, step_s: float) -> None:
        self.now += step_s

    # ---- the daemon ----------------------------------------------------------------------------------------

    @rule()
    def sweep(self) -> None:
        """Hint whatever does not look as it was published, and what is being looked at meanwhile."""
        self.settle.hint_under_way(self.now)
        for path in PATHS:
            file, known = self.disk.files.get(path), self.published.get(path)
            if not self.disk.reachable:
                suspect = known is not None
            elif file is None:
                suspect = known is not None and known.verdict is not Verdict.REMOVE
            else:
                suspect = known is None or known.identity != file.identity() or known.verdict not in SETTLED
            if suspect:
                self.settle.hint(path, self.now)

    @rule()
    def sweep_hints_everything(self) -> None:
        for path in PATHS:
            self.settle.hint(path, self.now)

    def begin_looks(self, limit: int) -> None:
        for path in self.settle.due(self.now, limit):
            assert path not in self.in_flight, "handed out twice"
            self.in_flight[path] = self.see(path)

    def end_look(self, path: str) -> None:
        sight = self.in_flight.pop(path)
        verdict = self.settle.looked(path, sight.look, self.now, int((WALL_S + self.now) * 1e9))
        if verdict is Verdict.WHOLE:
            self.check_whole(sight)
        if verdict is not Verdict.NOTHING:
            self.published[path] = Published(verdict, sight.version, sight.look.identity)

    @rule(limit=st.integers(1, 3))
    def looks_begin(self, limit: int) -> None:
        self.begin_looks(limit)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def a_look_ends(self, data: st.DataObject) -> None:
        self.end_look(data.draw(st.sampled_from(sorted(self.in_flight))))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def a_look_is_aborted(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.in_flight)))
        del self.in_flight[path]
        self.settle.abort(path, self.now, 0.1)

    def see(self, path: str) -> Sight:
        file, known = self.disk.files.get(path), self.published.get(path)
        if not self.disk.reachable:
            return Sight(Look(LookKind.UNREACHABLE))
        if file is None:
            return Sight(Look(LookKind.GONE))
        settled = known is not None and known.verdict in SETTLED and known.identity == file.identity()
        if settled and not self.settle.must_read(path):
            return Sight(Look(LookKind.UNCHANGED))
        writer = file.writer if self.leases else None
        look = Look(LookKind.SEEN, file.identity(), file.seal, writer)
        return Sight(look, file.version, self.now - file.changed_at, file.writer)

    # ---- the truth -----------------------------------------------------------------------------------------

    def check_whole(self, sight: Sight) -> None:
        assert sight.look.seal is not Seal.OPEN, "whole, though bytes are missing"
        if sight.look.seal is Seal.NONE or sight.look.writer:
            assert sight.quiet_for >= QUIET_S - 2 * TICK_S, "whole, though it was changing just now"

    @rule()
    def all_is_quiet(self) -> None:
        """Writers are done, one sweep, and time enough: everything is as it was told, and nothing is left to do."""
        for file in self.disk.files.values():
            file.writer = False
        self.now += 2 * TICK_S
        self.sweep()
        give_up_at = self.now + 300
        looks = 0
        for path in list(self.in_flight):
            self.end_look(path)
        while (due_at := self.settle.next_due()) is not None and due_at < give_up_at:
            self.now = max(self.now, due_at)
            self.begin_looks(1)
            for path in list(self.in_flight):
                self.end_look(path)
            looks += 1
            assert looks < 1000, "looks without end"
        self.check_truth()

    def check_truth(self) -> None:
        if not self.disk.reachable:
            assert {p.verdict for p in self.published.values()} <= {Verdict.OFFLINE, Verdict.REMOVE}
            return
        assert len(self.settle) == 0
        for path in PATHS:
            file, told = self.disk.files.get(path), self.published.get(path)
            if file is None:
                assert told is None or told.verdict is Verdict.REMOVE
            elif file.seal is Seal.OPEN:
                assert told is not None
                assert told.verdict is Verdict.ABANDONED
            else:
                assert told is not None
                assert (told.verdict, told.version) == (Verdict.WHOLE, file.version)

    @invariant()
    def the_books_balance(self) -> None:
        assert sum(self.settle.phases().values()) == len(self.settle) <= len(PATHS)
        assert self.settle.looking == len(self.in_flight)


class TestSettleModel(SettleModel.TestCase):  # type: ignore[misc, name-defined, unused-ignore]
    settings = settings(
        max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.timeout(600)
class TestSettleModelAtLength(SettleModel.TestCase):  # type: ignore[misc, name-defined, unused-ignore]
    settings = settings(
        max_examples=500, stateful_step_count=80, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
