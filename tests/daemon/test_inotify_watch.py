"""The watch by bytes: every directory that is there is watched under its name, whatever was done to the tree."""

import contextlib
import os
import pathlib
import random
from collections.abc import Callable, Iterator, Sequence

import pytest
import watchfiles

from ckptd.daemon.inotify_watch import InotifyWatch
from ckptd.daemon.tree_events import Events

ADDED, DELETED, MODIFIED = watchfiles.Change.added, watchfiles.Change.deleted, watchfiles.Change.modified
QUEUE = int(pathlib.Path("/proc/sys/fs/inotify/max_queued_events").read_text())


class Reader:
    """A watch that is read when a test says so. What the kernel has queued is there at once: nothing is waited for."""

    def __init__(self, top: pathlib.Path, follow: Sequence[pathlib.Path] = ()) -> None:
        self.watch = InotifyWatch(
            os.fsencode(top), follow=[os.fsencode(each) for each in follow], should_stop=lambda: False
        )

    def read(self) -> Events:
        """Everything that has happened since the last call."""
        changes: set[tuple[watchfiles.Change, bytes]] = set()
        count, lost = 0, False
        while self.watch._wait(0):
            events = self.watch._gather(0, 0)
            changes |= events.changes
            count += events.count
            lost = lost or events.lost
        return Events(frozenset(changes), count, lost)

    @property
    def watched(self) -> set[bytes]:
        return set(self.watch._numbers)


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Iterator[Callable[..., Reader]]:
    with contextlib.ExitStack() as stack:

        def make(top: pathlib.Path, follow: Sequence[pathlib.Path] = ()) -> Reader:
            reader = Reader(top, follow)
            stack.callback(reader.watch.close)
            return reader

        yield make


def directories(top: pathlib.Path) -> set[bytes]:
    """Those that are there, links not followed."""
    return {directory for directory, _, _ in os.walk(os.fsencode(top))}


def test_names_of_any_bytes_are_told_as_they_are(tmp_path: pathlib.Path, make: Callable[..., Reader]) -> None:
    reader = make(tmp_path)
    for name in (b"\xff\xfe", b"new\nline", b"a" * 255, "é".encode(), b"\xed\xa0\x80"):
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as file:
            file.write(b"1")
        assert reader.read().changes == {(ADDED, path), (MODIFIED, path)}
        os.rename(path, path[:-1] + b"X")
        assert reader.read().changes == {(DELETED, path), (ADDED, path[:-1] + b"X")}
        os.unlink(path[:-1] + b"X")
        assert reader.read().changes == {(DELETED, path[:-1] + b"X")}


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_done_to_a_tree_its_directories_are_watched_under_their_names(
    tmp_path: pathlib.Path, make: Callable[..., Reader], seed: int
) -> None:
    """Made, renamed, moved in and out, replaced and removed, and read now and then; a file in each is told of."""
    chance = random.Random(seed)
    top, outside = os.fsencode(tmp_path / "top"), os.fsencode(tmp_path / "outside")
    os.mkdir(top)
    os.mkdir(outside)
    reader = make(tmp_path / "top")
    for number in range(150):
        here = [d for d in sorted(directories(tmp_path / "top")) if d != top]
        away = [d for d in sorted(directories(tmp_path / "outside")) if d != outside]
        new = os.path.join(chance.choice([*here, top]), b"\xff%d" % number)
        with contextlib.suppress(OSError):  # a directory cannot go into itself, nor be removed while it is not empty
            match chance.randrange(8):
                case 0 | 1 | 2:
                    os.makedirs(os.path.join(new, b"deeper") if chance.random() < 0.3 else new)
                case 3 if here:
                    os.rename(chance.choice(here), new)
                case 4 if here:
                    os.rename(chance.choice(here), os.path.join(outside, b"%d" % number))
                case 5 if away:
                    os.rename(chance.choice(away), new)
                case 6 if here:
                    os.rmdir(chance.choice(here))
                case 7 if here:
                    os.rename(chance.choice(here), chance.choice(here))  # which replaces an empty one
        if chance.random() < 0.3:
            reader.read()
    reader.read()
    assert reader.watched == directories(tmp_path / "top")
    assert len(reader.watch) == len(reader.watched)
    for directory in reader.watched:
        with open(os.path.join(directory, b"file"), "wb"):
            pass
    told = {path for change, path in reader.read().changes if change is ADDED}
    assert told == {os.path.join(directory, b"file") for directory in reader.watched}


