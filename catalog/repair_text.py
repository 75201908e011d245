"""A repaired sidecar as a file: the smallest edit of its text, so that comments, order and spelling stay.

Whatever the edit came to is read again; where that is not exactly the document that was meant, it is written anew.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import yaml

from ckptd.validators.inspection import Plain

from .description import FieldChange
from .documents import DocumentError, load_document
from .repair import Evidence, repaired

_Path = tuple[str, ...]
_Loader: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNBROKEN = 1 << 20
"""Columns: lines are never folded."""


class _Edit(NamedTuple):
    """Characters [start, end) become `text`."""

    start: int
    end: int
    text: str


def repaired_file(data: bytes, evidence: Evidence, *, is_json: bool) -> tuple[bytes, tuple[FieldChange, ...]]:
    """Repair a sidecar's bytes (see `repair.repaired`).

    Returns:
        The bytes of the whole file, and the changes; the same bytes and none where there is nothing to do.

    Raises:
        DocumentError: they are no document that may be read.
    """
    document = load_document(data, is_json=is_json)
    right, changes = repaired(document, evidence)
    if not changes or not isinstance(right, dict):
        return data, ()
    if is_json:
        return (json.dumps(right, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace"), changes
    for text in (_edited(data, right, changes), _written_anew(right)):
        if text is not None and _says(text, right):
            return text.encode(), changes
    return data, ()  # it cannot be said in YAML: better left as it is


def _says(text: str, document: Plain) -> bool:
    try:
        read = load_document(text.encode(), is_json=False)
    except (DocumentError, UnicodeError):
        return False
    return json.dumps(read, sort_keys=True) == json.dumps(document, sort_keys=True)


def _written_anew(document: dict[str, Plain]) -> str:
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=_UNBROKEN))


# ---- edits -----------------------------------------------------------------------------------------------------


def _edited(data: bytes, right: dict[str, Plain], changes: Sequence[FieldChange]) -> str | None:
    """The text with as little changed as possible; None where its form does not allow that."""
    try:
        text = data.decode()
        root = yaml.compose(text, Loader=_Loader)
    except (UnicodeDecodeError, yaml.YAMLError):
        return None
    if not isinstance(root, yaml.MappingNode):
        return None
    places = _outermost(_first_missing(root, change.field) for change in changes)
    edits: list[_Edit] = []
    for holder, names in _by_holder(places).items():
        node = _descend(root, holder)
        if not isinstance(node, yaml.MappingNode):
            return None
        values = {name: _value(right, (*holder, name)) for name in names}
        there = {key.value: value for key, value in node.value}
        for name in [name for name in names if name in there]:
            edit = _replacement(text, there[name], values.pop(name))
            if edit is None:
                return None
            edits.append(edit)
        if values:
            edits.append(_addition(text, node, values, is_root=node is root))
    for edit in sorted(edits, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _first_missing(root: yaml.MappingNode, path: _Path) -> _Path:
    """The path, cut behind the first key that is not there: what is missing comes with all that belongs in it."""
    for depth in range(1, len(path)):
        if _descend(root, path[:depth]) is None:
            return path[:depth]
    return path


def _outermost(paths: Iterable[_Path]) -> list[_Path]:
    known = list(dict.fromkeys(paths))
    return [path for path in known if not any(path[:depth] in known for depth in range(1, len(path)))]


def _by_holder(paths: Iterable[_Path]) -> dict[_Path, list[str]]:
    holders: dict[_Path, list[str]] = {}
    for path in paths:
        holders.setdefault(path[:-1], []).append(path[-1])
    return holders


def _descend(node: yaml.Node, path: _Path) -> yaml.Node | None:
    for name in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        found = next((value for key, value in node.value if key.value == name), None)
        if found is None:
            return None
        node = found
    return node


def _value(document: Plain, path: _Path) -> Plain:
    for name in path:
        document = document[name]
    return document


def _replacement(text: str, node: yaml.Node, value: Plain) -> _Edit | None:
    if not isinstance(node, yaml.ScalarNode) or node.style in ("|", ">"):
        return None
    start, end = node.start_mark.index, node.end_mark.index
    gap = " " if start == end and text[start - 1 : start] == ":" else ""
    return _Edit(start, end, gap + _flow(value))


def _addition(text: str, node: yaml.MappingNode, values: dict[str, Plain], *, is_root: bool) -> _Edit:
    if node.flow_style:
        end = node.end_mark.index - 1
        pairs = ", ".join(f"{_flow(name)}: {_flow(value)}" for name, value in values.items())
        return _Edit(end, end, f", {pairs}" if node.value else pairs)
    first = node.value[0][0].start_mark
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = _block(values, first.column)
    if is_root:
        before = "" if text.endswith("\n") else newline
        return _Edit(len(text), len(text), before + "".join(line + newline for line in lines))
    last = node.value[-1][1]
    if isinstance(last, yaml.ScalarNode) and last.style not in ("|", ">"):
        at = text.find("\n", last.end_mark.index)
        if at >= 0:
            return _Edit(at + 1, at + 1, "".join(line + newline for line in lines))
    at = first.index - first.column
    return _Edit(at, at, "".join(line + newline for line in lines))


def _block(values: dict[str, Plain], column: int) -> Iterator[str]:
    """Lines of a block mapping, indented."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=_UNBROKEN)
    return (" " * column + line for line in str(text).splitlines())


def _flow(value: Plain) -> str:
    """A value on one line."""
    text = str(yaml.safe_dump([value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=_UNBROKEN))
    return text.strip()[1:-1]
