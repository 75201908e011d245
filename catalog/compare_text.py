"""A comparison as a table: CSV for spreadsheets, Markdown for reports and issues."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from ckptd.validators.inspection import Plain
from ckptd.validators.text import counted

from .compare import SECTIONS, Attribute, Comparison
from .compare_tensors import TensorRow

ATTRIBUTE_SECTIONS = ("identity", *(name for name in SECTIONS if name != "tensors"))
MAX_CELL = 500
"""Characters of one value; a whole prompt or a class list does not help to compare."""

_FORMULA = re.compile(r"\s*[=+\-@\uff0b\uff0d\uff1d\uff20|%]|[\t\r\n]")
"""What makes a spreadsheet take text for a formula, its full-width twins included (OWASP, CSV Injection)."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\Z")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~!])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}


class Line(NamedTuple):
    """One line of the table."""

    section: str
    name: str
    status: str
    """Of tensors: what became of them, for each checkpoint but the first, separated by slashes."""
    best: str
    """Of metrics: numbers of the checkpoints, from 1, with the best value."""
    values: tuple[str, ...]


def lines(comparison: Comparison, sections: Sequence[str] = (*ATTRIBUTE_SECTIONS, "tensors")) -> Iterator[Line]:
    """The comparison line by line, one section after the other; the tensors begin with their number by change."""
    for name in sections:
        if name == "tensors":
            yield from _tensor_lines(comparison)
        else:
            yield from (_attribute_line(name, row) for row in getattr(comparison, name).rows)


def to_csv(comparison: Comparison) -> str:
    """The comparison as CSV (RFC 4180) with a heading, safe to be opened by a spreadsheet.

    Text that a spreadsheet would take for a formula gets an apostrophe before it: the names in a checkpoint are whoever
    wrote it's.
    """
    out = io.StringIO()
    writer = csv.writer(out)  # its line ends are CR LF, as the standard has them
    writer.writerow(["section", "name", "status", "best", *(_csv_cell(label) for label in labels(comparison))])
    for line in lines(comparison):
        values = map(_csv_cell, line.values)
        writer.writerow([line.section, _csv_cell(line.name), line.status, line.best, *values])
    return out.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown: a table for each section (GitHub Flavored Markdown, tables), the best metric bold."""
    heads = [_markdown_cell(label) for label in labels(comparison)]
    verdicts = ", ".join(str(verdict) for verdict in comparison.weights)
    parts = [f"# Comparison of {len(heads)} checkpoints\n\nverdict: {comparison.verdict}; weights: {verdicts}\n"]
    for name in (*ATTRIBUTE_SECTIONS, "tensors"):
        rows = [_markdown_row(line) for line in lines(comparison, (name,))]
        if rows:
            title = name.replace("_", " ").replace("hyper ", "hyper-").capitalize()
            header = f"| name | status | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}\n"
            parts.append(f"## {title}\n\n{header}" + "".join(rows) + _omitted(comparison, name))
    return "\n".join(parts)


def labels(comparison: Comparison) -> list[str]:
    """What to call each checkpoint: its path in its root; with its id where two are called alike."""
    paths = [entry.path for entry in comparison.checkpoints]
    return [
        entry.path if paths.count(entry.path) == 1 else f"{entry.path} ({entry.id})" for entry in comparison.checkpoints
    ]


def value_text(value: Plain) -> str:
    """A value for people, on one line and not too long; nothing for null."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
    text = text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair is no text that can be written
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def tensor_text(row: TensorRow, position: int) -> str:
    """A tensor of one of the checkpoints: `float32 [64, 3, 7, 7]`; nothing where it has none."""
    shape = row.shapes[position]
    return "" if shape is None else f"{row.dtypes[position]} {list(shape)}"


def _attribute_line(section: str, row: Attribute) -> Line:
    best = " ".join(str(position + 1) for position in row.best)
    values = tuple(
        "" if position in row.missing else "null" if value is None else value_text(value)
        for position, value in enumerate(row.values)
    )
    return Line(section, value_text(row.name), row.status, best, values)


def _tensor_lines(comparison: Comparison) -> Iterator[Line]:
    tensors = comparison.tensors
    yield Line("tensors", "(total)", "", "", tuple(map(str, tensors.totals)))
    yield Line("tensors", "(checksums)", "", "", tuple(tensors.checksums))
    counts = [msgspec.structs.asdict(counted) for counted in tensors.counts]
    for change in counts[0]:
        yield Line("tensors", f"({change})", "", "", ("", *(str(counted[change]) for counted in counts)))
    for row in tensors.rows:
        cells = tuple(tensor_text(row, position) for position in range(len(row.shapes)))
        yield Line("tensors", value_text(row.name), "/".join(row.changes), "", cells)


def _omitted(comparison: Comparison, name: str) -> str:
    if name == "tensors":
        tensors = comparison.tensors
        left = tensors.total - len(tensors.rows)
    else:
        left = getattr(comparison, name).omitted
    return f"\nNot listed: {counted(left, 'further row')}.\n" if left else ""


def _csv_cell(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.match(text) else text


def _markdown_row(line: Line) -> str:
    cells = [_markdown_cell(value) for value in line.values]
    for number in line.best.split():
        cells[int(number) - 1] = f"**{cells[int(number) - 1]}**"
    return f"| {_markdown_cell(line.name)} | {line.status} | {' | '.join(cells)} |\n"


def _markdown_cell(text: str) -> str:
    escaped = _MARKDOWN.sub(r"\\\1", text)
    for character, entity in _ENTITIES.items():
        escaped = escaped.replace(character, entity)
    return escaped
