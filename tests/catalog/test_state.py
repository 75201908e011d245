"""The state: what was committed comes back, what cannot be trusted is set aside, and the instance says which."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import msgspec
import pytest

from ckptd.catalog.entry import Health, Revision
from ckptd.catalog.state import State, StateError, StateLocked
from ckptd.catalog.state_file import APPLICATION_ID, BROKEN_KEPT, SCHEMA_VERSION
from tests.catalog.catalog_records import drop, id_at, put, record_of
from tests.catalog.state_files import BOOT, Run, description_of, name_of, running

FILE = "state.sqlite3"


# ---- what was committed comes back -----------------------------------------------------------------------------


def test_a_restart_knows_entries_deletions_revision_and_floor(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.change(put(record_of("a.ckpt", epoch=1, metrics={"hmean": 0.5})), put(record_of("b.ckpt")))
        run.change(drop("b.ckpt"), put(record_of("a.ckpt", epoch=2)))
        before = run.catalog
    with running(tmp_path) as run:
        assert list(run.catalog) == list(before)
        assert run.catalog.tombstones() == before.tombstones()
        assert (run.catalog.revision, run.catalog.floor) == (before.revision, before.floor)
        assert run.catalog.since(0) == before.since(0)
        assert run.state.notes == []


def test_names_that_are_not_text_come_back_byte_by_byte(tmp_path: Path) -> None:
    odd = record_of("x.ckpt")
    odd = msgspec.structs.replace(odd, relative_path=b"exp\xff\n/best.ckpt")
    with running(tmp_path) as run:
        run.change(put(odd))
    with running(tmp_path) as run:
        assert run.catalog.paths("/outputs") == [b"exp\xff\n/best.ckpt"]


def test_forgotten_deletions_are_forgotten_on_disk(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.change(put(record_of("a.ckpt")), put(record_of("b.ckpt")))
        run.change(drop("a.ckpt"))
        batch = run.catalog.prepare([drop("b.ckpt")])
        assert batch is not None
        run.state.commit(batch, {}, Revision(3))
    with running(tmp_path) as run:
        assert [tombstone.id for tombstone in run.loaded.tombstones] == [id_at("b.ckpt")]
        assert run.loaded.floor == 3


def test_a_batch_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        skipped = run.catalog.prepare([put(record_of("a.ckpt"))])
        assert skipped is not None
        run.catalog.publish(skipped)
        later = run.catalog.prepare([put(record_of("b.ckpt"))])
        assert later is not None
        with pytest.raises(ValueError, match="rewrite it"):
            run.state.commit(later, {}, Revision(0))


def test_small_texts_are_kept_under_their_keys(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        assert run.state.get_meta("mounts") is None
        run.state.set_meta("mounts", "{}")
        run.state.set_meta("instance", "not the instance")
    with running(tmp_path) as run:
        assert run.state.get_meta("mounts") == "{}"
        assert run.loaded.instance_kept


# ---- instance --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "boot_before", "boot_after", "kept"),
    [
        (True, "boot-1", "boot-1", True),
        (True, "boot-1", "boot-2", True),
        (False, "boot-1", "boot-1", True),
        (False, "boot-1", "boot-2", False),
        (False, "", "", False),
    ],
)
def test_the_instance_is_kept_unless_a_reboot_may_have_lost_what_was_told(
    tmp_path: Path, clean: bool, boot_before: str, boot_after: str, kept: bool
) -> None:
    with running(tmp_path, boot_id=boot_before, clean=clean) as run:
        first = run.loaded.instance
        assert not run.loaded.instance_kept
        run.change(put(record_of("a.ckpt")))
    with running(tmp_path, boot_id=boot_after) as run:
        assert run.loaded.instance_kept is kept
        assert (run.loaded.instance == first) is kept
        assert run.paths() == {"a.ckpt"}


def test_the_mark_of_a_clean_end_does_not_outlive_the_next_start(tmp_path: Path) -> None:
    with running(tmp_path):
        pass
    with running(tmp_path, boot_id="boot-2", clean=False) as run:
        assert run.loaded.instance_kept
    with running(tmp_path, boot_id="boot-3") as run:
        assert not run.loaded.instance_kept


# ---- descriptions ----------------------------------------------------------------------------------------------


def test_descriptions_come_back_in_two_parts_and_whole(tmp_path: Path) -> None:
    described = description_of("a", tensors=3)
    with running(tmp_path) as run:
        run.change(put(record_of("a.ckpt")), descriptions={id_at("a.ckpt"): described})
        summary = run.state.description(id_at("a.ckpt"))
        assert summary is not None
        assert summary.metadata == described.metadata
        assert summary.tensors == ()
        assert run.state.tensors(id_at("a.ckpt")) == described.tensors
        assert run.state.full_description(id_at("a.ckpt")) == described


def test_a_description_stays_when_only_the_entry_changes_and_goes_with_it(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.change(put(record_of("a.ckpt")), descriptions={id_at("a.ckpt"): description_of("a")})
        run.change(put(record_of("a.ckpt", health=Health.OFFLINE)))
        assert name_of(run.state.description(id_at("a.ckpt"))) == "a"
        run.change(drop("a.ckpt"))
        assert run.state.description(id_at("a.ckpt")) is None
        assert run.state.tensors(id_at("a.ckpt")) is None
        assert run.state.full_description(id_at("a.ckpt")) is None


def test_amending_leaves_the_tensor_table_alone(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.change(put(record_of("a.ckpt")), descriptions={id_at("a.ckpt"): description_of("first", tensors=3)})
        batch = run.catalog.prepare([put(record_of("a.ckpt", has_metadata=True))])
        assert batch is not None
        amended = {id_at("a.ckpt"): description_of("second", tensors=0)}
        run.state.commit(batch, {}, Revision(0), amended=amended)
        assert name_of(run.state.description(id_at("a.ckpt"))) == "second"
        assert len(run.state.tensors(id_at("a.ckpt")) or ()) == 3


def test_nothing_is_kept_behind_an_id_that_has_no_entry(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.change(put(record_of("a.ckpt")), descriptions={id_at("b.ckpt"): description_of("b")})
        assert run.state.description(id_at("b.ckpt")) is None
        assert run.state.undescribed() == {id_at("a.ckpt")}


def test_descriptions_can_be_read_from_other_threads_while_batches_are_committed(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        key = id_at("a.ckpt")
        run.change(put(record_of("a.ckpt")), descriptions={key: description_of("0", tensors=1)})
        mixed: list[str] = []
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                whole = run.state.full_description(key)
                if whole is None or len(whole.tensors) != int(whole.metadata.exp_name or 0) % 7 + 1:
                    mixed.append(repr(whole))

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for n in range(1, 200):
            described = description_of(str(n), tensors=n % 7 + 1)
            run.change(put(record_of("a.ckpt", epoch=n)), descriptions={key: described})
        stop.set()
        for thread in threads:
            thread.join()
        assert mixed == []
        assert run.state.notes == []


# ---- rewrite ---------------------------------------------------------------------------------------------------


def test_rewriting_catches_up_after_batches_were_missed(tmp_path: Path) -> None:
    described = {id_at(f"{name}.ckpt"): description_of(name) for name in "abc"}
    with running(tmp_path) as run:
        run.change(*(put(record_of(f"{name}.ckpt")) for name in "abc"), descriptions=described)
        missed = run.catalog.prepare([put(record_of("b.ckpt", epoch=5)), drop("c.ckpt"), put(record_of("d.ckpt"))])
        assert missed is not None
        run.catalog.publish(missed)
        state, catalog = run.state, run.catalog
        state.rewrite("renewed", list(catalog), catalog.tombstones(), catalog.revision, catalog.floor)
        run.change(put(record_of("e.ckpt")))
    with running(tmp_path) as run:
        assert run.loaded.instance == "renewed"
        assert run.loaded.instance_kept
        assert run.paths() == {"a.ckpt", "b.ckpt", "d.ckpt", "e.ckpt"}
        assert [tombstone.id for tombstone in run.loaded.tombstones] == [id_at("c.ckpt")]
        assert name_of(run.state.description(id_at("a.ckpt"))) == "a", "unchanged meanwhile: still true"
        assert run.state.undescribed() == {id_at(f"{name}.ckpt") for name in "bde"}, "their files changed meanwhile"


# ---- one owner -------------------------------------------------------------------------------------------------


def test_a_second_process_is_told_who_has_the_state(tmp_path: Path) -> None:
    script = """
        import sys
        from ckptd.catalog.state import State, StateLocked
        try:
            State.open(sys.argv[1], boot_id="", clock=lambda: 0.0)
        except StateLocked as error:
            print(error.pid, error)
    """
    with running(tmp_path):
        answer = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert answer.stdout.startswith(f"{os.getpid()} ")
        assert f"in use by process {os.getpid()}" in answer.stdout
    with running(tmp_path):
        pass


def test_a_state_that_is_open_in_this_process_is_locked_as_well(tmp_path: Path) -> None:
    with running(tmp_path), pytest.raises(StateLocked):
        State.open(str(tmp_path), boot_id=BOOT, clock=lambda: 0.0)


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file/state"):
        State.open(str(tmp_path / "file/state"), boot_id=BOOT, clock=lambda: 0.0)


# ---- a killed process ------------------------------------------------------------------------------------------

WRITER = """
    import sys
    from ckptd.catalog.state import State
    from tests.catalog.catalog_records import drop, put, record_of
    from tests.catalog.state_files import Run, description_of

    run = Run(State.open(sys.argv[1], boot_id="boot-1", clock=lambda: 0.0))
    first = run.catalog.revision
    for n in range(first, first + 100_000):
        changes = [put(record_of(f"{n}.ckpt", epoch=n)), put(record_of("last.ckpt", epoch=n))]
        run.change(*changes, drop(f"{n - 5}.ckpt"))if n >= first + 5 else run.change(*changes)
        print(run.catalog.revision, flush=True)
