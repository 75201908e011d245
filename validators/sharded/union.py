"""The tensors of several files as those of one checkpoint."""

from collections.abc import Container, Sequence
from itertools import chain
from typing import Any

import msgspec

from .. import facts
from ..errors import Corrupt, Incomplete
from ..formats import safetensors, torch_legacy, torch_zip
from ..reader import FileReader
from ..storages import ArchiveStorages, Place, RangeStorages, Storages
from ..tensors import TensorTable, make_table
from ..unpickle import load_inert

MAX_PICKLE_BYTES = 512 * 1024 * 1024

_HEAD_BYTES = 4096


class Loaded(msgspec.Struct, frozen=True):
    """What one file holds."""

    tensors: facts.Tensors
    storages: Storages
    value: Any = None
    """Of its pickle, inert; None where it has none."""

    @property
    def top(self) -> dict[Any, Any]:
        """The top level of its value; empty where that is no dictionary."""
        return self.value if isinstance(self.value, dict) else {}


def load_file(reader: FileReader) -> Loaded | None:
    """Read tensors and value of one file; its inspection, which comes first, says what is wrong with it.

    Returns:
        None where the file cannot be read, or is of another format.

    Raises:
        Changed: the file has become shorter.
        Unreadable: the system refused a read.
    """
    source = torch_zip.Source(reader)
    head = source.read(0, min(_HEAD_BYTES, source.size))
    try:
        if torch_zip.looks_like_archive(head):
            return _load_archive(torch_zip.read_archive(source, torch_zip.find_directory(source)))
        if safetensors.looks_like_safetensors(head):
            return _load_text(source)
        if torch_legacy.looks_like_legacy(head):
            legacy = torch_legacy.read_contents(source)
            if legacy.failure is None:
                storages = RangeStorages(source, legacy.ranges)
                return Loaded(facts.find_tensors(legacy.value), storages, legacy.value)
    except (Corrupt, Incomplete):
        return None
    return None


def _load_archive(archive: torch_zip.Archive) -> Loaded | None:
    index = archive.find("data.pkl")
    if index is None or archive.sizes[index] > MAX_PICKLE_BYTES or archive.find("constants.pkl") is not None:
        return None
    inert = load_inert(archive.read(index))
    if inert.failure is not None:
        return None
    return Loaded(facts.find_tensors(inert.value), ArchiveStorages(archive), inert.value)


def _load_text(source: torch_zip.Source) -> Loaded:
    contents = safetensors.read_contents(source)
    table, problems = make_table(contents.names, contents.tensors)
    segments = (facts.Segment("", "weights", table, contents.names),) if contents.names else ()
    return Loaded(facts.Tensors(table, segments, problems), RangeStorages(source, contents.ranges))


class Union:
    """The tensors of several files, collected file by file; weights first, then the rest.

    Storages keep their keys with the number of their file before them. Keys without one are those of the file whose
    value says what stands beside the tensors (`speaks`): its 0-dim tensors can be read as numbers.
    """

    def __init__(self) -> None:
        self._files: list[Storages] = []
        self._segments: list[tuple[int, facts.Segment]] = []
        self._problems: list[Corrupt] = []
        self._speaker: Storages | None = None

    def __bool__(self) -> bool:
        return bool(self._segments)

    def add(self, loaded: Loaded, *, role: str | None = None, prefix: str = "", key: str | None = None) -> None:
        """Take the tensors of one file.

        Args:
            loaded: the file's contents.
            role: of all its tensors; by default what the names in the file say.
            prefix: put before the tensors' names.
            key: of the segment that they belong to, if not that of the file; segments of weights with one key are
                one state dict.
        """
        number = len(self._files)
        self._files.append(loaded.storages)
        self._problems += loaded.tensors.problems
        for segment in loaded.tensors.segments:
            table = msgspec.structs.replace(
                segment.table,
                names=[prefix + name for name in segment.table.names] if prefix else segment.table.names,
                keys=[f"{number}:{name}" if name else "" for name in segment.table.keys],
            )
            self._segments.append(
                (
                    number,
                    facts.Segment(
                        segment.key if key is None else key, role or segment.role, table, segment.relative_names
                    ),
                )
            )

    def speaks(self, loaded: Loaded) -> None:
        """Let the keys of this file's value be understood as they are."""
        self._speaker = loaded.storages

    def tensors(self) -> facts.Tensors:
        """All of them: segments of equal key and role are one."""
        by_kind: dict[tuple[str, str], list[facts.Segment]] = {}
        for _, segment in self._segments:
            by_kind.setdefault((segment.key, segment.role), []).append(segment)
        ordered = sorted(by_kind.items(), key=lambda item: item[0][1] != "weights")
        segments = tuple(_joined(key, role, same) for (key, role), same in ordered)
        return facts.Tensors(_concatenated([segment.table for segment in segments]), segments, self._problems)

    def storages(self) -> "UnionStorages":
        """Where all their data lies."""
        weights = {number for number, segment in self._segments if segment.role == "weights"}
        return UnionStorages(self._files, weights, self._speaker)


