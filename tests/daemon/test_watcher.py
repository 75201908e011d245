"""The watcher on real directories: what happens is hinted, and what is lost is known to be lost."""
# ruff: noqa: ASYNC221, ASYNC230, ASYNC240 - these stories do to a directory what other processes would

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
import structlog
import watchfiles

from ckptd.catalog.roots import Root
from ckptd.daemon import glance, mounts, retries, tree_events, watcher
from ckptd.daemon.hints import sort_changes
from ckptd.daemon.moves import mark_of
from ckptd.daemon.watcher import WatcherState, watch_root
from ckptd.validators.reader import identity_of
from tests.daemon.watched_roots import DEADLINE_S, Watched, watched

Story = Callable[[Watched, Path], Awaitable[None]]
EITHER = pytest.mark.parametrize("source", ["watchfiles", "inotify"], indirect=True)
"""Events come from watchfiles, and by the bytes of their names where a name is not UTF-8."""


@pytest.fixture(autouse=True)
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if getattr(request, "param", "watchfiles") == "inotify":
        monkeypatch.setattr(watcher._Watch, "by_bytes", True)


def tell(root: Path, story: Story, *, poll_s: float = 15.0) -> None:
    """Run `story` against a watch of `root` that stands."""

    async def main() -> None:
        async with watched(os.fsencode(root), poll_s=poll_s) as seen:
            await seen.until_watching()
            await story(seen, root)

    anyio.run(main)


@EITHER
def test_a_watch_that_stands_asks_for_everything_once(tmp_path: Path) -> None:
    """What changed before events arrived is found by a sweep that begins after."""

    async def main() -> None:
        async with watched(os.fsencode(tmp_path)) as seen:
            await seen.until(lambda: seen.state.watching)
            assert seen.everything == 1

    anyio.run(main)


@EITHER
def test_files_written_renamed_and_deleted_are_hinted(tmp_path: Path) -> None:
    async def story(seen: Watched, root: Path) -> None:
        (root / "a.ckpt").write_bytes(b"1")
        await seen.until(lambda: b"a.ckpt" in seen.files)
        seen.forget()
        with open(root / "a.ckpt", "ab") as file:
            file.write(b"2")
        await seen.until(lambda: b"a.ckpt" in seen.files)
        seen.forget()
        (root / "a.ckpt").rename(root / "b.ckpt")
        await seen.until(lambda: {b"a.ckpt", b"b.ckpt"} <= seen.files)
        seen.forget()
        (root / "b.ckpt").unlink()
        await seen.until(lambda: b"b.ckpt" in seen.files)

    tell(tmp_path, story)


@EITHER
def test_sidecars_configs_and_sentinels_are_hinted_like_any_file(tmp_path: Path) -> None:
    names = {b"a.ckpt.metadata.yaml", b"config.yaml", b".FAILURE"}

    async def story(seen: Watched, root: Path) -> None:
        for name in names:
            (root / os.fsdecode(name)).write_bytes(b"")
        await seen.until(lambda: names <= seen.files)

    tell(tmp_path, story)


@EITHER
def test_a_new_directory_is_scanned_at_once_and_once_more_later(tmp_path: Path) -> None:
    """Files made inside a directory that was just made are often not reported."""

    async def story(seen: Watched, root: Path) -> None:
        (root / "run" / "checkpoints").mkdir(parents=True)
        for number in range(300):
            (root / "run" / "checkpoints" / f"{number}.ckpt").write_bytes(b"")
        await seen.until(lambda: sum(b"run" in hint.directories for hint in seen.hints) >= 2)

    tell(tmp_path, story)


@EITHER
def test_a_tree_that_is_moved_in_is_scanned(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "a.ckpt").write_bytes(b"")
    (tmp_path / "root").mkdir()

    async def story(seen: Watched, root: Path) -> None:
        (tmp_path / "elsewhere").rename(root / "here")
        await seen.until(lambda: b"here" in seen.directories)

    tell(tmp_path / "root", story)


