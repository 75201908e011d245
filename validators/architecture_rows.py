"""The lines of the table of architectures: keys and shapes, their lists written out (see `architectures.yaml`)."""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator

import msgspec

MAX_ROWS = 20_000
"""Keys that one layout may come to, its lists written out; the longest of ours has 300."""

_SETS = {"<wb>": "<weight,bias>", "<bn>": "<weight,bias,running_mean,running_var>"}
_BRACES = re.compile(r"\{([^{}]*)\}")
_PRODUCT = re.compile(r"<([^<>]*)>")
_TOKEN = re.compile(r"(?:(?P<number>[0-9]{1,9})|(?P<any>_)|(?P<name>[a-z]+)(?:\*(?P<factor>[0-9]{1,6}))?)\Z")


class TableError(ValueError):
    """Raised when a table of architectures cannot be used; the message names the file, the entry and what is wrong."""


Dim = int | None | tuple[str, int]
"""One side of a tensor: its length, any, or (name, factor): so many times what stands under the name."""


class Shape(msgspec.Struct, frozen=True, gc=False):
    """What a tensor's shape must be."""

    dims: tuple[Dim, ...]
    open_ended: bool = False
    """Any further sides may follow."""
    exact: tuple[int, ...] | None = None
    """All of it, where it is nothing but numbers."""
    tail: tuple[int, ...] | None = None
    """What comes after sides of any length, where it is nothing but numbers."""


ANY_SHAPE = Shape((), open_ended=True)


def expand_rows(text: str, label: str) -> Iterator[tuple[str, Shape | None]]:
    """Write out the lines of an entry.

    Yields:
        (key, shape) for each key that a line stands for; (module, None) for a subtree.

    Raises:
        TableError: a line cannot be used; it begins with `label`.
    """
    n = 0
    for line in text.splitlines():
        key, _, shape = line.partition("#  ")[0].strip().partition(" ")
        if not key:
            continue
        if key.endswith(".**"):
            yield _subtree(key, shape, label), None
            continue
        for keys, one_shape in _written_out(key, shape, label):
            n += len(keys)
            if n > MAX_ROWS:
                raise TableError(f"{label}: {key!r} comes to more than {MAX_ROWS:,} keys")
            try:
                checked = shape_of(one_shape)
            except ValueError as error:
                raise TableError(f"{label}: {key!r}: {error}") from None
            for one_key in keys:
                yield one_key, checked


def _subtree(key: str, shape: str, label: str) -> str:
    module = key.removesuffix(".**")
    if shape or not module or "." in module or "#" in module:
        raise TableError(f"{label}: {key!r} must be one module and .**, without a shape")
    return module


def _written_out(key: str, shape: str, label: str) -> Iterator[tuple[list[str], str]]:
    for name, members in _SETS.items():
        key = key.replace(name, members)
    for one_key, one_shape in _zipped(key, shape, label):
        if "<" not in one_key:
            yield [one_key], one_shape
            continue
        # Split at the sets: text, members, text, members, … text.
        pieces = _PRODUCT.split(one_key)
        if math.prod(piece.count(",") + 1 for piece in pieces[1::2]) > MAX_ROWS:
            raise TableError(f"{label}: {key!r} comes to more than {MAX_ROWS:,} keys")
        choices = [piece.split(",") if at % 2 else (piece,) for at, piece in enumerate(pieces)]
        yield list(map("".join, itertools.product(*choices))), one_shape


def _zipped(key: str, shape: str, label: str) -> Iterable[tuple[str, str]]:
    pieces = _BRACES.split(f"{key}\n{shape}")
    lists = [piece.split(",") for piece in pieces[1::2]]
    if not lists:
        return [(key, shape)]
    if len({len(one) for one in lists}) > 1:
        raise TableError(f"{label}: the lists of {key!r} have different lengths")
    columns = [lists[at // 2] if at % 2 else itertools.repeat(piece) for at, piece in enumerate(pieces)]
    return [("".join(row).split("\n", 1)[0], "".join(row).split("\n", 1)[1]) for row in zip(*columns, strict=False)]


@functools.lru_cache(maxsize=4096)
def shape_of(text: str) -> Shape:
    """Read a shape as the table writes it.

    Raises:
        ValueError: it is none; the message says why.
    """
    dims: list[Dim] = []
    tokens = text.split()
    open_ended = bool(tokens) and tokens[-1] == "..."
    for token in tokens[:-1] if open_ended else tokens:
        match = _TOKEN.match(token)
        if match is None:
            raise ValueError(f"{token!r} is no side of a shape; write a number, _, name or name*2")
        if match["name"]:
            dims.append((match["name"], int(match["factor"] or 1)))
        else:
            dims.append(int(match["number"]) if match["number"] else None)
    if not tokens:
        raise ValueError("the shape is missing; write `...` for any")
    numbers = tuple(dim for dim in dims if isinstance(dim, int))
    if open_ended or dims[: len(dims) - len(numbers)].count(None) + len(numbers) < len(dims):
        return Shape(tuple(dims), open_ended)
    return Shape(tuple(dims), exact=numbers if len(numbers) == len(dims) else None, tail=numbers)
