"""Tables of rows of one size in bytes, read by column: what numpy would do, for a process that is to stay lean.

A slice with a step takes one byte of every row in C. Four of them, put side by side, are a column of numbers: 0.14 ms
for 20,000 rows, where `struct.iter_unpack` and a transposition take 4 ms.
"""

import sys

_IS_LITTLE = sys.byteorder == "little"


class Rows:
    """Rows of `width` bytes each, one after the other, numbers little-endian."""

    def __init__(self, data: bytes, width: int) -> None:
        self._data = data
        self._width = width
        self.count = len(data) // width

    def numbers(self, offset: int, size: int) -> list[int]:
        """The unsigned numbers of `size` bytes (2 or 4) at `offset` of each row."""
        packed = bytearray(size * self.count)
        for place in range(size):
            # memoryview reads numbers in this machine's own order.
            packed[place if _IS_LITTLE else size - 1 - place :: size] = self._data[offset + place :: self._width]
        view = memoryview(packed)
        return (view.cast("I") if size == 4 else view.cast("H")).tolist()

    def common(self, begin: int, end: int) -> bytes | None:
        """What stands at [begin, end) of every row; None where rows differ."""
        data, width = self._data, self._width
        first = data[begin:end]
        if self.count <= end - begin:
            same = all(data[at : at + end - begin] == first for at in range(begin, len(data), width))
        else:
            same = all(data[begin + i :: width].count(byte) == self.count for i, byte in enumerate(first))
        return first if same else None

    def parts(self, begin: int, end: int) -> list[bytes]:
        """What stands at [begin, end) of each row."""
        return [self._data[at : at + end - begin] for at in range(begin, len(self._data), self._width)]
