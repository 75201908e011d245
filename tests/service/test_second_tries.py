"""A file that ended its worker is not condemned for ever: a new version tries it again, and so does another day."""

import pathlib
import sqlite3
import time

import msgspec
import pytest

from ckptd.catalog.entry import FindingRef, Health
from ckptd.catalog.state import State
from ckptd.catalog.store import Catalog, Change
from ckptd.catalog.verification import failed
from ckptd.daemon.second_tries import RETRY_S, is_due, tried
from ckptd.validators.findings import finding
from ckptd.validators.inspection import Level
from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually
from tests.validators.hostile import hostile_checkpoint

NOW = 1_800_000_000.0
AGAIN = "what ended a worker is tried again"


def said(daemon: Daemon) -> str:
    """What the state says of the last try; the daemon must not run."""
    with sqlite3.connect(daemon.state / "state.sqlite3") as state:
        ((value,),) = state.execute("SELECT value FROM meta WHERE key = 'user:crashed_tried'")
    state.close()
    return str(value)


def keep(daemon: Daemon, value: str) -> None:
    """Have it say something else."""
    with sqlite3.connect(daemon.state / "state.sqlite3") as state:
        assert state.execute("UPDATE meta SET value = ? WHERE key = 'user:crashed_tried'", (value,)).rowcount == 1
    state.close()


def crashed_once(tmp_path: pathlib.Path) -> Daemon:
    """A daemon that has ended well, and knows a file that ended its worker."""
    outputs = tmp_path / "outputs"
    rename_in(outputs / "crashes.ckpt", hostile_checkpoint("nested_tuple_key"))
    rename_in(outputs / "fine.ckpt", checkpoint_bytes(1))
    daemon = Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1)
    with daemon:
        eventually(lambda: codes(daemon) and "worker.crashed" in codes(daemon), "the file ended its worker")
        daemon.wait_complete()
        assert daemon.stop() == 0
    return daemon


def codes(daemon: Daemon) -> set[str]:
    entry = daemon.entries().get("crashes.ckpt")
    return set() if entry is None else {found["code"] for found in entry["findings"]}


@pytest.mark.parametrize(
    ("kept", "due"),
    [
        (None, True),
        ("", True),
        ("not a time 1.0", True),
        (tried("1.0", NOW), False),
        (tried("1.0", NOW - RETRY_S + 1), False),
        (tried("1.0", NOW - RETRY_S), True),
        (tried("0.9", NOW), True),
        (tried("1.0", NOW + 3600), True),
    ],
)
def test_a_second_try_is_due_where_none_is_known_after_a_day_and_for_another_version(
    kept: str | None, due: bool
) -> None:
    assert is_due(kept, "1.0", NOW) is due


@pytest.mark.slow
@pytest.mark.parametrize("who", ["another version", "yesterday"])
def test_what_ended_a_worker_is_tried_again_after_an_upgrade_and_after_a_day(tmp_path: pathlib.Path, who: str) -> None:
    daemon = crashed_once(tmp_path)
    at, _, version = said(daemon).partition(" ")
    died = daemon.log().count("worker died")
    keep(daemon, f"{at} 0.0.1" if who == "another version" else f"{time.time() - 90_000:.0f} {version}")
    with daemon.start():
        eventually(lambda: AGAIN in daemon.log(), "it is tried again")
        eventually(lambda: daemon.log().count("worker died") > died, "it ended another worker")
        assert codes(daemon) >= {"worker.crashed"}
        assert daemon.stop() == 0
    assert said(daemon).partition(" ")[2] == version


@pytest.mark.slow
def test_a_file_that_was_condemned_while_its_bytes_were_verified_is_verified_again_after_a_day(
    tmp_path: pathlib.Path,
) -> None:
    """The process that read them may have been killed by a bug of the day: it was condemned until it changed."""
    outputs = tmp_path / "outputs"
    rename_in(outputs / "a.ckpt", checkpoint_bytes(1))
    daemon = Daemon(outputs, tmp_path / "state", sidecars="off")
    with daemon:
        eventually(lambda: daemon.entries().get("a.ckpt", {}).get("verified") == "checksum", "it is verified")
        assert daemon.stop() == 0
        condemn(daemon, outputs, b"a.ckpt")
        daemon.start()
        assert {found["code"] for found in daemon.entries()["a.ckpt"]["findings"]} >= {"worker.crashed"}
        daemon.wait_complete()
        assert daemon.stop() == 0
        keep(daemon, f"{time.time() - 90_000:.0f} {said(daemon).partition(' ')[2]}")
        daemon.start()
        eventually(
            lambda: (e := daemon.entries()["a.ckpt"])["health"] == "valid" and e["verified"] == "checksum",
            "it is verified again",
        )
        assert daemon.stop() == 0


def condemn(daemon: Daemon, outputs: pathlib.Path, path: bytes) -> None:
    """Have the state of a stopped daemon say that reading every byte of a file ended the process that did it."""
    state = State.open(str(daemon.state), boot_id="", clock=time.time)
    loaded = state.load()
    catalog = Catalog(loaded.instance)
    catalog.load(loaded.records, loaded.tombstones, loaded.revision, loaded.floor)
    record = catalog.find(str(outputs), path)
    assert record is not None
    crashed = finding("worker.crashed", "signal 11")
    entry = msgspec.structs.replace(
        record.entry,
        health=Health.INVALID,
        verified=Level.STRUCTURE,
        findings=(FindingRef(crashed.code, crashed.severity), *record.entry.findings),
    )
    condemned = msgspec.structs.replace(record, entry=entry)
    batch = catalog.prepare([Change(entry.id, lambda _: condemned)])
    assert batch is not None
    verification = failed(
        state.verification(entry.id),
        crashed,
        identity=record.identities.file,
        shards=None,
        asked=Level.CHECKSUM,
        at=time.time(),
    )
    state.commit(batch, {}, catalog.floor, verifications={entry.id: verification})
    state.close()


@pytest.mark.slow
def test_what_ended_a_worker_is_left_alone_by_the_same_version_on_the_same_day(tmp_path: pathlib.Path) -> None:
    daemon = crashed_once(tmp_path)
    before = daemon.log().count(AGAIN)  # a first start may know of it before it asks whether a try is due
    with daemon.start():
        daemon.wait_complete()
        assert codes(daemon) >= {"worker.crashed"}
        assert daemon.stop() == 0
    assert daemon.log().count(AGAIN) == before


def test_the_time_of_a_try_is_never_in_the_future() -> None:
    assert not is_due(tried("1.0", NOW + 0.9), "1.0", NOW + 0.9)
