"""describe: inspection + sidecars + config + names → everything known of one checkpoint.

The one job that workers, the bulk command and the library run. Opened files go in, plain typed data comes out.
"""

import contextlib
import functools
import os
import time
from collections.abc import Iterator, Sequence

import msgspec

from ckptd.validators.architectures import Table
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.findings import Finding, Severity, finding
from ckptd.validators.formats.sharded import directory_identity
from ckptd.validators.inspection import FileIdentity, Inspection, Level, Plain, Seal
from ckptd.validators.inspector import inspect_directory, inspect_opened
from ckptd.validators.reader import FileReader, Reading, identity_of

from .derive import Surroundings, derive_metadata
from .description import (
    CheckpointMetadata,
    DescribeRequest,
    Description,
    OpenedFiles,
    ShardFile,
    SidecarRepair,
    SidecarStatus,
    Source,
)
from .directories import parts_of
from .documents import MAX_BYTES, DocumentError, load_document
from .entry import rfc3339, shown_path
from .experiment import DirectFiles, find_companions, parse_file_name
from .metadata import MetadataError, ParsedMetadata, parse_metadata
from .opening import is_directory, open_described
from .recorded import NANOSECONDS, compared, recorded_digest
from .redaction import Redactor
from .repair import Evidence
from .repair_text import repaired_file
from .roots import open_beneath
from .run_facts import Run, read_run, unwrapped
from .search_text import search_text
from .sidecar import author_of, status_of

_SEVERITIES = (Severity.ERROR, Severity.WARNING, Severity.INFO)


