"""Text from hostile files made fit to be shown and encoded."""

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
