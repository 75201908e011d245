"""Files that are verified, damaged without a trace in their times, and verified again."""

import os
import pathlib

from ckptd.catalog.describe import describe_checkpoint
from ckptd.catalog.description import Description
from ckptd.catalog.verification import Verification, conclude
from ckptd.validators import Inspection, Level, inspect_checkpoint

MONDAY = 1_760_000_000.0
TUESDAY = MONDAY + 86_400


def flip(path: pathlib.Path, offset: int) -> None:
    """Flip one bit of a file in place, and set its modification time back."""
    status = os.stat(path)
    with open(path, "r+b", buffering=0) as file:
        old = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([old ^ 0x10]), offset)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def described(path: pathlib.Path) -> Description:
    """As a look describes it."""
    return describe_checkpoint(str(path))


def read_through(path: pathlib.Path) -> Inspection:
    """Every byte of it."""
    return inspect_checkpoint(path, Level.CHECKSUM)


def verify(path: pathlib.Path, previous: Verification | None = None, *, at: float = MONDAY) -> Verification:
    """Verify it as the daemon does."""
    known = described(path).inspection.findings
    inspection = read_through(path)
    return conclude(previous, inspection, known=known, shards=None, asked=Level.CHECKSUM, at=at)
