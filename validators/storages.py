"""Where the data of tensors lies in a file: the one view that checks and facts have of every format."""

from collections.abc import Container, Sequence
from typing import NamedTuple, Protocol

from .formats.torch_zip import STORED, Archive, Source
from .plain import clip


class Place(NamedTuple):
    """Where the bytes of one storage are to be found."""

    record: int | None
    """None: in the file itself. Else the compressed record of an archive that expands to it."""
    begin: int
    """In the file, or in what the record expands to."""
    size: int


class Storages(Protocol):
    """The storages of one file, by key. Keys come from hostile files; an unknown one is an answer, not an error."""

    @property
    def big_endian(self) -> bool:
        """The byte order of every element."""

    @property
    def derived(self) -> Container[str]:
        """Keys whose checksum tells them apart from others, but is not that of their bytes in their order."""

    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Bytes of each storage; -1 where there is none of that key."""

    def checksums(self, keys: Sequence[str]) -> list[int] | None:
        """CRC-32 of each storage, 0 where there is none of that key; None where the file carries no checksums."""

    def read_part(self, key: str, start: int, size: int) -> bytes:
        """`size` bytes at `start` of one storage; none where they are not to be had."""

    def places(self, keys: Sequence[str]) -> list[Place | None]:
        """Where each storage lies; None where there is none of that key."""

    def label(self, key: str) -> str:
        """What to call a storage to people."""


def data_checksums(storages: Storages, keys: Sequence[str]) -> list[int | None]:
    """CRC-32 of the bytes of each storage, comparable from file to file; None where the file records none.

    0 is what stands where none was recorded; of data it is the checksum once in 2^32 times, and not told then.
    """
    checksums = None if storages.big_endian else storages.checksums(keys)
    if checksums is None:
        return [None] * len(keys)
    derived = storages.derived
    return [
        checksum if checksum and key not in derived else None for key, checksum in zip(keys, checksums, strict=True)
    ]


class ArchiveStorages:
    """Records `data/<key>` of an archive."""

    derived: Container[str] = ()

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._found: tuple[Sequence[str], list[int | None]] = ((), [])
        """The keys that were looked up last, and where they are: one table is asked about six times in a row."""

    def record(self, key: str) -> str:
        """The record of a storage, below the stem."""
        return f"data/{key}"

    @property
    def big_endian(self) -> bool:
        """As the record `byteorder` says; little-endian without one."""
        index = self._archive.find("byteorder")
        return index is not None and self._archive.sizes[index] < 64 and self._archive.read(index) == b"big"

    def sizes(self, keys: Sequence[str]) -> list[int]:
        return _picked(self._archive.sizes, self._indices(keys), -1)

    def checksums(self, keys: Sequence[str]) -> list[int] | None:
        if not self._archive.has_checksums:
            return None
        return _picked(self._archive.checksums, self._indices(keys), 0)

    def read_part(self, key: str, start: int, size: int) -> bytes:
        index = self._archive.find(self.record(key))
        return b"" if index is None else self._archive.read_part(index, start, size)

    def places(self, keys: Sequence[str]) -> list[Place | None]:
        archive = self._archive
        return [
            None
            if i is None
            else Place(None, archive.offsets[i], archive.sizes[i])
            if archive.methods[i] == STORED
            else Place(i, 0, archive.sizes[i])
            for i in self._indices(keys)
        ]

    def label(self, key: str) -> str:
        return f"record {clip(self.record(key))}"

    def _indices(self, keys: Sequence[str]) -> list[int | None]:
        if self._found[0] is not keys:
            prefix = f"{self._archive.stem}/data/"
            self._found = (keys, list(map(self._archive.positions.get, [prefix + key for key in keys])))
        return self._found[1]


def _picked(column: list[int], indices: list[int | None], absent: int) -> list[int]:
    if None in indices:
        return [absent if index is None else column[index] for index in indices]
    return list(map(column.__getitem__, indices))  # type: ignore[arg-type]


class RangeStorages:
    """Ranges of a file, little-endian and without checksums, as in the legacy format and in safetensors."""

    big_endian = False
    derived: Container[str] = ()

    def __init__(self, source: Source, ranges: dict[str, tuple[int, int]]) -> None:
        """Take `ranges`: key → where the storage begins in the file, and its size in bytes."""
        self._source = source
        self._ranges = ranges

    def sizes(self, keys: Sequence[str]) -> list[int]:
        absent = (0, -1)
        return [self._ranges.get(key, absent)[1] for key in keys]

    def checksums(self, keys: Sequence[str]) -> list[int] | None:
        return None

    def read_part(self, key: str, start: int, size: int) -> bytes:
        begin, whole = self._ranges.get(key, (0, 0))
        return b"" if start < 0 or start + size > whole else self._source.read(begin + start, size)

    def places(self, keys: Sequence[str]) -> list[Place | None]:
        found = map(self._ranges.get, keys)
        return [None if there is None else Place(None, *there) for there in found]

    def label(self, key: str) -> str:
        return f"storage {clip(key)}"
