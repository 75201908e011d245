"""Content negotiation: which of the forms that an answer can have the client wants most."""

import re
from collections.abc import Sequence

_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")
"""RFC 9110, 12.4.2."""
MAX_RANGES = 100
"""A header of more is cut off: browsers send eight."""


def negotiate(accept: str, offers: Sequence[str]) -> str | None:
    """The media type of `offers` that the header `Accept` prefers (RFC 9110, 12.5.1).

    Of equal preferences the first offer wins. Parameters of a range but `q` do not count, and ranges that are none are
    passed over; a header without any range asks for nothing in particular.

    Args:
        accept: value of the header; empty where it was not sent.
        offers: media types such as `text/csv`, the best one first.

    Returns:
        None where the client takes none of them.
    """
    ranges = [found for part in accept.split(",")[:MAX_RANGES] if (found := _range(part)) is not None]
    if not ranges:
        return offers[0]
    qualities = [_quality(offer, ranges) for offer in offers]
    best = max(qualities)
    return offers[qualities.index(best)] if best > 0 else None


def _range(text: str) -> tuple[str, float] | None:
    media, *parameters = (part.strip().lower() for part in text.split(";"))
    kind, slash, name = media.partition("/")
    if not (kind and slash and name) or (kind == "*" and name != "*"):
        return None
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            return (media, float(value)) if _QUALITY.fullmatch(value.strip()) else None
    return media, 1.0


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """That of the most specific range: `text/csv` goes before `text/*`, which goes before `*/*`."""
    for pattern in (offer, f"{offer.partition('/')[0]}/*", "*/*"):
        found = [quality for media, quality in ranges if media == pattern]
        if found:
            return max(found)
    return 0.0
