"""Values to compare: nested settings under dotted names, and when two values are equal."""

from collections.abc import Iterator
from typing import Any

from ckptd.validators.inspection import Plain

Known = dict[str, Plain]
"""Name → value; what is not known is not in it."""


def flatten(value: Plain) -> Known:
    """Nested plain data under dotted names: `{"model": {"lr": 1}}` → `{"model.lr": 1}`.

    A list of plain values is one value; one that holds mappings is taken apart (`layers.0.name`). A key with a dot in
    it is quoted, so that two settings never share a name. Nothing for None; a value that is no mapping has the name "".
    """
    if value is None:
        return {}
    return dict(_leaves("", value)) if not isinstance(value, dict) or value else {}


def values_equal(one: Plain, other: Plain) -> bool:
    """Whether two plain values say the same: 1 is 1.0 (YAML and JSON write it either way), but True is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(values_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(values_equal(value, other[key]) for key, value in one.items())
    return bool(one == other or (one != one and other != other))  # a NaN beside a NaN


def _leaves(name: str, value: Plain) -> Iterator[tuple[str, Plain]]:
    # Depth is bounded where these values are made: 32 levels in checkpoints, fewer in documents.
    children = _children(value)
    if not children:
        yield name, value
        return
    for key, child in children:
        yield from _leaves(f"{name}.{key}" if name else key, child)


def _children(value: Plain) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(_quoted(key), child) for key, child in value.items()]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [(str(index), item) for index, item in enumerate(value)]
    return []


def _quoted(key: str) -> str:
    return f'"{key}"' if "." in key or not key else key
