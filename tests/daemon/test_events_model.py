"""The log and the stream against a simple model: whatever happens, every client ends up with the catalog."""

import asyncio
import contextlib
import enum
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ckptd.catalog.entry import Health, Record, Revision
from ckptd.catalog.store import Catalog, DeleteReason, Retention, Tombstone, revision_of
from ckptd.daemon.http import events, frames, snapshots
from ckptd.daemon.http.events import EventHub
from ckptd.daemon.http.frames import View
from ckptd.daemon.http.sending import SenderFactory, SteppedSender, sender_for
from tests.catalog.catalog_records import drop, put, record_of
from tests.daemon.stream_clients import ClientState, InProcessListener

PATHS = [f"run/{name}.ckpt" for name in "abcdefgh"]
CLIENTS = 4
SETTLE_TURNS = 2_000
RETENTION = Retention(tombstones_kept=3, tombstone_age_s=5, compact_holes=4)


class Saved(NamedTuple):
    """What a state directory holds."""

    instance: str
    records: Sequence[Record]
    tombstones: Sequence[Tombstone]
    revision: Revision
    floor: Revision

    @classmethod
    def of(cls, catalog: Catalog) -> "Saved":
        return cls(catalog.instance, tuple(catalog), tuple(catalog.tombstones()), catalog.revision, catalog.floor)


class End(enum.Enum):
    """How a run of the daemon ends."""

    CLEAN = "it says bye, and its state is closed"
    KILLED = "in the middle of whatever it does; all that was told is in the state"
    POWER_LOST = "the same, and the disk has lost what was written last"


def everything(_: Record) -> bool:
    return True


def usable(record: Record) -> bool:
    return record.entry.health is not Health.INVALID


def late(record: Record) -> bool:
    return (record.entry.epoch or 0) >= 5


VIEWS = [View("0", usable), View("all", everything), View("late", late)]


