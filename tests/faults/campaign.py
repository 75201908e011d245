"""The fault campaign: a seed gives a list of damaged checkpoints, the same in every run.

(TorchScript archives hold the paths of their sources: there positions differ from machine to machine.)

Where the parts of a file lie is found here by other means than ckptd's own: Python's zipfile, pickletools, struct.
"""

import contextlib
import gzip
import io
import os
import pathlib
import pickletools
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tests.faults.subjects import FILE, PAGE_BYTES, Subject

Region = tuple[int, int]
"""Begin and end of bytes of one kind."""


class Fault(NamedTuple):
    """One damaged checkpoint."""

    subject: Subject
    kind: str
    """The fault's class, as tables show it."""
    what: str
    """Where, for people: `bit 3 of byte 1234`."""
    member: str
    data: bytes | None
    """What the member holds now; None where it is missing."""

    @property
    def name(self) -> str:
        """What a failing test shows."""
        where = f" of {self.member}" if self.member else ""
        return f"{self.subject.name}: {self.kind}, {self.what}{where}"

    @property
    def is_covered(self) -> bool:
        """Whether what the checkpoint itself records tells of the fault: checksums, or that a part belongs to it."""
        if self.data is None:
            return self.member not in self.subject.optional
        return self.member in self.subject.checksummed

    @property
    def files(self) -> Mapping[str, bytes]:
        """The checkpoint as it is now."""
        files = {**self.subject.members}
        if self.data is None:
            del files[self.member]
        else:
            files[self.member] = self.data
        return files


TRUNCATED = "truncated"
FLIPS = {
    "data": "bit flipped in tensor data",
    "pickle": "bit flipped in the pickle",
    "directory": "bit flipped in the directory",
    "local": "bit flipped in a local header",
    "locator": "bit flipped in the ZIP64 locator",
    "end": "bit flipped in the end record",
    "header": "bit flipped in the header",
    "other": "bit flipped in another record",
    "text": "bit flipped in a JSON file",
}
"""Region → the class of its faults."""
ZEROED, SWAPPED, ZEROED_TAIL = "page zeroed", "two pages swapped", "tail zeroed"
JUNK, ZERO_TAIL, COPY = "junk appended", "zeros appended", "a copy appended"
FOREIGN = "another file under the name"
MISSING = "part missing"


class Plan(NamedTuple):
    """How many faults of each class every subject gets."""

    truncations: int
    flips: int
    pages: int
    tails: int

    @classmethod
    def of(cls, size: str) -> "Plan":
        """`sample` for each change, `quick` for CI, `full` for the table."""
        return {"sample": cls(2, 1, 1, 1), "quick": cls(6, 4, 3, 2), "full": cls(14, 10, 8, 4)}[size]


def generate(subjects: Iterable[Subject], plan: Plan, seed: int) -> list[Fault]:
    """All faults of all subjects; equal arguments give equal faults."""
    return [fault for subject in subjects for fault in _faults_of(subject, plan, seed)]


def sample(faults: Sequence[Fault], count: int, seed: int) -> list[Fault]:
    """`count` of them, spread over all subjects and classes."""
    chosen = list(faults)
    random.Random(seed).shuffle(chosen)
    turn: dict[tuple[str, str], int] = {}
    order: list[tuple[int, Fault]] = []
    for fault in chosen:
        key = (fault.subject.name, fault.kind)
        turn[key] = turn.get(key, -1) + 1
        order.append((turn[key], fault))
    return [fault for _, fault in sorted(order, key=lambda each: each[0])[:count]]


def put(directory: pathlib.Path, subject: Subject, files: Mapping[str, bytes]) -> pathlib.Path:
    """Write a checkpoint beneath a directory of its own, in the order of its writer; returns its path."""
    if not subject.is_directory:
        directory.mkdir(parents=True)
        path = directory / f"model{subject.suffix}"
        path.write_bytes(files[FILE])
        return path
    path = directory / (subject.directory or "checkpoint")
    path.mkdir(parents=True)
    for age, name in enumerate(reversed(list(subject.members))):
        if name in files:
            (path / name).write_bytes(files[name])
            # Damage does not change the order of times: it is not a save.
            os.utime(path / name, (1_700_000_000 - age, 1_700_000_000 - age))
    if subject.directory.startswith("global_step"):
        (directory / "latest").write_text(subject.directory)
    return path


