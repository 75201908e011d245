"""Objects of well-known classes, as a pickle builds them, in the form that people write them."""

import datetime as dt
import struct
from collections.abc import Callable
from typing import Any

from . import arrays, modules
from .standins import Device, Opaque, Storage
from .text import clip

_CONTAINERS = (list, tuple, set, frozenset, dict)
_PLAIN_CALLS = frozenset(("builtins.set", "builtins.frozenset", "builtins.list", "builtins.tuple", "collections.deque"))

Form = Callable[[Opaque], Any]


def unwrap(value: Opaque) -> Any:
    """What an object of a well-known class contains or is written as; the object itself if it has no such form."""
    name = value.name
    form = _FORMS.get(name)
    if form is not None:
        return form(value)
    if name in _PLAIN_CALLS:
        return _container(value)
    if arrays.is_scalar(value):
        decoded = arrays.scalar(value)
        return "<numpy scalar>" if decoded is None else decoded
    array = arrays.array(value) if name.startswith("numpy.") else None
    if array is not None:
        return array
    if name.startswith("omegaconf."):
        return _omegaconf(value)
    if name.startswith("pathlib."):
        return _path(value)
    module = modules.class_name(value)
    if module is not None:
        return f"<module {clip(module)}>"
    return _alone(value)


def attributes(value: Opaque) -> Any:
    """The attributes: a dict, or the (dict, slots) pair that objects with `__slots__` are pickled with."""
    state = value.state
    if type(state) is tuple and len(state) == 2 and isinstance(state[1], dict):
        return {**(state[0] if isinstance(state[0], dict) else {}), **state[1]}
    return state


def _alone(value: Opaque) -> Any:
    """The one argument of enums' members, subclasses of str and int, Decimal and their like."""
    bare = value.state is None and not value.items and not value.extra and not value.kwargs
    if (
        bare
        and len(value.args) == 1
        and (type(value.args[0]) in _SINGLE or arrays.raw_bytes(value.args[0]) is not None)
    ):
        return value.args[0]
    return value


def _container(value: Opaque) -> Any:
    inner = value.args[0] if value.args and isinstance(value.args[0], _CONTAINERS) else []
    return [*inner, *value.extra] if value.extra else inner


def _omegaconf(value: Opaque) -> Any:
    """The contents of a container or of a node: dict, list, or text for what is missing (`???`) or interpolated."""
    state = attributes(value)
    if not isinstance(state, dict):
        return _alone(value)
    return state["_content"] if "_content" in state else state.get("_val", value)


def _path(value: Opaque) -> Any:
    if not all(type(part) is str for part in value.args):
        return value
    if "Windows" in value.name:
        return "\\".join(value.args).replace("\\\\", "\\") or "."
    return "/".join(value.args).replace("//", "/") or "."


def _bytes(value: Opaque) -> Any:
    data = arrays.raw_bytes(value.args[0]) if value.args else b""
    return value if data is None else data


def _encoded(value: Opaque) -> Any:
    data = arrays.raw_bytes(value)
    return value if data is None else data


def _bytearray(value: Opaque) -> Any:
    """Protocol 2 gives the bytes, protocols 0 and 1 a text and "latin-1"."""
    first = value.args[0] if value.args else b""
    if type(first) is str:
        first = first.encode("latin-1", "replace")
    data = arrays.raw_bytes(first)
    return value if data is None else data


def _complex(value: Opaque) -> Any:
    if len(value.args) == 2 and all(type(part) in (float, int) for part in value.args):
        try:
            return complex(*value.args)
        except OverflowError:
            return value
    return value


def _fraction(value: Opaque) -> Any:
    if len(value.args) == 2 and all(type(part) is int and part.bit_length() < 1000 for part in value.args):
        return f"{value.args[0]}/{value.args[1]}"
    return _alone(value)


def _uuid(value: Opaque) -> Any:
    state = attributes(value)
    number = state.get("int") if isinstance(state, dict) else None
    if type(number) is not int or not 0 <= number < 2**128:
        return value
    digits = f"{number:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _call(value: Opaque) -> Any:
    """`slice(1, 2, None)`, `range(0, 3)`: the call that makes it, if its arguments are plain."""
    short = value.name.rpartition(".")[2]
    if len(value.args) > 3 or any(type(part) not in (int, type(None), float, str) for part in value.args):
        return value
    arguments = value.args
    if short == "range" and len(arguments) == 3 and arguments[2] == 1:
        arguments = arguments[:2]
    return clip(f"{short}({', '.join(clip(ascii(part), 50) if _is_short(part) else '…' for part in arguments)})")


