"""Anything that an inert pickle holds → plain data that JSON and msgpack can say, bounded, without recursion."""

import itertools
import math
import struct
from collections.abc import Callable, Iterable
from typing import Any

from . import standins
from .dtypes import Dtype
from .inspection import Plain
from .standins import Opaque

MAX_DEPTH = 32
MAX_TEXT = 10_000
"""Characters of one string that are kept."""

ReadTensor = Callable[[Any], Plain]
"""A tensor stand-in → its value if it is a single number, else a description."""

_TOO_MUCH = "…"
_CYCLE = "<cycle>"
_SEQUENCES = (list, tuple, set, frozenset)
_CONTAINERS = (*_SEQUENCES, dict)
_PLAIN_CALLS = frozenset(("builtins.set", "builtins.frozenset", "builtins.list", "builtins.tuple", "collections.deque"))
_PLAIN_MAPPINGS = ("argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict", "collections.Counter")
_NUMPY_SCALARS = frozenset(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"))
_NUMPY_FORMATS = {"f2": "e", "f4": "f", "f8": "d", "b1": "?"} | {
    f"{kind}{size}": code
    for kind, codes in (("i", "bhiq"), ("u", "BHIQ"))
    for size, code in zip((1, 2, 4, 8), codes, strict=True)
}


def clip(text: str, limit: int = 200) -> str:
    """`text` with lone surrogates and control characters escaped, cut to `limit` characters; fit for a terminal."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    text = clean(text[: limit + 1])
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= limit else text[:limit] + _TOO_MUCH


def clean(text: str) -> str:
    """`text` with lone surrogates escaped, so that it can be encoded as UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def number(value: object) -> int | float | None:
    """The number that `value` is: int, float, or numpy scalar. None for everything else, bool included."""
    if type(value) is int or type(value) is float:
        return value
    if isinstance(value, Opaque):
        decoded = _numpy_scalar(value) if value.name in _NUMPY_SCALARS else None
        return None if isinstance(decoded, bool) else decoded
    return None


def to_plain(value: object, budget: int = 10_000, read_tensor: ReadTensor | None = None) -> Plain:
    """Turn `value` into None, bool, int, float, str, and lists and str-keyed dicts of these.

    NaN and infinities become "nan", "inf", "-inf"; bytes, huge integers and large arrays a description; objects of
    unknown classes a dict of their state with `__class__`; OmegaConf, enums, paths and namespaces what they contain.

    Args:
        value: an inert pickle's value or a part of it.
        budget: most values to convert; what lies beyond becomes "…", as does what is nested more than 32 deep.
        read_tensor: says what a tensor is shown as; by default "tensor".
    """
    return _Converter(budget, read_tensor or (lambda tensor: "tensor")).convert(value)


class _Converter:
    def __init__(self, budget: int, read_tensor: ReadTensor) -> None:
        self._left = budget
        self._read_tensor = read_tensor
        # (children still to convert, where to put them, ancestors as a linked list): no recursion, see FACTS
        self._open: list[tuple[Iterable[tuple[Any, Any]], Any, Any]] = []

    def convert(self, value: object) -> Plain:
        result: list[Plain] = []
        self._open.append((iter(((None, value),)), result, None))
        while self._open:
            children, target, ancestors = self._open[-1]
            for key, child in children:
                before = len(self._open)
                plain = self._one(child, ancestors)
                if isinstance(target, list):
                    target.append(plain)
                else:
                    target[key_text(key)] = plain
                if self._left <= 0:
                    self._open.pop()
                    break
                if len(self._open) > before:
                    break
            else:
                self._open.pop()
        return result[0]

    def _one(self, value: Any, ancestors: Any) -> Plain:
        self._left -= 1
        if self._left <= 0:
            return _TOO_MUCH
        for _ in range(4):  # a few wrappers may have to be taken off: an OmegaConf node around an enum around a string
            kind = type(value)
            if kind in _SCALARS:
                return _SCALARS[kind](value)
            unwrapped = _unwrap(value) if isinstance(value, Opaque) else value
            if unwrapped is value:
                break
            value = unwrapped
        if type(value) in standins.TENSOR_TYPES:
            return self._read_tensor(value)
        if isinstance(value, type):
            return clip(value.name if issubclass(value, Opaque) else value.__name__)
        return self._container(value, ancestors)

    def _container(self, value: Any, ancestors: Any) -> Plain:
        depth, seen = 0, ancestors
        while seen is not None:
            if seen[0] == id(value):
                return _CYCLE
            depth, seen = depth + 1, seen[1]
        if depth >= MAX_DEPTH:
            return _TOO_MUCH
        target: Plain
        if isinstance(value, Opaque):
            target, children = _open_object(value)
        elif isinstance(value, dict):
            target, children = {}, iter(value.items())
        elif isinstance(value, _SEQUENCES):
            target, children = [], ((None, item) for item in value)
        else:
            return f"<{clip(type(value).__name__, 50)}>"
        self._open.append((children, target, (id(value), ancestors)))
        return target


def key_text(key: object) -> str:
    """A dictionary key as text: strings as they are, numbers as written, of everything else the kind."""
    if type(key) is str:
        return clip(key, 1000)
    if key is None or type(key) in (bool, float):
        return str(key)
    if type(key) is int:
        return str(_int(key))
    if isinstance(key, type) and issubclass(key, Opaque):
        return clip(key.name)
    if type(key) is tuple and len(key) <= 4 and all(type(part) in (str, int) for part in key):
        return ", ".join(map(key_text, key))
    if isinstance(key, Opaque):
        unwrapped = _unwrap(key)
        return key_text(unwrapped) if type(unwrapped) in (str, int) else f"<{clip(key.name)}>"
    return f"<{type(key).__name__}>"


def _int(value: int) -> int | str:
    # Beyond 64 bits msgpack fails, and str() itself refuses more than 4,300 digits.
    return value if -(2**63) <= value < 2**63 else f"<integer of {value.bit_length()} bits>"


def _float(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _text(value: str) -> str:
    return clean(value) if len(value) <= MAX_TEXT else clean(value[:MAX_TEXT]) + _TOO_MUCH


def _bytes(value: bytes | bytearray) -> str:
    return f"<{len(value)} bytes>"


def _device(value: standins.Device) -> str:
    kind = clip(value.type, 50) if isinstance(value.type, str) else "?"
    return kind if type(value.index) is not int else f"{kind}:{_int(value.index)}"


_SCALARS: dict[type, Callable[[Any], Plain]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: _int,
    float: _float,
    str: _text,
    bytes: _bytes,
    bytearray: _bytes,
    complex: str,
    Dtype: lambda value: f"torch.{value.name}",
    standins.Device: _device,
    standins.Storage: lambda value: "<storage>",
}


def _unwrap(value: Opaque) -> Any:
    """What an object of a well-known class contains; the object itself if it has a form of its own."""
    name, args = value.name, value.args
    if name in _PLAIN_CALLS:
        inner = args[0] if args and isinstance(args[0], _CONTAINERS) else []
        return [*inner, *value.extra] if value.extra else inner
    if name in _NUMPY_SCALARS:
        decoded = _numpy_scalar(value)
        return "<numpy scalar>" if decoded is None else decoded
    if name.startswith("omegaconf.") and isinstance(_state(value), dict):
        state = _state(value)
        return state["_content"] if "_content" in state else state.get("_val", value)
    if name.startswith("pathlib.") and args and all(isinstance(part, str) for part in args):
        return "/".join(args).replace("//", "/")
    if name == "_codecs.encode" and args and isinstance(args[0], str):
        return f"<{len(args[0])} bytes>"
    if name == "datetime.datetime" and args:
        return _datetime(args[0])
    if name == "builtins.complex" and len(args) == 2 and all(type(part) is float for part in args):
        return str(complex(*args))
    if name.endswith(("multiarray._reconstruct", "numeric._frombuffer")):
        return _array(value)
    if len(args) == 1 and type(args[0]) in _SCALARS and value.state is None and not value.items and not value.extra:
        return args[0]  # enums, Decimal, UUID and their like
    return value


def _open_object(value: Opaque) -> tuple[Plain, Iterable[tuple[Any, Any]]]:
    state = _state(value)
    attributes = state.items() if isinstance(state, dict) else ()
    if value.name in _PLAIN_MAPPINGS or value.name.endswith(".AttributeDict"):
        counted = (arg.items() for arg in value.args if isinstance(arg, dict))
        return {}, itertools.chain(attributes, value.items.items(), *counted)
    rest: list[tuple[Any, Any]] = []
    if value.args:
        rest.append(("args", value.args))
    if value.extra:
        rest.append(("items", value.extra))
    if state is not None and not isinstance(state, dict):
        rest.append(("state", state))
    return {"__class__": clip(value.name)}, itertools.chain(attributes, value.items.items(), rest)


def _state(value: Opaque) -> Any:
    """The attributes: a dict, or the (dict, slots) pair that objects with `__slots__` are pickled with."""
    state = value.state
    if type(state) is tuple and len(state) == 2 and isinstance(state[1], dict):
        return {**(state[0] if isinstance(state[0], dict) else {}), **state[1]}
    return state


def _datetime(packed: Any) -> str:
    data = raw_bytes(packed)
    if data is None or len(data) != 10:
        return "<datetime>"
    year, month, day, hour, minute, second = struct.unpack(">H5B", data[:7])
    return f"{year:04}-{month & 0x7F:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"


def raw_bytes(value: Any) -> bytes | None:
    """Bytes as they are, or as protocol 2 writes them: `_codecs.encode(text, "latin1")`."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Opaque) and value.name == "_codecs.encode" and value.args and type(value.args[0]) is str:
        try:
            return value.args[0].encode("latin-1")
        except UnicodeEncodeError:
            return None
    return None


def _numpy_scalar(value: Opaque) -> int | float | bool | None:
    """`scalar(dtype, bytes)`: numpy/_core/src/multiarray/multiarraymodule.c, `array_scalar`."""
    if len(value.args) != 2:
        return None
    code, order = numpy_dtype(value.args[0])
    data = raw_bytes(value.args[1])
    if code not in _NUMPY_FORMATS or data is None:
        return None
    layout = struct.Struct((">" if order == ">" else "<") + _NUMPY_FORMATS[code])
    if len(data) != layout.size:
        return None
    decoded: int | float | bool = layout.unpack(data)[0]
    return decoded


def numpy_dtype(value: Any) -> tuple[str, str]:
    """Kind with size (`f4`) and byte order of a pickled `numpy.dtype`; empty strings for anything else."""
    if not isinstance(value, Opaque) or value.name != "numpy.dtype" or not value.args:
        return "", ""
    code, state = value.args[0], value.state
    order = state[1] if type(state) is tuple and len(state) > 1 else "<"
    return (code, order) if isinstance(code, str) and isinstance(order, str) else ("", "")


def _array(value: Opaque) -> str:
    """An array is shown by shape and type: `_reconstruct` with the state (version, shape, dtype, fortran, data)."""
    state = value.state
    if type(state) is tuple and len(state) == 5 and type(state[1]) is tuple:
        shape = ", ".join(str(_int(side)) for side in state[1][:8] if type(side) is int)
        return f"<array of {numpy_dtype(state[2])[0] or 'objects'}, shape ({shape})>"
    return "<array>"


__all__ = ["clean", "clip", "key_text", "number", "numpy_dtype", "raw_bytes", "to_plain"]
