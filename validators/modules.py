"""Pickled modules: what the `state_dict()` of a `torch.nn.Module` would hold, whose class was never imported."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import msgspec

from .standins import Opaque

_RECONSTRUCTOR = "copyreg._reconstructor"
"""Makes objects in pickle's protocols 0 and 1: (class, base, value)."""
_GRAPH_MODULE = "torch.fx.graph_module.reduce_graph_module"
"""Rebuilds a `torch.fx.GraphModule` from its attributes, its first argument, by compiling its code."""
_PACKED = "torch.ScriptObject"
"""What quantized modules keep their weights in, packed for a kernel; its state is (contents, name of its class)."""


class Split(msgspec.Struct, frozen=True):
    """One module, taken apart."""

    kept: Iterator[tuple[Any, Any]]
    """Name → tensor or child module, for all that `state_dict()` saves, in its order."""
    rest: Iterator[tuple[Any, Any]]
    """Name → value for all its other attributes: buffers that are not persistent, tensors that are plain attributes."""


Splitter = Callable[[Opaque], Split | None]
"""Takes a module apart; None for an object that is none."""


def split(value: Opaque) -> Split | None:
    """Take apart what may be a pickled module: torch/nn/modules/module.py, `Module.state_dict`.

    Packed weights of quantized modules have their attributes' names: what `state_dict()` calls them is in code only.
    """
    attributes = attributes_of(value)
    if attributes is None:
        return None
    transient = _elements(attributes.get("_non_persistent_buffers_set"))
    parameters, buffers, children = (attributes[key] for key in _TABLES)
    packed = {key: _unpacked(value) for key, value in attributes.items() if _is_packed(value)}
    persistent = ((key, buffer) for key, buffer in buffers.items() if type(key) is not str or key not in transient)
    others = ((key, value) for key, value in attributes.items() if key not in _TABLES and key not in packed)
    passing = ((key, buffer) for key, buffer in buffers.items() if type(key) is str and key in transient)
    return Split(
        kept=chain(parameters.items(), persistent, packed.items(), children.items()), rest=chain(passing, others)
    )


def class_name(value: Any) -> str | None:
    """`module.name` of the class of a pickled module; None for anything else."""
    if not isinstance(value, Opaque) or attributes_of(value) is None:
        return None
    if value.name == _GRAPH_MODULE:
        return "torch.fx.graph_module.GraphModule"
    return object_class(value)


def object_class(value: Opaque) -> str:
    """`module.name` of the class that an object is of, in every protocol of pickle."""
    if value.name == _RECONSTRUCTOR and value.args:
        cls = value.args[0]
        if isinstance(cls, type) and issubclass(cls, Opaque):
            return cls.name
    return value.name


_TABLES = ("_parameters", "_buffers", "_modules")


def attributes_of(value: Opaque) -> dict[Any, Any] | None:
    """The attributes of a pickled module; None for an object that is none."""
    attributes = value.args[0] if value.name == _GRAPH_MODULE and value.args else value.state
    if isinstance(attributes, dict) and all(isinstance(attributes.get(table), dict) for table in _TABLES):
        return attributes
    return None


def _is_packed(value: Any) -> bool:
    return isinstance(value, Opaque) and value.name == _PACKED


def _unpacked(value: Opaque) -> Any:
    return value.state[0] if type(value.state) is tuple and value.state else value.state


def _elements(value: Any) -> frozenset[str]:
    """The texts in a set, as protocol 4 and as older ones pickle it."""
    if isinstance(value, Opaque):
        value = value.args[0] if value.args else value.extra
    if not isinstance(value, list | tuple | set | frozenset):
        return frozenset()
    return frozenset(element for element in value if type(element) is str)
