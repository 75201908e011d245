"""The table of architectures: read from YAML, checked, and compiled into keys to look up; nothing is searched for."""

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import yaml

from .architecture_rows import ANY_SHAPE, Shape, TableError, expand_rows

__all__ = ["Layout", "Loop", "Shape", "Table", "TableError", "load_table", "table_digest"]

MAX_TABLE_BYTES = 1 << 20
DEFAULT_THRESHOLD = 0.99

_PACKAGED = os.path.join(os.path.dirname(__file__), "architectures.yaml")
PARTS = ("encoder", "decoder", "head")
_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
_NAME = re.compile(r"(?:[^{}]|\{[a-z]+\})+")
_LAST, _COUNTER = ".running_var", ".num_batches_tracked"
"""What a batch norm has since torch 0.4.1 besides its statistics: there or not, it says nothing."""
_CSAFE: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, seven times as fast, where PyYAML was built with it."""


class Loop(msgspec.Struct, frozen=True):
    """Keys that repeat in each numbered block: `before`, the number, and the rest."""

    before: str
    start: int
    rows: tuple[tuple[str, Shape], ...]
    """(rest of the key, shape); the first one tells how many blocks there are."""
    optional: tuple[tuple[str, Shape], ...] = ()


class Variant(msgspec.Struct, frozen=True):
    """One member of a family: what it is called, and by what it is known."""

    name: str
    blocks: tuple[int, ...] = ()
    """Of each loop, in order; none given: any."""
    values: dict[str, tuple[int, ...]] = {}
    family: str = ""


class Layout(msgspec.Struct, frozen=True):
    """One library's names for the tensors of one family."""

    family: str
    part: str
    threshold: float
    closed: bool
    generic: bool
    label: str
    """For messages: which entry it is from."""
    keys: tuple[tuple[str, Shape], ...]
    """Each must be there."""
    n_keys: int
    """Of those, the ones that no loop counts as well."""
    subtrees: tuple[str, ...]
    """Something must be below each of these modules."""
    loops: tuple[Loop, ...]
    optional: tuple[tuple[str, Shape], ...]
    optional_subtrees: tuple[str, ...]
    never: tuple[str, ...]
    any_of: tuple[str, ...]
    variants: tuple[Variant, ...]
    heads: frozenset[str]
    """First segments of what must be there."""
    owned: frozenset[str]
    """First segments of everything that it names."""


class Combination(msgspec.Struct, frozen=True):
    """What a model of these parts is called."""

    name: str
    parts: dict[str, tuple[str, ...]]


class Table(msgspec.Struct, frozen=True):
    """Everything that recognition knows."""

    by_head: dict[str, tuple[Layout, ...]]
    """The first segment of a layout's first key → the layouts."""
    combinations: tuple[Combination, ...]
    wrappers: frozenset[str]
    digest: str
    """Of the files that it was made from."""


class _LayoutEntry(msgspec.Struct, forbid_unknown_fields=True):
    expect: str
    optional: str = ""
    never: str = ""
    any_of: str = ""
    also: str = ""
    variants: str = ""


class _FamilyEntry(msgspec.Struct, forbid_unknown_fields=True):
    part: str
    layouts: list[_LayoutEntry]
    threshold: float = DEFAULT_THRESHOLD
    closed: bool = False
    generic: bool = False
    family: str = ""
    variants: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    families: dict[str, _FamilyEntry] = {}
    models: str = ""
    wrappers: str = ""


def load_table(path: str | None = None) -> Table:
    """The packaged table, extended by the file at `path`.

    Args:
        path: a YAML file of the same form; None for the packaged table alone, which is made once in a process.

    Raises:
        TableError: the file cannot be read, or an entry of it cannot be used.
    """
    if path is None:
        return _packaged_table()
    with_packaged = [(_PACKAGED, _read(_PACKAGED)), (path, _read(path))]
    return _compile(with_packaged)


def table_digest(path: str | None = None) -> str:
    """What `Table.digest` is, told without making the table: whether a table is still the one of an earlier time.

    Raises:
        TableError: the file cannot be read.
    """
    return _digest([(_PACKAGED, _read(_PACKAGED)), *([] if path is None else [(path, _read(path))])])


