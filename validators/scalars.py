"""Values of tensors of one or few elements, read from their own few bytes in the file."""

import math
import struct
from itertools import product
from operator import mul
from typing import Any

from .arrays import MAX_ELEMENTS, nested
from .errors import Corrupt
from .inspection import Plain
from .plain import clip, number
from .standins import TENSOR_TYPES, DeviceTensor, Parameter, Tensor, TensorV3
from .storages import Storages
from .tensors import MAX_LAYERS, Row, extent_of, read_tensor

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
_COMPLEX = {"complex32": "e", "complex64": "f", "complex128": "d"}
_MAX_SIDES = 8
"""Dimensions of a tensor that is shown by value; deeper lists are not readable."""
_MAX_BYTES = 4096
"""Between the first and the last element of a tensor that is shown by value: a view may reach over a whole storage."""
# exponent bits, mantissa bits, bias, "not a number" patterns: c10/util/Float8_*.h
_SMALL_FLOATS = {
    "float8_e4m3fn": (4, 3, 7, (0x7F, 0xFF)),
    "float8_e4m3fnuz": (4, 3, 8, (0x80,)),
    "float8_e5m2fnuz": (5, 2, 16, (0x80,)),
}


Number = int | float | bool | complex


class ScalarReader:
    """Reads numbers that a checkpoint holds as tensors of one or few elements, as Lightning does with scores."""

    def __init__(self, storages: Storages) -> None:
        self._storages = storages
        self._big_endian = storages.big_endian
        self._decoded: dict[int, Number | None] = {}
        """By identity of the stand-in: a score is asked for as a number and for the display."""

    def number(self, value: Any) -> int | float | None:
        """The number that `value` is, or that the one-element tensor `value` holds; None for all else, also bool."""
        if type(value) in TENSOR_TYPES:
            decoded = self._value(value)
            return decoded if type(decoded) is int or type(decoded) is float else None
        return number(value)

    def score(self, value: Any) -> float | None:
        """Like `number`, as a finite float: NaN and infinities stand for "not measured yet"."""
        found = self.number(value)
        if found is None or not -1e308 <= found <= 1e308:
            return None
        return float(found)

    def describe(self, value: Any) -> Plain:
        """The values of a tensor of at most 32 elements, and what other tensors look like, for `to_plain`."""
        decoded = self._value(value)
        if decoded is not None:
            return _shown(decoded)
        row = _row_of(value)
        if row is None:
            return "<tensor>"
        values = self._values(row, value) if 1 <= len(row.shape) <= _MAX_SIDES else None
        return clip(f"<tensor {row.dtype.name} {list(row.shape)}>") if values is None else values

    def _value(self, tensor: Any) -> Number | None:
        if id(tensor) not in self._decoded:
            row = _row_of(tensor)
            single = row is not None and extent_of(row.shape, row.stride)[0] == 1
            elements = self._elements(row, tensor) if row is not None and single else None
            self._decoded[id(tensor)] = None if elements is None else elements[0]
        return self._decoded[id(tensor)]

    def _values(self, row: Row, tensor: Any) -> list[Plain] | None:
        if not 1 < extent_of(row.shape, row.stride)[0] <= MAX_ELEMENTS:
            return None
        elements = self._elements(row, tensor)
        return None if elements is None else nested(list(map(_shown, elements)), row.shape)

    def _elements(self, row: Row, tensor: Any) -> list[Number] | None:
        """The elements in the order of their indices; None where they are not to be had as numbers."""
        size, reach = row.dtype.itemsize, extent_of(row.shape, row.stride)[1]
        if row.storage is None or row.dtype.per_byte > 1 or reach * size > _MAX_BYTES:
            return None
        data = self._storages.read_part(row.storage[2], row.offset * size, reach * size)
        if len(data) != reach * size:
            return None
        places = (sum(map(mul, index, row.stride)) * size for index in product(*map(range, row.shape)))
        decoded = [decode(row.dtype.name, data[at : at + size], big_endian=self._big_endian) for at in places]
        return None if None in decoded else [_resolved(element, tensor) for element in decoded if element is not None]


def decode(dtype: str, data: bytes, *, big_endian: bool = False) -> Number | None:
    """One element of `dtype` from its bytes; None for types that hold no single number."""
    if dtype in _COMPLEX:
        return complex(*struct.unpack((">2" if big_endian else "<2") + _COMPLEX[dtype], data))
    return _decode_real(dtype, data[::-1] if big_endian else data)


def _decode_real(dtype: str, data: bytes) -> int | float | bool | None:
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


def _resolved(element: Number, tensor: Any) -> Number:
    """The element as it reads: a tensor may be the conjugate or the negative of what is stored."""
    for _ in range(MAX_LAYERS):
        if type(tensor) not in (Parameter, DeviceTensor):
            break
        tensor = tensor.data
    flags = tensor.metadata if type(tensor) in (Tensor, TensorV3) else None
    if isinstance(flags, dict):  # torch/_utils.py, `get_tensor_metadata`
        element = element.conjugate() if type(element) is complex and flags.get("conj") is True else element
        element = -element if flags.get("neg") is True else element
    return element


def _shown(element: Number) -> Plain:
    if type(element) is complex:
        return str(element)
    return str(element) if isinstance(element, float) and not math.isfinite(element) else element
