"""What of ckptd is on this machine already: its prefix, its services, since when they run, and what they may read."""

import fcntl
import glob
import os
import pwd
import re
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from install_plan import DROP_IN, UNIT_DIRECTORY, Setup, setup_of
from machine import InstallError, group_number, run

LOCK = "/run/ckptd-install.lock"
_PROBE = "/usr/bin/test"


@contextmanager
def alone() -> Iterator[None]:
    """Nobody else installs or removes while inside.

    Raises:
        InstallError: somebody does.
    """
    with open(LOCK, "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InstallError(
                f"another scripts/install is at work ({LOCK} is locked); wait until it has ended"
            ) from None
        yield


def prefix_of(destdir: str) -> str | None:
    """Where the units expect the package; None without units."""
    found = re.search(r"^ExecStart=(/\S+)/bin/ckptd ", _text(f"{destdir}{UNIT_DIRECTORY}/ckptd.service"), re.MULTILINE)
    return None if found is None else found[1]


def group_of(destdir: str, setup: Setup) -> str | None:
    """The group that a set-up was given when it was installed."""
    found = re.search(r"^SupplementaryGroups=(\S+)$", _text(destdir + setup.drop_in), re.MULTILINE)
    return None if found is None else found[1]


def enabled_setups(prefix: str) -> list[Setup]:
    """What was set up on this machine, and has not been disabled since."""
    places = sorted(glob.glob(f"{UNIT_DIRECTORY}/ckptd*.service.d/{DROP_IN}"))
    services = [os.path.basename(os.path.dirname(place)).removesuffix(".d") for place in places]
    return [
        setup_of(service, with_socket=is_enabled("ckptd.socket"), group=None, prefix=prefix)
        for service in services
        if is_enabled(service)
    ]


def is_enabled(unit: str) -> bool:
    """Whether it is started at boot."""
    return run("systemctl", "is-enabled", unit, tolerate=True).strip() == "enabled"


def is_active(unit: str) -> bool:
    """Whether it runs, or listens."""
    return run("systemctl", "is-active", unit, tolerate=True).strip() == "active"


def is_outdated(service: str, parts: Iterable[str]) -> bool:
    """Whether a running service was started before the last change of one of its parts.

    Args:
        service: a unit.
        parts: files and directories of files; the time is that of their change, which no copy can keep.
    """
    told = run("systemctl", "show", "--property", "ExecMainStartTimestampMonotonic", "--value", service).strip()
    started = time.time() - time.monotonic() + int(told or 0) / 1e6
    files = [file for part in parts for file in (part, *glob.glob(f"{part}/*.conf"))]
    return any(os.stat(file).st_ctime > started for file in files if os.path.exists(file))


def refused_access(setup: Setup, root: str, *, writes: bool) -> str | None:
    """What the service's user may not do with a tree, as far as its top shows; None where all is well."""
    user = pwd.getpwnam(setup.owner or "ckptd")
    groups = [group_number(setup.group)] if setup.group is not None else []
    known = os.getgrouplist(user.pw_name, user.pw_gid)

    def may(*flags: str) -> bool:
        return all(
            subprocess.run(
                [_PROBE, flag, root], check=False, user=user.pw_uid, group=user.pw_gid, extra_groups=[*known, *groups]
            ).returncode
            == 0
            for flag in flags
        )

    if may("-r", "-x") and (may("-w") or not writes):
        return None
    status = os.stat(root)
    what = "cannot write into" if may("-r", "-x") else "cannot read"
    return f"{user.pw_name} {what} {root} ({stat.filemode(status.st_mode)}, of {_name(status.st_uid)})"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
