"""Values of single-element tensors, read from their own few bytes in the file."""

import math
import struct
from typing import Any

from .errors import Corrupt
from .inspection import Plain
from .plain import clip, number
from .standins import TENSOR_TYPES
from .storages import Storages
from .tensors import Row, extent_of, read_tensor

_FORMATS = {
    "float16": "e",
    "float32": "f",
    "float64": "d",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "bool": "?",
}
# exponent bits, mantissa bits, bias, "not a number" patterns: c10/util/Float8_*.h
_SMALL_FLOATS = {
    "float8_e4m3fn": (4, 3, 7, (0x7F, 0xFF)),
    "float8_e4m3fnuz": (4, 3, 8, (0x80,)),
    "float8_e5m2fnuz": (5, 2, 16, (0x80,)),
}


class ScalarReader:
    """Reads numbers that a checkpoint holds as 0-dim tensors, as Lightning does with scores."""

    def __init__(self, storages: Storages) -> None:
        self._storages = storages
        self._big_endian = storages.big_endian
        self._decoded: dict[int, int | float | bool | None] = {}
        """By identity of the stand-in: a score is asked for as a number and for the display."""

    def number(self, value: Any) -> int | float | None:
        """The number that `value` is, or that the one-element tensor `value` holds; None for all else, also bool."""
        if type(value) in TENSOR_TYPES:
            decoded = self._value(value)
            return None if isinstance(decoded, bool) else decoded
        return number(value)

    def score(self, value: Any) -> float | None:
        """Like `number`, as a finite float: NaN and infinities stand for "not measured yet"."""
        found = self.number(value)
        if found is None or not -1e308 <= found <= 1e308:
            return None
        return float(found)

    def describe(self, value: Any) -> Plain:
        """The value of a one-element tensor, and what other tensors look like, for `to_plain`."""
        decoded = self._value(value)
        if decoded is not None:
            return str(decoded) if isinstance(decoded, float) and not math.isfinite(decoded) else decoded
        row = _row_of(value)
        if row is None:
            return "<tensor>"
        return clip(f"<tensor {row.dtype.name} {list(row.shape)}>")

    def _value(self, tensor: Any) -> int | float | bool | None:
        if id(tensor) not in self._decoded:
            row = _row_of(tensor)
            self._decoded[id(tensor)] = None if row is None else self._decode(row)
        return self._decoded[id(tensor)]

    def _decode(self, row: Row) -> int | float | bool | None:
        if row.storage is None or extent_of(row.shape, row.stride)[0] != 1:
            return None
        size = row.dtype.itemsize
        data = self._storages.read_part(row.storage[2], row.offset * size, size)
        return decode(row.dtype.name, data[::-1] if self._big_endian else data) if len(data) == size else None


def decode(dtype: str, data: bytes) -> int | float | bool | None:
    """One element of `dtype` from its little-endian bytes; None for types that hold no single number."""
    if dtype in _FORMATS:
        decoded: int | float | bool = struct.unpack("<" + _FORMATS[dtype], data)[0]
        return decoded if dtype != "uint64" or decoded < 2**63 else float(decoded)
    if dtype == "bfloat16":
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    if dtype == "float8_e5m2":
        return float(struct.unpack("<e", b"\0" + data)[0])
    if dtype == "float8_e8m0fnu":
        return math.nan if data[0] == 0xFF else 2.0 ** (data[0] - 127)
    if dtype in _SMALL_FLOATS:
        return _small_float(data[0], *_SMALL_FLOATS[dtype])
    return None


def _small_float(byte: int, exponent_bits: int, mantissa_bits: int, bias: int, nans: tuple[int, ...]) -> float:
    if byte in nans:
        return math.nan
    exponent = (byte >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (byte & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    value = mantissa * 2.0 ** (1 - bias) if exponent == 0 else (1 + mantissa) * 2.0 ** (exponent - bias)
    return -value if byte & 0x80 else value


def _row_of(value: Any) -> Row | None:
    try:
        return read_tensor("", value)[0]
    except Corrupt:
        return None
