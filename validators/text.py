"""Text for people: from hostile files made fit to be shown and encoded, and numbers with their nouns."""

ELLIPSIS = "…"
"""Stands for what was left out."""


def clip(text: str, limit: int = 200) -> str:
    """`text` with lone surrogates and control characters escaped, cut to `limit` characters; fit for a terminal."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    text = clean(text[: limit + 1])
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= limit else text[:limit] + ELLIPSIS


def clean(text: str) -> str:
    """`text` with lone surrogates escaped, so that it can be encoded as UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: `1 checkpoint`, `2 checkpoints`, `1,000 entries`.

    Args:
        number: how many.
        noun: for one.
        plural: for any other number; by default with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
