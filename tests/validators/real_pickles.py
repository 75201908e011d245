"""Values of every kind that people save, and what torch itself says of the files: what it imports, what it refuses."""

import argparse
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import types
import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf

__all__ = ["CASES", "asked", "saved_as"]


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Options:
    lr: float = 0.1
    layers: tuple[int, ...] = (1, 2)


class Slotted:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


class SubDict(dict[Any, Any]):
    pass


class SubList(list[Any]):
    pass


class SubOrdered(collections.OrderedDict[Any, Any]):
    pass


class Tagged(torch.Tensor):
    pass


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)
        self.norm = torch.nn.BatchNorm1d(3)


class Point(NamedTuple):
    x: int
    y: int


def _function() -> None:
    pass


def _tied() -> dict[str, Any]:
    weight = torch.arange(12.0)
    return {"a": weight, "b": weight, "view": weight[3:7].view(2, 2), "t": weight.view(3, 4).t()}


def _tagged() -> torch.Tensor:
    tensor = torch.ones(2).as_subclass(Tagged)
    tensor.note = "hello"
    return tensor


def _with_attribute() -> torch.Tensor:
    tensor = torch.ones(2)
    tensor.note = "hello"
    return tensor


def _parameter_with_state() -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "hello"
    return parameter


def _counted_ordered() -> Any:
    ordered = collections.OrderedDict(a=1)
    ordered.note = "hello"
    return ordered


def _recursive_tuple() -> Any:
    inner: list[Any] = []
    outer = (inner,)
    inner.append(outer)
    return outer


def _recursive_list() -> Any:
    inner: list[Any] = []
    inner.append(inner)
    return inner


def _adam() -> Any:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net.layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict()}


def _scheduler() -> Any:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2]).state_dict()


def _jagged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


def _quiet(make: Callable[[], Any]) -> Callable[[], Any]:
    def made() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return made


_DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
    "complex32",
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]

