"""Stand-ins: what the inert unpickler puts in the place of every class and function that a pickle names.

All of them only keep what they are given. Each defines `__setstate__`, because pickle's BUILD otherwise sets
attributes on whatever it is applied to. Those of tensors are constructed in C (msgspec structs): a checkpoint may
hold 100,000 of them, and a Python frame for each costs more than all the rest.
"""

from typing import Any, ClassVar, Self

import msgspec

from .tally import note_build, note_strange

# Fields are what the file says and may be of any type: whoever reads them checks (`tensors`).
Unchecked = Any

_MAX_MEMBERS = 100
"""Classes below one name of a file; each costs a kilobyte. Real files have few nested classes and members of enums."""
_MAX_MEMBER_NAME = 1000


_BUILDABLE = frozenset(("torch.nn.parameter.Parameter", "torch.Tensor", "collections.Counter"))
"""Classes without a stand-in of their own on whose objects torch lets BUILD act, beside OrderedDict."""


class StandIn(msgspec.Struct, eq=False):
    """Base of the stand-ins with a fixed form. Compared and hashed by identity, like a tensor."""

    def __setstate__(self, state: object) -> None:
        """Take pickle's BUILD and keep nothing of it: torch restores attributes here, none that we describe."""


class Storage(tuple[Unchecked, ...]):
    """A persistent id: ("storage", storage class, key, location, number of elements).

    torch/serialization.py, `_save.persistent_id`.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Keep nothing; see `StandIn`."""


class InertDict(dict[Unchecked, Unchecked]):
    """`collections.OrderedDict` without its attributes: a real one could be made to lie about its items."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Keep nothing: torch stores the version numbers of modules here (`_metadata`)."""
        note_build()


class Device(StandIn):
    """`torch.device`."""

    type: Unchecked
    index: Unchecked = None


class Tensor(StandIn):
    """`torch._utils._rebuild_tensor_v2`, and `_rebuild_tensor` with its first four arguments."""

    storage: Unchecked
    offset: Unchecked
    shape: Unchecked
    stride: Unchecked
    requires_grad: Unchecked = False
    hooks: Unchecked = None
    metadata: Unchecked = None


class TensorV3(StandIn):
    """`torch._utils._rebuild_tensor_v3`: an untyped storage and an explicit dtype."""

    storage: Unchecked
    offset: Unchecked
    shape: Unchecked
    stride: Unchecked
    requires_grad: Unchecked
    hooks: Unchecked
    dtype: Unchecked
    metadata: Unchecked = None


class QuantizedTensor(StandIn):
    """`torch._utils._rebuild_qtensor`."""

    storage: Unchecked
    offset: Unchecked
    shape: Unchecked
    stride: Unchecked
    quantizer: Unchecked
    requires_grad: Unchecked
    hooks: Unchecked


class MetaTensor(StandIn):
    """`torch._utils._rebuild_meta_tensor_no_storage`: a shape without data."""

    dtype: Unchecked
    shape: Unchecked
    stride: Unchecked
    requires_grad: Unchecked


class WrapperSubclass(StandIn):
    """`torch._utils._rebuild_wrapper_subclass`: a shape whose data lies in the object's own attributes."""

    cls: Unchecked
    dtype: Unchecked
    shape: Unchecked
    stride: Unchecked
    offset: Unchecked
    layout: Unchecked
    device: Unchecked
    requires_grad: Unchecked


class SparseTensor(StandIn):
    """`torch._utils._rebuild_sparse_tensor`: (indices, values, size, …) or (compressed, plain, values, size)."""

    layout: Unchecked
    data: Unchecked


class NestedTensor(StandIn):
    """`torch._utils._rebuild_nested_tensor`."""

    buffer: Unchecked
    sizes: Unchecked
    strides: Unchecked
    offsets: Unchecked


class JaggedTensor(StandIn):
    """`torch.nested._internal.nested_tensor._rebuild_njt`: a dictionary of values, offsets, lengths, …"""

    parts: Unchecked


class Parameter(StandIn):
    """`torch._utils._rebuild_parameter` and `_rebuild_parameter_with_state`."""

    data: Unchecked
    requires_grad: Unchecked
    hooks: Unchecked
    state: Unchecked = None


class FromType(StandIn):
    """`torch._tensor._rebuild_from_type_v2`: a tensor subclass, rebuilt by `func(*args)`."""

    func: Unchecked
    new_type: Unchecked
    args: Unchecked
    state: Unchecked


