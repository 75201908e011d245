"""The digest that a training recorded while it saved a checkpoint, against the digest of the bytes as they are read.

It covers what a file's own checksums cannot: formats and archives that have none, and what lies between records.
"""

import enum
import re

import msgspec

from ckptd.validators.findings import Finding, Severity, finding
from ckptd.validators.inspection import FileIdentity, Level

from .description import Description, RecordedDigest, Source
from .entry import rfc3339

_BY_CKPTD = re.compile(r"ckptd( \S+)?")
"""What `describe.generated_by` says; a callback adds its own name to it."""
NANOSECONDS = 9
"""Digits of `source.modified_at`: it is compared with the file's own time, exactly."""


class Agreement(enum.Enum):
    """What a recorded digest says of the bytes that were read."""

    UNKNOWN = enum.auto()
    """Nothing: one of the two is not known, or they are of different kinds."""
    SAME = enum.auto()
    """They are the bytes that were saved."""
    ALTERED = enum.auto()
    """They are not, and nobody wrote to the file since: it has the size and the time that were recorded."""
    OTHER = enum.auto()
    """They are not, and the file has another time: written anew under the same name, or altered while it was copied."""


def recorded_digest(source: Source | None) -> RecordedDigest | None:
    """The digest that a person's or a training's sidecar records, if it vouches for what was saved.

    What ckptd writes was read from the disk later, and proves no more than ckptd remembers; it does not begin to when
    a person edits the sidecar.

    Args:
        source: what the sidecar says of the file that it describes.
    """
    if source is None or source.digest is None or _BY_CKPTD.fullmatch(source.generated_by or ""):
        return None
    return RecordedDigest(source.digest, source.modified_at)


def agreement(recorded: RecordedDigest | None, digest: str | None, identity: FileIdentity) -> Agreement:
    """Compare.

    Args:
        recorded: while saving.
        digest: of every byte, as read.
        identity: of the file that was read.
    """
    if recorded is None or digest is None or _algorithm(recorded.digest) != _algorithm(digest):
        return Agreement.UNKNOWN
    if recorded.digest == digest:
        return Agreement.SAME
    untouched = recorded.modified_at == rfc3339(identity.mtime_ns, NANOSECONDS)
    return Agreement.ALTERED if untouched else Agreement.OTHER


def disagreement(recorded: RecordedDigest | None, digest: str | None, identity: FileIdentity) -> Finding | None:
    """The finding that a comparison amounts to; None where the bytes are those that were saved, or nobody knows."""
    match agreement(recorded, digest, identity):
        case Agreement.ALTERED:
            return finding(
                "archive.checksum_mismatch",
                "the digest of the whole file is not the one that the training recorded while saving it, "
                "while size and modification time are the same: its bytes were altered",
            )
        case Agreement.OTHER:
            return finding(
                "metadata.other_digest",
                "the digest of the whole file is not the one that its metadata records from the saving",
            )
    return None


def compared(description: Description, digest: str | None) -> Description:
    """A description with what its recorded digest says of the bytes.

    Bytes that are those that were saved are verified to level `checksum`, whatever their format.

    Args:
        description: of the file that was read.
        digest: of every byte, as read; None changes nothing.
    """
    inspection = description.inspection
    if agreement(description.recorded, digest, inspection.identity) is Agreement.SAME:
        level = inspection.level if inspection.level.covers(Level.CHECKSUM) else Level.CHECKSUM
        proved = msgspec.structs.replace(inspection, level=level, findings=_without_doubt(inspection.findings))
        return msgspec.structs.replace(description, inspection=proved, findings=_without_doubt(description.findings))
    other = disagreement(description.recorded, digest, inspection.identity)
    if other is None or any(found.code == other.code for found in inspection.findings):
        return description  # where records fail their own checksums, another digest of the whole says nothing more
    return msgspec.structs.replace(
        description,
        inspection=msgspec.structs.replace(inspection, findings=_worst_first((other, *inspection.findings))),
        findings=_worst_first((other, *description.findings)),
    )


def _without_doubt(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    return tuple(found for found in findings if found.code != "archive.unverifiable")


def _worst_first(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    order = (Severity.ERROR, Severity.WARNING, Severity.INFO)
    return tuple(sorted(findings, key=lambda found: order.index(found.severity)))


def _algorithm(digest: str) -> str:
    return digest.partition(":")[0]
