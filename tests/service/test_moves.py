"""Renames on a real tree under a real service: told as moves, and whoever listens ends with what is there."""

import collections
import contextlib
import multiprocessing
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
GENEROUS_S = 120.0
ATTEMPTS = 20


class Listener:
    """Keeps a copy as any client would, and the reasons that it was given."""

    def __init__(self, daemon: Daemon) -> None:
        self.copy: dict[str, str] = {}
        """id → path, as it stands."""
        self.reasons: collections.Counter[str] = collections.Counter()
        self._daemon = daemon
        self._ready = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(GENEROUS_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()  # with the next message, a heartbeat at the latest; the service ends before the thread matters

    def _listen(self) -> None:
        with contextlib.suppress(Exception), self._daemon.events() as messages:
            for message in messages:
                if self._over.is_set():
                    return
                match message["type"]:
                    case "batch" | "upsert":
                        self.copy |= {each["id"]: each["path"] for each in message["checkpoints"]}
                    case "delete":
                        for each in message["checkpoints"]:
                            self.reasons[each["reason"]] += 1
                            self.copy.pop(each["id"], None)
                    case "complete":
                        self._ready.set()

    def has(self, paths: set[str]) -> None:
        """Wait until the copy, and the list, hold exactly these paths."""
        eventually(
            lambda: sorted(self.copy.values()) == sorted(paths),
            f"the copy holds {len(paths)} paths",
            deadline_s=GENEROUS_S,
        )
        eventually(
            lambda: sorted(e["path"] for e in entries_of(self._daemon)) == sorted(paths),
            "so does the list",
            deadline_s=GENEROUS_S,
        )


def entries_of(daemon: Daemon) -> list[dict[str, str]]:
    return list(daemon.get("/checkpoints", page_size=1000, include_invalid="true").json()["checkpoints"])


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Two processes that leave the service little."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_burn, daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _burn() -> None:
    while True:
        pass


@pytest.fixture
def serving(tmp_path: pathlib.Path) -> Iterator[tuple[Daemon, pathlib.Path, pathlib.Path]]:
    """A service with two roots, nothing in them."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    with Daemon([one, two], tmp_path / "state", sidecars="off", verify="none") as daemon:
        daemon.wait_complete()
        yield daemon, one, two


def fill(directory: pathlib.Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        rename_in(directory / name, checkpoint_bytes(number % 5))


def told_as_moved(listener: Listener, move: Callable[[int], set[str]], count: int) -> None:
    """Make a move again and again until one was told as such throughout, as it can be when the machine has a moment."""
    for attempt in range(ATTEMPTS):
        listener.reasons.clear()
        listener.has(move(attempt))
        if listener.reasons == {"moved": count}:
            return
    raise AssertionError(f"none of {ATTEMPTS} was told as moved: the last one as {listener.reasons}")


def test_hundreds_of_renames_on_a_busy_machine_are_told_as_moves_and_the_copy_equals_the_tree(
    serving: tuple[Daemon, pathlib.Path, pathlib.Path],
) -> None:
    daemon, one, _ = serving
    names = [f"{number}.ckpt" for number in range(300)]
    fill(one / "a", names)
    (one / "b").mkdir()
    with Listener(daemon) as listener:
        listener.has({f"a/{name}" for name in names})
        with busy_cores():
            for name in names:  # across directories
                (one / "a" / name).rename(one / "b" / f"x{name}")
            listener.has({f"b/x{name}" for name in names})
    # The first half of a rename may come so late on such a machine that nobody waits for the second; not often.
    assert listener.reasons.total() == len(names)
    assert listener.reasons["moved"] > len(names) / 2, listener.reasons


def test_a_directory_of_many_checkpoints_that_is_renamed_is_told_as_that_many_moves(
    serving: tuple[Daemon, pathlib.Path, pathlib.Path],
) -> None:
    daemon, one, _ = serving
    names = [f"{number}.ckpt" for number in range(150)]
    fill(one / "run", names)
    with Listener(daemon) as listener:
        listener.has({f"run/{name}" for name in names})

        def move(attempt: int) -> set[str]:
            [run] = one.iterdir()
            run.rename(one / f"run{attempt}")
            return {f"run{attempt}/{name}" for name in names}

        told_as_moved(listener, move, len(names))


def test_a_directory_that_is_renamed_into_another_root_is_told_as_moved(
    serving: tuple[Daemon, pathlib.Path, pathlib.Path],
) -> None:
    """Each root has a watch of its own: the two halves never come together."""
    daemon, one, two = serving
    names = [f"{number}.ckpt" for number in range(100)]
    fill(one / "run", names)
    with Listener(daemon) as listener:
        listener.has({f"run/{name}" for name in names})

        def move(attempt: int) -> set[str]:
            source, target = (one, two) if attempt % 2 == 0 else (two, one)
            (source / "run").rename(target / "run")
            eventually(
                lambda: {each["root"] for each in entries_of(daemon)} == {str(target)}, "all of it is in the other root"
            )
            return {f"run/{name}" for name in names}

        told_as_moved(listener, move, len(names))


def test_what_is_deleted_or_renamed_out_of_sight_is_told_as_removed(
    serving: tuple[Daemon, pathlib.Path, pathlib.Path],
) -> None:
    daemon, one, _ = serving
    fill(one / "run", ["a.ckpt", "b.ckpt", "c.ckpt", "kept.ckpt"])
    with Listener(daemon) as listener:
        listener.has({"run/a.ckpt", "run/b.ckpt", "run/c.ckpt", "run/kept.ckpt"})
        (one / "run/a.ckpt").unlink()
        (one / "run/b.ckpt").rename(one / "run/b.bak")
        (one / "run/c.ckpt").rename(one.parent / "c.ckpt")
        listener.has({"run/kept.ckpt"})
    assert listener.reasons == {"removed": 3}
