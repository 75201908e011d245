"""The state's file and its lock: opened if it is ours and whole, otherwise set aside and begun anew."""

import contextlib
import errno
import fcntl
import os
import re
import sqlite3
import time

APPLICATION_ID = 0x636B7074
"""`ckpt`; at byte 68 of the file (sqlite.org/fileformat2.html, 1.3.9)."""
SCHEMA_VERSION = 3
BROKEN_KEPT = 3

_SERIAL = re.compile(r"[0-9]{8}T[0-9]{6}Z\.[0-9]{3,}")

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    id TEXT PRIMARY KEY, revision INTEGER NOT NULL, entry BLOB NOT NULL, path BLOB NOT NULL,
    identities BLOB NOT NULL, modified_ns INTEGER NOT NULL
);
CREATE TABLE tombstones (id TEXT PRIMARY KEY, revision INTEGER NOT NULL, tombstone BLOB NOT NULL);
CREATE INDEX tombstones_by_revision ON tombstones (revision);
CREATE TABLE descriptions (id TEXT PRIMARY KEY, summary BLOB NOT NULL, tensors BLOB NOT NULL);
"""
_VERIFICATIONS = """
CREATE TABLE verifications (
    id TEXT PRIMARY KEY, asked INTEGER NOT NULL, verified_at REAL, identity BLOB NOT NULL, verification BLOB NOT NULL
);
CREATE INDEX verifications_by_age ON verifications (verified_at, id);
"""
_TEXTS = """
CREATE TABLE texts (number INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL UNIQUE, line BLOB NOT NULL);
ALTER TABLE entries ADD COLUMN text_key INTEGER;
CREATE INDEX entries_by_text ON entries (text_key);
"""
"""What search looks into besides entries; its index is made by `texts`, where SQLite can."""
_UPGRADES = {1: _VERIFICATIONS, 2: _TEXTS}
"""From each earlier version, what the next one added."""

_TABLES = ("meta", "entries", "tombstones", "descriptions", "verifications", "texts")

_DAMAGE = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH))
_SHORT_READ = sqlite3.SQLITE_IOERR_SHORT_READ
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_REFUSED = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
_IN_THE_WAY = frozenset((errno.EEXIST, errno.ENOTDIR, errno.EISDIR))
_BROKEN_OR_FULL = "see whether its disk is full or failing"
_REFUSED_BY_SQLITE = frozenset((sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM))


class StateError(Exception):
    """Raised when the state cannot be used: the disk is full, failing or read-only. The tree loses nothing by it."""

    def __init__(
        self, path: str, cause: sqlite3.Error | OSError, *, action: str = "used", damaged: bool = False
    ) -> None:
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
        super().__init__(
            f"the state {path} cannot be {action}: {reason}; {_remedy(cause)}, or name another --state-dir"
        )
        self.path = path
        self.reason = reason
        self.damaged = damaged
        """The file itself is broken: trying again cannot help, beginning anew does."""


class StateLocked(StateError):
    """Raised when another process has the state open."""

    def __init__(self, directory: str, pid: int | None) -> None:
        owner = "another process" if pid is None else f"process {pid}"
        Exception.__init__(
            self, f"the state {directory} is in use by {owner}: stop that one first, or name another --state-dir"
        )
        self.path = directory
        self.reason = f"in use by {owner}"
        self.damaged = False
        self.pid = pid


class Unusable(Exception):
    """Raised when a state file is there and is not one that this version can use; the message says why."""


class StateLock:
    """An exclusive lock on a state directory, held as long as the process lives.

    Raises:
        StateLocked: another process holds it.
        StateError: the lock file cannot be made.
    """

    def __init__(self, directory: str) -> None:
        try:
            self._fd = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(directory, error) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(self._fd, 20, 0).strip()
            os.close(self._fd)
            if isinstance(error, BlockingIOError):
                raise StateLocked(directory, int(pid) if pid.isdigit() else None) from error
            raise StateError(directory, error, action="locked") from error
        # For people and for the message of whoever finds it locked; the lock itself needs no contents.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        self.released = False

    def release(self) -> None:
        """Let others have the directory. The file stays: removing it would race with its next owner."""
        if not self.released:
            self.released = True
            os.close(self._fd)


def _remedy(cause: sqlite3.Error | OSError) -> str:
    if isinstance(cause, OSError):
        if cause.errno in _FULL:
            return "free space on its disk"
        if cause.errno in _REFUSED:
            return "let this user write there"
        return "move away what is no directory there" if cause.errno in _IN_THE_WAY else _BROKEN_OR_FULL
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the primary one, sqlite.org/rescode.html
    if code == sqlite3.SQLITE_FULL:
        return "free space on its disk"
    return "let this user write there" if code in _REFUSED_BY_SQLITE else _BROKEN_OR_FULL


def connect(path: str) -> sqlite3.Connection:
    """Open the state file, or make a fresh one where there is none. One of an earlier version is upgraded in place.

    Raises:
        Unusable: a file is there that is torn, empty, foreign, or of a newer version. It was not changed.
        sqlite3.Error: the disk is full or failing.
    """
    fresh = not os.path.lexists(path)
    if not fresh and not os.path.isfile(path):
        raise Unusable("it is no regular file")
    if not fresh and not os.path.getsize(path):
        raise Unusable("it is empty")
    _make_private(path)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    # A damaged row must decode to something that is then refused, not stop the reading of all others.
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    try:
        if not fresh:
            _check(connection)
        _prepare(connection, fresh=fresh)
    except sqlite3.DatabaseError as error:
        connection.close()
        if fresh or not is_damage(error):
            raise
        raise Unusable(str(error)) from error
    except UnicodeDecodeError as error:  # names of columns are decoded whatever the text factory
        connection.close()
        raise Unusable(f"its schema is damaged: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _make_private(path: str) -> None:
    """Close the file to others before anything is in it; SQLite gives what it puts beside it the same mode.

    What is refused here SQLite is refused as well, and says so.
    """
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_mode & 0o077:
                os.fchmod(fd, 0o600)
        finally:
            os.close(fd)


def connect_reader(path: str) -> sqlite3.Connection:
    """A second connection that cannot write, for the threads that only ask."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only = 1")
    connection.execute("PRAGMA cache_size = -2048")
    return connection


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is broken, so that trying again cannot help."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code == _SHORT_READ or code & 0xFF in _DAMAGE)


