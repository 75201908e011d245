"""Names of our temporary files: hidden, bounded in length, and telling whether their writer still lives.

`.<name>.ckptd-<host>-<pid>-<start>-<random>.tmp`, or `.swap` while it changes places with another file. `host` stands
for one boot of one machine in one process namespace. Only there do process ids mean anything; files from elsewhere
(another node of a shared tree, an earlier boot, another container) are given up by age.
"""

import functools
import hashlib
import os
import re
import secrets

NAME_MAX = 255
LEFTOVER_AGE_S = 3600.0

_NAME = re.compile(rb"\..*\.ckptd-([0-9a-f]{8})-([0-9]+)-([0-9]+)-[0-9a-f]{8}\.(?:tmp|swap)\Z", re.DOTALL)


def temporary_name(name: bytes) -> bytes:
    """A new name for a file that is being written beside `name`, at most 255 bytes long."""
    return _new_name(name, b"tmp")


def swap_name(name: bytes) -> bytes:
    """A new name for a file that changes places with `name`: it may come to hold what somebody else wrote."""
    return _new_name(name, b"swap")


def is_swap_name(name: bytes) -> bool:
    """Whether `swap_name` made this name."""
    return name.endswith(b".swap") and _NAME.match(name) is not None


def _new_name(name: bytes, kind: bytes) -> bytes:
    pid = os.getpid()
    tag = b".ckptd-%s-%d-%d-%s.%s" % (_host(), pid, _start_of(pid) or 0, secrets.token_hex(4).encode(), kind)
    return b"." + name[: NAME_MAX - 1 - len(tag)] + tag


def is_temporary_name(name: bytes) -> bool:
    """Whether `temporary_name` or `swap_name` made this name."""
    return _NAME.match(name) is not None


def is_abandoned(name: bytes, modified_s: float, now: float) -> bool:
    """Whether nobody writes this file any more.

    Args:
        name: As `temporary_name` made it.
        modified_s: Its modification time, epoch seconds.
        now: Epoch seconds.
    """
    match = _NAME.match(name)
    if match is None:
        return False
    host, pid, start = match.group(1), int(match.group(2)), int(match.group(3))
    if host == _host() and start:
        return _start_of(pid) != start
    return now - modified_s > LEFTOVER_AGE_S


@functools.cache
def _host() -> bytes:
    parts = []
    for path, read in (("/proc/sys/kernel/random/boot_id", _first_line), ("/proc/self/ns/pid", os.readlink)):
        try:
            parts.append(read(path))
        except OSError:
            parts.append(secrets.token_hex(8))  # nothing to tell hosts apart by: age alone decides
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=4).hexdigest().encode()


def _first_line(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.readline()


def _start_of(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (proc(5), stat, field 22); None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (OSError, OverflowError):
        return None
    return int(fields[19]) if len(fields) > 19 else None
