"""What pickled NumPy scalars, arrays and dtypes hold, decoded from their bytes without NumPy."""

import codecs
import datetime as dt
import itertools
import math
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from .standins import Opaque
from .text import clip

MAX_ELEMENTS = 32
"""Elements of an array that is shown by value; a larger one is shown by type and shape."""
MAX_RANK = 64
"""NPY_MAXDIMS of NumPy 2."""

_MAX_LEAVES = 64
"""Fields of a structured type, those of its fields included, that are shown by value."""
_MAX_TYPE_DEPTH = 2
"""Of fields within fields."""
_SCALARS = frozenset(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"))
_RECONSTRUCTED = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_MASKED = "numpy.ma.core._mareconstruct"
_FORMATS = {"f2": "e", "f4": "f", "f8": "d", "b1": "?"} | {
    f"{kind}{size}": code
    for kind, codes in (("i", "bhiq"), ("u", "BHIQ"))
    for size, code in zip((1, 2, 4, 8), codes, strict=True)
}
_COMPLEX = {"c8": "2f", "c16": "2d"}
_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex", "M": "datetime64", "m": "timedelta64"}
# numpy/_core/src/multiarray/datetime.c, `_datetime_strings`, and how many of them a second has (or seconds, if longer)
_UNITS = {"Y": "years", "M": "months", "W": "weeks", "D": "days", "h": "hours", "m": "minutes", "s": "seconds"} | {
    "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "ps": "picoseconds", "fs": "femtoseconds",
    "as": "attoseconds",
}  # fmt: skip
_SECONDS = {"W": 604_800, "D": 86_400, "h": 3_600, "m": 60, "s": 1}
_DIGITS = {"ms": 3, "us": 6, "ns": 9, "ps": 12, "fs": 15, "as": 18}
_NOT_A_TIME = -(2**63)
_UTF_32 = {big: codecs.lookup("utf-32-be" if big else "utf-32-le") for big in (False, True)}
"""Resolved at import: a sandboxed process cannot import a codec later."""
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - NumPy's times know no zone


class NumpyType(msgspec.Struct, frozen=True):
    """A pickled `numpy.dtype`."""

    kind: str
    """`f`, `i`, `u`, `b`, `c`, `S`, `U`, `M`, `m`, `O` or `V`."""
    itemsize: int
    """Bytes."""
    big_endian: bool = False
    unit: str = ""
    """Of times: `ns`, `D`, …"""
    step: int = 1
    """How many units one count of a time is."""
    fields: tuple[tuple[str, "NumpyType", int], ...] = ()
    """Of a structured type: name, type and offset in bytes."""
    base: "NumpyType | None" = None
    """Of a type whose elements are arrays themselves."""
    shape: tuple[int, ...] = ()

    @property
    def leaves(self) -> int:
        """Numbers in one element."""
        if self.base is not None:
            return math.prod(self.shape) * self.base.leaves
        return sum(kind.leaves for _, kind, _ in self.fields) if self.fields else 1

    @property
    def name(self) -> str:
        """What NumPy calls it: `float32`, `datetime64[ns]`, …"""
        if self.kind in ("S", "U", "V", "O", "b"):
            return {"S": "bytes", "U": "str", "V": "structured", "O": "object", "b": "bool"}[self.kind]
        if self.kind in ("M", "m"):
            return f"{_KINDS[self.kind]}[{self.unit}]" if self.unit else _KINDS[self.kind]
        return f"{_KINDS[self.kind]}{self.itemsize * 8}"


def read_type(value: Any, depth: int = 0) -> NumpyType | None:
    """The type that a pickled dtype describes: numpy/_core/src/multiarray/descriptor.c, `arraydescr_reduce`.

    Its state is (version, byte order, subarray, names of fields, fields, bytes, alignment, flags, metadata).
    """
    if not isinstance(value, Opaque) or value.name != "numpy.dtype" or not value.args or depth > _MAX_TYPE_DEPTH:
        return None
    code, state = value.args[0], value.state
    if isinstance(code, type) and type(state) is tuple and len(state) > 5:
        code = f"V{state[5]}" if type(state[5]) is int else ""  # numpy.record, the class of a record array's elements
    if type(code) is not str or not 2 <= len(code) <= 12 or code[0] not in "fiubcSUMmOV" or not code[1:].isdecimal():
        return None
    kind, size = code[0], int(code[1:]) * (4 if code[0] == "U" else 1)
    if type(state) is not tuple or len(state) < 5:
        return NumpyType(kind, size)
    unit, step = _time_unit(state[8]) if len(state) > 8 else ("", 1)
    made = NumpyType(kind, size, state[1] == ">", unit, step, _fields(state[3], state[4], depth))
    if type(state[2]) is tuple and len(state[2]) == 2:
        shape = state[2][1] if type(state[2][1]) is tuple else (state[2][1],)
        base = read_type(state[2][0], depth + 1)
        return None if base is None or not _are_sides(shape) else msgspec.structs.replace(made, base=base, shape=shape)
    return made


def is_scalar(value: Opaque) -> bool:
    """Whether an object is a pickled NumPy scalar."""
    return value.name in _SCALARS


def scalar(value: Opaque) -> Any:
    """The value of a pickled NumPy scalar as bool, int, float, str, bytes or, of a structured one, a dictionary.

    numpy/_core/src/multiarray/multiarraymodule.c, `array_scalar`: (dtype, bytes). None where it is none of these.
    """
    kind = read_type(value.args[0]) if len(value.args) == 2 else None
    if kind is None:
        return None
    if kind.kind == "O":
        return value.args[1]
    data = raw_bytes(value.args[1])
    return None if data is None or len(data) != kind.itemsize else _element(kind, data)


def array(value: Opaque) -> Any:
    """A pickled array: nested lists of its elements if they are few, else a text with its type and shape.

    Elements of object arrays are given as they are, stand-ins included. None for an object that is no array.
    """
    parts = _array_parts(value)
    if parts is None:
        return "<array>" if value.name in (*_RECONSTRUCTED, *_FROM_BUFFER) else None
    kind, shape, fortran, data = parts
    count = math.prod(shape)
    if (0 < count <= MAX_ELEMENTS and count * kind.leaves <= 4 * MAX_ELEMENTS) or shape == (0,):
        elements = _elements(kind, count, data)
        if elements is not None:
            return nested(elements, shape, fortran=fortran)
    return clip(f"<array {kind.name} {list(shape)}>")


def nested(elements: Sequence[Any], shape: tuple[int, ...], *, fortran: bool = False) -> Any:
    """`elements`, in memory's order, as nested lists of `shape`, which is (0,) or has no side of 0; of (), the one."""
    steps = [math.prod(shape[:i] if fortran else shape[i + 1 :]) for i in range(len(shape))]
    ranges = (range(side) for side in shape)
    flat = [elements[sum(map(int.__mul__, index, steps))] for index in itertools.product(*ranges)]
    for side in reversed(shape[1:]):
        flat = [flat[i : i + side] for i in range(0, len(flat), side)] if side else []
    return flat if shape else flat[0]


def raw_bytes(value: Any) -> bytes | None:
    """Bytes as they are, or as protocol 2 writes them: `_codecs.encode(text, "latin1")`."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, Opaque) and value.name == "_codecs.encode" and value.args and type(value.args[0]) is str:
        try:
            return value.args[0].encode("latin-1")
        except UnicodeEncodeError:
            return None
    if isinstance(value, Opaque) and value.name == "builtins.bytes" and not value.args:
        return b""
    return None


def _array_parts(value: Opaque) -> tuple[NumpyType, tuple[int, ...], bool, Any] | None:
    """Type, shape, whether in Fortran's order, and the data of a pickled array."""
    if value.name in _FROM_BUFFER and len(value.args) == 4:
        data, kind, shape, order = value.args
        fortran = order == "F" if type(order) is str else False
    elif value.name in (*_RECONSTRUCTED, _MASKED) and type(value.state) is tuple and len(value.state) >= 5:
        _, shape, kind, is_fortran, data = value.state[:5]
        fortran = is_fortran is True
    else:
        return None
    read = read_type(kind)
    return None if read is None or not _are_sides(shape) else (read, shape, fortran, data)


def _are_sides(shape: Any) -> bool:
    return (
        type(shape) is tuple
        and len(shape) <= MAX_RANK
        and all(type(side) is int and 0 <= side < 2**62 for side in shape)
    )


def _elements(kind: NumpyType, count: int, data: Any) -> list[Any] | None:
    if kind.kind == "O":
        return data if type(data) is list and len(data) == count else None
    raw = raw_bytes(data)
    if raw is None or len(raw) != count * kind.itemsize:
        return None
    size = kind.itemsize
    return [_element(kind, raw[i * size : (i + 1) * size]) for i in range(count)]


def _element(kind: NumpyType, data: bytes) -> Any:
    """One element from its bytes."""
    if kind.base is not None:
        elements = _elements(kind.base, min(math.prod(kind.shape), MAX_ELEMENTS + 1), data)
        return f"<{len(data)} bytes>" if elements is None else nested(elements, kind.shape)
    if kind.kind == "V" and kind.fields:
        parts = ((name, part, data[offset : offset + part.itemsize]) for name, part, offset in kind.fields)
        return {name: _element(part, piece) if len(piece) == part.itemsize else None for name, part, piece in parts}
    code, order = f"{kind.kind}{kind.itemsize}", ">" if kind.big_endian else "<"
    if code in _FORMATS:
        return struct.unpack(order + _FORMATS[code], data)[0]
    if code in _COMPLEX:
        return complex(*struct.unpack(order + _COMPLEX[code], data))
    if code == "f16":
        return _extended(data)
    if kind.kind == "U":
        return _UTF_32[kind.big_endian].decode(data, "replace")[0].rstrip("\0")
    if kind.kind == "S":
        return data.rstrip(b"\0").decode("utf-8", "backslashreplace")
    if kind.kind in ("M", "m") and len(data) == 8:
        return _time(kind, struct.unpack(order + "q", data)[0])
    return f"<{len(data)} bytes>"


def _extended(data: bytes) -> float:
    """`longdouble` of x86: 64 bits of mantissa, the first one explicit, 15 of exponent, a sign."""
    mantissa, high = struct.unpack("<QH", data[:10])
    exponent = (high & 0x7FFF) - 16383 - 63
    if high & 0x7FFF == 0x7FFF:
        value = math.nan if mantissa & (2**63 - 1) else math.inf
    else:
        try:
            value = math.ldexp(mantissa, exponent)
        except OverflowError:
            value = math.inf
    return -value if high & 0x8000 else value


def _time(kind: NumpyType, count: int) -> str:
    if count == _NOT_A_TIME:
        return "NaT"
    count *= kind.step
    if kind.kind == "m":
        return f"{count} {_UNITS.get(kind.unit, 'generic time units')}"
    if kind.unit == "Y":
        return f"{1970 + count:04}"
    if kind.unit == "M":
        return f"{1970 + count // 12:04}-{count % 12 + 1:02}"
    digits = _DIGITS.get(kind.unit, 0)
    seconds, fraction = divmod(count, 10**digits) if digits else (count * _SECONDS.get(kind.unit, 1), 0)
    try:
        moment = _EPOCH + dt.timedelta(seconds=seconds)
    except OverflowError:
        return f"{count} {_UNITS.get(kind.unit, 'time units')} since 1970"
    if kind.unit in ("W", "D"):
        return moment.date().isoformat()
    text = moment.isoformat(timespec={"h": "hours", "m": "minutes"}.get(kind.unit, "seconds"))
    return f"{text}.{fraction:0{digits}}" if digits else text


def _time_unit(metadata: Any) -> tuple[str, int]:
    """Unit and step from a dtype's metadata: ({}, (unit, step, 1, 1))."""
    parts = metadata[1] if type(metadata) is tuple and len(metadata) == 2 else None
    unit = raw_bytes(parts[0]) if type(parts) is tuple and len(parts) >= 2 else None
    text = "" if unit is None else unit.decode("latin-1")
    if text not in _UNITS or type(parts) is not tuple or type(parts[1]) is not int or not 0 < parts[1] < 2**31:
        return "", 1
    return text, parts[1]


def _fields(names: Any, fields: Any, depth: int) -> tuple[tuple[str, NumpyType, int], ...]:
    if type(names) is not tuple or len(names) > _MAX_LEAVES or not isinstance(fields, dict):
        return ()
    made: list[tuple[str, NumpyType, int]] = []
    for name in names:
        entry = fields.get(name) if type(name) is str else None
        kind = read_type(entry[0], depth + 1) if type(entry) is tuple and len(entry) >= 2 else None
        if kind is None or type(entry) is not tuple or type(entry[1]) is not int or entry[1] < 0:
            return ()
        made.append((name, kind, entry[1]))
    return tuple(made) if sum(kind.leaves for _, kind, _ in made) <= _MAX_LEAVES else ()
