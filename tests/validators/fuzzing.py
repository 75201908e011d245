"""Seeded mutants of checkpoints of every format, and a runner that inspects thousands of them in each forked child.

Run as `python -m tests.validators.fuzzing DIRECTORY SEED COUNT`, where the directory holds the originals. Prints one
JSON object. Lean: neither torch nor pytest is imported, so that a child may have little memory. Mutant `n` of a seed is
a function of both alone, and can be made again.
"""

import codecs
import contextlib
import json
import mmap
import os
import pickletools
import random
import resource
import signal
import struct
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ckptd.validators import Inspection, Level, Safety, inspect_checkpoint, inspect_opened
from ckptd.validators.checks.safety import ALLOWED
from ckptd.validators.unpickle import canonical_name
from tests.validators.hostile import KILLERS, checkpoint_around, containers, hostile_pickles
from tests.validators.zip_files import Entry, archive

__all__ = ["MUTANTS_PER_CHILD", "Mutant", "Mutants", "parse_records"]

MUTANTS_PER_CHILD = 2000
MEMORY_BYTES = 1 << 30
SECONDS_PER_MUTANT = 5
HARMLESS_EVENTS = frozenset(
    ("open", "builtins.id", "marshal.dumps", "fcntl.fcntl", "mmap.__new__", "os.listdir", "os.scandir",
     "object.__getattr__", "sys._getframe", "sys.excepthook", "sys.unraisablehook", "os.utime")
)  # fmt: skip
"""What our own code does; `open` is checked by itself. CPython prints an error of its own, by the excepthook, when
BYTEARRAY8 runs out of data."""
KINDS = ("raw", "pickle", "field", "records", "header", "place", "part")
INTERESTING = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
OPCODES = bytes(ord(opcode.code) for opcode in pickletools.opcodes)
PAGE_BYTES = 512


class Mutant(NamedTuple):
    """One damaged checkpoint."""

    original: str
    kind: str
    data: bytes
    checked: bool
    """Whether the original's own checksums still stand for its bytes: damage must show then."""


