"""The parts of a live model: encoder, decoder, head and loss, found wherever the module keeps them."""

import types
import weakref
from collections.abc import Iterator
from typing import Any

from ckptd.validators.inspection import Plain

_HOLDERS = ("model", "net", "network", "module", "_orig_mod")
"""Where a LightningModule keeps the real model; DDP and torch.compile wrap it once more."""
_MAX_HOLDERS = 8
_PARTS = {
    "encoder": ("encoder", "backbone"),
    "decoder": ("decoder",),
    "head": ("head",),
    "loss": ("loss", "criterion", "loss_fn"),
}
_NAMES = {
    "encoder": ("model_name", "encoder_name", "name"),
    "decoder": ("name", "decoder_name"),
    "head": ("name", "head_name"),
    "loss": ("name", "loss_name"),
}
_NAME_FIELDS = {"encoder": "model_name"}
_CHANNELS: dict[str, dict[str, tuple[str, ...]]] = {
    "decoder": {
        "in_channels": ("in_channels",),
        "inner_channels": ("inner_channels",),
        "output_channels": ("output_channels", "out_channels"),
    },
    "head": {"in_channels": ("in_channels",)},
}
_CONTAINERS = frozenset({"Module", "Sequential", "ModuleList", "ModuleDict", "Identity", "LightningModule"})
"""Classes that say how a part is put together, not what it is."""

_parameters: "weakref.WeakKeyDictionary[Any, list[Any]]" = weakref.WeakKeyDictionary()
"""Encoder → its parameters: walking through 1,000 modules takes a millisecond, asking 1,000 flags 30 µs."""


def known_parts(module: Any) -> dict[str, Plain]:
    """What a model says of its parts: dotted metadata field → value, only what is known for certain.

    Names are those that the parts carry themselves (`model_name`, timm's and transformers' configurations), channels
    those of their attributes; `frozen` says that no parameter of the encoder is trained.
    """
    found: dict[str, Plain] = {"model.architecture": _text(module, ("architecture_name", "architecture"))}
    parts = _parts(module)
    for part, value in parts.items():
        found[f"model.{part}.{_NAME_FIELDS.get(part, 'name')}"] = _own_name(part, value)
        for field, names in _CHANNELS.get(part, {}).items():
            found[f"model.{part}.{field}"] = next(filter(None, (_channels(_get(value, name)) for name in names)), None)
    encoder = parts.get("encoder")
    if encoder is not None:
        pretrained = _get(encoder, "pretrained")
        found["model.encoder.pretrained"] = pretrained if isinstance(pretrained, bool) else None
        found["model.encoder.frozen"] = _is_frozen(encoder)
    return {field: value for field, value in found.items() if value is not None}


def class_names(module: Any) -> dict[str, Plain]:
    """The classes of decoder, head and loss: names for want of better ones, as configs give them by `_target_`.

    None for the encoder: the class of an encoder is seldom the name of its model.
    """
    named = {part: _class_name(value) for part, value in _parts(module).items() if part != "encoder"}
    return {f"model.{part}.name": name for part, name in named.items() if name is not None}


def _parts(module: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for holder in _holders(module):
        for part, names in _PARTS.items():
            if part not in parts:
                value = next(filter(_is_part, (_get(holder, name) for name in names)), None)
                if value is not None:
                    parts[part] = value
    return parts


def _holders(module: Any) -> Iterator[Any]:
    """The module, then what it holds, nearest first."""
    queue = [module]
    seen: set[int] = set()
    while queue and len(seen) < _MAX_HOLDERS:
        holder = queue.pop(0)
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        yield holder
        queue += [inner for name in _HOLDERS if _is_module(inner := _get(holder, name))]


def _get(holder: Any, name: str) -> Any:
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001 - a property of somebody's module may raise anything; then it says nothing
        return None


def _is_module(value: Any) -> bool:
    return callable(getattr(type(value), "parameters", None)) and hasattr(type(value), "named_children")


def _is_part(value: Any) -> bool:
    """A module, or for losses a plain function; not a number, a tensor or a method called `loss`."""
    return _is_module(value) or isinstance(value, types.FunctionType)


def _own_name(part: str, value: Any) -> str | None:
    named = _text(value, _NAMES[part])
    if named is not None or part != "encoder":
        return named
    for holder in _holders(value):
        for attribute, key in (("pretrained_cfg", "architecture"), ("default_cfg", "architecture")):  # timm
            config = _get(holder, attribute)
            name = config.get(key) if isinstance(config, dict) else _get(config, key)
            if isinstance(name, str) and name:
                return name
        name = _text(_get(holder, "config"), ("name_or_path",))  # transformers
        if name is not None:
            return name
    return None


def _class_name(value: Any) -> str | None:
    if isinstance(value, types.FunctionType):
        return None if value.__name__ == "<lambda>" else value.__name__
    name = type(value).__name__
    return None if name in _CONTAINERS else name


def _text(holder: Any, names: tuple[str, ...]) -> str | None:
    values = (_get(holder, name) for name in names)
    return next((value.strip() for value in values if isinstance(value, str) and value.strip()), None)


def _channels(value: Any) -> Plain:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        return list(value)
    return None


def _is_frozen(encoder: Any) -> bool | None:
    try:
        parameters = _parameters.get(encoder)
        if parameters is None:
            parameters = _parameters[encoder] = list(encoder.parameters())
        return not any(parameter.requires_grad for parameter in parameters) if parameters else None
    except Exception:  # noqa: BLE001 - as _get
        return None
