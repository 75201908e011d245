"""Beyond structure: what reading every byte, and looking at every value, adds to the inspection of a whole file."""

from typing import NamedTuple

import msgspec

from .checks.checksum import digest_file, mismatches, unwritten, verify_archive
from .checks.structure import limited
from .checks.weights import WeightScan, load_torch
from .errors import Corrupt
from .findings import Finding, finding
from .formats.torch_zip import Archive, Source, check_descriptors
from .inspection import Inspection, Level
from .storages import Storages
from .tensors import TensorTable


class Located(NamedTuple):
    """The tensors of a file, and where their data lies."""

    table: TensorTable
    storages: Storages


def check_available(level: Level) -> None:
    """See that a file can be inspected at `level` here, before one is opened.

    Raises:
        ValueError: nothing is inspected at level `none`.
        TorchMissing: level `weights` needs torch.
    """
    if level is Level.NONE:
        raise ValueError("level 'none' inspects nothing; use 'structure', 'checksum' or 'weights'")
    if level is Level.WEIGHTS:
        load_torch()


def verify_archive_contents(
    archive: Archive, inspection: Inspection, located: Located | None, level: Level
) -> Inspection:
    """Read an archive through: every record against its checksum, at level `weights` every value as well.

    Args:
        archive: of any kind; a file, or a part of one (`ranges.RangeReader`).
        inspection: of its structure.
        located: its tensors, where they are known.
        level: `checksum` or `weights`.

    Returns:
        `inspection` with digest and findings. Its level rises as far as was verified: without checksums there is
        nothing to verify the bytes by, but the values can still be looked at.

    Raises:
        Changed: the file has become shorter.
        Unreadable: the system refused a read.
        TorchMissing: level `weights` needs torch.
    """
    scan = _scan(inspection, located, level)
    verification = verify_archive(archive) if scan is None else verify_archive(archive, scan.feed, scan.feed_record)
    found = limited(mismatches(archive, verification, None if located is None else located.table))
    try:
        check_descriptors(archive)
    except Corrupt as error:
        found.append(finding(error.code, error.message))
    if not archive.has_checksums:
        found += _holes(archive.source, located)
    reached = Level.CHECKSUM if archive.has_checksums else inspection.level
    return _deepened(inspection, reached, verification.digest, found, scan)


def verify_plain(source: Source, inspection: Inspection, located: Located | None, level: Level) -> Inspection:
    """The same for a format without checksums: a digest, at level `weights` every value as well."""
    scan = _scan(inspection, located, level)
    digest = digest_file(source) if scan is None else digest_file(source, scan.feed)
    unverifiable = finding("archive.unverifiable", "files of this format carry no checksums")
    return _deepened(inspection, inspection.level, digest, [unverifiable, *_holes(source, located)], scan)


def _scan(inspection: Inspection, located: Located | None, level: Level) -> WeightScan | None:
    if level is not Level.WEIGHTS or located is None:
        return None
    return WeightScan.of(located.table, {tensor.name: tensor.role for tensor in inspection.tensors}, located.storages)


def _holes(source: Source, located: Located | None) -> list[Finding]:
    message = None if located is None else unwritten(source, located.table, located.storages)
    return [] if message is None else [finding("archive.holes", message)]


def _deepened(
    inspection: Inspection, reached: Level, digest: str, found: list[Finding], scan: WeightScan | None
) -> Inspection:
    if scan is not None:
        found = [*found, *scan.findings()]
        reached = Level.WEIGHTS if scan.is_complete else reached
    # data.pkl is checked before it is parsed: its finding is there already.
    new = [problem for problem in found if problem not in inspection.findings]
    return msgspec.structs.replace(inspection, level=reached, digest=digest, findings=(*inspection.findings, *new))
