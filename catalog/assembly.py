"""Inspection, sidecars, config and run → `Description`: which of them is believed, and what is found about them."""

from collections.abc import Iterator, Sequence

import msgspec

from ckptd.validators.findings import Finding, Severity, finding
from ckptd.validators.inspection import Inspection, Level

from .beside import ReadConfig, ReadSidecar, choose, status_for
from .derive import Surroundings, derive_metadata
from .description import CheckpointMetadata, DescribeRequest, Description, SidecarRepair, SidecarStatus, Source
from .entry import shown_path
from .experiment import parse_file_name
from .metadata import ParsedMetadata
from .recorded import compared, recorded_digest
from .repair import Evidence
from .repair_text import repaired_file
from .run_facts import Run
from .search_text import search_text
from .sidecar import author_of

_SEVERITIES = (Severity.ERROR, Severity.WARNING, Severity.INFO)


def assemble(
    request: DescribeRequest, inspection: Inspection, sidecars: Sequence[ReadSidecar], config: ReadConfig, run: Run
) -> Description:
    """Put together everything known of one checkpoint.

    Args:
        request: what was asked.
        inspection: of the checkpoint itself, or what stands in for one.
        sidecars: in the order of consulting.
        config: the training's.
        run: what launchers and loggers left of it.
    """
    size, archive_id = inspection.identity.size, inspection.archive_id
    judged = [(sidecar, status_for(sidecar, size, archive_id)) for sidecar in sidecars]
    status, chosen = choose(judged)
    believed = chosen if status is SidecarStatus.FOREIGN else None
    if inspection.level is Level.NONE and status is SidecarStatus.OURS:
        believed = chosen  # the fast path: nothing else was read
    around = Surroundings(
        checkpoint_path=request.checkpoint_path,
        relative_path=request.relative_path,
        sidecar=believed,
        config=config.value,
        config_name=request.config_name,
        run=run,
        record_names=request.record_names,
        wandb_run=request.wandb_run,
    )
    derived = derive_metadata(inspection, around)
    findings = [*inspection.findings, *_findings(request, judged, config)]
    description = Description(
        inspection=inspection,
        findings=tuple(sorted(findings, key=lambda found: _SEVERITIES.index(found.severity))),
        metadata=derived.metadata,
        provenance=derived.provenance,
        run_id=derived.run_id,
        sidecar=status,
        outdated=status is SidecarStatus.OURS and believed is None and _is_outdated(chosen, derived.metadata),
        sidecar_identities=tuple(sidecar.identity for sidecar in sidecars),
        config_identity=config.identity,
        settled_logs=run.settled_logs,
        config_path=None if request.config_name is None else shown_path(request.config_name)[0],
        config=config.value,
        user={} if chosen is None else chosen.user,
        repairs=_repairs(request, inspection, around, judged) if request.propose_repairs else (),
        recorded=None if believed is None else recorded_digest(believed.metadata.source),
    )
    description = compared(description, inspection.digest)
    return msgspec.structs.replace(description, search_text=search_text(description))


def _repairs(
    request: DescribeRequest,
    inspection: Inspection,
    around: Surroundings,
    judged: Sequence[tuple[ReadSidecar, SidecarStatus]],
) -> tuple[SidecarRepair, ...]:
    """What to do about sidecars that others wrote; a training's own, as it left it, needs nothing."""
    known = None
    repairs = []
    for path, (sidecar, status) in zip(request.sidecar_names, judged, strict=True):
        if status in (SidecarStatus.STALE, SidecarStatus.INVALID):
            repairs.append(SidecarRepair(name=path, identity=sidecar.identity, status=status))
        elif status is SidecarStatus.FOREIGN and author_of(sidecar.data) is None:
            known = known or derive_metadata(inspection, msgspec.structs.replace(around, sidecar=None)).metadata
            named = parse_file_name(request.relative_path).metrics
            evidence = Evidence(checkpoint_path=request.checkpoint_path, known=known, named=named)
            data, changes = repaired_file(sidecar.data, evidence, is_json=path.endswith(b".json"))
            if changes:
                repairs.append(
                    SidecarRepair(name=path, identity=sidecar.identity, status=status, changes=changes, data=data)
                )
    return tuple(repairs)


def _is_outdated(parsed: ParsedMetadata | None, known: CheckpointMetadata) -> bool:
    """Whether a sidecar of ours says something else than what is known now. A copy has another path and time."""
    if parsed is None:
        return False
    ours = msgspec.structs.replace(parsed.metadata, checkpoint_path=None, created_at=None, source=Source())
    return ours != msgspec.structs.replace(known, checkpoint_path=None, created_at=None, source=Source())


def _findings(
    request: DescribeRequest, judged: Sequence[tuple[ReadSidecar, SidecarStatus]], config: ReadConfig
) -> Iterator[Finding]:
    if not request.sidecar_names:
        yield finding("metadata.missing", "no metadata file lies beside the checkpoint")
    for sidecar, status in judged:
        if status is SidecarStatus.INVALID:
            yield finding("metadata.invalid", f"{sidecar.name} cannot be read as metadata: {sidecar.problem}")
        elif status in (SidecarStatus.STALE, SidecarStatus.STALE_OURS):
            yield finding("metadata.stale", f"{sidecar.name} describes another file: size or contents differ")
    if request.config_name is None:
        yield finding("config.missing", "no training config was found beside the checkpoint or in its run directory")
    elif config.problem is not None:
        shown = shown_path(request.config_name)[0]
        yield finding("config.invalid", f"{shown} cannot be read as a config: {config.problem}")
    if request.run_failed:
        yield finding("run.failed", "a .FAILURE file says that the run did not end well")