_VALUES: dict[str, Callable[[], Any]] = {
    **{f"tensor {name}": functools.partial(torch.zeros, 3, dtype=getattr(torch, name)) for name in _DTYPES},
    "0-dim": lambda: torch.tensor(1.5),
    "empty": lambda: torch.empty(0, 3),
    "shared storages": _tied,
    "parameter": lambda: torch.nn.Parameter(torch.ones(2)),
    "buffer": lambda: torch.nn.Buffer(torch.ones(2)),
    "parameter with attributes": _parameter_with_state,
    "tensor with attributes": _with_attribute,
    "tensor subclass": _tagged,
    "conjugate": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "negative": lambda: torch.ones(2, dtype=torch.complex64).conj().imag,
    "sparse COO": lambda: torch.eye(3).to_sparse(),
    "sparse CSR": _quiet(lambda: torch.eye(3).to_sparse_csr()),
    "sparse BSR": _quiet(lambda: torch.eye(4).to_sparse_bsr((2, 2))),
    "quantized": _quiet(lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
    "quantized per channel": _quiet(
        lambda: torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.quint8)
    ),
    "nested": _quiet(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
    "jagged": _quiet(_jagged),
    "meta": lambda: torch.empty(3, device="meta"),
    "untyped storage": lambda: torch.ones(2).untyped_storage(),
    "typed storage": _quiet(lambda: torch.FloatStorage(3)),
    "dtype, device, size, layout": lambda: (torch.float32, torch.device("cpu"), torch.Size([2]), torch.strided),
    "other spelling of a dtype": lambda: torch.half,
    "quantization scheme": lambda: torch.per_tensor_affine,
    "generator state": lambda: torch.Generator().get_state(),
    "generator": lambda: torch.Generator(),
    "containers": lambda: {"a": [1, 2.5, "x", None, True], "b": (1,), "c": {1, 2}, "d": {}},
    "numbers": lambda: [0, -1, 255, 256, 65536, -(2**31), 2**31, 2**63, -(2**200), 1e300],
    "an enormous number": lambda: 1 << 3000,
    "texts": lambda: ["", "a" * 63, "a" * 64, "a" * 300, "\u20ac", "\ud800", "a\nb"],
    "bytes": lambda: [b"", b"abc", b"\xff" * 300],
    "bytearray": lambda: bytearray(b"abc"),
    "frozenset": lambda: frozenset((1,)),
    "complex number": lambda: 1 + 2j,
    "ordered": lambda: collections.OrderedDict(a=1),
    "ordered with attributes": _counted_ordered,
    "counter": lambda: collections.Counter("abca"),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "deque": lambda: collections.deque([1]),
    "dict subclass": lambda: SubDict(a=1),
    "list subclass": lambda: SubList([1]),
    "OrderedDict subclass": lambda: SubOrdered(a=1),
    "namedtuple": lambda: Point(1, 2),
    "enum": lambda: Colour.RED,
    "dataclass": Options,
    "slots": Slotted,
    "class": lambda: Options,
    "function": lambda: _function,
    "builtin function": lambda: len,
    "partial": lambda: functools.partial(print, 1),
    "namespace": lambda: argparse.Namespace(lr=1),
    "simple namespace": lambda: types.SimpleNamespace(lr=1),
    "path": lambda: pathlib.PurePosixPath("a/b"),
    "datetime": lambda: [dt.datetime(2024, 1, 2, tzinfo=dt.UTC), dt.timedelta(1)],
    "decimal, fraction, uuid": lambda: [decimal.Decimal("1.5"), fractions.Fraction(1, 3), uuid.UUID(int=5)],
    "regex": lambda: re.compile("a"),
    "slice and range": lambda: [range(3), slice(1, 2)],
    "exception": lambda: ValueError("x"),
    "numpy scalar": lambda: np.float32(1.5),
    "numpy bool": lambda: np.bool_(True),
    "numpy array": lambda: np.arange(3),
    "numpy object array": lambda: np.array([1, "a", None], dtype=object),
    "numpy structured": lambda: np.zeros(2, dtype=[("a", "f4")]),
    "numpy datetime": lambda: np.datetime64("2024-01-01"),
    "omegaconf": lambda: OmegaConf.create({"a": [1, {"b": "${a}"}]}),
    "module": Net,
    "quantized module": _quiet(lambda: torch.ao.nn.quantized.FloatFunctional()),
    "state dict": lambda: Net().state_dict(),
    "optimizer": _adam,
    "scheduler": _scheduler,
    "tuple in itself": _recursive_tuple,
    "list in itself": _recursive_list,
    "shared containers": lambda: [[1]] * 3,
    "nothing": lambda: None,
    "many keys": lambda: {f"key{i}": i for i in range(1100)},
    "many tensors": lambda: {f"layer{i}.weight": torch.zeros(1) for i in range(300)},
    "tensors of many sides": lambda: [torch.zeros((1,) * n) for n in range(9)],
    "large tensor sides": lambda: torch.zeros(70_000, dtype=torch.int8),
}
_WITH_EVERY_PROTOCOL = ("state dict", "containers", "texts", "bytes", "module", "numpy array", "nothing", "numbers")
_LEGACY: dict[str, Any] = {"_use_new_zipfile_serialization": False}


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    **{name: (make, {}) for name, make in _VALUES.items()},
    **{
        f"{name}, protocol {protocol}": (_VALUES[name], {"pickle_protocol": protocol})
        for name in _WITH_EVERY_PROTOCOL
        for protocol in (0, 1, 3, 4, 5)
    },
    **{
        f"{name}, legacy": (_VALUES[name], _LEGACY)
        for name in ("state dict", "module", "optimizer", "texts", "numpy array", "tensor float8_e5m2", "enum")
    },
    **{
        f"state dict, legacy, protocol {protocol}": (_VALUES["state dict"], _LEGACY | {"pickle_protocol": protocol})
        for protocol in (3, 4)
    },
}
"""Name → how to make the value, and options of torch.save."""


def saved_as(name: str) -> bytes:
    """What torch.save writes for the case `name`."""
    make, options = CASES[name]
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(make(), buffer, **options)
    return buffer.getvalue()


ASK = """
import json, pickle, sys, types, warnings
import torch
from ckptd.validators.unpickle import canonical_name

warnings.simplefilter("ignore")

def recorder(seen, protocol):
    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            seen[".".join(canonical_name(module, name) if protocol < 3 else (module, name))] = None
            return super().find_class(module, name)

    module = types.ModuleType("recording")
    module.Unpickler = Recorder
    module.load = lambda file, **options: Recorder(file, **options).load()
    return module

def outcome(path, **options):
    try:
        torch.load(path, **options)
    except Exception as error:
        return type(error).__name__
    return "loaded"

answers = []
files = json.load(sys.stdin)
# what is imported by loading widens what the restricted unpickler takes: all of those first
restricted = [outcome(path, weights_only=True) for path, _, _ in files]
for (path, protocol, trusted), answer in zip(files, restricted):
    seen = {}
    loaded = outcome(path, weights_only=False, pickle_module=recorder(seen, protocol)) if trusted else ""
    answers.append((answer, loaded, list(seen)))
json.dump(answers, sys.stdout)
"""


def asked(files: Sequence[tuple[os.PathLike[str], int, bool]]) -> list[tuple[str, str, list[str]]]:
    """What torch makes of files, in a process of its own that has imported nothing but torch.

    Args:
        files: path, pickle protocol, and whether it is ours, so that it may be loaded with `weights_only=False`.

    Returns:
        For each file: the outcome with `weights_only=True` ("loaded" or an exception's name), the same with False, and
        the names that torch then looked up, in order.
    """
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps([(os.fspath(path), protocol, trusted) for path, protocol, trusted in files]),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [(answer, loaded, seen) for answer, loaded, seen in json.loads(done.stdout)]
