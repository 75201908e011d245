"""What a training knows of a checkpoint that it saved, joined with what the file shows, and written beside it."""

import math
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.inspection import FileIdentity, Level, Plain
from ckptd.validators.reader import identity_of

from ..describe import describe_opened, generated_by, sidecar_for
from ..description import CheckpointMetadata, Description, RedactionRules, SidecarStatus
from ..documents import MAX_BYTES
from ..entry import shown_path
from ..experiment import DirectFiles, find_companions
from ..metadata import MetadataError, metrics_of, parse_metadata
from ..metric_names import metric_key
from ..opening import open_checkpoint
from ..redaction import Redactor
from ..roots import open_beneath
from ..sidecar import Author, author_of, remove_sidecar, render, sidecar_path, write_sidecar
from .digesting import remembered_digest


class TrainingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a training knows of one save. What it does not know is left to the file and its surroundings."""

    known: dict[str, Plain] = {}
    """Dotted metadata field (`training.epoch`) → value. Certain, so it wins; a None says that there is none."""
    otherwise: dict[str, Plain] = {}
    """Dotted metadata field → value that counts only where nobody else knows one, such as the name of a class."""
    metrics: Mapping[str, Any] = {}
    """Metrics at that step by the names they were logged under: numbers, or scalar tensors, which are read (and waited
    for) only when the sidecar is written. Whatever is no finite number is left out."""
    digest: str | None = None
    """Of the whole file, where it was computed while saving: `<algorithm>:<hex>`."""
    read_digest: bool = False
    """Otherwise, read every byte to compute it when the sidecar is written: soon after the save, from memory."""
    saved: FileIdentity | None = None
    """The file that was saved, once in its place, where the saver knows it: then these facts are about it and no other,
    whatever step it holds. Needed with `digest`."""


class NotYet(Exception):
    """Raised when the file is not there as it was saved: it is still being written, or another save came between."""


class NotWritten(Exception):
    """Raised when there will be no sidecar of this save. `kind` tells reasons apart that need not be told twice."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Style(msgspec.Struct, frozen=True, kw_only=True):
    """How a callback writes its sidecars."""

    callback: str
    """Who writes: `source.generated_by` is this dotted name and ckptd's version."""
    outputs_dir: str | None = None
    """Experiment names and configs are looked for beneath it only; None: wherever the layout conventions say."""
    validate_schema: bool = True
    """Read back what is about to be written, and write nothing that does not come back as it was."""


def write_facts(
    path: str, facts: TrainingFacts, style: Style, *, previous: FileIdentity | None = None
) -> CheckpointMetadata:
    """Describe a checkpoint that was just saved and write its sidecar, replacing what ckptd or a training wrote.

    Args:
        path: The checkpoint, a file or a directory. Where it is a link, its target was saved and is described.
        facts: What the training knows.
        style: How it is written.
        previous: What was at this path before the save; while it still is there, the save has not ended.

    Returns:
        The metadata as it was written.

    Raises:
        NotYet: nothing whole is there, or it is not what the training saved; it may be there later.
        NotWritten: a person's sidecar is there, the file is no valid checkpoint, or the metadata does not read back.
        OSError: the system refused to write the sidecar; carries its path.
    """
    real = os.path.realpath(path)
    description = _described(real, style, previous, Level.CHECKSUM if facts.read_digest else Level.STRUCTURE)
    _check_is_that_save(description, facts)
    if description.sidecar is SidecarStatus.FOREIGN:
        raise NotWritten("person", f"a metadata file that a person wrote describes {real} already; it is left alone")
    metadata = joined(_placed(description, _top_of(real, style)), facts, style)
    data = render(metadata, description.user, author=Author.TRAINING)
    if style.validate_schema:
        _check_reads_back(data, metadata, real)
    _write(real, data, description.inspection.identity)
    return metadata


def remove_facts(path: str) -> bool:
    """Remove the sidecar of a checkpoint that is gone, or that became a link; never what a person wrote.

    Returns:
        Whether there was one to remove; False also where the checkpoint is still there.

    Raises:
        OSError: the system refused.
    """
    if os.path.lexists(path) and not os.path.islink(path):
        return False
    directory, name = os.path.split(os.path.abspath(os.fsencode(path)))
    try:
        directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return remove_sidecar(directory_fd, sidecar_path(name), author=Author.TRAINING)
    finally:
        os.close(directory_fd)


