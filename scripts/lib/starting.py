"""Units that are started, and asked where they answer; where one does not start, why, in words."""

import errno
import json
import re
import socket
import sys
import time

from install_plan import Setup
from installed import is_active
from machine import InstallError, answer, run

START_DEADLINE_S = 120.0
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


def tell_page(setup: Setup) -> None:
    """Wait until the service answers, and say where.

    Raises:
        InstallError: it does not.
    """
    deadline = time.monotonic() + START_DEADLINE_S
    while True:
        status = run("systemctl", "show", "--property", "StatusText", "--value", setup.service, tolerate=True)
        url = re.search(r"http://\S+?(?=[;\s]|$)", status)
        if url is not None and answer(f"{url[0]}/health") == 200:
            break
        if time.monotonic() > deadline:
            raise InstallError(f"{setup.service} does not answer; journalctl -u {setup.service} says why")
        time.sleep(0.2)
    print(f"{setup.service} is active. The page: {url[0]}/")
    if answer(f"{url[0]}/checkpoints?page_size=1") == 401:
        command = f"{setup.prefix}/bin/ckptd token --state-dir {setup.state}"
        token = run(*command.split(), tolerate=True).strip() if sys.stdout.isatty() else ""
        print(
            f"It asks for a token: {url[0]}/?token={token}"
            if token
            else f"It asks for a token; as root, `{command}` prints it."
        )


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
