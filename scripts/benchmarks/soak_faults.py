"""What is done to the service during the soak: restarts of every kind, and faults that it must outlive."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.service.daemons import Daemon, eventually
from tests.validators.hostile import hostile_checkpoint, hostile_pickles

HOSTILE_AT_ONCE = 5
PAGE = 4096


class Faults:
    """Each method does one thing to a running service, and leaves it running."""

    def __init__(self, daemon: Daemon, root: Path, dice: random.Random, *, disk: Path | None) -> None:
        """Args:
        disk: The filesystem that the tree and the state are on, which may be filled; None where it is not ours.
        """
        self.wrong: list[str] = []
        self.counts: dict[str, int] = {}
        self._daemon = daemon
        self._root = root
        self._dice = dice
        self._disk = disk
        self._restarts = _Deck(
            dice, (self.end, self.kill, self.kill_while_starting, self.tear_the_state, self.spoil_the_state)
        )
        faults: list[Callable[[], None]] = [
            self.stop_for_a_while,
            self.kill_a_child,
            self.kill_the_zygote,
            self.hostile_files,
            self.rebuild,
        ]
        self._faults = _Deck(dice, (*faults, self.fill_the_disk) if disk is not None else tuple(faults))

    @property
    def restarts(self) -> int:
        """How often the service was restarted so far."""
        return sum(count for name, count in self.counts.items() if name in self._restarts.names)

    @property
    def faults(self) -> int:
        """How many faults there were that the same process had to outlive."""
        return sum(count for name, count in self.counts.items() if name in self._faults.names)

    def restart(self) -> str:
        """One restart of the next kind; returns its name."""
        return self._do(self._restarts.next())

    def fault(self) -> str:
        """One fault of the next kind; returns its name."""
        return self._do(self._faults.next())

    def _do(self, deed: Callable[[], None]) -> str:
        deed()
        name = deed.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return name

    # ---- restarts ----------------------------------------------------------------------------------------------

    def end(self) -> None:
        """SIGTERM, with everybody connected."""
        code = self._daemon.stop()
        if code:
            self.wrong.append(f"SIGTERM ended with {code}")
        self._daemon.start()

    def kill(self) -> None:
        """SIGKILL in the middle of it."""
        self._daemon.kill()
        self._daemon.start()

    def kill_while_starting(self) -> None:
        """SIGKILL, and again before it answers, or soon after."""
        for _ in range(3):
            self._daemon.kill()
            self._daemon.launch()
            time.sleep(self._dice.uniform(0, 1.0))  # not a wait for anything: the moment is what is tried
        eventually(self._daemon.is_up, "it answers")

    def tear_the_state(self) -> None:
        """A state file that ends in the middle."""
        self._daemon.kill()
        for path in self._state_files():
            os.truncate(path, self._dice.randrange(path.stat().st_size + 1))
        self._daemon.start()

    def spoil_the_state(self) -> None:
        """Pages of the state that hold something else."""
        self._daemon.kill()
        for path in self._state_files():
            with open(path, "r+b") as file:
                for _ in range(4):
                    file.seek(self._dice.randrange(path.stat().st_size // PAGE + 1) * PAGE)
                    file.write(self._dice.randbytes(PAGE))
        self._daemon.start()

    def _state_files(self) -> list[Path]:
        return [path for path in self._daemon.state.glob("state.sqlite3*") if not path.name.endswith("-shm")]

    # ---- faults of a service that goes on ----------------------------------------------------------------------

    def stop_for_a_while(self) -> None:
        """SIGSTOP, while the tree goes on changing: events are lost, clients wait."""
        self._daemon.signal(signal.SIGSTOP)
        time.sleep(self._dice.uniform(1, 4))
        self._daemon.signal(signal.SIGCONT)
        eventually(self._daemon.is_up, "it answers after SIGCONT")

    def kill_a_child(self) -> None:
        """SIGKILL to a process that parses a file, if one is met."""
        end = time.monotonic() + 2
        while time.monotonic() < end:
            children = [child for zygote in children_of(self._daemon.pid) for child in children_of(zygote)]
            if children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._dice.choice(children), signal.SIGKILL)
                return

    def kill_the_zygote(self) -> None:
        """SIGKILL to a process that forks them."""
        for zygote in children_of(self._daemon.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(zygote, signal.SIGKILL)

    def hostile_files(self) -> None:
        """Files that crash, hang or exhaust whoever parses them; each is judged, and goes again."""
        directory = self._root / "hostile"
        directory.mkdir(exist_ok=True)
        names = self._dice.sample(sorted(hostile_pickles()), HOSTILE_AT_ONCE)
        for name in names:
            with contextlib.suppress(OSError):
                (directory / f"{name}.ckpt").write_bytes(hostile_checkpoint(name))

        def are_judged() -> bool:
            entries = self._daemon.entries()
            return all(entries.get(f"hostile/{name}.ckpt", {}).get("health") in ("valid", "invalid") for name in names)

        try:
            eventually(are_judged, f"hostile files are judged: {names}", deadline_s=120, every_s=0.2)
        except AssertionError as error:
            self.wrong.append(str(error))
        for name in names:
            (directory / f"{name}.ckpt").unlink()

    def rebuild(self) -> None:
        """Everything is read anew while it changes."""
        self._daemon.rebuild(self._dice.choice(("sweep", "full")))

    def fill_the_disk(self) -> None:
        """No room for checkpoints, sidecars and the state, for some seconds."""
        assert self._disk is not None
        ballast = self._disk / ".ballast"
        with open(ballast, "wb") as file:
            for size in _halves(1 << 30):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
        time.sleep(self._dice.uniform(1, 4))
        ballast.unlink()


class _Deck:
    """Things to do, shuffled anew whenever all were done."""

    def __init__(self, dice: random.Random, deeds: tuple[Callable[[], None], ...]) -> None:
        self.names = frozenset(deed.__name__ for deed in deeds)
        self._dice = dice
        self._deeds = deeds
        self._left: list[Callable[[], None]] = []

    def next(self) -> Callable[[], None]:
        self._left = self._left or self._dice.sample(self._deeds, len(self._deeds))
        return self._left.pop()


def children_of(pid: int) -> list[int]:
    """Processes that this one has forked, by any of its threads, and that have not ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def _halves(size: int) -> Iterator[int]:
    while size >= 1:
        yield size
        size //= 2
