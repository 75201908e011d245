"""What must hold whenever the tree is quiet, and what the service takes then."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from soak_faults import children_of

from ckptd.catalog.builder import CatalogOptions, build_catalog
from tests.service.campaigns import (
    Contents,
    History,
    Shadow,
    check_sidecars,
    facts_of,
    leftovers,
    orphans,
    untrue,
    wait_quiet,
)
from tests.service.daemons import Daemon, eventually

ABANDONED_S = 86_400.0
"""Incomplete files stay `writing` for the whole soak, on both sides of a comparison."""
REST_S = 20.0
DEADLINE_S = 120.0
MOMENTS = 40
SHOWN = 10
"""Of what is wrong, in words, of each kind; all is counted."""
_IDENTITY = ("id", "root", "checkpoint_path", "display_name", "exp_name", "run_id", "architecture", "metrics", "dtypes")
_IDENTITY += ("alias_of", "has_config", "config_path", "optimizer_bytes", "backbone", "monitor", "monitor_value")


class Found(NamedTuple):
    """What was wrong at one point of quiet, in words; all empty when all is well."""

    differences: list[str]
    """Between what is listed and what a fresh reading of the tree says."""
    shadows: list[str]
    """Changes that a live client was not told, or was told and were never true."""
    files: list[str]
    """Sidecars that are torn, missing or left over; temporary files."""


class Usage(NamedTuple):
    """What the service process takes."""

    rss_mb: float
    children_mb: float
    """Of the processes that it has started, shared pages counted in each."""
    descriptors: int
    """Of files, pipes and the like, the fewest of some moments: unfinished checkpoints are opened again and again."""
    sockets: int
    """Counted apart: connections come and go."""
    threads: int
    cpu_s: float


def check(daemon: Daemon, root: Path, shadows: list[Shadow], history: History, contents: Contents) -> Found:
    """Wait until all is done, then compare. The tree must be quiet."""
    differences = _failure(lambda: _wait(daemon))
    differences += compare(daemon.entries(), fresh(root))
    told = [wrong for shadow in shadows for wrong in _judge(shadow, history, contents)]
    return Found(differences, told, _files(daemon, root))


def _wait(daemon: Daemon) -> None:
    daemon.wait_complete(deadline_s=DEADLINE_S)
    wait_quiet(daemon, deadline_s=DEADLINE_S)

    def has_read_all() -> bool:
        health = daemon.health()
        verification = health["verification"]
        # Not `queued`: what is put off (files that are written, refused by the disk) may wait for an hour.
        unread = health["by_health"].get("valid", 0) - verification["by_level"].get("checksum", 0)
        return verification["verifying"] is None and unread <= 0

    # What is verified is news, and holds descriptors; on a busy machine it goes on for long, and that is no difference.
    with contextlib.suppress(AssertionError):
        eventually(has_read_all, "all is verified", deadline_s=REST_S, every_s=0.1)


def fresh(root: Path) -> dict[str, dict[str, Any]]:
    """What reading every file of the tree anew says, by path; no sidecar is believed."""
    built = build_catalog(CatalogOptions(roots=(str(root),), abandoned_s=ABANDONED_S))
    return {entry.path: msgspec.json.decode(msgspec.json.encode(entry)) for entry in built.entries}


def compare(served: dict[str, dict[str, Any]], tree: dict[str, dict[str, Any]]) -> list[str]:
    """Where the list and the tree do not agree; each path once."""
    found = [f"{path}: not listed" for path in sorted(tree.keys() - served.keys())]
    found += [f"{path}: listed, but not there" for path in sorted(served.keys() - tree.keys())]
    for path in sorted(tree.keys() & served.keys()):
        said, true = _facts(served[path]), _facts(tree[path])
        wrong = [f"{name} is {true[name]!r}, not {said[name]!r}" for name in said if said[name] != true[name]]
        if wrong:
            found.append(f"{path}: {'; '.join(wrong)}")
    return found


def _facts(entry: dict[str, Any]) -> dict[str, Any]:
    return facts_of(entry) | {name: entry[name] for name in _IDENTITY}


def _judge(shadow: Shadow, history: History, contents: Contents) -> list[str]:
    """What one client was not told, was told twice or backwards, or was told and was never true."""
    wrong = _failure(lambda: shadow.assert_caught_up(deadline_s=DEADLINE_S))
    told, shadow.told = shadow.told, []
    paths = frozenset(history.paths)
    wrong += untrue([each for each in told if each.path in paths], history, contents)
    more, shadow.wrong = shadow.wrong, []
    return wrong + more


def _files(daemon: Daemon, root: Path) -> list[str]:
    wrong = _failure(lambda: check_sidecars(root))
    wrong += _failure(lambda: eventually(lambda: not leftovers(root), f"temporary files are left: {leftovers(root)}"))
    wrong += _failure(lambda: eventually(lambda: not orphans(root), f"sidecars outlive checkpoints: {orphans(root)}"))

    def undescribed() -> list[str]:
        return [path for path, e in daemon.entries().items() if e["health"] == "valid" and not e["has_metadata"]]

    return wrong + _failure(lambda: eventually(lambda: not undescribed(), f"no metadata: {undescribed()[:5]}"))


def _failure(claim: Callable[[], object]) -> list[str]:
    try:
        claim()
    except AssertionError as error:
        return [str(error)[:2000] or "a claim failed"]
    return []


def usage_of(pid: int) -> Usage:
    """What a process takes now, read from /proc."""
    status = _status(pid)
    sockets = _descriptors(pid)
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return Usage(
        rss_mb=int(status["VmRSS"].split()[0]) / 1024,
        children_mb=sum(int(_status(child).get("VmRSS", "0").split()[0]) for child in children_of(pid)) / 1024,
        descriptors=len(sockets) - sum(sockets),
        sockets=sum(sockets),
        threads=int(status["Threads"]),
        cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
    )


def _descriptors(pid: int) -> list[bool]:
    """For each descriptor of a process whether it is a socket, at a moment when it has few."""
    moments = []
    for _ in range(MOMENTS):
        moments.append(_descriptors_now(pid))
        time.sleep(0.05)  # not a wait for anything: other moments
    return min(moments, key=len)


def _descriptors_now(pid: int) -> list[bool]:
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(os.readlink(descriptor).startswith("socket:"))
    return found


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def say_wrong(minute: float, *found: list[str]) -> None:
    """What is wrong, at once: nobody waits an hour to learn of the first difference."""
    for each in (each for kind in found for each in kind[:SHOWN]):
        print(f"  wrong at minute {minute:.1f} ({time.strftime('%H:%M:%S')}): {each}", file=sys.stderr, flush=True)
