"""What changes the tree during the soak: writing processes without pause, and a person with links, odd names and rm."""

import contextlib
import os
import random
import shutil
import threading
from pathlib import Path
from typing import Self

from tests.service.campaigns import Contents, Writers
from tests.service.daemons import Daemon, eventually

OWNED, SHARED = 2, 2
"""Writers with names of their own, whose history is known at every moment; writers that work on each other's."""
OPERATIONS = 4
"""Of each writer, between two pauses."""
WAVE = 500
"""Checkpoints that are there at once while many pass through."""
_NAMES = (b"a.ckpt", b"b b.ckpt", "größe.ckpt".encode(), b"\xff\xfe.ckpt", b"new\nline.ckpt", b'it\'s "x".ckpt')


class Churn:
    """Runs between `resume` and `pause`, in a thread of its own; a context manager."""

    def __init__(self, root: Path, contents: Contents, logs: Path, seed: int) -> None:
        (root / "shared").mkdir()
        self.rounds = 0
        self._dice = random.Random(seed)
        self._person = _Person(root, contents, random.Random(seed + 1))
        self.owned = Writers(root, contents, logs / "owned", count=OWNED, seed=seed, shared=False)
        self._shared = Writers(root / "shared", contents, logs / "shared", count=SHARED, seed=seed + 7, shared=True)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.owned.__exit__()
        self._shared.__exit__()

    def resume(self) -> None:
        """Go on changing the tree."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def pause(self) -> None:
        """Return when nothing of this changes the tree any more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._dice.uniform(0, 0.3)):
                for writers in (self.owned, self._shared):
                    writers.start(OPERATIONS)
                self._person.run_one()
                for writers in (self.owned, self._shared):
                    writers.wait()
                self.rounds += 1
        except BaseException as error:  # noqa: BLE001 - told by `pause`, where somebody listens
            self._failure = error


class _Person:
    """Links, names of every kind, whole directories, sidecars removed by hand."""

    def __init__(self, root: Path, contents: Contents, dice: random.Random) -> None:
        self._root = root
        self._place = root / "people"
        self._place.mkdir()
        self._contents = contents
        self._dice = dice

    def run_one(self) -> None:
        """One operation at random. What fails, fails: a person tries again another time."""
        operations = (self._save, self._save, self._link, self._link_directory, self._rename, self._remove, self._tidy)
        with contextlib.suppress(OSError):
            self._dice.choice(operations)()

    def _directory(self) -> Path:
        return self._place / f"run {self._dice.randrange(4)}"

    def _path(self) -> bytes:
        return os.path.join(os.fsencode(self._directory()), self._dice.choice(_NAMES))

    def _save(self) -> None:
        path = self._path()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        prepared = path + b".part"
        with open(prepared, "wb") as file:
            file.write(self._contents.data(self._dice.randrange(12)))
        os.rename(prepared, path)

    def _link(self) -> None:
        """To a checkpoint, which may not be there, to a link, or to nothing that is allowed."""
        path = self._path()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        target = self._dice.choice((self._path(), b"../../base/exp0/epoch=1.ckpt", b"nowhere.ckpt", b"/etc/passwd"))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.symlink(target, path)

    def _link_directory(self) -> None:
        link = self._directory() / "linked"
        link.unlink(missing_ok=True)
        link.symlink_to(self._dice.choice(("../../base/exp1", "..", "../run 0", "/etc")))

    def _rename(self) -> None:
        source, target = self._directory(), self._directory()
        if not target.exists():
            source.rename(target)

    def _remove(self) -> None:
        shutil.rmtree(self._directory())

    def _tidy(self) -> None:
        """Remove sidecars by hand: they come back."""
        experiment = self._root / "base" / f"exp{self._dice.randrange(3)}"
        sidecars = sorted(experiment.glob("*.metadata.yaml"))
        for sidecar in self._dice.sample(sidecars, min(3, len(sidecars))):
            sidecar.unlink(missing_ok=True)


def fill(base: Path, contents: Contents, count: int) -> None:
    """A tree that stays: `count` checkpoints, a hundred to a directory."""
    data = [contents.data(number) for number in range(8)]
    for number in range(count):
        directory = base / f"exp{number // 100}"
        if number % 100 == 0:
            directory.mkdir(parents=True)
        (directory / f"epoch={number % 100}.ckpt").write_bytes(data[number % 8])


def pass_through(directory: Path, contents: Contents, daemon: Daemon, count: int) -> None:
    """Save `count` checkpoints, each under a name of its own, and delete them again once they are listed."""
    data = contents.data(0)
    for begin in range(0, count, WAVE):
        wave = directory / f"wave{begin // WAVE}"
        wave.mkdir(parents=True)
        names = [f"epoch={number}.ckpt" for number in range(min(WAVE, count - begin))]
        for name in names:
            (wave / name).write_bytes(data)
        _await(daemon, f"{directory.name}/{wave.name}/", len(names))
        _remove_tree(wave)
        _await(daemon, f"{directory.name}/{wave.name}/", 0)


def _await(daemon: Daemon, beneath: str, count: int) -> None:
    def are_listed() -> bool:
        return sum(path.startswith(beneath) for path in daemon.entries()) == count

    eventually(are_listed, f"{count} checkpoints are listed in {beneath}", deadline_s=300, every_s=0.5)


def _remove_tree(directory: Path) -> None:
    """Sidecars may be written into it meanwhile."""

    def is_gone() -> bool:
        shutil.rmtree(directory, ignore_errors=True)
        return not directory.exists()

    eventually(is_gone, f"{directory} is removed", deadline_s=60)
