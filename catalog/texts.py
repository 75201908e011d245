"""Texts: the lines of tokens that full-text search looks into besides entries, kept in the state and indexed by FTS5.

One line serves all checkpoints that share it: those of a run have the same hyper-parameters and the same config. A
line is known by its digest and never changes, so what was found of it once stays true; its number says when it came.
Without FTS5 in this build of SQLite every line is read instead: the same answers, later.
"""

import collections
import contextlib
import functools
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator

from .matching import Found
from .search_terms import Term
from .search_text import text_key
from .state_file import connect_reader

RECENT_CHARACTERS = 4 << 20
"""Of the lines that were added last, for those who look at them one by one."""
DROPPED_AT_ONCE = 2_000
"""About 0.1 s."""
_LEVEL = 1

_PUNCTUATION = "!#$%&()*+,-./:;<=>?@[\\]^_`{|}~"
"""Everything in ASCII that a line may hold besides letters and digits; a space alone separates."""
_MAKE_INDEX = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS texts_index USING fts5"
    f"(line, content='', prefix='2 3', tokenize=\"ascii tokenchars '{_PUNCTUATION}'\")"
)
"""sqlite.org/fts5.html, 4.3.2 (ascii), 4.4.1 (contentless: the lines are in `texts`, compressed).

Not part of the file's schema: a build of SQLite without FTS5 can use the same file."""
_COUNT = "SELECT COUNT(*), COALESCE(MAX(number), 0) FROM texts"
_UNUSED = (
    "SELECT number, line FROM texts WHERE key NOT IN (SELECT text_key FROM entries WHERE text_key NOT NULL) LIMIT ?"
)