@functools.cache
def _packaged_table() -> Table:
    return _compile([(_PACKAGED, _read(_PACKAGED))])


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TABLE_BYTES + 1)
    except OSError as error:
        raise TableError(f"{path} cannot be read ({error.strerror}); name an existing file") from None
    if len(data) > MAX_TABLE_BYTES:
        raise TableError(f"{path} is larger than 1 MiB; it is no table of architectures")
    return data


def _compile(files: list[tuple[str, bytes]]) -> Table:
    families: dict[str, tuple[str, _FamilyEntry]] = {}
    combinations: dict[str, Combination] = {}
    wrappers: set[str] = set()
    for path, data in files:
        parsed = _parse(path, data)
        families |= {name: (f"{path}: families.{name}", entry) for name, entry in parsed.families.items()}
        combinations |= {one.name: one for one in _combinations(path, parsed.models)}
        wrappers.update(parsed.wrappers.split())
    by_head: dict[str, list[Layout]] = {}
    for name, (label, entry) in families.items():
        for layout in _layouts(name, entry, label):
            by_head.setdefault(_first_head(layout), []).append(layout)
    return Table(
        by_head={head: tuple(layouts) for head, layouts in by_head.items()},
        combinations=tuple(combinations.values()),
        wrappers=frozenset(wrappers),
        digest=_digest(files),
    )


def _digest(files: list[tuple[str, bytes]]) -> str:
    return hashlib.blake2b(b"\0".join(data for _, data in files), digest_size=16).hexdigest()


def _parse(path: str, data: bytes) -> _File:
    try:
        loaded = yaml.load(data, _CSAFE)  # noqa: S506 - one of PyYAML's safe loaders
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise TableError(f"{path} is not valid YAML ({' '.join(str(error).split())}); correct the file") from None
    try:
        return msgspec.convert({} if loaded is None else loaded, _File)
    except (msgspec.ValidationError, RecursionError) as error:
        raise TableError(f"{path}: {error}; see the head of {_PACKAGED} for the form") from None


def _first_head(layout: Layout) -> str:
    first = layout.keys[0][0] if layout.keys else (layout.subtrees[0] if layout.subtrees else layout.loops[0].before)
    return _head(first)


def _head(key: str) -> str:
    return key.partition(".")[0]


# ---- one family ------------------------------------------------------------------------------------------------


def _layouts(name: str, entry: _FamilyEntry, label: str) -> Iterator[Layout]:
    if entry.part not in PARTS:
        raise TableError(f"{label}: part is {entry.part!r}; write one of {', '.join(PARTS)}")
    if not 0 < entry.threshold <= 1:
        raise TableError(f"{label}: threshold is {entry.threshold}; write a share above 0, at most 1")
    for number, written in enumerate(entry.layouts):
        where = f"{label}.layouts[{number}]"
        for changed in _respelled(written, where):
            yield _layout(name, entry, changed, where)


def _respelled(layout: _LayoutEntry, label: str) -> Iterator[_LayoutEntry]:
    yield layout
    for spelling in filter(None, map(str.strip, layout.also.split("|"))):
        expect, optional = layout.expect, layout.optional
        for change in spelling.split():
            old, equals, new = change.partition("=")
            if not old or not equals:
                raise TableError(f"{label}: also holds {change!r}; write old=new")
            expect, optional = expect.replace(old, new), optional.replace(old, new)
        yield msgspec.structs.replace(layout, expect=expect, optional=optional, also="")