# ---- faults ----------------------------------------------------------------------------------------------------------


def _faults_of(subject: Subject, plan: Plan, seed: int) -> Iterator[Fault]:
    # Directories have several files that can be damaged: about as many faults as a file has, spread over them.
    for member, data in subject.members.items():
        chance = random.Random(f"{seed} {subject.name} {member}")
        share = 1 if len(subject.members) == 1 else 2 if len(subject.members) < 4 else 4
        mine = Plan(*(max(1, count // share) for count in plan))
        for kind, what, damaged in _damages(data, mine, chance, whole=len(subject.members) == 1):
            if damaged != data:
                yield Fault(subject, kind, what, member, damaged)
        if subject.is_directory:
            yield Fault(subject, MISSING, "deleted", member, None)


def _damages(data: bytes, plan: Plan, chance: random.Random, *, whole: bool) -> Iterator[tuple[str, str, bytes]]:
    regions = find_regions(data)
    for cut in _cuts(data, regions, plan.truncations, chance):
        yield TRUNCATED, f"after {cut:,} of {len(data):,} bytes", data[:cut]
    for region, kind in FLIPS.items():
        if regions.get(region):
            for position in _positions(regions[region], plan.flips, chance):
                bit = chance.randrange(8)
                yield (
                    kind,
                    f"bit {bit} of byte {position:,}",
                    _patched(data, position, bytes([data[position] ^ 1 << bit])),
                )
    yield from _page_faults(data, regions.get("data", []), plan.pages, chance)
    yield from _tail_faults(data, plan.tails, chance)
    foreign = list(FOREIGN_FILES.items())
    for name, make in foreign if whole else chance.sample(foreign, plan.tails):
        yield FOREIGN, name, make()


def _cuts(data: bytes, regions: Mapping[str, Sequence[Region]], count: int, chance: random.Random) -> Iterator[int]:
    """Where a file is cut: after the first and before the last byte, at the borders of its parts, and anywhere."""
    borders = sorted({edge for parts in regions.values() for part in parts for edge in part} - {0, len(data)})
    special = [len(data) - 1, 1, *chance.sample(borders, min(len(borders), count // 2))]
    random_ones = [chance.randrange(1, len(data)) for _ in range(max(0, count - len(special)))]
    yield from dict.fromkeys([*special, *random_ones][:count])


def _page_faults(
    data: bytes, regions: Sequence[Region], count: int, chance: random.Random
) -> Iterator[tuple[str, str, bytes]]:
    """Pages as the disk knows them: aligned in the file, wholly inside tensor data."""
    pages = [p for begin, end in regions for p in range(-(-begin // PAGE_BYTES), end // PAGE_BYTES)]
    if len(pages) < 2:
        return
    for _ in range(count):
        page = chance.choice(pages)
        yield ZEROED, f"page {page}", _patched(data, page * PAGE_BYTES, bytes(PAGE_BYTES))
    for _ in range(count):
        one, other = sorted(chance.sample(pages, 2))
        first, second = (data[p * PAGE_BYTES : (p + 1) * PAGE_BYTES] for p in (one, other))
        swapped = _patched(_patched(data, one * PAGE_BYTES, second), other * PAGE_BYTES, first)
        yield SWAPPED, f"pages {one} and {other}", swapped


def _tail_faults(data: bytes, count: int, chance: random.Random) -> Iterator[tuple[str, str, bytes]]:
    for _ in range(count):
        size = min(len(data), chance.choice((1, 7, 100, PAGE_BYTES, 3 * PAGE_BYTES)))
        yield ZEROED_TAIL, f"the last {size:,} bytes", data[: len(data) - size] + bytes(size)
        extra = chance.choice((1, 22, 100, PAGE_BYTES, 70_000))
        yield JUNK, f"{extra:,} bytes", data + chance.randbytes(extra)
        yield ZERO_TAIL, f"{extra:,} bytes", data + bytes(extra)
    yield COPY, "the same file", data + data


def _positions(regions: Sequence[Region], count: int, chance: random.Random) -> list[int]:
    sizes = [end - begin for begin, end in regions]
    chosen = chance.choices(regions, weights=sizes, k=count)
    return [chance.randrange(begin, end) for begin, end in chosen]


def _patched(data: bytes, position: int, patch: bytes) -> bytes:
    return data[:position] + patch + data[position + len(patch) :]


# ---- other files under the name --------------------------------------------------------------------------------------


def _zip_without_pickle() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("results/report.txt"), "no checkpoint")
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("model.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()


FOREIGN_FILES: dict[str, Callable[[], bytes]] = {
    "HTML page": lambda: b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n",
    "Git LFS pointer": lambda: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"
    ),
    "text": lambda: b"the checkpoint moved to the other disk\n",
    "gzip": lambda: gzip.compress(b"a" * 1000, mtime=0),
    "empty file": lambda: b"",
    "PNG": lambda: (
        b"\x89PNG\r\n\x1a\n" + bytes.fromhex("0000000d49484452000000010000000108060000001f15c489") + bytes(60)
    ),
    "zip without data.pkl": _zip_without_pickle,
    "tar": _tar,
    "zeros": lambda: bytes(50_000),
}
"""What is found under the names of checkpoints in real trees."""


# ---- where the parts of a file lie -----------------------------------------------------------------------------------


def find_regions(data: bytes) -> dict[str, list[Region]]:
    """Name of a region → where its bytes are, for a file of any of the formats."""
    if data.startswith(b"PK\3\4"):
        return _zip_regions(data)
    if data.startswith(b"{"):
        return {"text": [(0, len(data))]}
    header = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and 8 + header <= len(data):
        return {"header": [(0, 8 + header)], "data": [(8 + header, len(data))]}
    return _pickle_regions(data)


def _zip_regions(data: bytes) -> dict[str, list[Region]]:
    """Of one archive, or of several one behind the other, as a shard of torch.distributed.checkpoint holds them."""
    regions: dict[str, list[Region]] = {}
    begin = 0
    while begin < len(data):
        end = _archive_end(data, begin)
        if end is None:
            break
        for name, parts in _one_zip(data[begin:end]).items():
            regions.setdefault(name, []).extend((begin + a, begin + b) for a, b in parts if a < b)
        begin = end
    return regions


def _archive_end(data: bytes, begin: int) -> int | None:
    """Where the archive at `begin` ends: the first end record whose directory is where it says."""
    at = data.find(b"PK\5\6", begin)
    while at >= 0:
        with contextlib.suppress(zipfile.BadZipFile, struct.error):
            zipfile.ZipFile(io.BytesIO(data[begin : at + 22])).close()
            return at + 22
        at = data.find(b"PK\5\6", at + 1)
    return None


def _one_zip(data: bytes) -> dict[str, list[Region]]:
    regions: dict[str, list[Region]] = {name: [] for name in ("data", "pickle", "local", "other")}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos, directory = archive.infolist(), archive.start_dir
    for info in infos:
        name_size, extra_size = struct.unpack_from("<HH", data, info.header_offset + 26)
        begin = info.header_offset + 30 + name_size + extra_size
        record = info.filename.partition("/")[2]
        region = "data" if record.startswith("data/") else "pickle" if record == "data.pkl" else "other"
        regions[region].append((begin, begin + info.compress_size))
        # The extra field holds torch's alignment padding, which nobody reads.
        regions["local"].append((info.header_offset, info.header_offset + 30 + name_size))
    locator = data.rfind(b"PK\6\7")
    record64 = data.rfind(b"PK\6\6")
    end = data.rfind(b"PK\5\6")
    regions["directory"] = [(directory, min(at for at in (record64, end) if at >= 0))]
    if locator >= 0:
        regions["locator"] = [(locator, locator + 20)]
        regions["end"] = [(record64, locator), (end, len(data))]
    else:
        regions["end"] = [(end, len(data))]
    return regions


def _pickle_regions(data: bytes) -> dict[str, list[Region]]:
    """One pickle after the other as long as there are any; what follows is the data of torch's legacy format."""
    stream = io.BytesIO(data)
    end = 0
    for _ in range(5):
        try:
            for _operation in pickletools.genops(stream):
                pass
        except ValueError:
            break
        end = stream.tell()
    return {"pickle": [(0, end)]} | ({"data": [(end, len(data))]} if end < len(data) else {})