class Client:
    """One client over many connections: keeps its state and its cursor, as a browser does."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.state = ClientState()
        self.listener: InProcessListener | None = None


class StreamMachine(RuleBasedStateMachine):
    """Changes, listeners that stall, leave and return, and restarts of the daemon, in any order."""

    sender_factory: SenderFactory = staticmethod(sender_for)

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clients = [Client(VIEWS[number % len(VIEWS)]) for number in range(CLIENTS)]
        for client in self.clients:
            client.state.has_all = functools.partial(self._has_all, client.state)
        self.instances = 0
        self.names = {"i0"}
        """What the log has been called in this run of the daemon."""
        self.saved = Saved("i0", (), (), Revision(0), Revision(0))
        """What a machine that loses its power will find again."""
        self.last_written: Saved | None = None
        """What the disk held when it began to refuse; None while it does not."""
        self.tokens = 0
        self.time = 0.0

    @initialize()
    def start(self) -> None:
        self.catalog = Catalog("i0", lambda: self.time, RETENTION)
        self.run(self._start_hub())

    def teardown(self) -> None:
        for client in self.clients:
            if client.listener is not None:
                client.listener.read_on()
        self.run(self._stop_hub())
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(asyncio.wait_for(work, 20))
        for client in self.clients:
            if client.listener is not None and client.listener.failure is not None:
                raise client.listener.failure

    async def _start_hub(self) -> None:
        self.hub = EventHub(
            self.catalog, complete_as_of=lambda: None, coalesce_ms=0, sender_factory=type(self).sender_factory
        )
        self.hub_task = asyncio.ensure_future(self.hub.run())
        await asyncio.sleep(0)

    async def _stop_hub(self, *, clean: bool = True) -> None:
        if clean:
            await self.hub.close()
        self.hub_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.hub_task
        for client in self.clients:
            if client.listener is not None:
                assert client.state.said_bye or client.listener.lags or not client.listener.ended
                await client.listener.leave()
                client.listener = None
            client.state.said_bye = False

    # ---- rules -----------------------------------------------------------------------------------------------

    @rule(
        changes=st.lists(
            st.tuples(st.sampled_from(PATHS), st.integers(0, 9), st.sampled_from([Health.VALID, Health.INVALID])),
            min_size=1,
            max_size=6,
        )
    )
    def upsert(self, changes: list[tuple[str, int, Health]]) -> None:
        records = [
            record_of(path, modified_ns=epoch * 10**9, epoch=epoch, health=health) for path, epoch, health in changes
        ]
        self._publish([put(record) for record in records])

    @rule(paths=st.lists(st.sampled_from(PATHS), min_size=1, max_size=4))
    def delete(self, paths: list[str]) -> None:
        self._publish([drop(path, reason=DeleteReason.MOVED) for path in paths])

    @rule(
        number=st.integers(0, CLIENTS - 1),
        turns=st.integers(0, 12),
        view=st.none() | st.sampled_from(VIEWS),
        gzip=st.booleans(),
    )
    def connect(self, number: int, turns: int, view: View | None, gzip: bool) -> None:
        """Connect, or leave in the middle of whatever comes and connect again, perhaps with another filter."""
        client = self.clients[number]
        self.disconnect(number, None)
        client.view = view or client.view
        listener = client.listener = InProcessListener(client.state, gzip=gzip)
        last_event_id = client.state.parser.last_event_id or None
        if last_event_id is None:
            # Cut off within a snapshot, it had dropped everything: it may be shown one from a moment ago.
            client.state.revision = 0

        async def begin() -> None:
            listener.connect(self.hub, client.view, last_event_id)
            await self._turns(turns)

        self.run(begin())

    @rule(number=st.integers(0, CLIENTS - 1), read_first=st.none() | st.integers(0, 600))
    def disconnect(self, number: int, read_first: int | None) -> None:
        """Vanish, in the middle of a frame as well: so many bytes of what is on its way are still read."""
        client = self.clients[number]
        if client.listener is not None:
            if read_first is not None:
                client.listener.read(read_first)
            self.run(client.listener.leave())
            client.listener = None

    @rule(number=st.integers(0, CLIENTS - 1))
    def lag(self, number: int) -> None:
        """Read no more, while everything sent finds room on its way."""
        listener = self.clients[number].listener
        if listener is not None:
            listener.lag()

    @rule(number=st.integers(0, CLIENTS - 1))
    def stall(self, number: int) -> None:
        """Read no more, and have sends wait."""
        listener = self.clients[number].listener
        if listener is not None:
            listener.stall()

    @rule(number=st.integers(0, CLIENTS - 1), size=st.integers(1, 600))
    def read_a_little(self, number: int, size: int) -> None:
        listener = self.clients[number].listener
        if listener is not None:
            listener.read(size)

    @rule(number=st.integers(0, CLIENTS - 1))
    def read_on(self, number: int) -> None:
        listener = self.clients[number].listener
        if listener is not None:
            self.loop.call_soon(listener.read_on)

    @rule(turns=st.integers(1, 20))
    def let_the_loop_run(self, turns: int) -> None:
        self.run(self._turns(turns))

    @rule(seconds=st.integers(1, 10))
    def time_passes(self, seconds: int) -> None:
        self.time += seconds

    @rule()
    def rebuild(self) -> None:
        self.tokens += 1
        token, revision = f"t{self.tokens}", self.catalog.revision

        async def announce() -> None:
            self.hub.announce_progress(1, 2)
            self.hub.announce_rebuilt(token, revision)

        self.run(announce())

    @rule()
    def sync(self) -> None:
        """The disk holds what was written, even if the machine loses its power now."""
        self.saved = self.last_written or Saved.of(self.catalog)

    @rule()
    def state_fails(self) -> None:
        """The state cannot be written any more: news goes on under a name that is not on disk."""
        if self.last_written is None:
            self.last_written = Saved.of(self.catalog)
            self.catalog.renew_instance(self._new_name())

    @rule()
    def state_recovers(self) -> None:
        self.last_written = None

    @rule(end=st.sampled_from(End))
    def restart(self, end: End) -> None:
        """The log goes on from what the state holds; under a new name if that may be less than was told."""
        self.run(self._stop_hub(clean=end is End.CLEAN))
        found = self.last_written or Saved.of(self.catalog)
        self.names = set()
        if end is End.POWER_LOST:
            found = self.saved._replace(instance=self._new_name())
        self.names.add(found.instance)
        self.saved, self.last_written = found, None
        self.catalog = Catalog(found.instance, lambda: self.time, RETENTION)
        self.catalog.load(found.records, found.tombstones, found.revision, found.floor)
        self.run(self._start_hub())

    @precondition(lambda self: any(client.listener is not None for client in self.clients))
    @rule()
    def all_catch_up(self) -> None:
        """Every listener that reads has the catalog's view of its filter, and no more."""
        for client in self.clients:
            if client.listener is not None:
                self.loop.call_soon(client.listener.read_on)
        self.run(self._until(self._caught_up))
        for client in self.clients:
            if client.listener is not None:
                self._check(client)

    # ---- inside ----------------------------------------------------------------------------------------------

    def _publish(self, changes: list[Any]) -> None:
        async def publish() -> None:
            batch = self.catalog.prepare(changes)
            if batch is not None:
                self.catalog.publish(batch)

        self.run(publish())

    def _new_name(self) -> str:
        self.instances += 1
        name = f"i{self.instances}"
        self.names.add(name)
        return name

    def _has_all(self, state: ClientState, revision: int) -> bool:
        """What was superseded meanwhile is told under its later revision."""
        if state.instance not in self.names or state.revision > self.catalog.revision:
            return False
        return all(revision_of(item) > revision for item in self.catalog.since(state.revision))

    def _caught_up(self) -> bool:
        listening = [client for client in self.clients if client.listener is not None]
        return all(client.state.whole and client.state.revision == self.catalog.revision for client in listening)

    async def _until(self, condition: Callable[[], bool]) -> None:
        for _ in range(SETTLE_TURNS):
            await asyncio.sleep(0)
            if condition():
                return
        raise AssertionError("the stream stands still before all have caught up")

    async def _turns(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    def _check(self, client: Client) -> None:
        expected = {record.entry.id: record.entry.revision for record in self.catalog if client.view.matches(record)}
        assert {key: entry["revision"] for key, entry in client.state.entries.items()} == expected


def stepped(send: Any, on_ready: Callable[[], None], _: asyncio.TaskGroup) -> SteppedSender:
    """Drive the in-process client as uvicorn is driven."""
    return SteppedSender(send, on_ready)


class SteppedStreamMachine(StreamMachine):
    """The same with sends that the broadcaster steps by itself."""

    sender_factory = staticmethod(stepped)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """With pieces this small, eight entries make snapshots and ranges of many frames."""
    monkeypatch.setattr(snapshots, "FIRST_BATCH", 1)
    monkeypatch.setattr(snapshots, "NEXT_BATCH", 2)
    monkeypatch.setattr(snapshots, "NEXT_BATCH_GZIP", 3)
    monkeypatch.setattr(frames, "CHANGES_PER_FRAME", 3)
    monkeypatch.setattr(snapshots, "SCAN_PER_TURN", 2)
    monkeypatch.setattr(events, "CLOSING_GRACE_S", 0.01)


_quick = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.campaign
@pytest.mark.parametrize("machine", [StreamMachine, SteppedStreamMachine])
def test_every_client_ends_up_with_the_catalog(machine: type[StreamMachine]) -> None:

    run_state_machine_as_test(machine, settings=_quick)


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("machine", [StreamMachine, SteppedStreamMachine])
def test_every_client_ends_up_with_the_catalog_over_many_runs(machine: type[StreamMachine]) -> None:

    run_state_machine_as_test(machine, settings=settings(_quick, max_examples=1_000, stateful_step_count=60))
