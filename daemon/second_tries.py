"""Second tries: what ended the process that read it is read again by another version of ckptd, and after a day."""

from collections.abc import Iterable

from ckptd.catalog.entry import Record

CRASHED = "worker.crashed"
RETRY_S = 86_400.0
"""A worker may have been killed by somebody, or by want of memory: what is said of the file then is not its fault."""
CHECK_S = 60.0
"""Between two questions whether a second try is due."""
TRIED = "crashed_tried"
"""Under this the state keeps which version tried last, and when."""


def tried(version: str, now: float) -> str:
    """What is kept of a try.

    Args:
        version: of ckptd.
        now: seconds since the epoch.
    """
    return f"{int(now)} {version}"  # never rounded up: a time in the future would count as no try


def is_due(kept: str | None, version: str, now: float) -> bool:
    """Whether what crashed is to be tried again, given what was kept of the last try; see `tried`.

    A time in the future (the clock was set back) or one that cannot be read counts as no try.
    """
    at, _, by = (kept or "").partition(" ")
    try:
        age_s = now - float(at)
    except ValueError:
        return True
    return by != version or not 0 <= age_s < RETRY_S


def crashed(records: Iterable[Record]) -> list[Record]:
    """Those whose last reading ended the process that read them."""
    return [record for record in records if any(found.code == CRASHED for found in record.entry.findings)]