def joined(description: Description, facts: TrainingFacts, style: Style) -> CheckpointMetadata:
    """The metadata of a valid checkpoint, with what the training knows put first.

    Raises:
        NotWritten: the checkpoint is not valid, or a value of the training does not fit the schema.
    """
    try:
        found = sidecar_for(description, digest=facts.digest or _read_digest(description, facts))
    except ValueError as error:
        raise NotWritten("invalid", str(error)) from error
    document = msgspec.to_builtins(found)
    # What the file and its config say is redacted already. A config may be its owner's alone; the sidecar is not.
    shown = Redactor(RedactionRules())
    for field, value in facts.otherwise.items():
        _put(document, field, shown.plain(value, _last(field)), only_where_missing=True)
    for field, value in facts.known.items():
        _put(document, field, shown.plain(value, _last(field)))
    document["metrics"] = msgspec.to_builtins(metrics_of(_all_metrics(facts.metrics, found.metrics.flat())))
    # Not "ckptd <version>", which says that the file was read and no more is known than it shows.
    document["source"]["generated_by"] = f"{style.callback} {generated_by().rpartition(' ')[2]}"
    try:
        return msgspec.convert(document, CheckpointMetadata)
    except msgspec.ValidationError as error:
        raise NotWritten("schema", f"no metadata for {description.inspection.checkpoint_path}: {error}") from error


def _read_digest(description: Description, facts: TrainingFacts) -> str | None:
    if facts.read_digest:
        return description.inspection.digest
    return remembered_digest(description.inspection.identity)


def plain_number(value: Any) -> float | None:
    """A metric as a finite number; None for what is none. A tensor on a device is waited for."""
    if value is None:
        return None
    item = getattr(value, "item", None)
    try:
        number = float(item() if callable(item) else value)
    except Exception:  # noqa: BLE001 - tensors of any library, also ones whose device is gone; a metric is never worth more
        return None
    return number if math.isfinite(number) else None


# ---- inside ----------------------------------------------------------------------------------------------------


