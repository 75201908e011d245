"""What full-text search knows of a checkpoint besides its entry: hyper-parameters and config as one line of tokens.

Three kinds of token, told apart by their first character, one space between any two:

- words, letters and digits in folded case; a number is one word: `optimizer`, `adamw`, `0.001`;
- `/key`, one for each step of a value's dotted path;
- `=value`, the whole value, right behind its path.

So `{"optimizer": {"lr": 1e-3}}` becomes `optimizer lr 0.001 /optimizer /lr =0.001`, a word's prefix is found as
` optim`, a phrase as ` optimizer lr `, and a key with its value as ` /lr =0.001 `. An index of the tokens and a look
into the line answer alike, because nobody splits the line anew: the index is told to split at spaces alone.
"""

import functools
import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from ckptd.validators.inspection import Plain

from .description import Description

TEXT_VERSION = 1
"""Raised whenever lines come out otherwise: everything is then described again, in the background."""
MAX_TEXT = 16_384
"""Characters of one line; hyper-parameters come first, so what is cut off is the end of a long config."""
MAX_VALUES = 1_000
MAX_DEPTH = 16
MAX_VALUE = 64
"""Characters of a `=value`; two longer ones that begin alike count as equal."""
MAX_WORDS = 200
"""Characters of one value that are split into words."""

_NUMBER = r"(?:\d+(?:\.\d+)?e[+-]?\d+|\d+\.\d+)"
_WORD = re.compile(rf"{_NUMBER}(?![^\W_])|[^\W_]+")
_DECIMAL = re.compile(rf"[+-]?(?:{_NUMBER}|\d+\.|\.\d+)\Z")
_UNSAFE = re.compile(r"[\s\"'\x00-\x20\x7f]+")


def fold(text: str) -> str:
    """`text` as it is compared: composed, and without case."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()


def words_of(text: str) -> list[str]:
    """The words of `text`, in folded case. Whatever is neither letter nor digit separates, but for a number's point."""
    return _WORD.findall(fold(text))


def number_word(word: str) -> str:
    """The one spelling of a number, so that `1e-3` finds `0.001`; any other word as it is."""
    if not _DECIMAL.match(word):
        return word
    value = float(word)
    if not math.isfinite(value):
        return word
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def key_tokens(path: str) -> list[str]:
    """The tokens of a dotted path."""
    return [f"/{_safe(step)}" for step in path.split(".") if step]


def value_token(value: Plain) -> str:
    """The token of a whole value."""
    if value is None or value is True or value is False:
        return f"={str(value).lower()}" if value is not None else "=null"
    return f"={number_word(_safe(str(value)))[:MAX_VALUE]}"


def search_text(description: Description) -> str:
    """The line of a description; empty where nothing is known of hyper-parameters and config."""
    inspection = description.inspection
    own = {"wandb_run_id": description.metadata.wandb_run_id} if description.metadata.wandb_run_id else {}
    return text_of((inspection.hyper_parameters or {}, own, description.user, description.config))


def text_of(sources: Iterable[Plain]) -> str:
    """The line of some plain data, each value once."""
    pieces: dict[str, None] = {}
    length = 0
    for count, (path, value) in enumerate(pair for source in sources for pair in _leaves(source)):
        piece = _piece(path, value)
        if count >= MAX_VALUES or length + len(piece) >= MAX_TEXT:
            break
        if piece not in pieces:
            pieces[piece] = None
            length += len(piece) + 1
    return " ".join(pieces).encode("utf-8", "replace").decode("utf-8")  # no lone surrogates: SQLite takes none


def text_key(text: str) -> int | None:
    """What a line is known by: 63 bits of BLAKE2b; None for an empty one, or one that nobody here has made."""
    if not text or len(text) > MAX_TEXT:
        return None
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()) >> 1


def _piece(path: tuple[str, ...], value: Plain) -> str:
    keys = [_step(step) for step in path]
    words = [word for of_step, _ in keys for word in of_step]
    if not isinstance(value, bool) and value is not None:
        words += map(number_word, words_of(str(value)[:MAX_WORDS]))
    return " ".join((*words, *(token for _, token in keys), value_token(value)))


@functools.lru_cache(2_000)
def _step(step: str) -> tuple[list[str], str]:
    """The words and the token of one step of a path; the same steps occur again and again."""
    return words_of(step), f"/{_safe(step)}"


def _leaves(value: Plain) -> Iterator[tuple[tuple[str, ...], Plain]]:
    """Each value with its path; the items of a list share theirs. Without recursion: depth is the file's to choose."""
    stack: list[tuple[tuple[str, ...], Plain]] = [((), value)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, Mapping):
            if len(path) < MAX_DEPTH:
                stack.extend((_joined(path, str(key)), child) for key, child in reversed(list(node.items())))
        elif isinstance(node, list | tuple):
            stack.extend((path, child) for child in reversed(node[:MAX_VALUES]))
        elif path:
            yield path, node


def _joined(path: tuple[str, ...], key: str) -> tuple[str, ...]:
    # A key may itself be dotted: it is found by its steps, as if it were nested.
    return (*path, *(step for step in key[:MAX_WORDS].split(".") if step))


def _safe(text: str) -> str:
    """`text` as a part of one token: no space in it, no quote, no control character."""
    return _UNSAFE.sub("_", fold(text[:MAX_WORDS]))
