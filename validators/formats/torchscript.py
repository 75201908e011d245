"""A TorchScript archive, as `torch.jit.save` writes it: which classes its code declares, what its two pickles hold.

torch/csrc/jit/serialization/export_module.cpp, `ScriptModuleSerializer`: `data.pkl` holds the root module, built of
objects of classes `__torch__.…` that `code/` declares; `constants.pkl` holds the tensors that the code itself refers
to, `CONSTANTS.c0` and so on. Storages of the one are records `data/<key>`, of the other `constants/<key>`.
"""

import io
import pickle
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

from ..modules import Split, Splitter
from ..plain import clip
from ..standins import TENSOR_TYPES, Opaque, Storage
from ..storages import ArchiveStorages
from ..unpickle import InertPickle, load_stream
from .torch_zip import Archive

CONSTANTS = "CONSTANTS"
"""What the code calls the tensors of `constants.pkl`: jit/serialization/python_print.cpp."""
MAX_CODE_BYTES = 64 * 1024 * 1024
"""Code that is looked through. Large models have a few megabytes."""

_CLASS_PREFIX = "__torch__."
_MANGLED = re.compile(r"___torch_mangle_\d+\.")
"""What keeps apart classes of one name: torch/csrc/jit/frontend/name_mangler.cpp."""
_MODULE = re.compile(r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]$", re.MULTILINE)
"""How jit/serialization/python_print.cpp begins the declaration of a module."""
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_TYPED = "torch.jit._pickle."
"""Functions that give a value its type, the value being their first argument: jit/serialization/unpickler.cpp."""
_CONSTANTS_KEY = "constants/"


class Members(msgspec.Struct, frozen=True):
    """What the code says of one class of modules."""

    parameters: tuple[str, ...]
    buffers: tuple[str, ...]


def looks_like_program(archive: Archive) -> bool:
    """Whether torch would take the archive for TorchScript: torch/serialization.py, `_is_torchscript_zip`."""
    return archive.find("constants.pkl") is not None


def read_members(archive: Archive) -> dict[str, Members]:
    """The classes of modules that `code/` declares, by qualified name. No line of the code is run or compiled.

    Raises:
        Corrupt: a compressed record cannot be expanded.
    """
    declared: dict[str, Members] = {}
    prefix = f"{archive.stem}/code/"
    code = [i for i, name in enumerate(archive.names) if name.startswith(prefix) and name.endswith(".py")]
    if sum(archive.sizes[i] for i in code) > MAX_CODE_BYTES:
        return declared
    for i in code:
        place = archive.names[i].removeprefix(prefix).removesuffix(".py").replace("/", ".")
        for name, parameters, buffers in _MODULE.findall(archive.read(i).decode("utf-8", "replace")):
            declared[f"{place}.{name}"] = Members(tuple(_QUOTED.findall(parameters)), tuple(_QUOTED.findall(buffers)))
    return declared


def load_data(data: bytes) -> InertPickle:
    """Parse `data.pkl` inertly."""
    return load_stream(_buffered(data), lambda saved: _storage(saved, ""))


def load_constants(data: bytes) -> InertPickle:
    """Parse `constants.pkl` inertly; keys of its storages begin with `constants/`, as their records do."""
    return load_stream(_buffered(data), lambda saved: _storage(saved, _CONSTANTS_KEY))


def python_names(names: tuple[str, ...]) -> list[str]:
    """Those of the names in a pickle that are neither classes of the program nor functions of its own reader."""
    return [name for name in names if not name.startswith((_CLASS_PREFIX, _TYPED))]


def class_name(root: Any) -> str | None:
    """The qualified name of the class that was compiled, without what the compiler added to it."""
    if not isinstance(root, Opaque) or not root.name.startswith(_CLASS_PREFIX):
        return None
    return _MANGLED.sub("", root.name.removeprefix(_CLASS_PREFIX))


def constants_by_name(value: Any) -> dict[str, Any]:
    """The constants under the names that the code has for them."""
    return {f"c{i}": constant for i, constant in enumerate(value if isinstance(value, tuple | list) else ())}


def splitter(declared: dict[str, Members]) -> Splitter:
    """What takes the objects of a program apart; where the code does not declare a class, every tensor is kept."""

    def split(value: Opaque) -> Split | None:
        if not value.name.startswith(_CLASS_PREFIX) or not isinstance(value.state, dict):
            return None
        attributes = {key: _without_type(attribute) for key, attribute in value.state.items()}
        tensors = [key for key, attribute in attributes.items() if type(attribute) in TENSOR_TYPES]
        members = declared.get(value.name)
        saved = set(tensors if members is None else (*members.parameters, *members.buffers))
        ordered = tensors if members is None else [*members.parameters, *members.buffers]
        inner = [key for key, attribute in value.state.items() if key not in saved and _is_part(attribute)]
        kept = [key for key in ordered if key in attributes]
        rest = [key for key in attributes if key not in saved and key not in inner]
        return Split(_items(attributes, chain(kept, inner)), _items(attributes, rest))

    return split


class ProgramStorages(ArchiveStorages):
    """Records `data/<key>`, and `constants/<key>` for the keys of `load_constants`."""

    def record(self, key: str) -> str:
        return key if key.startswith(_CONSTANTS_KEY) else super().record(key)

    def _indices(self, keys: Sequence[str]) -> list[int | None]:
        return [self._archive.find(self.record(key)) for key in keys]


def _buffered(data: bytes) -> "io.BufferedReader[Any]":
    return io.BufferedReader(io.BytesIO(data), len(data) + 1)


def _storage(saved: Any, prefix: str) -> Storage:
    """A persistent id, which names its storage by a number: any other name could mean another record."""
    if type(saved) is not tuple or len(saved) != 5 or type(saved[2]) is not str:
        raise pickle.UnpicklingError("a persistent id that torch.jit.save does not write")
    if "/" in saved[2]:
        raise pickle.UnpicklingError(f"a storage by the name {clip(saved[2], 80)}")
    return Storage((*saved[:2], prefix + saved[2], *saved[3:]))


def _without_type(value: Any) -> Any:
    if isinstance(value, Opaque) and value.name.startswith(_TYPED) and value.args:
        return value.args[0]
    if _is_part(value) and not isinstance(value.state, dict):
        return value.state  # packed weights of a quantized module: what its `__getstate__` gave
    return value


def _is_part(value: Any) -> bool:
    """Another object of the program: a module, or what a quantized one keeps its weights in."""
    return isinstance(value, Opaque) and value.name.startswith(_CLASS_PREFIX)


def _items(attributes: dict[Any, Any], keys: Any) -> Iterator[tuple[Any, Any]]:
    return ((key, attributes[key]) for key in keys)
