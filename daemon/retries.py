"""Retries: how long to wait before a watch that ended is started anew."""

BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LONGEST_BACKOFF_S = 60.0
START_SHARE = 10
"""A watch that keeps breaking waits ten times as long as it takes to begin."""


def retry_in_s(failures: int, start_s: float, *, started: bool) -> float:
    """How long to wait before a watch is started anew, in seconds.

    Args:
        failures: in a row, this one included; 0 where the watch had been well for a while.
        start_s: how long it took to begin, or to fail to. To begin costs a walk of the whole tree: what cannot begin,
            or breaks again and again as soon as it has, must not eat a core.
        started: it did begin.
    """
    delay_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
    if started and failures <= 1:
        return delay_s
    return max(delay_s, min(START_SHARE * start_s, LONGEST_BACKOFF_S))
