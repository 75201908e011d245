"""Tokens: what a caller proves itself with; kept in files that only their owner reads."""

import enum
import hashlib
import hmac
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable

import msgspec

TOKEN_NAME = "token"  # noqa: S105 - the name of a file
"""In the state directory, mode 0600: reads and changes."""
READ_TOKEN_NAME = "read-token"  # noqa: S105 - the name of a file
"""Beside it: reads."""
_TOKEN = re.compile(r"[!-~]{16,512}")


class AccessError(Exception):
    """Raised when no safe way to let people in could be set up; nothing may be bound then."""


class Right(enum.IntEnum):
    """What a caller may do; each includes those before it."""

    NONE = 0
    READ = 1
    CHANGE = 2
    """Ask for a rebuild."""


class Tokens:
    """The tokens in force."""

    def __init__(self, full: str, reading: str | None = None) -> None:
        """Args:
        full: who knows it may read and ask for changes.
        reading: who knows it may read; None: there is no such token.
        """
        self.full = full
        self.reading = reading
        # Cookies are shared by all ports of a host: the name keeps two daemons apart, and the value is derived,
        # so that the token itself is in no cookie jar.
        self.cookie_name = "ckptd_" + _derived(full, b"cookie name")[:8]
        self._proofs = ((Right.CHANGE, full), (Right.READ, reading))
        self._cookies = tuple((right, _derived(token, b"cookie value")) for right, token in self._proofs if token)

    def right_of(self, given: str) -> Right:
        """What the bearer of a token may do. Takes the same time for every wrong one of the same length."""
        return _best(right for right, token in self._proofs if token is not None and _equal(given, token))

    def right_of_cookie(self, value: str) -> Right:
        """What a browser with such a cookie may do."""
        return _best(right for right, cookie in self._cookies if _equal(value, cookie))

    def cookie_for(self, given: str) -> str | None:
        """The value of the cookie that stands for a token; None for a wrong one."""
        right = self.right_of(given)
        return None if right is Right.NONE else dict(self._cookies)[right]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokens) and (self.full, self.reading) == (other.full, other.reading)

    __hash__ = None  # type: ignore[assignment]  # nobody looks a secret up


class TokenFiles(msgspec.Struct, frozen=True):
    """Where the tokens lie."""

    full: str
    reading: str | None = None

    def read(self) -> Tokens:
        """The tokens as they are now.

        Raises:
            AccessError: one cannot be read, is none, or both are the same.
        """
        return _together(read_token(self.full), None if self.reading is None else read_token(self.reading), self)


def kept_tokens(state_dir: str, token_file: str | None, read_token_file: str | None) -> tuple[Tokens, TokenFiles]:
    """The tokens of a daemon; where no file of the operator's holds one, it is generated and kept in the state.

    A token for readers is generated only beside a generated one: who brings a token decides alone who gets in.

    Args:
        state_dir: the daemon's.
        token_file: with the token that may do everything; None: see above.
        read_token_file: with the token for readers.

    Raises:
        AccessError: a token can be neither read nor kept.
    """
    full_path, reading_path = token_paths(state_dir, token_file, read_token_file)
    full = read_token(full_path) if token_file else keep_token(full_path)
    reading = None
    if reading_path is not None:
        reading = read_token(reading_path) if read_token_file else keep_token(reading_path)
    files = TokenFiles(full_path, reading_path)
    return _together(full, reading, files), files


def token_paths(state_dir: str, token_file: str | None, read_token_file: str | None) -> tuple[str, str | None]:
    """Where the token lies that may do everything, and where the one for readers does, if there is one."""
    beside = None if token_file else os.path.join(state_dir, READ_TOKEN_NAME)
    return token_file or os.path.join(state_dir, TOKEN_NAME), read_token_file or beside


def keep_token(path: str) -> str:
    """The token kept at `path`, mode 0600; generated if there is none.

    Raises:
        AccessError: it can be neither read nor written, or somebody else may know it.
    """
    try:
        if os.path.lexists(path):
            _make_private(path)
            return read_token(path)
        token = secrets.token_urlsafe(32)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        temporary = f"{path}.{secrets.token_hex(4)}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except OSError as error:
        raise AccessError(
            f"state_dir: the token cannot be kept in {path} ({error.strerror}); make it writable"
        ) from error
    return token


def _make_private(path: str) -> None:
    """See that nobody else reads a token that is there, and that nobody else wrote it.

    Raises:
        AccessError: somebody did, or it is no file.
        OSError: it cannot be asked.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise AccessError(f"{path} is no file, so it holds no token; remove it, or name another --state-dir")
    if status.st_uid not in (0, os.geteuid()) and status.st_uid != _owner_of_ours(os.path.dirname(path)):
        raise AccessError(
            f"{path} belongs to user {status.st_uid}, who then knows the token; remove it if you trust what is in that "
            "directory, else name another --state-dir"
        )
    if status.st_mode & 0o077:
        if os.path.islink(path):
            raise AccessError(f"{path} leads to a file that others may read; chmod 600 {os.path.realpath(path)}")
        os.chmod(path, 0o600)


def _owner_of_ours(directory: str) -> int:
    """Who owns what we make in a directory: on some network filesystems another user than we are."""
    with tempfile.TemporaryFile(dir=directory) as file:
        return os.fstat(file.fileno()).st_uid


def read_token(path: str) -> str:
    """The token in the file `path`.

    Raises:
        AccessError: the file cannot be read, or does not hold 16 to 512 printable characters on one line.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(4096).strip().decode("ascii", "replace")
    except OSError as error:
        raise AccessError(
            f"the token cannot be read from {path} ({error.strerror}); let this user read it, or name another file "
            "(token_file, read_token_file)"
        ) from error
    if not _TOKEN.fullmatch(text):
        raise AccessError(
            f"{path} holds no token: write one line of 16 to 512 printable characters without blanks, as "
            "`openssl rand -base64 32` makes it; one that ckptd generated may also be deleted"
        )
    return text


def readable_by_others(path: str) -> bool:
    """Whether the mode of a file lets anybody but its owner in."""
    try:
        return os.stat(path).st_mode & 0o077 != 0
    except OSError:
        return False  # reading it says what is wrong


def _together(full: str, reading: str | None, files: TokenFiles) -> Tokens:
    if reading == full:
        raise AccessError(
            f"read_token_file: {files.reading} holds the same token as {files.full}: whoever reads could change; "
            "write another one"
        )
    return Tokens(full, reading)


def _best(rights: Iterable[Right]) -> Right:
    return max(rights, default=Right.NONE)


def _derived(token: str, purpose: bytes) -> str:
    return hmac.digest(token.encode(), purpose, hashlib.sha256).hex()


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())