def test_an_overflow_of_the_queue_is_told_and_what_was_made_meanwhile_is_watched(
    tmp_path: pathlib.Path, make: Callable[..., Reader]
) -> None:
    reader = make(tmp_path)
    (tmp_path / "b").touch()
    (tmp_path / "c").touch()
    for number in range(QUEUE + 100):  # equal ones in a row would be one event
        os.utime(tmp_path / "bc"[number % 2])
    (tmp_path / "late").mkdir()
    assert reader.read().lost
    assert reader.watched == directories(tmp_path)
    (tmp_path / "late/a.ckpt").touch()
    events = reader.read()
    assert (ADDED, os.fsencode(tmp_path / "late/a.ckpt")) in events.changes
    assert not events.lost


def test_links_are_followed_only_where_they_may_lead_and_loops_end(
    tmp_path: pathlib.Path, make: Callable[..., Reader]
) -> None:
    top, allowed, other = tmp_path / "top", tmp_path / "allowed", tmp_path / "other"
    for each in (top / "run", allowed / "deep", other):
        each.mkdir(parents=True)
    (top / "run/up").symlink_to(top)
    (top / "a-first").symlink_to(top / "run")
    (top / "store").symlink_to(allowed)
    (top / "away").symlink_to(other)
    (allowed / "back").symlink_to(top)
    reader = make(top, [top, allowed])
    store = top / "store"
    assert reader.watched == {os.fsencode(each) for each in (top, top / "run", store, store / "deep")}
    (allowed / "deep/a.ckpt").touch()
    assert (ADDED, os.fsencode(store / "deep/a.ckpt")) in reader.read().changes
    store.unlink()
    reader.read()
    assert reader.watched == {os.fsencode(each) for each in (top, top / "run")}
    store.symlink_to(allowed)
    reader.read()
    assert os.fsencode(store / "deep") in reader.watched


def test_a_directory_that_is_moved_in_from_where_a_link_leads_is_watched_under_its_own_name(
    tmp_path: pathlib.Path, make: Callable[..., Reader]
) -> None:
    top, allowed = tmp_path / "top", tmp_path / "allowed"
    (allowed / "run").mkdir(parents=True)
    top.mkdir()
    (top / "store").symlink_to(allowed)
    reader = make(top, [allowed])
    (allowed / "run").rename(top / "run")
    reader.read()
    assert reader.watched == {os.fsencode(each) for each in (top, top / "store", top / "run")}


@pytest.mark.parametrize("how", ["deleted", "renamed"])
def test_the_end_of_the_top_is_told(tmp_path: pathlib.Path, make: Callable[..., Reader], how: str) -> None:
    top = tmp_path / "top"
    top.mkdir()
    reader = make(top)
    if how == "deleted":
        top.rmdir()
    else:
        top.rename(tmp_path / "renamed")
    assert (DELETED, os.fsencode(top)) in reader.read().changes


def test_a_top_that_is_missing_is_refused_and_leaves_nothing_open(tmp_path: pathlib.Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError, match="missing"):
        InotifyWatch(os.fsencode(tmp_path / "missing"), should_stop=lambda: False)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_watch_that_is_over_is_closed(tmp_path: pathlib.Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    watch = InotifyWatch(os.fsencode(tmp_path), should_stop=lambda: False)
    (tmp_path / "a").touch()
    asked = iter([False, True])
    [events] = watch.events(step_ms=1, debounce_ms=1, is_over=lambda: next(asked))
    assert {path for _, path in events.changes} == {os.fsencode(tmp_path / "a")}
    assert len(os.listdir("/proc/self/fd")) == before
    watch.close()
