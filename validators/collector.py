"""Finds the tensors of a checkpoint: where each stands in it, by the names that a state dict would have."""

from collections import deque
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Any

from . import standins
from .dtypes import Dtype
from .errors import Corrupt
from .modules import Split, Splitter, split
from .plain import clean, clip, key_text
from .standins import Opaque, Storage, Tensor
from .tensors import MAX_LAYERS, MAX_NAME

MAX_NODES = 10_000_000
"""Values in one checkpoint. 100,000 tensors with optimizer state make about 2 million."""
MAX_REPEATS = 100_000
"""Of these, values of modules met again under another name: doubled at each level, a few bytes name any number."""

SCALARS = frozenset((type(None), bool, int, float, complex, str, bytes, bytearray, Dtype, standins.Device, Storage))
"""Types that hold no tensor."""

_Frame = tuple[str, Iterator[tuple[Any, Any]], int, bool]
"""Path, children still to come, identity of the module that they are of (0: of none), whether a tensor holds them."""


class Collector:
    """Finds the tensors of one checkpoint, without recursion and within `MAX_NODES`.

    Objects that are referred to twice are walked once; modules as often as `state_dict()` names what is in them.
    """

    def __init__(self, split: Splitter = split) -> None:
        """Take what takes modules apart."""
        self.names: list[str] = []
        self.found: list[Any] = []
        self.parts: set[int] = set()
        """Positions in `found` of tensors that are inside another tensor: the attributes of a subclass."""
        self._split = split
        self._seen: set[int] = set()
        self._entered: set[int] = set()
        """Modules that the walk is inside of."""
        self._rest: deque[tuple[str, Iterator[tuple[Any, Any]]]] = deque()
        self._listed: set[int] | None = None
        self._nodes = 0
        self._repeats = 0

    def collect(self, name: str, value: Any) -> int:
        """Add names and stand-ins of the tensors in `value`, which stands at `name`, in order.

        Returns:
            Where in `found` those begin that are attributes of modules outside of what `state_dict()` would hold.

        Raises:
            Corrupt: `pickle.limits`, there are too many values or the names are too long.
        """
        self._walk("", iter(((name, value),)))
        begin = len(self.found)
        while self._rest:
            # Plain attributes repeat parameters (`torch.nn.RNN._flat_weights`); only what is not listed yet is news.
            self._listed = set(map(id, self.found)) if self._listed is None else self._listed
            self._walk(*self._rest.popleft())
        self._listed = None
        return begin

    def _walk(self, prefix: str, children: Iterator[tuple[Any, Any]]) -> None:
        names, found, listed = self.names, self.found, self._listed
        stack: list[_Frame] = [(prefix, children, 0, False)]
        while stack:
            prefix, children, module, inside = stack[-1]
            for key, child in children:
                kind = type(child)
                if kind in SCALARS:
                    continue
                entered = 0
                if kind in standins.TENSOR_TYPES and (kind is Tensor or not _is_foreign(child)):
                    if listed is not None and id(child) in listed:
                        continue
                    if inside:
                        self.parts.add(len(found))
                    names.append(_path(prefix, key))
                    found.append(child)
                    inner = None if kind is Tensor or self._again(child) else _attributes(child)
                elif isinstance(child, Opaque) and (apart := self._split(child)) is not None:
                    entered = id(child)
                    inner = self._enter(_path(prefix, key), child, apart)
                else:
                    inner = self._open(child)
                if inner is None:
                    continue
                path = _path(prefix, key)
                short = len(path) < MAX_NAME // 2
                if short and isinstance(child, dict) and listed is None and not inside and _is_all_tensors(child):
                    names += [f"{path}.{name}" for name in map(clean, child)] if path else map(clean, child)
                    found += child.values()
                    continue
                stack.append((path, inner, entered, inside or kind in standins.TENSOR_TYPES))
                break
            else:
                stack.pop()
                self._entered.discard(module)

    def _enter(self, path: str, module: Opaque, apart: Split) -> Iterator[tuple[Any, Any]] | None:
        """The children of a module, also when it was met before under another name, but not inside itself."""
        if id(module) in self._entered:
            return None
        kept = list(apart.kept)
        self._count(1 + len(kept))
        if self._again(module):
            self._repeats += 1 + len(kept)
            if self._repeats > MAX_REPEATS:
                raise Corrupt("pickle.limits", f"modules that occur twice hold more than {MAX_REPEATS:,} values")
        else:
            self._rest.append((path, apart.rest))
        self._entered.add(id(module))
        return iter(kept)

    def _open(self, value: Any) -> Iterator[tuple[Any, Any]] | None:
        """The children of a container that was not yet seen and holds more than scalars."""
        if isinstance(value, dict):
            children: Collection[Any] = value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            children = value
        elif isinstance(value, Opaque):
            self._count(1 + len(value.args))
            return None if self._again(value) else _object_children(value)
        elif type(value) in standins.TENSOR_TYPES:
            self._count(1)
            return None if self._again(value) else _foreign_children(value)
        else:
            return None
        self._count(len(children))
        if SCALARS.issuperset(map(type, children)) or self._again(value):
            return None
        return iter(value.items()) if isinstance(value, dict) else enumerate(value)

    def _again(self, value: Any) -> bool:
        if id(value) in self._seen:
            return True
        self._seen.add(id(value))
        return False

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise Corrupt("pickle.limits", f"the checkpoint holds more than {MAX_NODES:,} values")


