"""The files of one checkpoint directory, opened, and what is gathered from them: findings, safety, digests."""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import blake3
import msgspec

from ..checks import safety
from ..checks.checksum import digest_file
from ..checks.structure import MAX_FINDINGS
from ..findings import Finding, Severity, finding
from ..formats.sharded import Part, is_member_name
from ..formats.torch_zip import Source
from ..inspection import Inspection, Level, Safety, Seal, Shard
from ..plain import clip
from ..reader import FileReader

InspectFile = Callable[[FileReader, str, Level], Inspection]
"""Inspects one file by its own format; raises for nothing that it contains."""

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Of a JSON text that is parsed; the index of 100,000 tensors has 8 MB."""

_DIGEST_BYTES = 16
_MAX_NAMED = 5
_SAFETY = (Safety.SAFE, Safety.UNKNOWN, Safety.UNSAFE)


class Members:
    """The files of a checkpoint directory, or of one directory inside it, by name."""

    def __init__(
        self,
        parts: dict[str, Part],
        readers: dict[str, FileReader],
        level: Level,
        inspect: InspectFile,
        prefix: str = "",
    ) -> None:
        self.parts = parts
        self.readers = readers
        """Of those that were opened."""
        self.level = level
        self.prefix = prefix
        """What leads to this directory from the checkpoint, with the slash; put before names that people see."""
        self._inspect = inspect

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    def names(self) -> list[str]:
        """Of the files that lie directly in the directory, sorted."""
        return sorted(name for name in self.parts if "/" not in name)

    def directories(self) -> list[str]:
        """Of the directories in it that hold files, sorted."""
        return sorted({name.partition("/")[0] for name in self.parts if "/" in name})

    def inside(self, directory: str) -> "Members":
        """The files of a directory inside this one."""
        begin = f"{directory}/"
        parts = {name.removeprefix(begin): part for name, part in self.parts.items() if name.startswith(begin)}
        readers = {name.removeprefix(begin): reader for name, reader in self.readers.items() if name.startswith(begin)}
        return Members(parts, readers, self.level, self._inspect, self.prefix + begin)

    def size(self, name: str) -> int:
        """Bytes of a file that is there."""
        return self.parts[name].identity.size

    def read(self, name: str, limit: int = MAX_DOCUMENT_BYTES) -> bytes | None:
        """A whole small file; None where it is not there, was not opened, or has more than `limit` bytes."""
        reader = self.readers.get(name)
        return None if reader is None or reader.size > limit else reader.read_exactly(0, reader.size)

    def inspect(self, name: str) -> Inspection | None:
        """One file by its own format; None where it was not opened."""
        reader = self.readers.get(name)
        return None if reader is None else self._inspect(reader, name, self.level)


class Gathered:
    """What the files of one checkpoint showed so far; put into an `Inspection` at the end."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.seal = Seal.SEALED
        self.safety = Safety.SAFE
        self.unsafe_globals: dict[str, None] = {}
        self.imports: dict[str, None] = {}
        self.weights_only: list[bool | None] = []
        self.digests: dict[str, str] = {}
        self.archive_ids: dict[str, str | None] = {}
        """Of the files that were inspected, by name."""
        self.unopened: set[str] = set()
        self.reached = Level.WEIGHTS
        """The lowest level that one of the files with data was verified at."""

    def add(self, code: str, message: str) -> None:
        """Add a finding."""
        self.findings.append(finding(code, message))

    def missing(self, message: str) -> None:
        """Something is not there, or not yet: the checkpoint is not whole."""
        self.add("shards.incomplete", message)
        self.seal = Seal.OPEN

    def unsettle(self) -> None:
        """The files alone cannot say whether the save has ended; quiet time will."""
        if self.seal is Seal.SEALED:
            self.seal = Seal.NONE

    def reach(self, level: Level) -> None:
        """A file with data, or a part of one, was verified at `level` and no further."""
        if not level.covers(self.reached):
            self.reached = level

    def judge(self, safety: Safety, unsafe_globals: Iterable[str], imports: Iterable[str]) -> None:
        """Take in what loading one of the pickles would do: the worst of them counts."""
        self.safety = max(self.safety, safety, key=_SAFETY.index)
        self.unsafe_globals |= dict.fromkeys(unsafe_globals)
        self.imports |= dict.fromkeys(imports)

    def include(self, prefix: str, inspection: Inspection | None, *, is_weights: bool = False) -> None:
        """Take in what the inspection of one file found; None where it was not opened.

        Args:
            prefix: its name.
            inspection: of it.
            is_weights: it must hold weights; others need not.
        """
        if inspection is None:
            self.safety = max(self.safety, Safety.UNKNOWN, key=_SAFETY.index)
            self.unopened.add(prefix)
            self.reach(Level.STRUCTURE)
            return
        for found in inspection.findings:
            if is_weights or found.code not in ("state_dict.missing", "architecture.unknown"):
                self.findings.append(msgspec.structs.replace(found, message=f"{prefix}: {found.message}"))
        if inspection.seal is Seal.OPEN:
            self.seal = Seal.OPEN
        elif inspection.seal is Seal.NONE and inspection.is_valid:
            self.unsettle()
        self.judge(inspection.safety, inspection.unsafe_globals, inspection.imports)
        self.weights_only.append(inspection.weights_only)
        self.reach(inspection.level)
        self.archive_ids[prefix] = inspection.archive_id
        if inspection.digest is not None:
            self.digests[prefix] = inspection.digest

    def conclude(self, described: Inspection, members: Members) -> Inspection:
        """`described`, with everything that was gathered.

        The level rises above `structure` only where every file that holds data was compared with checksums; the digest
        is that of the digests of all files.
        """
        if self.unopened:
            self.add("shards.unopened", f"{len(self.unopened):,} of {len(members.parts):,} files were not opened")
        self.reach(members.level)
        answers = self.weights_only
        return msgspec.structs.replace(
            described,
            seal=self.seal,
            level=self.reached,
            findings=tuple(condensed([*self.findings, *self._findings_of(described)])),
            safety=max(self.safety, described.safety, key=_SAFETY.index),
            unsafe_globals=tuple(self.unsafe_globals)[: safety.MAX_NAMED],
            imports=tuple(self.imports)[: safety.MAX_IMPORTS],
            weights_only=False if False in answers else (True if answers and None not in answers else None),
            shards=tuple(Shard(name=name, size_bytes=members.size(name)) for name in sorted(members.parts)),
            digest=_digest(members, self.digests) if members.level is not Level.STRUCTURE else None,
        )

    def _findings_of(self, described: Inspection) -> list[Finding]:
        """Nothing is missed that may be still to come, or that may be in a file that was not opened."""
        is_partial = self.seal is Seal.OPEN or bool(self.unopened)
        return [found for found in described.findings if not (is_partial and found.code == "state_dict.missing")]


