"""Anything that an inert pickle holds → plain data that JSON and msgpack can say, bounded, without recursion."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

from . import arrays, modules, standins
from .arrays import raw_bytes
from .dtypes import Dtype
from .inspection import Plain
from .objects import attributes, unwrap
from .standins import Opaque
from .text import ELLIPSIS as _TOO_MUCH
from .text import clean, clip

MAX_DEPTH = 32
MAX_TEXT = 10_000
"""Characters of one string that are kept."""

ReadTensor = Callable[[Any], Plain]
"""A tensor stand-in → its value if it has few elements, else a description."""

_CYCLE = "<cycle>"
_UNWRAPPINGS = 6
"""An OmegaConf node around an enum around a NumPy scalar around an object."""
_SEQUENCES = (list, tuple, set, frozenset)
_PLAIN_MAPPINGS = frozenset(
    ("argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict", "collections.Counter")
)
_MAPPING_CLASSES = frozenset(
    [
        "AttributeDict",
        "AttrDict",
        "Box",
        "ConfigBox",
        "SBox",
        "EasyDict",
        "Munch",
        "DotDict",
        "Dict",
        "ConfigDict",
        "edict",
    ]
)
"""Dictionaries with attribute access, of whatever module: lightning, python-box, easydict, munch, addict, mmengine."""


def number(value: object) -> int | float | None:
    """The number that `value` is: int, float, or numpy scalar. None for everything else, bool included."""
    if type(value) is int or type(value) is float:
        return value
    decoded = arrays.scalar(value) if isinstance(value, Opaque) and arrays.is_scalar(value) else None
    return decoded if type(decoded) in (int, float) else None


def to_plain(value: object, budget: int = 10_000, read_tensor: ReadTensor | None = None) -> Plain:
    """Turn `value` into None, bool, int, float, str, and lists and str-keyed dicts of these.

    NaN and infinities become "nan", "inf", "-inf"; bytes, huge integers and large arrays a description; objects of
    unknown classes a dict of their state with `__class__`; OmegaConf, enums, paths, times and namespaces what they
    contain or how people write them; classes and functions their names.

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
        for _ in range(_UNWRAPPINGS):
            kind = type(value)
            if kind in _SCALARS:
                return _SCALARS[kind](value)
            unwrapped = unwrap(value) if isinstance(value, Opaque) else value
            if unwrapped is value:
                break
            value = unwrapped
        if type(value) in standins.TENSOR_TYPES:
            shown = self._read_tensor(value)
            self._left -= arrays.MAX_ELEMENTS if isinstance(shown, list) else 0
            return shown
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
    if type(key) is Dtype:
        return f"torch.{key.name}"
    if type(key) is int:
        return str(_int(key))
    if isinstance(key, type) and issubclass(key, Opaque):
        return clip(key.name)
    if type(key) is tuple and len(key) <= 4 and all(type(part) in (str, int) for part in key):
        return ", ".join(map(key_text, key))
    if isinstance(key, Opaque):
        unwrapped = unwrap(key)
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


def _open_object(value: Opaque) -> tuple[Plain, Iterable[tuple[Any, Any]]]:
    state = attributes(value)
    own = state.items() if isinstance(state, dict) else ()
    name = modules.object_class(value)
    if name in _PLAIN_MAPPINGS:
        counted = (arg.items() for arg in value.args if isinstance(arg, dict))
        return {}, itertools.chain(own, value.items.items(), *counted)
    if name.rpartition(".")[2] in _MAPPING_CLASSES:
        # Attributes are the items once more, or how the class works (`_box_config`).
        return {}, iter(value.items.items() if value.items else own)
    rest: list[tuple[Any, Any]] = []
    if value.args and name == value.name:
        rest.append(("args", value.args))
    if value.kwargs:
        rest.append(("kwargs", value.kwargs))
    if value.extra:
        rest.append(("items", value.extra))
    if state is not None and not isinstance(state, dict):
        rest.append(("state", state))
    return {"__class__": clip(name)}, itertools.chain(own, value.items.items(), rest)


__all__ = ["clean", "clip", "key_text", "number", "raw_bytes", "to_plain"]