class _Sidecar(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    identity: FileIdentity
    data: bytes = b""
    parsed: ParsedMetadata | None = None
    problem: str | None = None


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    identity: FileIdentity | None = None
    value: Plain = None
    problem: str | None = None


# ---- the job ---------------------------------------------------------------------------------------------------


def describe_opened(request: DescribeRequest, files: OpenedFiles, *, architectures: Table | None = None) -> Description:
    """Describe a checkpoint from its opened files.

    Never raises for anything that a file contains: a broken checkpoint, sidecar or config is a finding.

    Args:
        request: what is asked.
        files: opened; the caller closes them.
        architectures: what models are recognised by; by default the packaged table.

    Raises:
        Changed: the checkpoint was modified meanwhile; look again.
        Unreadable: the system refused to read the checkpoint.
    """
    sidecars = [_read_sidecar(name, fd) for name, fd in zip(request.sidecar_names, files.sidecars, strict=True)]
    config = _read_config(request.config_name, files.config)
    inspection = _from_sidecar(request, files, sidecars)
    if inspection is None:
        inspection = _inspect(request, files, architectures)
    run = read_run(request.record_names, files.records, inspection, request.relative_path)
    if request.redaction is None:
        return _assemble(request, inspection, sidecars, config, run)
    redactor = Redactor(request.redaction)
    # Before anything is derived: what is made of them holds no secret either. The sidecars' bytes stay as they are,
    # a repair must not lose what a person wrote.
    description = _assemble(
        request,
        redactor.inspection(inspection),
        [_redacted(sidecar, redactor) for sidecar in sidecars],
        msgspec.structs.replace(config, value=redactor.plain(config.value)),
        redactor.run(run),
    )
    repairs = tuple(
        msgspec.structs.replace(repair, changes=tuple(map(redactor.change, repair.changes)))
        for repair in description.repairs
    )
    return msgspec.structs.replace(description, repairs=repairs, redacted=redactor.count)


def describe_checkpoint(path: str, *, root: str | None = None, level: Level = Level.STRUCTURE) -> Description:
    """Describe one checkpoint in this process, with whatever lies beside it.

    A hostile file can take this process down; the daemon's pool runs the same job in a sandboxed child.

    Args:
        path: The checkpoint, a file or a directory that a sharded format claims.
        root: Configs and experiment names are looked for beneath this directory only; by default anywhere above
            the checkpoint that the layout conventions name.
        level: How much of the file to verify.

    Raises:
        Unreadable: the file or what surrounds it cannot be opened, or it lies outside `root`.
        Changed: the file was modified while it was read.
    """
    given = os.fsencode(path)
    directory = os.path.realpath(os.path.dirname(os.path.abspath(given)))
    top = os.path.realpath(os.fsencode(root)) if root is not None else b"/"
    absolute = os.path.join(directory, os.path.basename(given))
    if not absolute.startswith(top.rstrip(b"/") + b"/"):
        raise Unreadable(f"{shown_path(absolute)[0]} does not lie beneath {shown_path(top)[0]}")
    relative_path = absolute[len(top.rstrip(b"/")) + 1 :]
    try:
        with _opened(top, absolute, relative_path, level) as (request, files):
            return describe_opened(request, files)
    except OSError as error:
        raise Unreadable(f"{shown_path(absolute)[0]} cannot be opened: {error.strerror}", error.errno) from error


def failed_description(
    request: DescribeRequest, identity: FileIdentity, problem: Finding, *, seal: Seal = Seal.NONE
) -> Description:
    """What can be said of a checkpoint that could not be parsed: what its name and place say, and why.

    Args:
        request: What was asked.
        identity: The file's state.
        problem: Why there is no more.
        seal: What is known of its wholeness.
    """
    inspection = Inspection(
        checkpoint_path=request.checkpoint_path, level=Level.NONE, seal=seal, identity=identity, findings=(problem,)
    )
    return _assemble(request, inspection, [], _Config(), Run())


def sidecar_for(
    description: Description, *, digest: str | None = None, generated_at: float | None = None
) -> CheckpointMetadata:
    """The metadata to write beside a checkpoint: what is known, and which state of which file it describes.

    Args:
        description: Of a valid checkpoint.
        digest: Of the whole file, where known.
        generated_at: Epoch seconds; now by default.

    Raises:
        ValueError: the checkpoint is not valid; its sidecar could later stand in for an inspection.
    """
    inspection = description.inspection
    if not inspection.is_valid:
        raise ValueError(f"no metadata is written for {inspection.checkpoint_path}: {inspection.error_message}")
    moment = time.time_ns() if generated_at is None else int(generated_at * 1e9)
    source = Source(
        generated_by=generated_by(),
        generated_at=rfc3339(moment),
        size_bytes=inspection.identity.size,
        modified_at=rfc3339(inspection.identity.mtime_ns, NANOSECONDS),
        archive_id=inspection.archive_id,
        digest=digest,
    )
    return msgspec.structs.replace(description.metadata, source=source)


# ---- reading ---------------------------------------------------------------------------------------------------


def _inspect(request: DescribeRequest, files: OpenedFiles, architectures: Table | None) -> Inspection:
    reading = Reading(mb_per_s=request.mb_per_s, spare_cache=request.spare_cache, fresh=request.fresh)
    if not _is_directory(files.checkpoint):
        return inspect_opened(
            files.checkpoint,
            request.checkpoint_path,
            request.level,
            reading,
            required_keys=request.required_keys,
            architectures=architectures,
        )
    directory = _directory(request, files)
    parts = parts_of(request.shards, files.shards)
    name = request.directory_name or os.path.basename(request.checkpoint_path)
    inspection = inspect_directory(
        parts,
        directory,
        os.path.join(os.path.dirname(request.checkpoint_path), name),
        request.level,
        reading,
        required_keys=request.required_keys,
        architectures=architectures,
    )
    if _directory(request, files) != directory:
        raise Changed("the directory was modified while its files were read")
    return msgspec.structs.replace(inspection, checkpoint_path=request.checkpoint_path)


def _directory(request: DescribeRequest, files: OpenedFiles) -> FileIdentity:
    """The identity of the directory itself, once its opened files have been found as they were listed.

    Raises:
        Changed: one of them was modified since.
    """
    opened = [file for file in request.shards if file.opened]
    for file, fd in zip(opened, files.shards, strict=True):
        if _identity(fd) != file.identity:
            raise Changed(f"{shown_path(file.name)[0]} was modified while it was read")
    return _identity(files.checkpoint)


def _whole_identity(request: DescribeRequest, files: OpenedFiles) -> FileIdentity:
    """The identity of the checkpoint, file or directory."""
    if not _is_directory(files.checkpoint):
        return _identity(files.checkpoint)
    return directory_identity(_directory(request, files), parts_of(request.shards, files.shards))


def _read_sidecar(name: bytes, fd: int) -> _Sidecar:
    shown = shown_path(name)[0]
    # A sidecar that changes while it is read shows by its identity, which is the one before the reading.
    identity = _identity(fd)
    try:
        data = _read_whole(fd)
        parsed = parse_metadata(data, is_json=name.endswith(b".json"))
    except (MetadataError, Unreadable) as error:
        return _Sidecar(name=shown, identity=identity, problem=str(error))
    return _Sidecar(name=shown, identity=identity, data=data, parsed=parsed)


def _redacted(sidecar: _Sidecar, redactor: Redactor) -> _Sidecar:
    parsed = None if sidecar.parsed is None else redactor.sidecar(sidecar.parsed)
    return msgspec.structs.replace(sidecar, parsed=parsed)


def _read_config(name: bytes | None, fd: int | None) -> _Config:
    if name is None or fd is None:
        return _Config()
    identity = _identity(fd)
    try:
        value = load_document(_read_whole(fd), is_json=name.endswith(b".json"))
    except (DocumentError, Unreadable) as error:
        return _Config(identity=identity, problem=str(error))
    if not isinstance(value, dict):
        return _Config(identity=identity, problem="it holds no keys and values")
    return _Config(identity=identity, value=unwrapped(value))


def _read_whole(fd: int) -> bytes:
    return FileReader(fd).read(0, MAX_BYTES + 1)


def _is_directory(fd: int) -> bool:
    try:
        return is_directory(fd)
    except OSError as error:
        raise Unreadable(f"fstat failed: {error.strerror}", error.errno) from error


def _identity(fd: int) -> FileIdentity:
    try:
        return identity_of(os.fstat(fd))
    except OSError as error:
        raise Unreadable(f"fstat failed: {error.strerror}", error.errno) from error


def _from_sidecar(request: DescribeRequest, files: OpenedFiles, sidecars: Sequence[_Sidecar]) -> Inspection | None:
    """The fast path: a sidecar of ours that was written for exactly this state of the file."""
    if not request.trust_sidecar or request.required_keys:
        return None  # a sidecar does not say which keys there are
    identity = _whole_identity(request, files)
    for sidecar in sidecars:
        if _status(sidecar, identity.size, None) is not SidecarStatus.OURS or sidecar.parsed is None:
            continue
        metadata = sidecar.parsed.metadata
        source = metadata.source
        if (source.size_bytes, source.modified_at) == (identity.size, rfc3339(identity.mtime_ns, NANOSECONDS)):
            return Inspection(
                checkpoint_path=request.checkpoint_path,
                level=Level.NONE,
                # Sidecars are written for whole files only.
                seal=Seal.SEALED,
                identity=identity,
                architecture=metadata.model.architecture,
                epoch=metadata.training.epoch,
                global_step=metadata.training.global_step,
                archive_id=source.archive_id,
            )
    return None


@contextlib.contextmanager
def _opened(
    top: bytes, absolute: bytes, relative_path: bytes, level: Level
) -> Iterator[tuple[DescribeRequest, OpenedFiles]]:
    """As `opening.open_checkpoint`, but following a link that the caller named, wherever it leads."""
    with contextlib.ExitStack() as stack:
        root_fd = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root_fd)
        found = find_companions(DirectFiles(root_fd), relative_path)
        checkpoint, shards, parts = _open_named(stack, absolute)
        beside = {}
        for name in (*found.sidecars, *found.records, *filter(None, [found.config])):
            with contextlib.suppress(OSError):  # what cannot be opened counts as absent
                beside[name] = open_beneath(root_fd, name)
                stack.callback(os.close, beside[name])
        request = DescribeRequest(
            checkpoint_path=shown_path(absolute)[0],
            relative_path=relative_path,
            level=level,
            sidecar_names=tuple(name for name in found.sidecars if name in beside),
            config_name=found.config if found.config in beside else None,
            record_names=tuple(name for name in found.records if name in beside),
            wandb_run=found.wandb_run,
            run_failed=found.run_failed,
            shards=shards,
            directory_name=shown_path(os.path.basename(os.path.realpath(absolute)))[0] if shards else None,
        )
        sidecars = tuple(beside[name] for name in request.sidecar_names)
        config = None if request.config_name is None else beside[request.config_name]
        records = tuple(beside[name] for name in request.record_names)
        yield (
            request,
            OpenedFiles(checkpoint=checkpoint, sidecars=sidecars, config=config, records=records, shards=parts),
        )