"""


def test_a_killed_process_loses_no_committed_batch_and_shows_no_half_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for kill_after in (1, 7, 23, 60):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], stdout=subprocess.PIPE, cwd=root
        )
        assert process.stdout is not None
        told = 0
        for _ in range(kill_after):
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        told = max([told, *map(int, process.stdout.read().split(b"\n")[:-1])])
        process.wait()
        process.stdout.close()
        with running(tmp_path, clean=False) as run:
            assert run.loaded.revision >= told
            assert run.state.notes == []
            newest = max(record.entry.epoch or 0 for record in run.catalog)
            last = run.catalog.get(id_at("last.ckpt"))
            assert last is not None
            assert last.entry.epoch == newest, "half of a batch is there"


# ---- files that cannot be trusted ------------------------------------------------------------------------------


def filled(directory: Path) -> Path:
    """A state with some contents, closed; returns its file."""
    with running(directory) as run:
        for n in range(40):
            key = id_at(f"{n}.ckpt")
            run.change(put(record_of(f"{n}.ckpt")), descriptions={key: description_of(str(n), tensors=50)})
    return directory / FILE


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xff" * 9000)


def make_text(path: Path) -> None:
    path.write_text("SQLite format 3? no.\n")


def make_foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


def make_newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()


def make_tableless(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.close()


def make_repeating(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        (entry,) = connection.execute("SELECT entry FROM entries WHERE id = ?", (id_at("1.ckpt"),)).fetchone()
        twin = entry.replace(id_at("1.ckpt").encode(), id_at("2.ckpt").encode())
        connection.execute("UPDATE entries SET entry = ? WHERE id = ?", (twin, id_at("2.ckpt")))
    connection.close()


@pytest.mark.parametrize("break_file", [make_empty, make_garbage, make_text, make_foreign, make_newer, make_tableless])
def test_a_file_that_cannot_be_trusted_is_set_aside_and_the_state_begins_anew(
    tmp_path: Path, break_file: object
) -> None:
    path = filled(tmp_path)
    assert callable(break_file)
    break_file(path)
    broken = path.read_bytes()
    with running(tmp_path) as run:
        assert not run.loaded.instance_kept
        assert (run.paths(), run.catalog.revision) == (set(), 0)
        assert any("set aside as state.sqlite3.broken-20231114T221320Z" in note for note in run.state.notes)
        run.change(put(record_of("new.ckpt")))
    aside = [p for p in tmp_path.glob(f"{FILE}.broken-*") if not p.name.endswith(("-wal", "-shm"))]
    assert [p.read_bytes() for p in aside] == [broken]
    with running(tmp_path) as run:
        assert run.paths() == {"new.ckpt"}


def test_two_changes_with_the_same_revision_are_no_log(tmp_path: Path) -> None:
    make_repeating(filled(tmp_path))
    with running(tmp_path) as run:
        assert run.paths() == set()
        assert any("two changes claim the same revision" in note for note in run.state.notes)


def test_a_file_cut_at_any_page_never_stops_the_daemon(tmp_path: Path) -> None:
    """Whatever is left: it opens, loads, takes a batch (or a rewrite where damage shows only then), and restarts."""
    whole = filled(tmp_path / "whole").read_bytes()
    for size in range(1, len(whole), 4096 * 5 + 1234):
        directory = tmp_path / str(size)
        directory.mkdir()
        (directory / FILE).write_bytes(whole[:size])
        with running(directory) as run:
            take_a_batch(run)
            listed = run.paths()
        with running(directory) as run:
            assert run.paths() == listed


def take_a_batch(run: Run) -> None:
    """As the journal does: commit, and rewrite after a failure."""
    batch = run.catalog.prepare([put(record_of("new.ckpt")), drop("0.ckpt"), drop("39.ckpt")])
    assert batch is not None
    try:
        run.state.commit(batch, {}, run.catalog.floor)
    except StateError:
        run.catalog.publish(batch)
        catalog = run.catalog
        run.state.rewrite("renewed", list(catalog), catalog.tombstones(), catalog.revision, catalog.floor)
    else:
        run.catalog.publish(batch)


@pytest.mark.slow
def test_bytes_that_changed_anywhere_never_stop_the_daemon(tmp_path: Path) -> None:
    import random

    whole = bytearray(filled(tmp_path / "whole").read_bytes())
    rng = random.Random(7)
    for n in range(150):
        damaged = bytearray(whole)
        start = rng.randrange(len(damaged))
        damaged[start : start + 64] = rng.randbytes(64)
        directory = tmp_path / str(n)
        directory.mkdir()
        (directory / FILE).write_bytes(damaged)
        with running(directory) as run:
            for key in range(40):
                run.state.full_description(id_at(f"{key}.ckpt"))
            take_a_batch(run)
        with running(directory):
            pass
        shutil.rmtree(directory)


def test_rows_that_do_not_decode_are_dropped_and_the_rest_stays(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE entries SET entry = '{\"id\": 5}' WHERE id = ?", (id_at("3.ckpt"),))
        connection.execute("UPDATE entries SET identities = x'00' WHERE id = ?", (id_at("4.ckpt"),))
        connection.execute("UPDATE entries SET path = 'text' WHERE id = ?", (id_at("5.ckpt"),))
        connection.execute("UPDATE descriptions SET summary = x'00' WHERE id = ?", (id_at("6.ckpt"),))
    connection.close()
    with running(tmp_path) as run:
        assert run.paths() == {f"{n}.ckpt" for n in range(40)} - {"3.ckpt", "4.ckpt", "5.ckpt"}
        assert not run.loaded.instance_kept, "readers hold entries that nobody would ever delete for them"
        assert any("dropped 3 entries and 0 deletions that could not be decoded" in note for note in run.state.notes)
        assert run.state.description(id_at("6.ckpt")) is None
        assert run.state.description(id_at("3.ckpt")) is None
    with running(tmp_path) as run:
        assert run.loaded.instance_kept
        assert run.state.notes == []


def test_only_the_latest_broken_files_are_kept(tmp_path: Path) -> None:
    for n in range(BROKEN_KEPT + 3):
        (tmp_path / FILE).write_bytes(b"broken %d" % n)
        (tmp_path / f"{FILE}-wal").unlink(missing_ok=True)
        with running(tmp_path):
            pass
    kept = sorted(tmp_path.glob(f"{FILE}.broken-*"))
    assert [p.read_bytes() for p in kept] == [b"broken %d" % n for n in range(3, BROKEN_KEPT + 3)]


# ---- a full disk -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    """A filesystem of 2 MB."""
    mountpoint = tmp_path / "small"
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mountpoint)], check=True)
    yield mountpoint
    subprocess.run(["umount", "-l", str(mountpoint)], check=True)


@pytest.mark.root
def test_a_full_disk_is_an_error_after_which_the_same_batch_can_be_committed(small_disk: Path) -> None:
    state_dir = small_disk / "state"
    with running(state_dir) as run:
        run.change(put(record_of("a.ckpt")))
        batch = run.catalog.prepare([put(record_of(f"{n}.ckpt", exp_name="e" * 500)) for n in range(500)])
        assert batch is not None
        fill(small_disk)
        with pytest.raises(StateError, match=r"state\.sqlite3 cannot be written: .* full"):
            run.state.commit(batch, {}, run.catalog.floor)
        assert run.state.description(id_at("a.ckpt")) is None, "it still answers"
        (small_disk / "filler").unlink()
        run.state.commit(batch, {}, run.catalog.floor)
        run.catalog.publish(batch)
        listed = run.paths()
    with running(state_dir) as run:
        assert run.paths() == listed
        assert run.loaded.instance_kept


@pytest.mark.root
def test_a_start_on_a_full_disk_refuses_or_lists_what_is_known_under_another_instance(small_disk: Path) -> None:
    """Which of both depends on the last free pages; an instance that could not be marked as in use is never kept."""
    state_dir = small_disk / "state"
    with running(state_dir) as run:
        run.change(put(record_of("a.ckpt")))
        first = run.loaded.instance
    outcomes = set()
    for free_pages in range(20):
        filler = fill(small_disk, leave=free_pages * 4096)
        outcomes.add(start_on_full_disk(state_dir, first))
        filler.unlink()
    assert {"refused", "new instance"} <= outcomes
    with running(state_dir) as run:
        assert run.paths() == {"a.ckpt"}


def start_on_full_disk(state_dir: Path, first: str) -> str:
    """Start, check what was promised, and end as a kill would."""
    try:
        state = State.open(str(state_dir), boot_id=BOOT, clock=lambda: 0.0)
    except StateError:
        return "refused"
    run = Run(state)
    assert run.paths() == {"a.ckpt"}
    kept = run.loaded.instance == first
    assert run.loaded.instance_kept == kept
    assert kept or any("cannot be written" in note for note in state.notes)
    state.close(clean=False)
    return "kept" if kept else "new instance"


def fill(directory: Path, leave: int = 0) -> Path:
    """Fill a disk to its last byte, or all but `leave` of them."""
    filler = directory / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        if leave:
            file.truncate(max(0, file.tell() - leave))
    return filler