def _path(prefix: str, key: Any) -> str:
    text = clean(key[: MAX_NAME + 1]) if type(key) is str else key_text(key)
    path = f"{prefix}.{text}" if prefix else text
    if len(path) > MAX_NAME:
        raise Corrupt("pickle.limits", f"a value's name has more than {MAX_NAME} characters: {clip(path, 80)}")
    return path


def _is_all_tensors(value: dict[Any, Any]) -> bool:
    """A state dict as most are, to be taken whole: names to plain tensors, and the names not long."""
    return set(map(type, value.values())) == {Tensor} and set(map(type, value)) == {str} and max(map(len, value)) < 2000


def _layers(tensor: Any) -> Iterator[Any]:
    """A stand-in, and from the outside in what it wraps."""
    for _ in range(MAX_LAYERS):
        yield tensor
        kind = type(tensor)
        if kind is standins.DeviceTensor and type(tensor.data) not in standins.TENSOR_TYPES:
            return
        if kind is not standins.Parameter and kind is not standins.DeviceTensor:
            return
        tensor = tensor.data


def _is_foreign(tensor: Any) -> bool:
    """Whether the file rebuilds a tensor by a function that nobody knows: an object like others, then."""
    *_, inner = _layers(tensor)
    if type(inner) is standins.FromType:
        return isinstance(inner.func, type) and issubclass(inner.func, Opaque)
    return isinstance(inner, Opaque) and type(tensor) is standins.Parameter


def _foreign_children(tensor: Any) -> Iterator[tuple[Any, Any]]:
    *_, inner = _layers(tensor)
    if type(inner) is standins.FromType:
        yield from enumerate(inner.args if type(inner.args) is tuple else ())
    elif isinstance(inner, Opaque):
        yield from _object_children(inner)
    yield from _attributes(tensor) or ()


def _attributes(tensor: Any) -> Iterator[tuple[Any, Any]] | None:
    """Where tensor subclasses keep inner tensors: their state. None where there can be none."""
    found: list[tuple[Any, Any]] = []
    for layer in _layers(tensor):
        if type(layer) in (standins.FromType, standins.Parameter):
            states = layer.state[:2] if type(layer.state) is tuple else (layer.state,)
            found += chain.from_iterable(part.items() for part in states if isinstance(part, dict))
        if type(layer) is standins.FromType and layer.func is standins.JaggedTensor and type(layer.args) is tuple:
            found += chain.from_iterable(part.items() for part in layer.args if isinstance(part, dict))
    return iter(found) if found else None


def _object_children(value: Opaque) -> Iterator[tuple[Any, Any]]:
    """State, items and arguments of an object, in that order, as if they were its attributes."""
    states = value.state if type(value.state) is tuple and len(value.state) == 2 else (value.state,)
    if all(state is None or isinstance(state, dict) for state in states):  # attributes, those in `__slots__` apart
        yield from chain.from_iterable(state.items() for state in states if state is not None)
    else:
        yield "state", value.state
    yield from value.items.items()
    yield from enumerate(value.extra)
    yield from enumerate(value.args)
    yield from value.kwargs.items()
