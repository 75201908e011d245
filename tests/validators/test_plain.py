"""Values of every kind that people put into hyper-parameters come out as plain data that they recognise."""

import argparse
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import json
import pathlib
import pickle
import re
import subprocess
import sys
import types
import uuid
import warnings
import zoneinfo
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from omegaconf import MISSING, OmegaConf

from ckptd.validators.plain import MAX_DEPTH, to_plain
from ckptd.validators.unpickle import load_inert

HERE = __name__


class Mode(enum.Enum):
    FAST = "fast"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    HIGH = 3


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Bits(enum.IntFlag):
    A = 1
    B = 4


class Word(enum.StrEnum):
    ONE = "one"


class Outer:
    """Holds a class, which protocols 0 to 3 name by `getattr`."""

    class Inner:
        def __init__(self) -> None:
            self.depth = 2

        class Kind(enum.Enum):
            DEEP = "deep"


@dataclasses.dataclass
class Options:
    lr: float = 0.1
    layers: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(slots=True)
class Slotted:
    lr: float = 0.1
    name: str = "x"


class Point(NamedTuple):
    x: int
    y: int


class Box(dict[str, Any]):
    """As python-box and its like: items that are attributes too, and attributes about the box itself."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__["_box_config"] = {"frozen": False}


class Numbers(dict[str, int]):
    """A dictionary of a class of its own."""


class Text(str):
    __slots__ = ()


class Items(list[int]):
    """A list of a class of its own."""


@dataclasses.dataclass
class Structured:
    """A structured config of OmegaConf."""

    lr: float = 0.5
    mode: Mode = Mode.FAST
    path: pathlib.Path = pathlib.Path("/data")
    needed: int = MISSING
    tags: list[str] = dataclasses.field(default_factory=lambda: ["a"])


def relu(x: float) -> float:
    """A function that is named, not kept."""
    return max(x, 0.0)


def _shown(value: Any, protocol: int) -> Any:
    data = pickle.dumps(value, protocol)
    inert = load_inert(data)
    assert inert.failure is None, inert.failure
    plain = to_plain(inert.value)
    assert msgspec.json.decode(msgspec.json.encode(plain)) == plain
    return plain


WEST = dt.timezone(dt.timedelta(hours=-3, minutes=-30))
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
MOMENT = dt.datetime(2024, 5, 6, 7, 8, 9)  # noqa: DTZ001
SPACE = types.SimpleNamespace(a=1, b=argparse.Namespace(c=[2]))
CASES: dict[str, tuple[Any, Any]] = {
    "enum": (Mode.FAST, "fast"),
    "enum of pairs": (Mode.PAIR, {"__class__": f"{HERE}.Mode", "args": [[1, 2]]}),
    "int enum": (Level.HIGH, 3),
    "flag": (Rights.READ, 1),
    "flags": (Rights.READ | Rights.WRITE, 3),
    "int flags": (Bits.A | Bits.B, 5),
    "str enum": (Word.ONE, "one"),
    "enum in a class in a class": (Outer.Inner.Kind.DEEP, "deep"),
    "object of a class in a class": (Outer.Inner(), {"__class__": f"{HERE}.Outer.Inner", "depth": 2}),
    "class in a class": (Outer.Inner, f"{HERE}.Outer.Inner"),
    "dataclass": (Options(), {"__class__": f"{HERE}.Options", "lr": 0.1, "layers": [1, 2]}),
    "named tuple": (Point(1, 2), {"__class__": f"{HERE}.Point", "args": [1, 2]}),
    "namespaces": (SPACE, {"a": 1, "b": {"c": [2]}}),
    "box": (Box(a=1, b=Box(c=2)), {"a": 1, "b": {"c": 2}}),
    "dict of a class": (Numbers(a=1), {"__class__": f"{HERE}.Numbers", "a": 1}),
    "list of a class": (Items([1, 2]), {"__class__": f"{HERE}.Items", "items": [1, 2]}),
    "text of a class": (Text("abc"), "abc"),
    "path": (pathlib.PurePosixPath("/data/train"), "/data/train"),
    "relative path": (pathlib.PurePosixPath("a/b"), "a/b"),
    "no path": (pathlib.PurePosixPath(), "."),
    "windows path": (pathlib.PureWindowsPath("C:\\data\\train"), "C:\\data\\train"),
    "datetime": (MOMENT, "2024-05-06T07:08:09"),
    "datetime with microseconds": (MOMENT.replace(microsecond=5), "2024-05-06T07:08:09.000005"),
    "datetime, second of two": (MOMENT.replace(fold=1), "2024-05-06T07:08:09"),
    "datetime in UTC": (MOMENT.replace(tzinfo=dt.UTC), "2024-05-06T07:08:09+00:00"),
    "datetime west": (MOMENT.replace(tzinfo=WEST), "2024-05-06T07:08:09-03:30"),
    "datetime in Berlin": (MOMENT.replace(tzinfo=BERLIN), "2024-05-06T07:08:09[Europe/Berlin]"),
    "date": (dt.date(2024, 5, 6), "2024-05-06"),
    "time": (dt.time(7, 8, 9), "07:08:09"),
    "time in UTC": (dt.time(7, 8, 9, 10, tzinfo=dt.UTC), "07:08:09.000010+00:00"),
    "timedelta": (dt.timedelta(1, 2), "1 day, 0:00:02"),
    "timezone": (dt.timezone(dt.timedelta(hours=2)), "UTC+02:00"),
    "utc": (dt.UTC, "UTC"),
    "decimal": (decimal.Decimal("1.50"), "1.50"),
    "fraction": (fractions.Fraction(3, 4), "3/4"),
    "uuid": (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    "complex": (1 + 2j, "(1+2j)"),
    "bytes": (b"a\xffc", "<3 bytes>"),
    "no bytes": (b"", "<0 bytes>"),
    "bytearray": (bytearray(b"abcd"), "<4 bytes>"),
    "set": ({1}, [1]),
    "frozenset": (frozenset([1]), [1]),
    "deque": (collections.deque([1, 2], 5), [1, 2]),
    "counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "defaultdict": (collections.defaultdict(list, {"x": [2]}), {"x": [2]}),
    "ordered": (collections.OrderedDict(a=1), {"a": 1}),
    "slice": (slice(1, 2), "slice(1, 2, None)"),
    "range": (range(3), "range(0, 3)"),
    "range by twos": (range(1, 9, 2), "range(1, 9, 2)"),
    "function": (relu, f"{HERE}.relu"),
    "class": (Options, f"{HERE}.Options"),
    "builtin": (len, "builtins.len"),
    "partial": (
        functools.partial(relu, 1.5, x=[2]),
        {"__class__": "functools.partial", "func": f"{HERE}.relu", "args": [1.5], "keywords": {"x": [2]}},
    ),
    "pattern": (re.compile("a+"), "a+"),
    "exception": (ValueError("no", 3), {"__class__": "builtins.ValueError", "args": ["no", 3]}),
    "dtype": (torch.bfloat16, "torch.bfloat16"),
    "device": (torch.device("cuda", 1), "cuda:1"),
    "size": (torch.Size([1, 2]), [1, 2]),
    "layout": (torch.sparse_csr, "torch.sparse_csr"),
    "scheme": (torch.per_channel_affine, "torch.per_channel_affine"),
    "function of torch": (torch.nn.functional.relu, "torch.nn.functional.relu"),
    "builtin of torch": (torch.relu, "torch._C._VariableFunctionsClass.relu"),
    "generator": (torch.Generator(), "<torch.Generator cpu>"),
    "module": (torch.nn.Linear(2, 2), "<module torch.nn.modules.linear.Linear>"),
    "keys": (
        {Mode.FAST: 1, Level.HIGH: 2, (1, "a"): 3, pathlib.PurePosixPath("x"): 4, torch.float16: 5, None: 6},
        {"fast": 1, "3": 2, "1, a": 3, "x": 4, "torch.float16": 5, "None": 6},
    ),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", CASES)
def test_a_value_is_shown_as_people_write_it(kind: str, protocol: int) -> None:
    value, expected = CASES[kind]
    assert _shown(value, protocol) == expected


@pytest.mark.parametrize("protocol", [0, 1])
@pytest.mark.parametrize("kind", ["dataclass", "enum", "namespaces", "complex", "set", "object of a class in a class"])
def test_the_oldest_protocols_are_understood_as_well(kind: str, protocol: int) -> None:
    value, expected = CASES[kind]
    assert _shown(value, protocol) == expected


@pytest.mark.parametrize("protocol", [2, 4])
def test_an_object_with_slots_shows_them(protocol: int) -> None:
    shown = _shown(Slotted(), protocol)
    assert shown == {"__class__": f"{HERE}.Slotted", "lr": 0.1, "name": "x"}


UNITS = ("ns", "us", "ms", "s", "m", "h", "D", "W", "M", "Y")
SCALARS: list[Any] = [
    np.bool_(True),
    *(kind(7) for kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)),
    *(kind(-1.5) for kind in (np.float16, np.float32, np.float64, np.longdouble)),
    *(kind(1 + 2j) for kind in (np.complex64, np.complex128)),
    *(np.str_("größer"), np.str_(""), np.bytes_(b"raw")),
    *(np.datetime64("2024-05-06T07:08:09.123456789", unit) for unit in UNITS),
    *(np.datetime64(text) for text in ("NaT", "1969-12-31T23:59:59.5", "0007-01-01")),
    np.datetime64(3, "25s"),
    *(np.timedelta64(5, unit) for unit in ("ns", "s", "D", "Y")),
    np.timedelta64(5),
]  # fmt: skip


def _said_by_numpy(value: Any) -> Any:
    if isinstance(value, np.datetime64 | np.timedelta64 | np.complexfloating):
        return str(value)
    return (
        value.decode() if isinstance(value, bytes) else value.item() if not isinstance(value, np.longdouble) else -1.5
    )


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_a_numpy_scalar_has_the_value_that_numpy_gives_it(value: Any, protocol: int) -> None:
    assert _shown(value, protocol) == _said_by_numpy(value)


BYTES = np.arange(12, dtype=np.uint8)
STRUCTURED = np.dtype([("a", "<i4"), ("b", ">f8", (2,)), ("c", [("d", "S3")])])
ARRAYS: dict[str, tuple[Any, Any]] = {
    "integers": (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
    "fortran": (np.asfortranarray(np.arange(6).reshape(2, 3)), [[0, 1, 2], [3, 4, 5]]),
    "three sides": (np.arange(8, dtype=np.int8).reshape(2, 2, 2), [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]),
    "three sides, fortran": (
        np.asfortranarray(np.arange(12, dtype=">i2").reshape(2, 3, 2)), np.arange(12).reshape(2, 3, 2).tolist()
    ),
    "big-endian": (np.array([1.5, -2], dtype=">f4"), [1.5, -2.0]),
    "0-dim": (np.array(2.5), 2.5),
    "empty": (np.array([]), []),
    "empty in two": (np.zeros((0, 3)), "<array float64 [0, 3]>"),
    "nan": (np.array([np.nan, np.inf]), ["nan", "inf"]),
    "booleans": (np.array([True, False]), [True, False]),
    "texts": (np.array(["a", "größer"]), ["a", "größer"]),
    "raw texts": (np.array([b"a", b"bcd"]), ["a", "bcd"]),
    "complex": (np.array([1j], dtype=np.complex64), ["1j"]),
    "times": (np.array(["2024-05-06", "NaT"], dtype="M8[D]"), ["2024-05-06", "NaT"]),
    "objects": (np.array([1, "a", None, Mode.FAST, [2]], dtype=object), [1, "a", None, "fast", [2]]),
    "structured": (
        np.array([(1, (2.0, 3.0), (b"x",))], dtype=STRUCTURED), [{"a": 1, "b": [2.0, 3.0], "c": {"d": "x"}}]
    ),
    "one of structured": (
        np.array([(1, (2.0, 3.0), (b"x",))], dtype=STRUCTURED)[0], {"a": 1, "b": [2.0, 3.0], "c": {"d": "x"}}
    ),
    "records": (np.rec.array([(1, 2.0)], names="a,b"), [{"a": 1, "b": 2.0}]),
    "masked": (np.ma.array([1, 2], mask=[False, True]), [1, 2]),
    "matrix": (np.arange(4).reshape(2, 2).view(np.matrix), [[0, 1], [2, 3]]),
    "view": (BYTES[2:8:2], [2, 4, 6]),
    "large": (np.zeros((100, 3), dtype=np.float32), "<array float32 [100, 3]>"),
    "large times": (np.zeros(100, dtype="M8[ns]"), "<array datetime64[ns] [100]>"),
    "large texts": (np.full(50, "abc"), "<array str [50]>"),
    "large objects": (np.full(50, None), "<array object [50]>"),
    "large structured": (np.zeros(50, dtype=STRUCTURED), "<array structured [50]>"),
    "dtype": (np.dtype("float32"), "float32"),
    "dtype of times": (np.dtype("M8[us]"), "datetime64[us]"),
    "type": (np.float32, "numpy.float32"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ARRAYS)
def test_a_small_array_is_shown_by_value_and_a_large_one_by_type_and_shape(kind: str, protocol: int) -> None:
    value, expected = ARRAYS[kind]
    assert _shown(value, protocol) == expected


def test_the_names_of_numpy_1_mean_the_same() -> None:
    for value in (np.float32(1.5), np.arange(3)):
        data = pickle.dumps(value, 2).replace(b"numpy._core", b"numpy.core")
        assert to_plain(load_inert(data).value) == value.tolist()


def test_a_value_that_numpy_1_itself_would_call_an_element_too_many_is_not_decoded() -> None:
    data = pickle.dumps(np.arange(3), 2).replace(b"K\x03\x85", b"K\x04\x85")
    assert to_plain(load_inert(data).value) == "<array int64 [4]>"


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_omegaconf_is_shown_with_what_is_missing_or_refers_elsewhere(protocol: int) -> None:
    config = OmegaConf.create(
        {
            "lr": 1e-3,
            "model": {"name": "${name}", "layers": [1, "${lr}", {"x": None}], "needed": "???"},
            "name": "net",
            "when": Mode.FAST,
            "raw": b"abc",
            "path": pathlib.Path("/a/b"),
            "none": None,
        }
    )
    assert _shown(config, protocol) == {
        "lr": 1e-3,
        "model": {"name": "${name}", "layers": [1, "${lr}", {"x": None}], "needed": "???"},
        "name": "net",
        "when": "fast",
        "raw": "<3 bytes>",
        "path": "/a/b",
        "none": None,
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_structured_config_and_its_parts_are_shown_as_data(protocol: int) -> None:
    config = OmegaConf.structured(Structured)
    expected = {"lr": 0.5, "mode": "fast", "path": "/data", "needed": "???", "tags": ["a"]}
    assert _shown(config, protocol) == expected
    assert _shown(config.tags, protocol) == ["a"]
    assert _shown(OmegaConf.create([1, {"a": "???"}]), protocol) == [1, {"a": "???"}]
    assert _shown(OmegaConf.create({"whole": "???"})._get_node("whole"), protocol) == "???"
    missing = OmegaConf.create({"a": {"b": 1}})
    missing.a = "???"
    assert _shown(missing, protocol) == {"a": "???"}


def test_a_structure_that_holds_itself_ends() -> None:
    loop: dict[str, Any] = {"x": 1}
    loop["self"] = loop
    circle: list[Any] = []
    circle.append({"circle": circle})
    space = types.SimpleNamespace()
    space.me = space
    assert _shown(loop, 4) == {"x": 1, "self": "<cycle>"}
    assert _shown(circle, 4) == [{"circle": "<cycle>"}]
    assert _shown(space, 4) == {"me": "<cycle>"}


def test_depth_and_number_of_values_are_bounded() -> None:
    deep: Any = "end"
    for _ in range(MAX_DEPTH + 10):
        deep = collections.deque([deep])
    text = str(_shown(deep, 4))
    assert "…" in text
    assert "end" not in text
    many = _shown([[i] for i in range(100_000)], 4)
    assert len(many) < 10_000
    assert many[-1] in ("…", ["…"])


def test_a_type_with_fields_without_end_is_not_unfolded() -> None:
    """32 fields of 32 fields of 32 fields: a few kilobytes that mean a million numbers."""
    inner = np.dtype("i4")
    for _ in range(3):
        inner = np.dtype([(f"f{i}", inner) for i in range(32)])
    assert _shown(np.zeros(1, dtype=inner), 4) in ("<array structured [1]>", [f"<{inner.itemsize} bytes>"])


WATCHED = """
import json, pathlib, sys
from ckptd.validators import inspect_checkpoint
from ckptd.validators.plain import to_plain
from ckptd.validators.unpickle import load_inert
first, *pickles = [path.read_bytes() for path in sorted(pathlib.Path(sys.argv[1]).glob("*.pkl"))]
archives = sorted(map(str, pathlib.Path(sys.argv[1]).glob("*.pt")))
events = set()
to_plain(load_inert(first).value)
inspect_checkpoint(archives[0])  # reads the table of architectures
sys.addaudithook(lambda event, arguments: events.add((event, str(arguments[0]) if arguments else "")))
shown = [to_plain(load_inert(data).value) for data in pickles]
valid = [inspect_checkpoint(path).is_valid for path in archives]
seen = {event for event, what in events if what not in archives} - {"builtins.id", "marshal.dumps"}
print(json.dumps([sorted(seen), len(shown), all(valid)]))
"""


def test_nothing_is_imported_or_opened_to_show_a_value(tmp_path: Path) -> None:
    """A sandboxed process can do neither; even a codec that is met for the first time would be imported."""
    values = [value for value, _ in (*CASES.values(), *ARRAYS.values())] + SCALARS
    for number, value in enumerate(values):
        (tmp_path / f"{number:03}.pkl").write_bytes(pickle.dumps(value, 2))
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "0.pt")
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, tmp_path], capture_output=True, text=True, timeout=50, check=True
    )
    assert json.loads(done.stdout) == [[], len(values) - 1, True]


def test_names_inside_a_class_without_end_are_objects_like_others() -> None:
    """`getattr` makes a class of each of the first hundred; classes cost a kilobyte each."""
    names = (b"cbuiltins\ngetattr\ncm\nC\nX\x05\0\0\0%05d\x86R" % i for i in range(1000))
    inert = load_inert(b"\x80\x02](" + b"".join(names) + b"e.")
    assert inert.failure is None
    shown = to_plain(inert.value)
    assert shown[:2] == ["m.C.00000", "m.C.00001"]
    assert shown[-1] == {"__class__": "builtins.getattr", "args": ["m.C", "00999"]}
    assert len({kind for kind in inert.value if isinstance(kind, type)}) == 100
    again = load_inert(b"\x80\x02cbuiltins\ngetattr\ncm\nC\nX\x05\0\0\00000999\x86R.")
    assert to_plain(again.value) == "m.C.00999"  # what one file asked for is no burden to the next


def test_getattr_of_what_is_no_class_is_an_object_that_remembers() -> None:
    for asked in (b"K\x01X\x01\0\0\0x\x86R", b"cm\nC\nK\x01\x86R", b"cbuiltins\ngetattr\nX\x01\0\0\0x\x86R"):
        inert = load_inert(b"\x80\x02cbuiltins\ngetattr\n" + asked + b".")
        assert inert.failure is None
        assert to_plain(inert.value)["__class__"] == "builtins.getattr"