class Texts:
    """The lines of one state file. The writing thread adds; any other may ask. Implements `matching.Lines`."""

    def __init__(self, on_error: Callable[[sqlite3.Error], None]) -> None:
        self._on_error = on_error
        self._finding = threading.Lock()
        self._looking = threading.Lock()
        self._finder: sqlite3.Connection | None = None
        self._looker: sqlite3.Connection | None = None
        """For single lines, asked for by the event loop: it must not wait for a search."""
        self._added: list[int] = []
        """Keys of the lines that were added since the start, in their order, whatever file has them."""
        self._numbers: dict[int, int] = {}
        """Key → how many lines had been added with it."""
        self._recent: collections.OrderedDict[int, str] = collections.OrderedDict()
        self._recent_characters = 0
        self.is_indexed = False
        """False: this build of SQLite has no FTS5, and every line is read for every question."""

    def attach(self, path: str, writer: sqlite3.Connection) -> None:
        """Use a state file that was just opened, by the connection that writes and two of its own.

        Raises:
            sqlite3.Error: the file cannot be written or is damaged.
        """
        self._writer = writer
        self._recent.clear()
        self._recent_characters = 0
        self.is_indexed = self._make_index()
        self._finder, self._looker = connect_reader(path), connect_reader(path)

    def detach(self) -> None:
        """Close what `attach` opened."""
        for connection, lock in ((self._finder, self._finding), (self._looker, self._looking)):
            if connection is not None:
                with lock, contextlib.suppress(sqlite3.Error):
                    connection.close()
        self._finder = self._looker = None

    # ---- Lines -----------------------------------------------------------------------------------------------

    def find(self, term: Term) -> Found:
        """See `Lines`. A state that cannot be read has nothing."""
        head = len(self._added)  # what is counted is committed: it is found, or it comes later and is judged by itself
        with self._finding:
            if self._finder is None:
                return Found(frozenset(), head)
            for is_indexed in (True, False) if self.is_indexed else (False,):
                try:
                    return Found(frozenset(_keys(self._finder, term, is_indexed=is_indexed)), head)
                except sqlite3.Error as error:
                    self._on_error(error)
        return Found(frozenset(), head)

    def number_of(self, key: int) -> int | None:
        """See `Lines`."""
        return self._numbers.get(key)

    def added_after(self, number: int) -> list[int]:
        """See `Lines`."""
        return self._added[number:]

    def line(self, key: int) -> str | None:
        """See `Lines`: 20 µs if it is not one of the last."""
        recent = self._recent.get(key)
        if recent is not None:
            return recent
        with self._looking:
            if self._looker is None:
                return None
            try:
                row = self._looker.execute("SELECT line FROM texts WHERE key = ?", (key,)).fetchone()
                return None if row is None else _unpack(row[0])
            except sqlite3.Error as error:
                self._on_error(error)
                return None

    # ---- writing, in the transaction of whoever calls ---------------------------------------------------------

    def add(self, lines: Iterable[str]) -> list[Callable[[], None]]:
        """Keep lines that are not kept yet.

        Returns:
            What remains to be done once they are committed.
        """
        done: list[Callable[[], None]] = []
        for line in lines:
            key = text_key(line)
            if key is None or key in self._recent:
                continue
            added = self._writer.execute("INSERT OR IGNORE INTO texts (key, line) VALUES (?, ?)", (key, _pack(line)))
            if not added.rowcount:
                continue
            if self.is_indexed:
                self._writer.execute("INSERT INTO texts_index (rowid, line) VALUES (?, ?)", (added.lastrowid, line))
            done.append(functools.partial(self._remember, key, line))
        return done

    def drop_unused(self) -> None:
        """Forget lines that no entry has any more, some at a time.

        Only where no entry that is still to be committed can have one of them: when a run begins.
        """
        unused = self._writer.execute(_UNUSED, (DROPPED_AT_ONCE,)).fetchall()
        if self.is_indexed:
            self._writer.executemany(
                "INSERT INTO texts_index (texts_index, rowid, line) VALUES ('delete', ?, ?)",
                [(number, text) for number, line in unused if (text := _unpack(line))],
            )
        self._writer.executemany("DELETE FROM texts WHERE number = ?", [(number,) for number, _ in unused])

    def _remember(self, key: int, line: str) -> None:
        self._recent[key] = line
        self._recent_characters += len(line)
        self._added.append(key)
        self._numbers[key] = len(self._added)
        while self._recent_characters > RECENT_CHARACTERS:
            _, oldest = self._recent.popitem(last=False)
            self._recent_characters -= len(oldest)

    def _make_index(self) -> bool:
        try:
            self._writer.execute(_MAKE_INDEX)
            count, last = self._writer.execute(_COUNT).fetchone()
            indexed = self._writer.execute("SELECT COUNT(*), COALESCE(MAX(id), 0) FROM texts_index_docsize").fetchone()
        except sqlite3.OperationalError as error:
            if "no such module" in str(error):
                return False
            raise
        if indexed != (count, last):
            self._index_all()
        return True

    def _index_all(self) -> None:
        """After a build of SQLite without FTS5 has written lines."""
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            self._writer.execute("INSERT INTO texts_index (texts_index) VALUES ('delete-all')")
            rows = self._writer.execute("SELECT number, line FROM texts")
            while some := rows.fetchmany(500):
                self._writer.executemany(
                    "INSERT INTO texts_index (rowid, line) VALUES (?, ?)", [(n, _unpack(line)) for n, line in some]
                )
            self._writer.execute("COMMIT")
        except BaseException:
            self._writer.execute("ROLLBACK")
            raise


def _keys(connection: sqlite3.Connection, term: Term, *, is_indexed: bool) -> Iterator[int]:
    if not is_indexed:
        lines = connection.execute("SELECT key, line FROM texts")
        return (key for key, line in lines if term.in_line(_unpack(line)))
    match = " OR ".join(phrase.match for phrase in term.phrases)
    query = "SELECT key FROM texts WHERE number IN (SELECT rowid FROM texts_index WHERE texts_index MATCH ?)"
    return (key for (key,) in connection.execute(query, (match,)))


def _pack(line: str) -> bytes:
    return zlib.compress(line.encode("utf-8"), _LEVEL)


def _unpack(data: bytes) -> str:
    """The line; an empty one where it is damaged: nothing is found in it."""
    try:
        return zlib.decompress(data).decode("utf-8")
    except (zlib.error, UnicodeDecodeError, TypeError):
        return ""