def set_aside(path: str, now: float) -> str:
    """Rename a broken state file, its log with it, and remove all but the latest few of earlier ones.

    Returns:
        The new path.

    Raises:
        OSError: it cannot be renamed.
    """
    target = _next_name(path, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now)))
    os.rename(path, target)
    with contextlib.suppress(FileNotFoundError):
        os.rename(f"{path}-wal", f"{target}-wal")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}-shm")
    _forget_oldest(path)
    return target


def _check(connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise Unusable("it is not a state of ckptd")
    if version != SCHEMA_VERSION and version not in _UPGRADES:
        age = "a newer" if version > SCHEMA_VERSION else "another"
        raise Unusable(f"{age} version of ckptd wrote it (schema {version}, this one knows {SCHEMA_VERSION})")
    for earlier in range(version, SCHEMA_VERSION):
        # All of a step or nothing: whoever is killed in between finds the earlier version as it was.
        connection.executescript(f"BEGIN IMMEDIATE; {_UPGRADES[earlier]} PRAGMA user_version = {earlier + 1}; COMMIT;")
    for table in _TABLES:
        connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()  # noqa: S608 (our own names)


def _prepare(connection: sqlite3.Connection, *, fresh: bool) -> None:
    if fresh:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -8192")
    connection.execute(f"PRAGMA journal_size_limit = {64 << 20}").fetchone()
    if fresh:
        pragmas = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
        connection.executescript(f"BEGIN; {_SCHEMA} {_VERIFICATIONS} {_TEXTS} {pragmas} COMMIT;")


def _next_name(path: str, stamp: str) -> str:
    """A name that sorts after all that were given in the same second."""
    serials = [name.rpartition("-")[2] for name in _set_aside_before(path)]
    same = [serial for serial in serials if serial.startswith(stamp)]
    return f"{path}.broken-{stamp}.{int(max(same).rpartition('.')[2]) + 1 if same else 0:03d}"


def _set_aside_before(path: str) -> list[str]:
    directory, name = os.path.split(path)
    prefix = f"{name}.broken-"
    return sorted(n for n in os.listdir(directory) if _SERIAL.fullmatch(n, len(prefix)) and n.startswith(prefix))


def _forget_oldest(path: str) -> None:
    for old in _set_aside_before(path)[:-BROKEN_KEPT]:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(os.path.dirname(path), old + suffix))
