"""kill -9, or an error, at every chosen system call of a command, one run for each (strace)."""

import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

CALLS = "renameat2,renameat,rename,linkat,fsync,fdatasync,write,unlinkat,unlink,fchmod,fchown"
"""What changes a directory or a file, or makes it durable."""


def crash_points(
    command: Sequence[str], log: Path, what: str, *, reset: Callable[[], None]
) -> Iterator[tuple[str, int]]:
    """Run a command once for each of its system calls, with `what` injected there; yields the call and the exit code.

    Args:
        command: makes the same calls in every run.
        log: a file for strace.
        what: strace's words: `signal=KILL`, `error=EIO`.
        reset: makes everything as it is to be before a run.
    """
    strace = ["strace", "-f", "-qq", "-o", str(log)]
    reset()
    subprocess.run([*strace, "-e", f"trace={CALLS}", *command], check=True)
    calls = re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE)
    assert "fsync" in calls
    for index, call in enumerate(calls):
        reset()
        when = calls[: index + 1].count(call)
        inject = f"inject={call}:{what}:when={when}"
        run = subprocess.run([*strace, "-e", f"trace={call}", "-e", inject, *command], check=False)
        yield f"{call} #{when}", run.returncode
