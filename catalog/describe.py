"""describe: inspection + sidecars + config + names → everything known of one checkpoint.

The one job that workers, the bulk command and the library run. Opened files go in, plain typed data comes out.
"""

import functools
import os
import time
from collections.abc import Sequence

import msgspec

from ckptd.validators.architectures import Table
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.findings import Finding
from ckptd.validators.formats.sharded import directory_identity
from ckptd.validators.inspection import FileIdentity, Inspection, Level, Seal
from ckptd.validators.inspector import inspect_directory, inspect_opened
from ckptd.validators.reader import Reading

from .assembly import assemble
from .beside import ReadConfig, ReadSidecar, read_config, read_sidecar, redacted, status_for
from .description import (
    CheckpointMetadata,
    DescribeRequest,
    Description,
    OpenedFiles,
    SidecarStatus,
    Source,
)
from .directories import parts_of
from .entry import rfc3339, shown_path
from .opening import identity_of_opened, is_opened_directory, open_named
from .recorded import NANOSECONDS
from .redaction import Redactor
from .run_facts import Run, read_run

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
    sidecars = [read_sidecar(name, fd) for name, fd in zip(request.sidecar_names, files.sidecars, strict=True)]
    config = read_config(request.config_name, files.config)
    inspection = _stand_in(request, files, sidecars)
    if inspection is None:
        inspection = _inspect(request, files, architectures)
    run = read_run(request.record_names, files.records, inspection, request.relative_path)
    if request.redaction is None:
        return assemble(request, inspection, sidecars, config, run)
    redactor = Redactor(request.redaction)
    # Before anything is derived: what is made of them holds no secret either. The sidecars' bytes stay as they are,
    # a repair must not lose what a person wrote.
    description = assemble(
        request,
        redactor.inspection(inspection),
        [redacted(sidecar, redactor) for sidecar in sidecars],
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
        with open_named(top, absolute, relative_path, level) as (request, files):
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
    return assemble(request, inspection, [], ReadConfig(), Run())


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


# ---- inspecting ----------------------------------------------------------------------------------------------------


def _inspect(request: DescribeRequest, files: OpenedFiles, architectures: Table | None) -> Inspection:
    reading = Reading(mb_per_s=request.mb_per_s, spare_cache=request.spare_cache, fresh=request.fresh)
    if not is_opened_directory(files.checkpoint):
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
        if identity_of_opened(fd) != file.identity:
            raise Changed(f"{shown_path(file.name)[0]} was modified while it was read")
    return identity_of_opened(files.checkpoint)


def _whole_identity(request: DescribeRequest, files: OpenedFiles) -> FileIdentity:
    """The identity of the checkpoint, file or directory."""
    if not is_opened_directory(files.checkpoint):
        return identity_of_opened(files.checkpoint)
    return directory_identity(_directory(request, files), parts_of(request.shards, files.shards))


def _stand_in(request: DescribeRequest, files: OpenedFiles, sidecars: Sequence[ReadSidecar]) -> Inspection | None:
    """The fast path: a sidecar of ours that was written for exactly this state of the file."""
    if not request.trust_sidecar or request.required_keys:
        return None  # a sidecar does not say which keys there are
    identity = _whole_identity(request, files)
    for sidecar in sidecars:
        if status_for(sidecar, identity.size, None) is not SidecarStatus.OURS or sidecar.parsed is None:
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


@functools.cache
def generated_by() -> str:
    """The name and version that our sidecars carry."""
    # Imported here: it doubles the memory that a fork of the worker's zygote copies, and no worker needs it.
    from importlib import metadata

    try:
        return f"ckptd {metadata.version('ckptd')}"
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "ckptd"
