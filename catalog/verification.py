"""Verification: what reading every byte of a checkpoint showed, remembered, and compared with what it shows later.

The structure of a checkpoint is described at arrival; its bytes are read later, in the background, and again on a
schedule. A verification is kept beside the description and never mixed into it: `apply` shows the two as one.
"""

from collections.abc import Sequence

import msgspec

from ckptd.validators.findings import Finding, Severity, finding
from ckptd.validators.inspection import FileIdentity, Inspection, Level

from .description import Description
from .entry import rfc3339
from .recorded import Agreement, agreement, compared

MISMATCH = "archive.checksum_mismatch"
BIT_ROT = "archive.bit_rot"
CRASHED = "worker.crashed"
UNREADABLE = "file.unreadable"

_ORDER = (Severity.ERROR, Severity.WARNING, Severity.INFO)
_MAX_NAMED = 3


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of the last verification of one checkpoint."""

    identity: FileIdentity
    """The state of the file that was read."""
    shards: str | None = None
    """As `Identities.shards`."""
    asked: Level
    """How far it was to be verified."""
    level: Level
    """How far it could be: a format without checksums stays at `structure`."""
    verified_at: float
    """When the reading began; epoch seconds."""
    digest: str | None = None
    """Of every byte, as they were read."""
    good_digest: str | None = None
    """The digest that the same file had when nothing was wrong with its bytes."""
    good_at: float | None = None
    """When that was last seen; None if it never was. Epoch seconds."""
    findings: tuple[Finding, ...] = ()
    """What only this verification shows; findings of the structure are in the description."""

    def is_of(self, identity: FileIdentity, shards: str | None) -> bool:
        """Whether this is said of exactly this state of the file, so that it holds."""
        return self.identity == identity and self.shards == shards

    def is_of_same_file(self, identity: FileIdentity, shards: str | None) -> bool:
        """The same, but for the change time: the file was touched, linked or given another mode; or it was altered
        and its modification time set back. Its bytes should be the same, and must be read to know."""
        mine, its = self.identity, identity
        return self.shards == shards and (mine.inode, mine.size, mine.mtime_ns) == (its.inode, its.size, its.mtime_ns)

    @property
    def is_final(self) -> bool:
        """The file ended the process that read it: it is not tried again until it changes, or a second try is due."""
        return any(found.code == CRASHED for found in self.findings)

    @property
    def is_unreadable(self) -> bool:
        """The disk failed: it is tried again, and again after a restart."""
        return any(found.code == UNREADABLE for found in self.findings)

    @property
    def is_failed(self) -> bool:
        """It did not get to the end of the file."""
        return self.is_final or self.is_unreadable

    @property
    def is_good(self) -> bool:
        """No finding of it is an error."""
        return not any(found.severity is Severity.ERROR for found in self.findings)


def conclude(
    previous: Verification | None,
    inspection: Inspection,
    *,
    known: Sequence[Finding],
    shards: str | None,
    asked: Level,
    at: float,
) -> Verification:
    """Make the verification that an inspection amounts to.

    Bytes that differ from those of an earlier, good verification of the same file are bit rot, whatever the format and
    whether or not it carries checksums: nothing should have changed them. A file that does not match its checksums at
    its first verification was never good as far as anybody knows, and is said to mismatch, no more.

    Args:
        previous: the last verification under this name, of whatever file; None if there was none.
        inspection: at level `asked`.
        known: the findings that the structure alone shows.
        shards: as `Identities.shards`.
        asked: how far the file was to be verified.
        at: when the reading began, epoch seconds.
    """
    same = previous if previous is not None and previous.is_of_same_file(inspection.identity, shards) else None
    content = tuple(found for found in inspection.findings if found not in known)
    damaged = not inspection.is_complete or any(found.code == MISMATCH for found in inspection.findings)
    good_digest, good_at = (None, None) if same is None else (same.good_digest, same.good_at)
    if same is not None and good_at is not None and _rotted(good_digest, inspection.digest, damaged=damaged):
        content = (finding(BIT_ROT, _rot_message(same, good_at, inspection)), *content)
    elif not damaged:
        good_digest, good_at = inspection.digest, at
    return Verification(
        identity=inspection.identity,
        shards=shards,
        asked=asked,
        level=inspection.level,
        verified_at=at,
        digest=inspection.digest,
        good_digest=good_digest,
        good_at=good_at,
        findings=content,
    )


def failed(
    previous: Verification | None,
    problem: Finding,
    *,
    identity: FileIdentity,
    shards: str | None,
    asked: Level,
    at: float,
) -> Verification:
    """The verification of a file that could not be read to its end; what is known of its good state is kept.

    Args:
        previous: the last verification under this name, of whatever file; None if there was none.
        problem: why not.
        identity: of the file that was opened.
        shards: as `Identities.shards`.
        asked: how far it was to be verified.
        at: when the reading began, epoch seconds.
    """
    same = previous if previous is not None and previous.is_of_same_file(identity, shards) else None
    return Verification(
        identity=identity,
        shards=shards,
        asked=asked,
        level=Level.STRUCTURE,
        verified_at=at,
        good_digest=None if same is None else same.good_digest,
        good_at=None if same is None else same.good_at,
        findings=(problem,),
    )


def apply(description: Description, verification: Verification, *, shards: str | None = None) -> Description:
    """Show a description of the structure together with what is known of the bytes.

    A verification of another file says nothing. One of the same file, but before its last change of status (a new mode,
    a new link), no longer proves the level; the errors that it found stand until the bytes have been read again.

    What was read is compared with the digest that the training recorded while it saved the file, if it did: that proves
    bytes that carry no checksums, from the first reading on. It is compared here, whenever the two are shown, because
    a sidecar may come, or change, after the bytes have been read.

    Args:
        description: as a look at the file made it.
        verification: the last one under its name.
        shards: of the description's file, as `Identities.shards`.
    """
    identity = description.inspection.identity
    verified_at = None
    if verification.is_of(identity, shards):
        level, digest = max_level(description.inspection.level, verification.level), verification.digest
        verified_at = None if verification.is_failed else rfc3339(int(verification.verified_at * 1e9), 3)
    elif verification.is_of_same_file(identity, shards) and is_damaged(description, verification):
        level, digest = description.inspection.level, None
    else:
        return description
    inspection = msgspec.structs.replace(
        description.inspection,
        level=level,
        digest=digest or description.inspection.digest,
        findings=_merged(description.inspection.findings, verification.findings),
    )
    findings = _merged(description.findings, verification.findings)
    shown = msgspec.structs.replace(description, inspection=inspection, findings=findings, verified_at=verified_at)
    return compared(shown, verification.digest)


def is_damaged(description: Description, verification: Verification) -> bool:
    """Whether reading every byte showed an error, or that they are not the bytes that the training saved.

    Args:
        description: of the file, which knows what the training recorded.
        verification: of the same file.
    """
    identity = description.inspection.identity
    altered = agreement(description.recorded, verification.digest, identity) is Agreement.ALTERED
    return altered or not verification.is_good


def max_level(one: Level, other: Level) -> Level:
    """The level that verifies more."""
    return one if one.covers(other) else other


def _rotted(before: str | None, now: str | None, *, damaged: bool) -> bool:
    if before is not None and now is not None and _algorithm(before) == _algorithm(now):
        return before != now
    return damaged  # no digests to compare: it was whole, or its checksums matched, and that is no longer so


def _algorithm(digest: str) -> str:
    return digest.partition(":")[0]


def _rot_message(same: Verification, good_at: float, inspection: Inspection) -> str:
    how = (
        "and nothing wrote to the file"
        if same.identity == inspection.identity
        else "and something changed its status, as who sets a modification time back does"
    )
    where = [found.message for found in inspection.findings if found.severity is Severity.ERROR]
    more = f"; and {len(where) - _MAX_NAMED} more" if len(where) > _MAX_NAMED else ""
    shown = "; ".join(where[:_MAX_NAMED]) + more if where else "the digest of the whole file is another one"
    return (
        f"the bytes are not those that were verified as good at {rfc3339(int(good_at * 1e9), 3)}, "
        f"while size and modification time are the same {how}: {shown}"
    )


def _merged(described: tuple[Finding, ...], verified: tuple[Finding, ...]) -> tuple[Finding, ...]:
    # What the bytes show comes first among equals: it says most about the file.
    both = (*verified, *(found for found in described if found not in verified))
    return tuple(sorted(both, key=lambda found: _ORDER.index(found.severity)))
