"""What people and programs see: tables and progress on a terminal, plain lines in a pipe, JSON on request."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

LONG_TABLE = 1000
"""Rows from which on a table is padded, not laid out: rich takes 0.5 ms for each."""


def is_terminal() -> bool:
    """Whether standard output is looked at by a person."""
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    """One JSON document on standard output; structs and paths that are not UTF-8 included."""
    plain = msgspec.to_builtins(value)
    print(json.dumps(plain, indent=2 if is_terminal() else None))


def printable(text: str) -> str:
    """`text` with control characters and undecodable bytes shown as escapes: names come from files."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """A table on a terminal, tab-separated lines without a heading in a pipe.

    Args:
        columns: headings.
        rows: cells; None is shown as nothing.
        right: headings of the columns that hold numbers.
    """
    if not is_terminal():
        for row in rows:
            print_line(row)
        return
    shown = [_shown_cells(row) for row in rows]
    if len(shown) > LONG_TABLE:
        _print_padded(columns, shown, right)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in right
        )
    for row in shown:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _print_padded(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = zip(columns, row, widths, strict=True)
        print("  ".join(f"{cell:>{w}}" if name in right else f"{cell:{w}}" for name, cell, w in cells).rstrip())


def print_line(cells: Sequence[object]) -> None:
    """One row as tab-separated fields; None is shown as nothing."""
    print("\t".join(_shown_cells(cells)))


def _shown_cells(cells: Iterable[object]) -> list[str]:
    return ["" if cell is None else printable(str(cell)) for cell in cells]


class Progress(Protocol):
    """How far a job is."""

    def advance(self, size_bytes: int = 0) -> None:
        """One more is done, of so many bytes."""
        ...


@contextmanager
def progress(what: str, total: int, total_bytes: int | None = None) -> Iterator[Progress]:
    """A progress bar on standard error while it is a terminal; silent otherwise.

    Args:
        what: the job.
        total: how many there are.
        total_bytes: their size, where every byte is read; the bar then shows bytes and their speed.
    """
    if not sys.stderr.isatty() or (total < 2 and total_bytes is None):
        yield _Silent()
        return
    from rich import progress as bars
    from rich.console import Console

    how_far = (
        (bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
        if total_bytes is None
        else (bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
    )
    columns = (bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.BarColumn(), *how_far)
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total if total_bytes is None else total_bytes)

        class Bar:
            def advance(self, size_bytes: int = 0) -> None:
                shown.advance(task, 1 if total_bytes is None else size_bytes)

        yield Bar()


class _Silent:
    def advance(self, size_bytes: int = 0) -> None:
        """Nobody looks."""


def size(size_bytes: int | None) -> str:
    """Bytes for people, powers of 1000 as `ls --si` shows them."""
    return _scaled(size_bytes, (" B", " kB", " MB", " GB", " TB"))


def count(number: int | None) -> str:
    """A number of parameters for people: 1.2 M."""
    return _scaled(number, ("", " k", " M", " G", " T"))


def _scaled(number: int | None, units: Sequence[str]) -> str:
    if number is None:
        return ""
    value = float(number)
    for unit in units[:-1]:
        if value < 1000:
            return f"{value:.0f}{unit}" if unit == units[0] or value >= 100 else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f}{units[-1]}"


def duration(seconds: float) -> str:
    """A time span for people, in its largest fitting unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def age(timestamp: str | None, now: datetime | None = None) -> str:
    """An RFC 3339 time as how long ago it was."""
    if timestamp is None:
        return ""
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return timestamp
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


def shown_path(path: bytes) -> str:
    """A path for people, relative to the working directory where that is shorter."""
    return path_shortener()(path)


def path_shortener() -> Callable[[bytes], str]:
    """`shown_path` for many absolute paths: it asks for the working directory once."""
    try:
        beneath = os.getcwdb().rstrip(b"/") + b"/"
    except OSError:  # it was deleted: there is nothing to be relative to
        beneath = b""

    def shorten(path: bytes) -> str:
        shown = path[len(beneath) :] if path.startswith(beneath) else path
        return printable(shown.decode("utf-8", "backslashreplace"))

    return shorten