def is_sound(inspection: Inspection) -> bool:
    """Whether nothing is wrong with a file, but that it may hold no weights."""
    return all(
        found.severity is not Severity.ERROR or found.code == "state_dict.missing" for found in inspection.findings
    )


def archive_id(members: Members, documents: Sequence[str], *, also: Sequence[str | None] = ()) -> str:
    """Digest of the names and sizes of the checkpoint's own files, and of the contents of `documents` among them.

    Does not depend on which files were opened, as long as the documents were, and what `also` was taken from.

    Args:
        members: the files.
        documents: names of small files that change with each save.
        also: what else tells two saves of one model apart, where the documents may not.
    """
    rows = [(name, members.size(name)) for name in sorted(members.parts) if is_member_name(_base(name).encode())]
    digest = hashlib.blake2b(msgspec.msgpack.encode(rows), digest_size=_DIGEST_BYTES)
    for name in documents:
        digest.update(members.read(name) or b"")
    digest.update(msgspec.msgpack.encode(also))
    return f"blake2b:{digest.hexdigest()}"


def condensed(findings: Sequence[Finding]) -> list[Finding]:
    """At most `MAX_FINDINGS` findings of each code, of what needs no action one; the last says how many more."""
    by_code: dict[str, list[Finding]] = {}
    for found in dict.fromkeys(findings):
        by_code.setdefault(found.code, []).append(found)
    kept: list[Finding] = []
    for same in by_code.values():
        limit = 1 if same[0].severity is Severity.INFO else MAX_FINDINGS
        if len(same) > limit:
            last = same[limit - 1]
            message = f"{last.message}; and {len(same) - limit:,} more like this"
            same = [*same[: limit - 1], msgspec.structs.replace(last, message=message)]
        kept += same
    return kept


def listed(names: Sequence[str]) -> str:
    """A few names, for a message."""
    shown = ", ".join(clip(name, 120) for name in names[:_MAX_NAMED])
    return shown if len(names) <= _MAX_NAMED else f"{shown} and {len(names) - _MAX_NAMED:,} more"


def _digest(members: Members, known: dict[str, str]) -> str | None:
    """Digest over the digests of all files in the order of their names; None where one was not opened."""
    if len(members.readers) != len(members.parts):
        return None
    rows: list[tuple[str, str]] = []
    for name in sorted(members.parts):
        digest = known.get(name)
        rows.append((name, digest_file(Source(members.readers[name])) if digest is None else digest))
    return f"blake3:{blake3.blake3(msgspec.msgpack.encode(rows)).hexdigest()}"


def _base(name: str) -> str:
    return name.rpartition("/")[2]