def _layout(name: str, entry: _FamilyEntry, written: _LayoutEntry, label: str) -> Layout:
    expected = list(expand_rows(written.expect, f"{label}.expect"))
    optional = list(expand_rows(written.optional, f"{label}.optional"))
    optional += [(key[: -len(_LAST)] + _COUNTER, ANY_SHAPE) for key, _ in (*expected, *optional) if key.endswith(_LAST)]
    if not expected:
        raise TableError(f"{label}: expect names no key")
    loops = _loops(expected, optional, label)
    family = entry.family or name
    variants = tuple(_variants(written.variants or entry.variants, family, len(loops), f"{label}.variants"))
    told = {dim[0] for _, shape in expected if shape is not None for dim in shape.dims if isinstance(dim, tuple)}
    for variant in variants:
        untold = {*variant.values, *_PLACEHOLDER.findall(variant.name)} - told
        if untold:
            raise TableError(f"{label}.variants: {variant.name} uses {min(untold)!r}, which no expected shape tells")
    keys = tuple((key, shape) for key, shape in expected if shape is not None and "#" not in key)
    repeated = [{after for after, _ in loop.rows} for loop in loops]
    heads = frozenset([_head(key) for key, _ in expected])
    if any("#" in head for head in heads):
        raise TableError(f"{label}: a key begins with a number (#); name the module that holds the blocks")
    return Layout(
        family=family,
        part=entry.part,
        threshold=entry.threshold,
        closed=entry.closed,
        generic=entry.generic or not variants,
        label=label,
        keys=keys,
        n_keys=len(keys) - sum(_repeats(loop.before, repeated[i], keys) for i, loop in enumerate(loops)),
        subtrees=tuple(key for key, shape in expected if shape is None),
        loops=loops,
        optional=tuple((key, shape) for key, shape in optional if shape is not None and "#" not in key),
        optional_subtrees=tuple(key for key, shape in optional if shape is None),
        never=tuple(written.never.split()),
        any_of=tuple(written.any_of.split()),
        variants=variants,
        heads=heads,
        owned=heads.union([_head(key) for key, _ in optional]),
    )


def _repeats(before: str, rests: set[str], keys: Iterable[tuple[str, Shape]]) -> int:
    """How many of the keys are those of blocks as well."""
    inside = [key[len(before) :] for key, _ in keys if key.startswith(before)]
    return sum(rest.lstrip("0123456789") in rests and rest[:1].isdigit() for rest in inside)


def _loops(
    expected: list[tuple[str, Shape | None]], optional: list[tuple[str, Shape | None]], label: str
) -> tuple[Loop, ...]:
    grouped: dict[tuple[str, int], tuple[list[tuple[str, Shape]], list[tuple[str, Shape]]]] = {}
    for is_optional, rows in enumerate((expected, optional)):
        for key, shape in rows:
            before, numbered, after = key.partition("#")
            if not numbered:
                continue
            digits, _, _ = after.partition(".")
            if "#" in after or shape is None or not (not digits or (digits.isdecimal() and len(digits) < 4)):
                raise TableError(f"{label}: {key!r} has several numbers (#), or a number and .**; write one")
            place = before, int(digits or 0)
            if is_optional and place not in grouped:
                raise TableError(f"{label}: {key!r} is optional, but no key of the same blocks is expected")
            grouped.setdefault(place, ([], []))[is_optional].append((after[len(digits) :], shape))
    return tuple(Loop(before, start, tuple(rows), tuple(more)) for (before, start), (rows, more) in grouped.items())


# ---- variants and combinations ---------------------------------------------------------------------------------


def _variants(text: str, family: str, n_loops: int, label: str) -> Iterator[Variant]:
    for line in text.splitlines():
        name, *words = line.split() or [""]
        if not name:
            continue
        if not _NAME.fullmatch(name):
            raise TableError(f"{label}: {name!r} is no name; braces hold the name of a number, such as {{patch}}")
        blocks = tuple(int(word) for word in words if word.isdecimal() and len(word) < 6)
        named = dict(word.split("=", 1) for word in words if "=" in word)
        if len(blocks) + len(named) != len(words) or len(blocks) not in (0, n_loops):
            raise TableError(f"{label}: {name} needs {n_loops} numbers of blocks, or none, then name=number")
        own_family = named.pop("family", family)
        try:
            values = {key: tuple(map(int, value.split("|"))) for key, value in named.items()}
        except ValueError:
            raise TableError(f"{label}: {name} has a value that is no number") from None
        yield Variant(name, blocks, values, own_family)


def _combinations(path: str, text: str) -> Iterator[Combination]:
    for line in text.splitlines():
        name, *words = line.split() or [""]
        if not name:
            continue
        parts = dict(word.partition("=")[::2] for word in words)
        if not parts or not set(parts) <= set(PARTS) or not all(parts.values()):
            raise TableError(f"{path}: models: {name} needs part=name, with a part of {', '.join(PARTS)}")
        yield Combination(name, {part: tuple(names.split("|")) for part, names in parts.items()})
