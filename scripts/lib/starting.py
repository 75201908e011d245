"""Units that are started; where one does not start, what the journal knows of why, in words."""

import errno
import json
import re
import socket

from installed import is_active
from machine import InstallError, run

_LINES = 40
_MAX_TOLD = 3


def start(verb: str, unit: str) -> None:
    """Start or restart a unit.

    Raises:
        InstallError: it did not start; says why, and what to do.
    """
    cursor = _journal("--lines=0", "--show-cursor").rpartition("-- cursor: ")[2].strip()
    try:
        run("systemctl", verb, unit)
    except InstallError:
        run("journalctl", "--sync", tolerate=True)
        told = _journal("--unit", unit, f"--lines={_LINES}", *([f"--after-cursor={cursor}"] if cursor else []))
        raise InstallError(f"{unit} does not start: {'; '.join(reasons(told))}. {remedy(unit, told)}") from None


def reasons(journal: str) -> list[str]:
    """The lines that say why, ckptd's own first."""
    own, others = [], []
    for line in journal.splitlines():
        if line.startswith("{"):
            event = _event(line)
            if event.get("level") in ("error", "critical"):
                own.append(": ".join(str(event[key]) for key in ("event", "error") if key in event))
        elif re.match(r"ckptd: |\w*Error\b", line) or re.search(r"Failed (?!to start|to listen|with result)", line):
            others.append(re.sub(r"^ckptd\S*\.(?:socket|service): ", "", line))
    return list(dict.fromkeys(own or others))[-_MAX_TOLD:] or ["it said nothing of why"]


def remedy(unit: str, journal: str) -> str:
    """What to do about it."""
    # systemd says no more than "Input/output error" of what its helper met.
    listens = run("systemctl", "show", "--property", "Listen", "--value", unit, tolerate=True)
    taken = [
        port
        for host, port in re.findall(r"^(\S+):(\d+) \(Stream\)", listens, re.MULTILINE)
        if is_taken(host, int(port))
    ]
    if taken:
        return f"port {taken[0]} is taken: {_whose_port(unit)}"
    if "credentials" in journal:
        return f"a file named by LoadCredential= is missing or not root's: `systemctl cat {unit}` shows which"
    return f"put that right and run this again; `journalctl -u {unit}` has everything"


def is_taken(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), port), family=family).close()
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def _whose_port(unit: str) -> str:
    other = "ckptd.socket" if unit == "ckptd-readonly.socket" else "ckptd-readonly.socket"
    if is_active(other):
        return f"{other} has it, and `systemctl disable --now {other} {other.replace('.socket', '.service')}` frees it"
    return f"`ss -ltnp` shows by whom; `systemctl edit {unit}` chooses another (ListenStream=)"


def _event(line: str) -> dict[str, object]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _journal(*arguments: str) -> str:
    return run("journalctl", "--no-pager", "--quiet", "--output=cat", *arguments, tolerate=True)
