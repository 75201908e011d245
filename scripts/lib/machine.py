"""The machine that something is set up on: commands, users, groups, and who answers at an address."""

import grp
import pwd
import subprocess
import urllib.error
import urllib.request


class InstallError(Exception):
    """Raised when it cannot go on; the message says why and what to do."""


class UsageError(InstallError):
    """Raised for arguments that cannot be used, on any machine."""


def run(*command: str, tolerate: bool = False, shown: str | None = None) -> str:
    """Run a command; returns its output.

    Args:
        command: with its arguments.
        tolerate: that it fails.
        shown: what a failure names instead of the command.

    Raises:
        InstallError: it failed, and that is not tolerated.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0 and not tolerate:
        said = (done.stderr or done.stdout).strip()[-3000:]
        what = shown or f"`{' '.join(command)}`"
        raise InstallError(f"{what} ended with {done.returncode}: {said or 'it said nothing'}")
    return done.stdout


def has_user(name: str) -> bool:
    """Whether the machine knows a user."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def has_group(name: str) -> bool:
    """Whether the machine knows a group."""
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def group_number(name: str) -> int:
    """A group's number; the machine knows it."""
    return grp.getgrnam(name).gr_gid


def answer(url: str) -> int | None:
    """The status of an answer; None without one."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
