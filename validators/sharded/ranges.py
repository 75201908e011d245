"""A range of an opened file, read as if it were a file: an archive inside a shard."""

from collections.abc import Sequence

from ..errors import Changed
from ..reader import FileReader


class RangeReader(FileReader):
    """Random access to a range of a file. Identity and changes are those of the whole file."""

    def __init__(self, whole: FileReader, begin: int, size: int) -> None:
        """Take `size` bytes from `begin`; the caller has seen that they lie inside the file."""
        self._whole = whole
        self._begin = begin
        self.identity = whole.identity
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset)
        return self._whole.read(self._begin + offset, size) if size > 0 else b""

    def read_exactly(self, offset: int, size: int) -> bytes:
        self._check(offset, size)
        return self._whole.read_exactly(self._begin + offset, size)

    def read_each(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        for offset, size in zip(offsets, sizes, strict=True):
            self._check(offset, size)
        return self._whole.read_each([self._begin + offset for offset in offsets], sizes)

    @property
    def piece_bytes(self) -> int:
        return self._whole.piece_bytes

    def read_into(self, offset: int, buffer: memoryview, size: int) -> None:
        self._check(offset, size)
        self._whole.read_into(self._begin + offset, buffer, size)

    def holes(self, begin: int, end: int) -> list[tuple[int, int]]:
        found = self._whole.holes(self._begin + begin, self._begin + end)
        return [(hole - self._begin, stop - self._begin) for hole, stop in found]

    def check_unchanged(self) -> None:
        self._whole.check_unchanged()

    def _check(self, offset: int, size: int) -> None:
        if offset + size > self.size:
            raise Changed(f"{size} bytes wanted at {offset} of a range of {self.size}")
