"""Supervision: what the service tells its manager while it starts and while it runs."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import anyio

from ckptd.validators.text import counted

from .status import CatalogStatus, Status
from .systemd import Notifier

TOLD_S = 5.0
"""How often it is looked whether `systemctl status` should say something else."""
ASKED_S, EXTENSION_S = 20.0, 60.0
"""A start that takes longer asks for so much more time, so often."""
PATIENCE_S = 1800.0
"""A start that has not ended by then hangs: the manager's own limit is left to end it."""


@contextlib.contextmanager
def patient_start(
    notifier: Notifier, *, asked_s: float = ASKED_S, extension_s: float = EXTENSION_S, patience_s: float = PATIENCE_S
) -> Iterator[None]:
    """Ask the manager for more time, until the notifier says that the service is ready or the context ends.

    A large state, or a root on a slow network, takes its time, and there is no event loop yet that could say so.

    Args:
        notifier: there may be nobody who listens.
        asked_s: time between two requests, in seconds.
        extension_s: what is asked for, from then on, in seconds.
        patience_s: no more is asked for after so many seconds.
    """
    if not notifier.active:
        yield
        return

    def ask() -> None:
        for _ in range(int(patience_s / asked_s)):
            if notifier.started.wait(asked_s):
                return
            notifier.extend_start(extension_s, "starting: loading what is known, and looking for the roots")

    asking = threading.Thread(target=ask, name="patient-start", daemon=True)
    asking.start()
    try:
        yield
    finally:
        notifier.started.set()
        asking.join()


async def feed_watchdog(notifier: Notifier) -> None:
    """Say that the event loop turns, for as long as it does. What threads and disks do is health, not life."""
    if notifier.watchdog_s is None:
        return
    while True:
        notifier.watchdog()
        await anyio.sleep(notifier.watchdog_s / 3)


async def tell_status(notifier: Notifier, line: Callable[[], str], *, every_s: float = TOLD_S) -> None:
    """Keep the line of `systemctl status` true.

    Args:
        notifier: there may be nobody who listens; then nothing is done.
        line: what it is to say now.
        every_s: time between two looks, in seconds.
    """
    if not notifier.active:
        return
    told = ""
    while True:
        await anyio.sleep(every_s)  # first of all: what `ready` said is news enough, and the first sweep has not ended
        now = line()
        if now != told:
            notifier.status(now)
            told = now


def status_line(status: Status, listeners: int, url: str) -> str:
    """What the service does, in one line, for `systemctl status`."""
    parts = [
        f"{counted(status.checkpoint_count, 'checkpoint')} at {url}",
        counted(listeners, "listener"),
        status.state.value,
    ]
    if status.state is not CatalogStatus.HEALTHY:
        more = len(status.reasons) - 1
        parts[-1] += f" ({status.reasons[0]}{f', and {more} more' if more else ''})"
    parts += [part for part in (_work(status), _verifying(status)) if part is not None]
    return "; ".join(parts)


def _work(status: Status) -> str | None:
    if status.pending:
        return f"looking at {status.pending:,} paths"
    sweeping = sum(root.sweep_started_at is not None for root in status.roots)
    return f"sweeping {sweeping} of {counted(len(status.roots), 'root')}" if sweeping else None


def _verifying(status: Status) -> str | None:
    verification = status.verification
    if verification is None or verification.verifying is None:
        return None
    return f"verifying {verification.verifying}, {verification.queued:,} to go"