def _described(real: str, style: Style, previous: FileIdentity | None, level: Level) -> Description:
    top = _top_of(real, style)
    root_fd = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if previous is not None and identity_of(os.stat(real)) == previous:
            raise NotYet(f"{real} is still the file that was there before the save")
        description = _describe_beneath(root_fd, real, os.fsencode(real)[len(top.rstrip(b"/")) + 1 :], level)
    except (Changed, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        # A directory is no checkpoint before its metadata is there.
        raise NotYet(f"{real} is not whole: {error}") from error
    except Unreadable as error:
        raise NotWritten("unreadable", f"no metadata for {real}: {error}") from error
    finally:
        os.close(root_fd)
    if not description.inspection.is_valid and _may_become_whole(description):
        raise NotYet(f"{real} is not whole: {description.inspection.error_message}")
    return description


def _describe_beneath(root_fd: int, real: str, relative_path: bytes, level: Level) -> Description:
    """Describe it as anybody would, but without what trainings wrote of it before: that was about another save."""
    found = find_companions(DirectFiles(root_fd), relative_path)
    sidecars = tuple(name for name in found.sidecars if _author_at(root_fd, name) is not Author.TRAINING)
    request, files, _ = open_checkpoint(root_fd, relative_path, msgspec.structs.replace(found, sidecars=sidecars))
    try:
        return describe_opened(
            msgspec.structs.replace(request, checkpoint_path=shown_path(os.fsencode(real))[0], level=level), files
        )
    finally:
        for fd in files.all():
            os.close(fd)


def _author_at(root_fd: int, name: bytes) -> Author | None:
    try:
        fd = open_beneath(root_fd, name)
    except OSError:
        return None  # no file of ours; whoever opens it for good sees what is wrong with it
    try:
        return author_of(os.pread(fd, MAX_BYTES + 1, 0))
    finally:
        os.close(fd)


def _placed(description: Description, top: bytes) -> Description:
    """Where there is no root that paths could be relative to, they are absolute."""
    found = description.metadata.hydra_config_path
    if top != b"/" or description.provenance.get("hydra_config_path") != "layout" or found is None:
        return description
    metadata = msgspec.structs.replace(description.metadata, hydra_config_path=f"/{found}")
    return msgspec.structs.replace(description, metadata=metadata)


def _may_become_whole(description: Description) -> bool:
    """Whether the file is as one looks while it is written, a directory while its shards arrive included."""
    unfinished = ("archive.incomplete", "shards.incomplete")
    return any(found.code in unfinished for found in description.inspection.findings)


def _top_of(real: str, style: Style) -> bytes:
    """Beneath what names and configs are looked for: the outputs, if the checkpoint lies there."""
    top = b"/" if style.outputs_dir is None else os.fsencode(os.path.realpath(style.outputs_dir))
    return top if os.fsencode(real).startswith(top.rstrip(b"/") + b"/") else b"/"


def _check_is_that_save(description: Description, facts: TrainingFacts) -> None:
    """A later or earlier save of the same name holds another step: these facts are not about it."""
    inspection = description.inspection
    if facts.saved is not None:
        mine, there = facts.saved, inspection.identity
        if (mine.inode, mine.size, mine.mtime_ns) != (there.inode, there.size, there.mtime_ns):
            raise NotYet(f"{inspection.checkpoint_path} was saved anew meanwhile")
        return
    for field, held in (("training.epoch", inspection.epoch), ("training.global_step", inspection.global_step)):
        known = facts.known.get(field)
        if known is not None and held is not None and held != known:
            raise NotYet(f"{inspection.checkpoint_path} holds {field} {held}, this save was of {known}")


def _all_metrics(logged: Mapping[str, Any], found: Mapping[str, float]) -> dict[str, float]:
    """The training's metrics, then what else the file says, where the training has no word for the same."""
    numbers = {name: number for name, value in logged.items() if (number := plain_number(value)) is not None}
    known = {metric_key(name) for name in logged}
    return numbers | {name: value for name, value in found.items() if metric_key(name) not in known}


def _last(field: str) -> str:
    return field.rpartition(".")[2]


def _put(document: Any, field: str, value: Plain, *, only_where_missing: bool = False) -> None:
    *sections, name = field.split(".")
    for section in sections:
        document = document.get(section, {})
    if name not in document:
        raise NotWritten("schema", f"the metadata's schema has no field {field}")
    if not only_where_missing or document[name] is None:
        document[name] = value


def _check_reads_back(data: bytes, metadata: CheckpointMetadata, real: str) -> None:
    if len(data) > MAX_BYTES:
        raise NotWritten("schema", f"no metadata for {real}: it would have {len(data)} bytes, readers take {MAX_BYTES}")
    try:
        again = parse_metadata(data).metadata
    except MetadataError as error:
        raise NotWritten("schema", f"no metadata for {real}: it cannot be read back: {error}") from error
    again = msgspec.structs.replace(again, source=msgspec.structs.replace(again.source, body_digest=None))
    if again != metadata:
        fields = [name for name in metadata.__struct_fields__ if getattr(again, name) != getattr(metadata, name)]
        raise NotWritten("schema", f"no metadata for {real}: {', '.join(fields)} would not read back as written")


def _write(real: str, data: bytes, identity: FileIdentity) -> None:
    directory, name = os.path.split(os.fsencode(real))
    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = _status(directory_fd, name, real)
        # A directory's identity is that of all its files together, which describing has compared with before.
        if os.path.isfile(real) and identity_of(status) != identity:
            raise NotYet(f"{real} was saved anew meanwhile")
        write_sidecar(directory_fd, sidecar_path(name), data, like=status, replace_ours=True)
    except FileExistsError as error:
        shown = shown_path(sidecar_path(os.fsencode(real)))[0]
        if _author_at(directory_fd, sidecar_path(name)) is not None:
            raise NotYet(f"{shown} was written by ckptd just then") from error
        raise NotWritten("person", f"{shown} was not written by a training; it is left alone") from error
    finally:
        os.close(directory_fd)


def _status(directory_fd: int, name: bytes, real: str) -> os.stat_result:
    try:
        return os.stat(name, dir_fd=directory_fd)
    except FileNotFoundError as error:
        raise NotYet(f"{real} was deleted meanwhile") from error