class Nothing:
    """The storages of tensors that have none."""

    big_endian = False
    derived: Container[str] = ()

    def sizes(self, keys: Sequence[str]) -> list[int]:
        return [-1] * len(keys)

    def checksums(self, keys: Sequence[str]) -> list[int] | None:
        return None

    def read_part(self, key: str, start: int, size: int) -> bytes:
        return b""

    def places(self, keys: Sequence[str]) -> list[Place | None]:
        return [None] * len(keys)

    def label(self, key: str) -> str:
        return key


class UnionStorages:
    """The storages of several files."""

    derived: Container[str] = ()

    def __init__(self, files: Sequence[Storages], weights: set[int], speaker: Storages | None) -> None:
        self._files = files
        self._weights = weights
        self._speaker = speaker
        self.big_endian = any(file.big_endian for file in (files if speaker is None else (speaker,)))

    def sizes(self, keys: Sequence[str]) -> list[int]:
        found = [-1] * len(keys)
        for storages, places, own in self._by_file(keys):
            for place, size in zip(places, storages.sizes(own), strict=True):
                found[place] = size
        return found

    def checksums(self, keys: Sequence[str]) -> list[int] | None:
        """None where one of the files that hold weights carries none."""
        if any(self._files[number].checksums(()) is None for number in self._weights):
            return None
        found = [0] * len(keys)
        for storages, places, own in self._by_file(keys):
            for place, checksum in zip(places, storages.checksums(own) or [0] * len(own), strict=True):
                found[place] = checksum
        return found

    def read_part(self, key: str, start: int, size: int) -> bytes:
        storages, own = self._split(key)
        return b"" if storages is None else storages.read_part(own, start, size)

    def places(self, keys: Sequence[str]) -> list[Place | None]:
        """None: a place lies in one file, and these tensors lie in several."""
        return [None for _ in keys]

    def label(self, key: str) -> str:
        storages, own = self._split(key)
        return own if storages is None else storages.label(own)

    def _split(self, key: str) -> tuple[Storages | None, str]:
        number, colon, own = key.partition(":")
        if colon and number.isascii() and number.isdigit() and len(number) < 10 and int(number) < len(self._files):
            return self._files[int(number)], own
        return self._speaker, key

    def _by_file(self, keys: Sequence[str]) -> list[tuple[Storages, list[int], list[str]]]:
        """Each file's storages, with the positions of its keys and the keys as it knows them."""
        found: dict[int, tuple[Storages, list[int], list[str]]] = {}
        for place, key in enumerate(keys):
            storages, own = self._split(key)
            if storages is not None and key:
                _, places, names = found.setdefault(id(storages), (storages, [], []))
                places.append(place)
                names.append(own)
        return list(found.values())


def _joined(key: str, role: str, segments: list[facts.Segment]) -> facts.Segment:
    if len(segments) == 1:
        return segments[0]
    names = list(chain.from_iterable(segment.relative_names for segment in segments))
    return facts.Segment(key, role, _concatenated([segment.table for segment in segments]), names)


def _concatenated(tables: list[TensorTable]) -> TensorTable:
    if not tables:
        return make_table([], [])[0]
    columns = zip(*map(msgspec.structs.astuple, tables), strict=True)
    return TensorTable(*(list(chain.from_iterable(column)) for column in columns))
