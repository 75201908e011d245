"""What people and programs see: tables and progress on a terminal, plain lines in a pipe, JSON on request."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec


def is_terminal() -> bool:
    """Whether standard output is looked at by a person."""
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    """One JSON document on standard output; structs and paths that are not UTF-8 included."""
    plain = msgspec.to_builtins(value)
    print(json.dumps(plain, indent=2 if is_terminal() else None))


def printable(text: str) -> str:
    """`text` with control characters and undecodable bytes shown as escapes: names come from files."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """A table on a terminal, tab-separated lines without a heading in a pipe.

    Args:
        columns: headings.
        rows: cells; None is shown as nothing.
        right: headings of the columns that hold numbers.
    """
    shown = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    if not is_terminal():
        for row in shown:
            print("\t".join(row))
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


class Progress(Protocol):
    """How far a job is."""

    def advance(self) -> None:
        """One more is done."""
        ...


@contextmanager
def progress(what: str, total: int) -> Iterator[Progress]:
    """A progress bar on standard error while it is a terminal; silent otherwise."""
    if not sys.stderr.isatty() or total < 2:
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=total)

        class Bar:
            def advance(self) -> None:
                bars.advance(task)

        yield Bar()


class _Silent:
    def advance(self) -> None:
        """Nobody looks."""


def size(size_bytes: int | None) -> str:
    """Bytes for people, powers of 1000 as `ls --si` shows them."""
    if size_bytes is None:
        return ""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def count(number: int | None) -> str:
    """A number of parameters for people: 1.2 M."""
    if number is None:
        return ""
    value = float(number)
    for unit in ("", " k", " M", " G"):
        if value < 1000:
            return f"{value:.0f}{unit}" if unit == "" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f} T"


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
    relative = os.path.relpath(path)
    shown = relative if not relative.startswith(b"..") else path
    return printable(shown.decode("utf-8", "backslashreplace"))