@EITHER
def test_a_path_that_is_gone_is_hinted_as_file_and_as_directory(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()

    async def story(seen: Watched, root: Path) -> None:
        (root / "run").rename(tmp_path.parent / f"{tmp_path.name}-moved-out")
        await seen.until(lambda: b"run" in seen.directories and b"run" in seen.files)

    tell(tmp_path, story)


@EITHER
def test_a_root_that_is_missing_is_waited_for(tmp_path: Path) -> None:
    root = tmp_path / "later"

    async def main() -> None:
        async with watched(os.fsencode(root)) as seen:
            await seen.until(lambda: seen.everything and seen.state.last_error)
            assert not seen.state.watching
            assert "does not exist" in (seen.state.last_error or "")
            root.mkdir()
            await seen.until_watching()
            (root / "a.ckpt").write_bytes(b"")
            await seen.until(lambda: b"a.ckpt" in seen.files)

    anyio.run(main)


@EITHER
@pytest.mark.parametrize("how", ["deleted", "renamed"])
def test_a_root_that_is_replaced_is_watched_anew(tmp_path: Path, how: str) -> None:
    """inotify stays with the old directory and says nothing."""
    root = tmp_path / "root"
    root.mkdir()

    async def story(seen: Watched, root: Path) -> None:
        if how == "deleted":
            root.rmdir()
        else:
            root.rename(tmp_path / "old")
        root.mkdir()
        await seen.until(lambda: seen.state.restarts)
        await seen.until_watching()
        (root / "a.ckpt").write_bytes(b"")
        await seen.until(lambda: b"a.ckpt" in seen.files)

    tell(root, story)


@EITHER
def test_a_root_that_vanishes_asks_for_everything_and_is_not_watched(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()

    async def story(seen: Watched, root: Path) -> None:
        root.rmdir()
        await seen.until(lambda: seen.everything and not seen.state.watching)

    tell(root, story)


def test_a_name_that_is_not_utf8_costs_one_watch_and_all_events_come_from_then_on(tmp_path: Path) -> None:
    """watchfiles raises on such a name; each use of one ended its watch, and all of the root's events were lost."""

    async def story(seen: Watched, root: Path) -> None:
        odd = Path(os.fsdecode(os.fsencode(root) + b"/\xff.ckpt"))
        odd.write_bytes(b"")
        await seen.until(lambda: seen.state.restarts == 1)
        assert seen.everything
        await seen.until_watching()
        for number in range(50):
            seen.forget()
            odd.write_bytes(b"%d" % number)
            (root / f"{number}.ckpt").write_bytes(b"")
            await seen.until(lambda number=number: {b"\xff.ckpt", b"%d.ckpt" % number} <= seen.files)
        odd.rename(root / "even.ckpt")
        await seen.until(lambda: b"even.ckpt" in seen.files)
        assert seen.state.restarts == 1
        assert seen.state.watching
        assert seen.state.last_error is None

    tell(tmp_path, story)


def test_a_tree_with_a_directory_that_is_not_utf8_is_watched(tmp_path: Path) -> None:
    """Opening it is itself an event that watchfiles cannot decode: no watch could begin."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    odd.mkdir()

    async def main() -> None:
        async with watched(os.fsencode(tmp_path)) as seen:
            await seen.until(lambda: seen.state.restarts and seen.state.watching)
            (odd / "a.ckpt").write_bytes(b"")
            (tmp_path / "b.ckpt").write_bytes(b"")
            await seen.until(lambda: {b"\xff/a.ckpt", b"b.ckpt"} <= seen.files)
            assert seen.state.restarts == 1

    anyio.run(main)


def test_a_large_batch_counts_as_one_in_which_events_were_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of watchfiles overflows without a word."""
    monkeypatch.setattr(tree_events, "LARGE_BATCH", 20)

    async def story(seen: Watched, root: Path) -> None:
        for number in range(200):
            (root / f"{number}.ckpt").write_bytes(b"")
        await seen.until(lambda: seen.everything)
        assert seen.state.overflows

    tell(tmp_path, story)


def test_a_failing_watch_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches used up cannot be had without breaking the machine's other users: the error is the real one's copy."""
    real, calls = watchfiles.watch, []

    def exhausted(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            raise OSError('OS file watch limit reached. about ["/x"]')
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(watchfiles, "watch", exhausted)

    async def main() -> None:
        async with watched(os.fsencode(tmp_path)) as seen:
            await seen.until(lambda: seen.state.restarts)
            assert "max_user_watches" in (seen.state.last_error or "")
            await seen.until_watching()
            assert seen.state.last_error is None

    anyio.run(main)


def test_a_network_filesystem_is_not_watched_but_swept_on_a_timer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount table that calls this disk NFS stands for a server that cannot be had in a test."""
    table = (mounts.Mount(b"/", "0:1", b"/", "nfs4", b"server:/export"),)
    monkeypatch.setattr(glance, "read_mounts", lambda: table)

    async def main() -> None:
        async with watched(os.fsencode(tmp_path), poll_s=0.05) as seen:
            await seen.until(lambda: seen.everything >= 3)
            assert not seen.state.watching
            assert seen.state.polled == (b"",)
            assert "network filesystem" in (seen.state.last_error or "")

    anyio.run(main)


def test_a_network_filesystem_beneath_a_root_is_scanned_on_a_timer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the root is watched as ever."""
    there = os.fsencode(tmp_path / "nfs")
    table = (
        mounts.Mount(b"/", "0:1", b"/", "ext4", b"/dev/x"),
        mounts.Mount(there, "0:2", b"/", "nfs4", b"server:/export"),
    )
    monkeypatch.setattr(glance, "read_mounts", lambda: table)

    async def story(seen: Watched, root: Path) -> None:
        await seen.until(lambda: sum(b"nfs" in hint.directories for hint in seen.hints) >= 2)
        assert seen.state.watching

    tell(tmp_path, story, poll_s=0.05)


@EITHER
@pytest.mark.root
def test_what_is_mounted_beneath_a_root_is_watched_too(tmp_path: Path) -> None:
    """Neither mount nor unmount is an event."""
    disk = tmp_path / "disk"
    disk.mkdir()

    async def story(seen: Watched, root: Path) -> None:
        subprocess.run(["/bin/mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)
        try:
            await seen.until(lambda: seen.state.restarts == 1)
            await seen.until_watching()
            (disk / "a.ckpt").write_bytes(b"")
            await seen.until(lambda: b"disk/a.ckpt" in seen.files)
        finally:
            subprocess.run(["/bin/umount", "-l", str(disk)], check=True)
        seen.forget()
        await seen.until(lambda: seen.state.restarts == 2)
        await seen.until_watching()

    tell(tmp_path, story)


def test_cancelling_ends_the_threads(tmp_path: Path) -> None:
    """Both of them: the one of watchfiles, and ours that waits for it."""

    def rust_threads() -> int:
        names = []
        for task in os.listdir("/proc/self/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                names.append(Path(f"/proc/self/task/{task}/comm").read_text())
        return sum("notify" in name for name in names)

    def our_threads() -> int:
        stacks = [traceback.extract_stack(frame) for frame in sys._current_frames().values()]
        return sum(any(call.name == "_watch_in_thread" for call in stack) for stack in stacks)

    def wait_for(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline

    async def story(seen: Watched, root: Path) -> None:
        assert (rust_threads(), our_threads()) == (1, 1)

    wait_for(lambda: rust_threads() == 0)  # those of the tests before end by themselves, a moment later
    tell(tmp_path, story)
    assert our_threads() == 0
    wait_for(lambda: rust_threads() == 0)


_STANDALONE = """
import sys, anyio, structlog
from ckptd.catalog.roots import Root
from ckptd.daemon.watcher import WatcherState, watch_root
def show(hints):
    print("everything" if hints.everything else "some", flush=True)
log = structlog.wrap_logger(structlog.ReturnLogger(), wrapper_class=structlog.stdlib.BoundLogger)
async def main():
    await watch_root(Root(sys.argv[1].encode()), show, log=log, state=WatcherState())
anyio.run(main)
"""


@pytest.mark.slow
def test_a_process_that_was_stopped_asks_for_everything_when_it_goes_on(tmp_path: Path) -> None:
    """The kernel's queue overflows without a word; only the gap in time can be noticed."""
    with subprocess.Popen(
        [sys.executable, "-c", _STANDALONE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "everything\n"
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            threading.Event().wait(watcher.STALL_S + 2 * watcher.TICK_S)  # the time itself is what is tested
            process.send_signal(signal.SIGCONT)
            assert process.stdout.readline() == "everything\n"
        finally:
            process.kill()


def test_events_are_sorted_by_what_is_there_and_made_relative(tmp_path: Path) -> None:
    (tmp_path / "run" / "inner").mkdir(parents=True)
    (tmp_path / "a.ckpt").write_bytes(b"")
    added, modified, deleted = watchfiles.Change.added, watchfiles.Change.modified, watchfiles.Change.deleted
    changes = [
        (added, os.fsencode(f"{tmp_path}/run")),
        (added, os.fsencode(f"{tmp_path}/run/inner")),
        (modified, os.fsencode(f"{tmp_path}/a.ckpt")),
        (deleted, os.fsencode(f"{tmp_path}/gone")),
        (added, os.fsencode(f"{tmp_path}/gone-already")),
        (modified, os.fsencode(f"{tmp_path}-beside/b.ckpt")),
        (added, os.fsencode("/elsewhere/c.ckpt")),
    ]
    found = sort_changes(Root(os.fsencode(tmp_path)), changes)
    assert found.files == {b"a.ckpt", b"gone", b"gone-already"}
    assert found.directories == {b"run", b"gone", b"gone-already"}
    assert found.made == {b"run"}


def test_what_appears_is_told_with_what_to_know_it_again_by(tmp_path: Path) -> None:
    """A file of that inode, size and time that is missed elsewhere was moved there. A link stands for itself."""
    for name in ("new.ckpt", "old.ckpt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link.ckpt").symlink_to("old.ckpt")
    (tmp_path / "run.ckpt").mkdir()
    changes = [
        (watchfiles.Change.added, os.fsencode(tmp_path / "new.ckpt")),
        (watchfiles.Change.added, os.fsencode(tmp_path / "link.ckpt")),
        (watchfiles.Change.added, os.fsencode(tmp_path / "run.ckpt")),
        (watchfiles.Change.modified, os.fsencode(tmp_path / "old.ckpt")),
    ]
    found = sort_changes(Root(os.fsencode(tmp_path)), changes)
    expected = {mark_of(identity_of((tmp_path / name).lstat())): name.encode() for name in ("new.ckpt", "link.ckpt")}
    assert found.sightings == expected


def test_an_event_of_the_root_itself_means_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    changes = [
        (watchfiles.Change.modified, os.fsencode(str(tmp_path))),
        (watchfiles.Change.added, os.fsencode(f"{tmp_path}/run")),
    ]
    found = sort_changes(Root(os.fsencode(tmp_path)), changes)
    assert (found.files, found.directories) == (frozenset(), {b""})


@EITHER
def test_a_deleted_tree_is_hinted_by_its_top(tmp_path: Path) -> None:
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "deep" / "a.ckpt").write_bytes(b"")

    async def story(seen: Watched, root: Path) -> None:
        shutil.rmtree(root / "run")
        await seen.until(lambda: b"run" in seen.directories)
        await seen.until(lambda: b"run/deep/a.ckpt" in seen.files)

    tell(tmp_path, story)


def test_what_is_told_by_way_of_a_link_to_a_directory_is_hinted_where_it_is(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "run").mkdir(parents=True)
    outside.mkdir()
    (root / "latest").symlink_to("run")
    (root / "away").symlink_to(outside)
    for path in (root / "run/a.ckpt", outside / "b.ckpt"):
        path.write_bytes(b"")
    told = {
        (watchfiles.Change.added, os.fsencode(root / name))
        for name in ("latest/a.ckpt", "latest/gone.ckpt", "away/b.ckpt")
    }
    found = sort_changes(Root(os.fsencode(root)), told)
    assert found.files == {b"run/a.ckpt", b"run/gone.ckpt", b"away/b.ckpt"}


def test_a_watch_that_keeps_breaking_does_not_fill_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something as lasting as a name that is not UTF-8 would else be told of every five seconds, for ever."""
    monkeypatch.setattr(retries, "BACKOFF_S", (0.0,) * 6)
    told = structlog.testing.CapturingLogger()
    log = structlog.wrap_logger(told, processors=[], wrapper_class=structlog.stdlib.BoundLogger)
    state = WatcherState()
    file = tmp_path / "root"
    file.mkdir()
    monkeypatch.setattr(watcher, "glance_at", _failing_disk)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: watch_root(Root(os.fsencode(file)), lambda _: None, log=log, state=state))
            with anyio.fail_after(DEADLINE_S):
                while state.restarts < 30:  # noqa: ASYNC110 - a counter sets no event
                    await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()

    anyio.run(main)
    assert 1 <= len(told.calls) <= 7


@pytest.mark.parametrize(
    ("failures", "start_s", "started", "wait_s"),
    [
        (0, 3.0, True, 0.1),
        (1, 3.0, True, 0.2),
        (1, 3.0, False, 30.0),
        (2, 3.0, True, 30.0),
        (9, 0.01, True, 5.0),
        (9, 0.01, False, 5.0),
        (9, 100.0, True, 60.0),
    ],
    ids=["was well", "first", "cannot begin", "breaks again", "small tree", "cannot, small tree", "bounded"],
)
def test_a_watch_of_a_large_tree_that_breaks_again_and_again_does_not_walk_it_all_the_time(
    failures: int, start_s: float, started: bool, wait_s: float
) -> None:
    """A file in use whose name is not UTF-8 ends each watch as soon as it has begun."""
    assert retries.retry_in_s(failures, start_s, started=started) == wait_s


def _failing_disk(path: bytes) -> None:
    raise OSError(5, "Input/output error", os.fsdecode(path))