class DeviceTensor(StandIn):
    """`_rebuild_device_tensor_from_numpy`, `_rebuild_device_tensor_from_cpu_tensor`, `_rebuild_xla_tensor`."""

    data: Unchecked
    dtype: Unchecked
    device: Unchecked
    requires_grad: Unchecked


TENSOR_TYPES: frozenset[type] = frozenset(
    (
        Tensor,
        TensorV3,
        QuantizedTensor,
        MetaTensor,
        WrapperSubclass,
        SparseTensor,
        NestedTensor,
        JaggedTensor,
        Parameter,
        FromType,
        DeviceTensor,
    )
)


class Opaque:
    """What stands for every other class and function: called, built and filled, it only remembers."""

    __slots__ = ("args", "extra", "items", "kwargs", "state")

    name: ClassVar[str] = ""
    """`module.name` as in the file."""
    members: ClassVar["dict[str, type[Opaque]]"] = {}
    """Classes inside this one that the file asked for, by qualified name; see `Attribute`."""

    args: tuple[Unchecked, ...]
    kwargs: dict[str, Unchecked]
    state: Unchecked
    items: dict[Unchecked, Unchecked]
    """Set by pickle's SETITEMS, for mappings."""
    extra: list[Unchecked]
    """Set by pickle's APPENDS and ADDITEMS, for sequences and sets."""

    def __new__(cls, *args: Unchecked, **kwargs: Unchecked) -> Self:
        made = object.__new__(cls)
        made.args, made.kwargs, made.state, made.items, made.extra = args, kwargs, None, {}, []
        return made

    def __call__(self, *args: Unchecked, **kwargs: Unchecked) -> "Opaque":
        """Whatever a call of the unknown object would give is unknown as well."""
        note_strange()
        return _Result(self, *args, **kwargs)

    def __setstate__(self, state: Unchecked) -> None:
        if self.name in _BUILDABLE:
            note_build()
        self.state = state

    def __setitem__(self, key: Unchecked, value: Unchecked) -> None:
        self.items[key] = value
        if self.name != "collections.Counter":
            note_strange()

    def append(self, value: Unchecked) -> None:
        self.extra.append(value)
        note_strange()

    def extend(self, values: Unchecked) -> None:
        self.extra.extend(values)
        note_strange()

    def add(self, value: Unchecked) -> None:
        self.extra.append(value)


class Attribute(Opaque):
    """`getattr(class, name)`: how pickle's protocols 0 to 3 name a class inside a class, and some enums a member.

    The outcome must be a class again: NEWOBJ makes objects of it.
    """

    __slots__ = ()
    name = "builtins.getattr"

    def __new__(cls, *args: Unchecked, **kwargs: Unchecked) -> Any:
        """The class `owner.name`; for anything but a class and a name an object that remembers what was asked."""
        if len(args) == 2 and isinstance(args[0], type) and issubclass(args[0], Opaque) and type(args[1]) is str:
            found = _member_class(*args)
            if found is not None:
                return found
        return super().__new__(cls, *args, **kwargs)


class _Result(Opaque):
    """The outcome of calling an object that is itself a stand-in."""

    __slots__ = ()
    name = "(result of a call)"


def opaque_class(qualified_name: str, members: dict[str, type[Opaque]] | None = None) -> type[Opaque]:
    """A class for one name of one file: pickle's NEWOBJ demands a type, and each name must be told apart.

    Args:
        qualified_name: `module.name`.
        members: the classes that were asked for below the same name of the file; none so far by default.
    """
    namespace = {"__slots__": (), "name": qualified_name, "members": {} if members is None else members}
    return type("Opaque", (Opaque,), namespace)


def _member_class(owner: type[Opaque], name: str) -> type[Opaque] | None:
    """The class `owner.name`, the same at each call; None where a hostile file asks for many or long ones."""
    if "members" not in owner.__dict__:  # not a name of this file
        return None
    qualified_name = f"{owner.name}.{name[:_MAX_MEMBER_NAME]}"
    found = owner.members.get(qualified_name)
    if found is None and len(owner.members) < _MAX_MEMBERS and len(qualified_name) <= _MAX_MEMBER_NAME:
        found = owner.members[qualified_name] = opaque_class(qualified_name, owner.members)
    return found