def _open_named(stack: contextlib.ExitStack, absolute: bytes) -> tuple[int, tuple[ShardFile, ...], tuple[int, ...]]:
    """Open the file, or the directory with its files, that a caller named; a link is followed."""
    if not os.path.isdir(absolute):
        checkpoint = os.open(absolute, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        stack.callback(os.close, checkpoint)
        return checkpoint, (), ()
    directory, name = os.path.split(os.path.realpath(absolute))
    base_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, base_fd)
    checkpoint, shards, parts = open_described(base_fd, name)
    for fd in (checkpoint, *parts):
        stack.callback(os.close, fd)
    return checkpoint, shards, parts


# ---- judging ---------------------------------------------------------------------------------------------------


def _assemble(
    request: DescribeRequest, inspection: Inspection, sidecars: Sequence[_Sidecar], config: _Config, run: Run
) -> Description:
    size, archive_id = inspection.identity.size, inspection.archive_id
    judged = [(sidecar, _status(sidecar, size, archive_id)) for sidecar in sidecars]
    status, chosen = _choose(judged)
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
    judged: Sequence[tuple[_Sidecar, SidecarStatus]],
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


def _status(sidecar: _Sidecar, size_bytes: int, archive_id: str | None) -> SidecarStatus:
    source = None if sidecar.parsed is None else sidecar.parsed.metadata.source
    return status_of(sidecar.data, source, size_bytes=size_bytes, archive_id=archive_id)


def _choose(judged: Sequence[tuple[_Sidecar, SidecarStatus]]) -> tuple[SidecarStatus, ParsedMetadata | None]:
    """The sidecar that counts: a person's or training's first, then ours, then the first in order of consulting."""
    for wanted in (SidecarStatus.FOREIGN, SidecarStatus.OURS):
        for sidecar, status in judged:
            if status is wanted:
                return status, sidecar.parsed
    return (judged[0][1], judged[0][0].parsed) if judged else (SidecarStatus.NONE, None)


def _findings(
    request: DescribeRequest, judged: Sequence[tuple[_Sidecar, SidecarStatus]], config: _Config
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


@functools.cache
def generated_by() -> str:
    """The name and version that our sidecars carry."""
    # Imported here: it doubles the memory that a fork of the worker's zygote copies, and no worker needs it.
    from importlib import metadata

    try:
        return f"ckptd {metadata.version('ckptd')}"
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "ckptd"
