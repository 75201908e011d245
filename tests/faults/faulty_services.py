"""A daemon under a fault: waiting for what it says, and whether it is right once the fault is over."""

import collections
import contextlib
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from tests.service.campaigns import assert_equal_to_tree, wait_quiet
from tests.service.daemons import Daemon, eventually


class Ordinary(Daemon):
    """A daemon for which file modes count: root without the right to override them."""

    def command(self) -> list[str]:
        """The command line."""
        return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *super().command()]


def shown(daemon: Daemon, *fields: str) -> dict[str, Any]:
    """Of each entry these fields, or the one field."""
    picked = {path: tuple(entry[field] for field in fields) for path, entry in daemon.entries().items()}
    return {path: values[0] for path, values in picked.items()} if len(fields) == 1 else picked


def become(daemon: Daemon, expected: dict[str, Any], *fields: str, deadline_s: float = 30) -> None:
    """Wait until exactly these entries are listed, with these values."""
    last: dict[str, Any] = {}

    def reached() -> bool:
        last.clear()
        last.update(shown(daemon, *fields))
        return last == expected

    try:
        eventually(reached, f"{expected}", deadline_s=deadline_s)
    except AssertionError as error:
        raise AssertionError(f"{error}; last: {last}; {daemon.log()[-1500:]}") from None


def swept(daemon: Daemon, mode: str = "sweep") -> dict[str, Any]:
    """Health after a sweep that began from now on."""
    moment = time.time()
    daemon.rebuild(mode)
    return daemon.wait_complete(moment)


def has_reason(daemon: Daemon, text: str) -> dict[str, Any]:
    """Wait until health gives a reason with this text; returns the health then."""

    def said() -> dict[str, Any] | None:
        health = daemon.health()
        return health if any(text in reason for reason in health["reasons"]) else None

    return eventually(said, f"health says {text!r}")


def healthy(daemon: Daemon) -> dict[str, Any]:
    """Wait until nothing is wrong."""
    return eventually(
        lambda: h if (h := daemon.health())["catalog_status"] == "healthy" else None, f"healthy: {daemon.health()}"
    )


@contextlib.contextmanager
def filled(directory: pathlib.Path) -> Iterator[None]:
    """No byte is free on the filesystem of `directory` while the context lasts."""
    ballast = directory / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 4096, 512):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield
    finally:
        ballast.unlink()


def lines_by_event(daemon: Daemon) -> dict[str, int]:
    """How many lines of warnings and errors the log has of each event."""
    lines = [json.loads(line) for line in daemon.log().splitlines() if line.startswith("{")]
    return collections.Counter(str(line["event"]) for line in lines if line["level"] in ("warning", "error"))


def assert_log_is_bounded(daemon: Daemon, each: int = 31) -> None:
    """No event fills the log: thirty lines of it in a minute, and one that counts the rest."""
    counts = lines_by_event(daemon)
    assert all(count <= each for count in counts.values()), counts
    assert sum(counts.values()) <= 4 * each, counts


def assert_right_again(daemon: Daemon, root: pathlib.Path) -> None:
    """The fault is over: the catalog equals the tree, health has no complaint, and the log is a log."""
    swept(daemon)
    wait_quiet(daemon)
    assert_equal_to_tree(daemon, root)
    healthy(daemon)
    assert_log_is_bounded(daemon)
    assert "Traceback" not in daemon.log()