def _is_short(part: Any) -> bool:
    return type(part) is not int or part.bit_length() < 256


def _pattern(value: Opaque) -> Any:
    return value.args[0] if value.args and type(value.args[0]) is str else value


def _numpy_type(value: Opaque) -> Any:
    kind = arrays.read_type(value)
    return value if kind is None else kind.name


def _partial(value: Opaque) -> Any:
    """`functools.partial`: its state is (function, arguments, keywords, attributes)."""
    state = value.state
    if type(state) is not tuple or len(state) != 4:
        return value
    return {"__class__": "functools.partial", "func": state[0], "args": state[1], "keywords": state[2]}


def _generator(value: Opaque) -> Any:
    device = value.args[0] if value.args else None
    where = device.type if isinstance(device, Device) else device
    return clip(f"<torch.Generator {where}>") if type(where) is str else "<torch.Generator>"


def _flags(value: Opaque) -> Any:
    """Members of a `Flag` combined, as some versions of Python 3.11 pickle them: `operator.or_(a, b)`."""
    parts = [unwrap(part) if isinstance(part, Opaque) and part.name not in _OR else part for part in value.args[:2]]
    if len(parts) == 2 and all(type(part) is int for part in parts):
        return parts[0] | parts[1]
    return value


# ---- times: Lib/datetime.py, `_getstate` ---------------------------------------------------------------------------


def _date(value: Opaque) -> Any:
    data = arrays.raw_bytes(value.args[0]) if value.args else None
    if data is None or len(data) != 4:
        return "<date>"
    year, month, day = struct.unpack(">H2B", data)
    return f"{year:04}-{month:02}-{day:02}"


def _datetime(value: Opaque) -> Any:
    data = arrays.raw_bytes(value.args[0]) if value.args else None
    if data is None or len(data) != 10:
        return "<datetime>"
    year, month, day = struct.unpack(">H2B", data[:4])
    # The first bit of the month is `fold`, the second of two equal hours.
    return f"{year:04}-{month & 0x7F:02}-{day:02}T{_clock(data[4:])}{_zone(value.args)}"


def _clock_time(value: Opaque) -> Any:
    data = arrays.raw_bytes(value.args[0]) if value.args else None
    if data is None or len(data) != 6:
        return "<time>"
    return _clock(bytes((data[0] & 0x7F, *data[1:]))) + _zone(value.args)


def _clock(data: bytes) -> str:
    hour, minute, second = data[:3]
    microseconds = int.from_bytes(data[3:], "big")
    return f"{hour:02}:{minute:02}:{second:02}" + (f".{microseconds:06}" if microseconds else "")


def _zone(arguments: tuple[Any, ...]) -> str:
    zone = arguments[1] if len(arguments) > 1 else None
    if not isinstance(zone, Opaque):
        return ""
    if zone.name.startswith("zoneinfo.") and zone.args and type(zone.args[0]) is str:
        return f"[{clip(zone.args[0], 50)}]"
    offset = _delta(zone.args[0]) if zone.name == "datetime.timezone" and zone.args else None
    if offset is None:
        return f"[{clip(zone.name, 80)}]"
    minutes = offset.days * 1440 + offset.seconds // 60
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _delta(value: Any) -> dt.timedelta | None:
    if not isinstance(value, Opaque) or value.name != "datetime.timedelta" or len(value.args) > 3:
        return None
    if any(type(part) is not int or abs(part) >= 10**15 for part in value.args):
        return None
    try:
        return dt.timedelta(*value.args)
    except OverflowError:
        return None


def _timedelta(value: Opaque) -> Any:
    delta = _delta(value)
    return "<timedelta>" if delta is None else str(delta)


def _timezone(value: Opaque) -> Any:
    return "UTC" + _zone((None, value)).replace("+00:00", "")


_SINGLE = frozenset((bool, int, float, complex, str, Storage))
_OR = ("operator.or_", "_operator.or_", "enum._or_")
_FORMS: dict[str, Form] = {
    "_codecs.encode": _encoded,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "builtins.slice": _call,
    "builtins.range": _call,
    "datetime.date": _date,
    "datetime.datetime": _datetime,
    "datetime.time": _clock_time,
    "datetime.timedelta": _timedelta,
    "datetime.timezone": _timezone,
    "fractions.Fraction": _fraction,
    "functools.partial": _partial,
    "numpy.dtype": _numpy_type,
    "re._compile": _pattern,
    "torch._C.Generator": _generator,
    "torch.Generator": _generator,
    "uuid.UUID": _uuid,
    **dict.fromkeys(_OR, _flags),
}
"""`module.name` → how objects of that class, or outcomes of that function, are written."""
