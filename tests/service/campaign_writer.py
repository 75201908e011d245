"""A process that changes a tree as trainings and people do, told on its standard input how much; seeded.

Runs as a script and imports nothing but the standard library, so that four of them start at once in no time. It reads
lines with a number of operations, answers each with a line when they are done, and ends with its input. What it did is
appended to a log: for every operation its begin, its end (epoch seconds) and what each path held afterwards.
"""

import contextlib
import json
import os
import pathlib
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator

State = int | str | None
"""The number of a content, `partial`, `junk`, or None for nothing there."""

Content = bytes | dict[str, bytes]
"""Of a file, or of the files of a directory, in the order of writing."""

PARTIAL = "partial"
JUNK = "junk"
OLD_S = 1_500_000_000
"""A modification time that a copy brings along."""


class Writer:
    """Works in `root` on its own names, or, without an owner, on everybody's."""

    def __init__(self, root: pathlib.Path, contents: list[Content], log: pathlib.Path, seed: int, owner: str) -> None:
        self._root = root
        self._contents = [content for content in contents if isinstance(content, bytes)]
        self._sharded = [content for content in contents if not isinstance(content, bytes)]
        self._log = log
        self._random = random.Random(seed)
        self._owner = owner
        self._files: dict[str, State] = {}
        self._directories: dict[str, State] = {}
        """Checkpoints that are directories."""
        self._made = 0

    def run_one(self) -> None:
        """One operation at random, written to the log whatever came of it."""
        operation = self._random.choices(*zip(*self._operations(), strict=True))[0]
        with open(self._log, "a", encoding="utf-8") as log:
            begin, before = time.time(), self._states()
            entry = {"op": operation.__name__.strip("_"), "begin": begin}
            passed: dict[str, list[State]] = {}
            # Others may have taken away what this operation works on: that is what chaos means.
            with contextlib.suppress(OSError):
                passed = operation()
            now = self._states()
            paths = {path for path in {*before, *now} if before.get(path) != now.get(path)}
            after = {path: now.get(path) for path in paths | set(passed)}
            log.write(json.dumps(entry | {"end": time.time(), "after": after, "passed": passed}) + "\n")

    def _operations(self) -> list[tuple[Callable[[], dict[str, list[State]]], int]]:
        shared = 0 if self._owner else 1
        return [
            (self._write_new, 4),
            (self._rename_new_in, 4),
            (self._copy_new, 2),
            (self._overwrite_in_place, 3),
            (self._rename_over, 3),
            (self._copy_over, 2),
            (self._truncate_then_complete, 2),
            (self._truncate, 1),
            (self._rename_file, 3),
            (self._rename_directory, 1),
            (self._delete, 2),
            (self._save_sharded, 3),
            (self._rename_sharded_in, 2),
            (self._overwrite_sharded, 2),
            (self._rename_sharded, 2),
            (self._delete_sharded, 2),
            (self._lose_a_shard, 1),
            (self._delete_directory, shared),
            (self._write_junk, shared),
        ]

    # ---- operations: each returns the states that paths passed through, besides the last ones ------------------

    def _write_new(self) -> dict[str, list[State]]:
        return self._write(self._new_path())

    def _overwrite_in_place(self) -> dict[str, list[State]]:
        return self._write(self._some_path())

    def _rename_new_in(self) -> dict[str, list[State]]:
        return self._rename_in(self._new_path())

    def _rename_over(self) -> dict[str, list[State]]:
        return self._rename_in(self._some_path())

    def _copy_new(self) -> dict[str, list[State]]:
        return self._copy(self._new_path())

    def _copy_over(self) -> dict[str, list[State]]:
        return self._copy(self._some_path())

    def _write(self, path: str) -> dict[str, list[State]]:
        number, data = self._content()
        cuts = sorted(self._random.randrange(len(data)) for _ in range(self._random.randrange(4)))
        self._files[path] = PARTIAL
        with open(self._root / path, "wb") as file:
            for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
                file.write(data[start:stop])
                file.flush()
        self._files[path] = number
        return {path: [PARTIAL, number]}

    def _copy(self, path: str) -> dict[str, list[State]]:
        """As `cp -p` and moves between filesystems do: the modification time goes back at the end."""
        passed = self._write(path)
        os.utime(self._root / path, (OLD_S, OLD_S + self._random.randrange(1000)))
        return passed

    def _rename_in(self, path: str) -> dict[str, list[State]]:
        number, data = self._content()
        temporary = self._root / os.path.dirname(path) / f".{os.getpid()}.part"
        temporary.write_bytes(data)
        temporary.replace(self._root / path)
        self._files[path] = number
        return {path: [number]}

    def _truncate(self) -> dict[str, list[State]]:
        path = self._some_path()
        os.truncate(self._root / path, os.path.getsize(self._root / path) // 2)
        self._files[path] = PARTIAL
        return {path: [PARTIAL]}

    def _truncate_then_complete(self) -> dict[str, list[State]]:
        path = self._some_path()
        number, data = self._content()
        self._files[path] = PARTIAL
        (self._root / path).write_bytes(data[: len(data) // 2])
        with open(self._root / path, "ab") as file:
            file.write(data[len(data) // 2 :])
        self._files[path] = number
        return {path: [PARTIAL, number]}

    def _rename_file(self) -> dict[str, list[State]]:
        source = self._some_path()
        target = self._some_path() if self._random.random() < 0.5 else self._new_path()
        if source == target:
            return {}
        os.rename(self._root / source, self._root / target)
        self._files[target] = self._files.pop(source, None)
        return {source: [None], target: [self._files[target]]}

    def _rename_directory(self) -> dict[str, list[State]]:
        source = os.path.dirname(self._some_path())
        target = os.path.dirname(self._new_path(made=False))
        if not source or os.path.lexists(self._root / target):
            return {}
        os.makedirs((self._root / target).parent, exist_ok=True)
        os.rename(self._root / source, self._root / target)
        passed: dict[str, list[State]] = {}
        for states in (self._files, self._directories):
            for path in [path for path in states if path.startswith(source + "/")]:
                moved = target + path[len(source) :]
                states[moved] = states.pop(path)
                passed |= {path: [None], moved: [states[moved]]}
        return passed

    def _delete(self) -> dict[str, list[State]]:
        path = self._some_path()
        os.unlink(self._root / path)
        self._files.pop(path, None)
        return {path: [None]}

    def _delete_directory(self) -> dict[str, list[State]]:
        shutil.rmtree(self._root / os.path.dirname(self._some_path()))
        return {}

    def _write_junk(self) -> dict[str, list[State]]:
        path = self._new_path()
        (self._root / path).write_text("<html>404</html>\n")
        self._files[path] = JUNK
        return {path: [JUNK]}

    # ---- checkpoints that are directories ----------------------------------------------------------------------

    def _save_sharded(self) -> dict[str, list[State]]:
        """File by file, the metadata last, as torch.distributed.checkpoint does."""
        path = self._new_directory()
        if os.path.lexists(self._root / path):
            return {}
        number, files = self._sharded_content()
        self._directories[path] = PARTIAL
        self._fill(path, files)
        self._directories[path] = number
        return {path: [PARTIAL, number]}

    def _rename_sharded_in(self) -> dict[str, list[State]]:
        path = self._new_directory()
        number, files = self._sharded_content()
        temporary = os.path.join(os.path.dirname(path), f".{os.getpid()}.{self._made}.part")
        self._fill(temporary, files)
        os.rename(self._root / temporary, self._root / path)
        self._directories[path] = number
        return {path: [number]}

    def _overwrite_sharded(self) -> dict[str, list[State]]:
        """In place. With an owner the old metadata goes first: a mixture of two saves could be either of them."""
        path = self._some_directory()
        number, files = self._sharded_content()
        self._directories[path] = PARTIAL
        if self._owner:
            for name in [".metadata", *sorted(os.listdir(self._root / path))]:
                (self._root / path / name).unlink(missing_ok=True)
        try:
            self._fill(path, files)
        except OSError:  # no room: what is left of it may be no checkpoint
            return {path: [PARTIAL, None]}
        self._directories[path] = number
        return {path: [PARTIAL, None, number]}

    def _rename_sharded(self) -> dict[str, list[State]]:
        source, target = self._some_directory(), self._new_directory()
        if os.path.lexists(self._root / target):
            return {}
        os.rename(self._root / source, self._root / target)
        self._directories[target] = self._directories.pop(source, None)
        return {source: [None], target: [self._directories[target]]}

    def _delete_sharded(self) -> dict[str, list[State]]:
        path = self._some_directory()
        self._directories[path] = PARTIAL
        shutil.rmtree(self._root / path)
        del self._directories[path]
        return {path: [PARTIAL, None]}

    def _lose_a_shard(self) -> dict[str, list[State]]:
        path = self._some_directory()
        shards = sorted(name for name in os.listdir(self._root / path) if name != ".metadata")
        if not shards:
            return {}
        shard = self._random.choice(shards)
        self._directories[path] = PARTIAL
        (self._root / path / shard).unlink()
        return {path: [PARTIAL]}

    def _fill(self, path: str, files: dict[str, bytes]) -> None:
        os.makedirs(self._root / path, exist_ok=True)
        for name, data in files.items():
            (self._root / path / name).write_bytes(data)

    def _sharded_content(self) -> tuple[int, dict[str, bytes]]:
        number = self._random.randrange(len(self._sharded))
        return len(self._contents) + number, self._sharded[number]

    def _new_directory(self) -> str:
        directory = os.path.dirname(self._new_path())
        name = self._random.choice(("step-{}", "dcp{}.ckpt"))
        return f"{directory}/{self._owner}{name.format(self._random.randrange(8))}"

    def _some_directory(self) -> str:
        known = sorted(self._directories) if self._owner else sorted(self._sharded_on_disk())
        if not known:
            raise FileNotFoundError("there is none yet")
        return self._random.choice(known)

    def _sharded_on_disk(self) -> Iterator[str]:
        for directory, _, names in os.walk(self._root):
            if ".metadata" in names:
                yield os.path.relpath(directory, self._root)

    # ---- names and contents ------------------------------------------------------------------------------------

    def _states(self) -> dict[str, State]:
        return self._files | self._directories

    def _content(self) -> tuple[int, bytes]:
        number = self._random.randrange(len(self._contents))
        return number, self._contents[number]

    def _new_path(self, *, made: bool = True) -> str:
        depth = self._random.randrange(3)
        parts = [f"{self._owner}run{self._random.randrange(6)}" for _ in range(depth)]
        self._made += 1
        path = "/".join([self._owner or "all", *parts, f"{self._owner}{self._random.randrange(12)}.ckpt"])
        if made:
            os.makedirs(os.path.dirname(self._root / path), exist_ok=True)
        return path

    def _some_path(self) -> str:
        known = sorted(self._files) if self._owner else sorted(self._on_disk())
        return self._random.choice(known) if known else self._new_path()

    def _on_disk(self) -> Iterator[str]:
        for directory, _, names in os.walk(self._root):
            yield from (
                os.path.relpath(os.path.join(directory, name), self._root) for name in names if name.endswith(".ckpt")
            )


def _read(path: pathlib.Path) -> Content:
    if not path.is_dir():
        return path.read_bytes()
    parts = sorted(path.iterdir(), key=lambda part: (part.name == ".metadata", part.name))
    return {part.name: part.read_bytes() for part in parts}


def main(root: str, contents: str, log: str, seed: str, owner: str = "") -> None:
    """Work off standard input."""
    data = [_read(path) for path in sorted(pathlib.Path(contents).iterdir()) if path.suffix != ".yaml"]
    writer = Writer(pathlib.Path(root), data, pathlib.Path(log), int(seed), owner)
    for line in sys.stdin:
        for _ in range(int(line)):
            writer.run_one()
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
