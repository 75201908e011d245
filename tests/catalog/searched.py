"""Lines of tokens for tests of searching: in memory, or in a file of their own as the state keeps them."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator

import msgspec

from ckptd.catalog.entry import Record
from ckptd.catalog.matching import Found
from ckptd.catalog.search_terms import Term
from ckptd.catalog.search_text import text_key, text_of
from ckptd.catalog.state_file import connect
from ckptd.catalog.texts import Texts
from ckptd.validators.inspection import Plain


class LinesInMemory:
    """What `Texts` is, by looking at every line."""

    def __init__(self) -> None:
        self.lines: dict[int, str] = {}

    def find(self, term: Term) -> Found:
        """See `Lines`."""
        return Found(frozenset(key for key, line in self.lines.items() if term.in_line(line)), len(self.lines))

    def number_of(self, key: int) -> int | None:
        """See `Lines`."""
        return [*self.lines].index(key) + 1 if key in self.lines else None

    def added_after(self, number: int) -> list[int]:
        """See `Lines`."""
        return [*self.lines][number:]

    def line(self, key: int) -> str | None:
        """See `Lines`."""
        return self.lines.get(key)


def searching(record: Record, lines: LinesInMemory, plain: Plain) -> Record:
    """The record with `plain` as what is known of its config."""
    line = text_of([plain])
    key = text_key(line)
    if key is not None:
        lines.lines[key] = line
    return msgspec.structs.replace(record, text_key=key)


@contextlib.contextmanager
def indexed(lines: Iterable[str]) -> Iterator[Texts]:
    """Lines in a state file of their own."""
    errors: list[Exception] = []
    with tempfile.TemporaryDirectory() as directory:
        writer = connect(f"{directory}/state.sqlite3")
        texts = Texts(errors.append)
        texts.attach(f"{directory}/state.sqlite3", writer)
        try:
            for told in texts.add(lines):
                told()
            yield texts
        finally:
            texts.detach()
            writer.close()
    assert errors == []