class Mutants:
    """All mutants of the originals in a directory, under one seed."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.seed = seed
        self.originals = {path.name: path.read_bytes() for path in sorted(directory.glob("*.bin"))}
        parts = directory / "parts"
        files = sorted(path for path in parts.rglob("*") if path.is_file()) if parts.is_dir() else []
        self.parts = {os.fspath(path.relative_to(parts)): path.read_bytes() for path in files}
        """Files of checkpoint directories, by directory and name."""
        self.checksummed = {name for name in self.originals if name.startswith("crc")}
        self.pickles = [data for name, data in hostile_pickles().items() if _is_calm(name) and len(data) < 5000]
        self.pickles += [_pickle_of(self.originals[name]) for name in sorted(self.checksummed)]
        self._makers: tuple[tuple[int, Callable[[random.Random], Mutant]], ...] = (
            (40, self._raw),
            (25, self._in_archive),
            (12, self._field),
            (10, self._records),
            (8, self._header),
            (5, self._anywhere),
            (4 if self.parts else 0, self._part),
        )

    def __getitem__(self, number: int) -> Mutant:
        source = random.Random(f"{self.seed}/{number}")
        weights, makers = zip(*self._makers, strict=True)
        return source.choices(makers, weights)[0](source)

    def _raw(self, source: random.Random) -> Mutant:
        """Damage anywhere in a file of any format."""
        name = source.choice(list(self.originals))
        return Mutant(name, "raw", damaged(source, self.originals[name]), name in self.checksummed)

    def _in_archive(self, source: random.Random) -> Mutant:
        """A damaged pickle in a sound archive, checksums right."""
        data = source.choice(self.pickles)
        if source.random() < 0.2:
            data += source.choice(self.pickles)
        change = source.choice((damaged, damaged_opcodes, damaged_opcodes))
        return Mutant("pickle", "pickle", checkpoint_around(change(source, data), {"data/0": bytes(16)}), checked=False)

    def _anywhere(self, source: random.Random) -> Mutant:
        """A damaged pickle wherever a reader meets one."""
        data = damaged_opcodes(source, source.choice(self.pickles))
        place, file = source.choice(list(containers(data).items()))
        return Mutant(place, "place", file, checked=False)

    def _part(self, source: random.Random) -> Mutant:
        """One file of a checkpoint directory."""
        name = source.choice(list(self.parts))
        return Mutant(name, "part", damaged(source, self.parts[name]), checked=False)

    def _field(self, source: random.Random) -> Mutant:
        """A number of the directory, of a local header or of an end record, replaced."""
        name = source.choice(sorted(self.checksummed))
        data = bytearray(self.originals[name])
        for _ in range(source.randint(1, 3)):
            mark, layout = source.choice(FIELDS)
            places = [i for i in range(len(data)) if data.startswith(mark, i)]
            if places:
                offset, size = source.choice(layout)
                at = source.choice(places) + offset
                old = int.from_bytes(data[at : at + size], "little")
                new = source.choice(
                    (source.choice(INTERESTING), old + 1, old - 1, old ^ 1 << source.randrange(8 * size))
                )
                data[at : at + size] = (new % (1 << 8 * size)).to_bytes(size, "little")[: len(data) - at]
        return Mutant(name, "field", bytes(data), checked=True)

    def _records(self, source: random.Random) -> Mutant:
        """Records left out, repeated, renamed, exchanged or with lies of their own, in an archive built anew."""
        records = list(parse_records(self.originals[source.choice(sorted(self.checksummed))]).items())
        entries = [Entry(name=name, data=data) for name, data in records]
        for _ in range(source.randint(1, 2)):
            at = source.randrange(len(entries))
            entry = entries[at]
            match source.randrange(7):
                case 0:
                    del entries[at]
                case 1:
                    entries.insert(at, entry)
                case 2:
                    entries[at] = msgspec.structs.replace(entry, name=damaged(source, entry.name))
                case 3:
                    entries[at] = msgspec.structs.replace(entry, data=source.choice(entries).data)
                case 4:
                    entries[at] = msgspec.structs.replace(entry, data=damaged(source, entry.data))
                case 5:
                    lie = source.choice(("flags", "local_flags", "method", "local_method", "attributes", "header"))
                    entries[at] = msgspec.structs.replace(entry, **{lie: source.choice(INTERESTING) & 0xFFFF})
                case _:
                    filler = source.choice(("extra", "local_extra", "comment", "descriptor", "before"))
                    entries[at] = msgspec.structs.replace(entry, **{filler: source.randbytes(source.randrange(30))})
            if not entries:
                break
        return Mutant("records", "records", archive(entries or [Entry(name=b"a")]), checked=False)

    def _header(self, source: random.Random) -> Mutant:
        """A safetensors header with other numbers and words in it, its length right."""
        data = self.originals[source.choice([name for name in self.originals if "safetensors" in name])]
        size = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + size]
        for _ in range(source.randint(1, 4)):
            parts = [i for i, byte in enumerate(header) if byte in b'0123456789{}[]",:']
            at = source.choice(parts)
            new = source.choice(
                (b"-1", b"1e400", b"99999999999999999999", b"[", b"]", b"{", b"}", b'"', b",", b"null", b"NaN",
                 b"\\ud800", b"0", b"4294967296", b"true", header[: source.randrange(len(header))])
            )  # fmt: skip
            header = header[:at] + new + header[at + source.randrange(3) :]
        return Mutant(
            "safetensors", "header", struct.pack("<Q", len(header)) + header + data[8 + size :], checked=False
        )


FIELDS: tuple[tuple[bytes, tuple[tuple[int, int], ...]], ...] = (
    (
        b"PK\x01\x02",
        tuple((at, 2) for at in (4, 6, 8, 10, 28, 30, 32, 34)) + tuple((at, 4) for at in (16, 20, 24, 38, 42)),
    ),
    (b"PK\x03\x04", tuple((at, 2) for at in (4, 6, 8, 26, 28)) + tuple((at, 4) for at in (14, 18, 22))),
    (b"PK\x05\x06", ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
    (b"PK\x06\x06", ((4, 8), (12, 2), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8))),
    (b"PK\x06\x07", ((4, 4), (8, 8), (16, 4))),
    (b"PK\x07\x08", ((4, 4), (8, 4), (12, 4))),
)
"""Signature → offset and size of each number behind it: APPNOTE 4.3.7 to 4.3.16."""


def damaged(source: random.Random, data: bytes) -> bytes:
    """Bits flipped, bytes set, cut, inserted, copied and moved; pages zeroed and doubled; the end cut off."""
    changed = bytearray(data or b"\0")
    for _ in range(source.choice((1, 1, 1, 2, 3, 6))):
        size = len(changed)
        at = source.randrange(size + 1)
        match source.randrange(10):
            case 0 | 1 if at < size:
                changed[at] ^= 1 << source.randrange(8)
            case 2:
                changed[at : at + 1] = bytes([source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))])
            case 3:
                del changed[at : at + source.randint(1, 40)]
            case 4:
                changed[at:at] = source.randbytes(source.randint(1, 12))
            case 5:
                start = source.randrange(size + 1)
                changed[at : at + 8] = changed[start : start + 8]
            case 6:
                start, length = source.randrange(size + 1), source.randint(1, 400)
                changed[at:at] = changed[start : start + length]
            case 7:
                at -= at % PAGE_BYTES
                changed[at : at + PAGE_BYTES] = bytes(len(changed[at : at + PAGE_BYTES]))
            case 8:
                at -= at % PAGE_BYTES
                start = source.randrange(size // PAGE_BYTES + 1) * PAGE_BYTES
                changed[at : at + PAGE_BYTES] = changed[start : start + PAGE_BYTES]
            case _ if source.random() < 0.3:
                del changed[at:]
    return bytes(changed)


def damaged_opcodes(source: random.Random, data: bytes) -> bytes:
    """A pickle with opcodes replaced, left out, repeated and moved, their arguments whole."""
    pieces = _opcodes(data)
    for _ in range(source.randint(1, 5)):
        if not pieces:
            break
        at = source.randrange(len(pieces))
        match source.randrange(6):
            case 0:
                del pieces[at]
            case 1:
                pieces.insert(at, source.choice(pieces))
            case 2:
                pieces.insert(at, bytes([source.choice(OPCODES)]))
            case 3:
                pieces[at] = bytes([source.choice(OPCODES)]) + pieces[at][1:]
            case 4:
                other = source.randrange(len(pieces))
                pieces[at], pieces[other] = pieces[other], pieces[at]
            case _:
                pieces[at] = pieces[at][:1] + damaged(source, pieces[at][1:])[: len(pieces[at]) + 8]
    return b"".join(pieces)


def _opcodes(data: bytes) -> list[bytes]:
    places: list[int] = []
    with contextlib.suppress(Exception):  # what is no pickle to the end is damaged up to there
        places = [position for _, _, position in pickletools.genops(data) if position is not None]
    if not places:
        return [data]
    return [data[begin:end] for begin, end in zip(places, [*places[1:], len(data)], strict=True)]


def _is_calm(name: str) -> bool:
    """Nothing starts from a doubling tuple: damage can make it a key, and then its hash outlasts us all."""
    return name not in KILLERS and "doubling" not in name


def _pickle_of(data: bytes) -> bytes:
    return next(contents for name, contents in parse_records(data).items() if name.endswith(b"/data.pkl"))


def parse_records(data: bytes) -> dict[bytes, bytes]:
    """Name → contents of each record of an archive, as the directory at its end says; a reader of few words.

    Raises:
        ValueError, struct.error: there is no such directory.
    """
    end = data.rindex(b"PK\x05\x06")
    count, offset = struct.unpack_from("<H4xI", data, end + 10)
    if data[end - 20 : end - 16] == b"PK\x06\x07":
        count, offset = struct.unpack_from("<Q8xQ", data, end - 20 - 56 + 32)
    records: dict[bytes, bytes] = {}
    position = offset
    for _ in range(count):
        method, packed, name_size, extra_size, comment_size, header = struct.unpack_from(
            "<10xH8xI4x3H8xI", data, position
        )
        name = data[position + 46 : position + 46 + name_size]
        position += 46 + name_size + extra_size + comment_size
        begin = header + 30 + sum(struct.unpack_from("<2H", data, header + 26))
        contents = data[begin : begin + packed]
        records[name] = zlib.decompress(contents, -15) if method == 8 else contents
    return records


# ---- inspecting ------------------------------------------------------------------------------------------------------


def problems_of(mutant: Mutant, original: bytes, directory: Path) -> list[str]:
    """What is wrong with the answer about one mutant; raises what the inspection raised.

    Args:
        mutant: what to look at.
        original: what it was made of, where its own checksums still stand for the bytes.
        directory: where it is written to.
    """
    if mutant.kind == "part":
        return _encoding_problems(_inspect_part(mutant, directory / "parts"))
    path = os.fspath(directory / "mutant.ckpt")
    with open(path, "wb") as file:
        file.write(mutant.data)
    fd = os.open(path, os.O_RDONLY)
    try:
        inspection = inspect_opened(fd, path, Level.CHECKSUM)
    finally:
        os.close(fd)
    problems = _encoding_problems(inspection)
    if mutant.checked and inspection.is_valid and parse_records(mutant.data) != parse_records(original):
        problems.append(f"valid at level {inspection.level}, but its contents differ from the original's")
    if inspection.safety is Safety.SAFE and mutant.kind == "pickle":
        problems += _unproved(parse_records(mutant.data)[b"archive/data.pkl"])
    return problems


def _inspect_part(mutant: Mutant, parts: Path) -> Inspection:
    """Inspect a checkpoint directory of which one file is damaged, and put that file back."""
    name, _, member = mutant.original.partition("/")
    path = parts / name / member
    whole = path.read_bytes() if member else b""
    if not member:
        return inspect_checkpoint(parts / name, Level.CHECKSUM)
    try:
        path.write_bytes(mutant.data)
        return inspect_checkpoint(parts / name, Level.CHECKSUM)
    finally:
        path.write_bytes(whole)


def _encoding_problems(inspection: Inspection) -> list[str]:
    problems = []
    for codec in (msgspec.msgpack, msgspec.json):
        encoded = codec.encode(inspection)
        if codec.decode(encoded, type=Inspection) != inspection:
            problems.append(f"{codec.__name__} does not bring it back")
        if len(encoded) > 4 << 20:
            problems.append("the answer is larger than 4 MB")
    return problems


def _unproved(data: bytes) -> list[str]:
    """Names outside the allowlist in a pickle that was called safe, found by other means."""
    outside = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = argument.partition(" ")
            if ".".join(canonical_name(module, name)) not in ALLOWED:
                outside.append(f"called safe, but names {argument}")
    return outside


# ---- running ---------------------------------------------------------------------------------------------------------


class _Events:
    """The audit hook of a child; a hook cannot be taken out again, so it must end with its process."""

    def __init__(self, directory: Path) -> None:
        self.seen: set[str] = set()
        self.is_on = False
        self._path = os.fspath(directory)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and (event not in HARMLESS_EVENTS or (event == "open" and not self._is_ours(arguments[0]))):
            self.seen.add(event)

    def _is_ours(self, opened: Any) -> bool:
        # Parts of a directory are opened by their names, beneath its descriptor.
        name = os.fsdecode(opened) if isinstance(opened, str | bytes) else ""
        return name.startswith(self._path) or "/" not in name


def run(directory: Path, seed: int, count: int) -> dict[str, Any]:
    """Inspect `count` mutants; a child that dies is followed by another, from the next mutant on.

    Returns:
        How many were looked at, by kind; the problems, by mutant; and the mutants that killed their child, by signal.
    """
    mutants = Mutants(directory, seed)
    tally = mmap.mmap(-1, 8 * (1 + len(KINDS)))
    done, problems, killed = 0, {}, {}  # type: ignore[var-annotated]
    while done < count:
        stop = min(done + MUTANTS_PER_CHILD, count)
        lines, status = _run_child(mutants, directory, (done, stop), tally)
        problems |= {line[0]: line[1:] for line in map(json.loads, lines)}
        done = _counters(tally)[0]
        if os.WIFSIGNALED(status):
            killed[done] = os.WTERMSIG(status)
            done += 1
        elif os.waitstatus_to_exitcode(status) or done != stop:
            raise SystemExit(f"a child ended with {os.waitstatus_to_exitcode(status)} at mutant {done}")
    kinds = dict(zip(KINDS, _counters(tally)[1:], strict=True))
    return {"count": done, "kinds": kinds, "problems": problems, "killed": killed}


def _counters(tally: mmap.mmap) -> list[int]:
    """Which mutant is looked at, then how many there were of each kind."""
    return list(struct.unpack(f"<{1 + len(KINDS)}Q", tally[:]))


def _run_child(mutants: Mutants, directory: Path, numbers: tuple[int, int], tally: mmap.mmap) -> tuple[list[str], int]:
    answers, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(answers)
        _child(mutants, directory, numbers, tally, theirs)
    os.close(theirs)
    with open(answers, encoding="utf-8") as file:
        lines = file.readlines()
    return lines, os.waitpid(child, 0)[1]


def _child(mutants: Mutants, directory: Path, numbers: tuple[int, int], tally: mmap.mmap, answers: int) -> None:
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not what pytest-timeout made of it
        codecs.lookup("raw_unicode_escape")  # pickletools needs it, which makes mutants and checks answers
        for number in range(40):  # whatever is loaded lazily is loaded now
            with contextlib.suppress(Exception):
                _warm(mutants, number, directory)
        events, before = _Events(directory), set(sys.modules)
        for number in range(*numbers):
            tally[:8] = struct.pack("<Q", number)
            mutant = mutants[number]
            at = 8 + 8 * KINDS.index(mutant.kind)
            tally[at : at + 8] = struct.pack("<Q", 1 + struct.unpack("<Q", tally[at : at + 8])[0])
            signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_MUTANT)  # SIGALRM ends the process
            events.is_on = True
            try:
                found = problems_of(mutant, mutants.originals.get(mutant.original, b""), directory)
            except Exception as error:
                found = [f"raised {type(error).__name__}: {error}"[:300]]
            events.is_on = False
            imported = set(sys.modules) - before
            before |= imported
            found += [f"caused {event}" for event in events.seen] + [f"imported {name}" for name in imported]
            events.seen.clear()
            if found:
                os.write(answers, json.dumps([number, mutant.original, mutant.kind, *found]).encode() + b"\n")
        signal.setitimer(signal.ITIMER_REAL, 0)
        tally[:8] = struct.pack("<Q", numbers[1])
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def _warm(mutants: Mutants, number: int, directory: Path) -> None:
    names = list(mutants.originals)
    name = names[number % len(names)]
    mutant = Mutant(name, "raw", mutants.originals[name], checked=False)
    if number >= len(names) and mutants.parts:
        mutant = Mutant(next(iter(mutants.parts)), "part", b"", checked=False)
    problems_of(mutant, mutant.data, directory)


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
