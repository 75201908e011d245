"""CheckpointEntry: what a list shows of one checkpoint; encoded to JSON once, when it changes."""

import base64
import datetime as dt
import enum
import hashlib
import itertools
import math
import os
from collections.abc import Sequence
from typing import NewType

import msgspec

from ckptd.validators.findings import Severity
from ckptd.validators.inspection import FileIdentity, Format, Level, Safety

from .description import Description, Metrics, SidecarStatus
from .file_names import stem_of
from .metric_names import value_of
from .roots import Root
from .search_text import text_key

CheckpointId = NewType("CheckpointId", str)
Revision = NewType("Revision", int)

ID_BITS = 80

MAX_TEXT, MAX_METRICS = 300, 1_000
"""Characters of one text, and metrics, that an entry shows: it is in every list, in each snapshot and in memory, and
strangers decide what stands in a sidecar. The detail shows all."""
MAX_FINDINGS = 100


class Health(enum.StrEnum):
    """Whether a checkpoint can be used now."""

    WRITING = "writing"
    """Not whole yet; somebody is probably writing it."""
    VALID = "valid"
    INVALID = "invalid"
    """A finding of severity error stands against it."""
    OFFLINE = "offline"
    """Its disk cannot be read just now; what is shown is what was last known."""


class MetadataSource(enum.StrEnum):
    """Where a checkpoint's metadata is kept."""

    NONE = "none"
    SIDECAR = "sidecar"
    """A sidecar written by a person or a training."""
    DAEMON = "daemon"
    """A sidecar that ckptd wrote."""
    STATE = "state"
    """The sidecar cannot be written there; the metadata lives in the daemon's state."""


class FindingRef(msgspec.Struct, frozen=True, gc=False):
    """A finding as lists show it; message and remedy are in the detail."""

    code: str
    severity: Severity


class CheckpointEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One checkpoint in the catalog. Field order is the wire's order."""

    id: CheckpointId
    path: str
    """Relative to its root; bytes that are not UTF-8 are shown as `\\xNN`."""
    path_base64: str | msgspec.UnsetType = msgspec.UNSET
    """The path's bytes, only where `path` had to be escaped."""
    root: str
    checkpoint_path: str
    display_name: str
    exp_name: str | None = None
    run_id: str | None = None
    architecture: str | None = None
    backbone: str | None = None
    epoch: int | None = None
    global_step: int | None = None
    metrics: dict[str, float] = {}
    monitor: str | None = None
    monitor_mode: str | None = None
    monitor_value: float | None = None
    size_bytes: int
    modified_at: str
    """RFC 3339, UTC."""
    created_at: str | None = None
    format: str | None = None
    n_parameters: int | None = None
    weights_bytes: int | None = None
    optimizer_bytes: int | None = None
    dtypes: tuple[str, ...] = ()
    health: Health
    verified: Level = Level.NONE
    safety: Safety = Safety.UNKNOWN
    findings: tuple[FindingRef, ...] = ()
    has_metadata: bool = False
    metadata_source: MetadataSource = MetadataSource.NONE
    has_config: bool = False
    config_path: str | None = None
    content_id: str | None = None
    alias_of: CheckpointId | None = None
    revision: Revision = Revision(0)


class Identities(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The files that an entry was made from. Unchanged files are not read again."""

    file: FileIdentity
    sidecars: tuple[FileIdentity, ...] = ()
    """Of every sidecar found, in the order in which they are consulted."""
    config: FileIdentity | None = None
    link: FileIdentity | None = None
    """Of the link itself, where the checkpoint is one."""
    run_failed: bool = False
    """A `.FAILURE` sentinel lies beside the checkpoint."""
    shards: str | None = None
    """Digest of the names and identities of a directory's files; None for a file."""
    records: str | None = None
    """Digest of the names and identities of the run's records that are no logs; None where there are none."""
    logs: tuple[FileIdentity, ...] = ()
    """Of the logs that the training writes. `SETTLED` where all that they can say of the checkpoint has been read: they
    grow all the time, and it need not be described anew for that."""

    def are_still(self, seen: "Identities") -> bool:
        """Whether files that look as `seen` are these, so that a description made from these stands."""
        if self == seen:
            return True
        if SETTLED not in self.logs or len(self.logs) != len(seen.logs):
            return False
        logs = tuple(SETTLED if known == SETTLED else now for known, now in zip(self.logs, seen.logs, strict=True))
        return self == msgspec.structs.replace(seen, logs=logs)

    def settled(self, logs: Sequence[bool]) -> "Identities":
        """These, with those logs settled that a description says are."""
        if not any(logs) or len(logs) != len(self.logs):
            return self
        marked = (SETTLED if is_settled else known for known, is_settled in zip(self.logs, logs, strict=True))
        return msgspec.structs.replace(self, logs=tuple(marked))


SETTLED = FileIdentity(0, 0, 0, 0)


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An entry as the catalog keeps it: with the files behind it."""

    entry: CheckpointEntry
    relative_path: bytes
    """Relative to the root, as the filesystem spells it."""
    identities: Identities
    modified_ns: int
    """Sort key of "newest first"; the entry shows it as `modified_at`."""
    text_key: int | None = None
    """Of the line of tokens that full-text search looks into besides the entry; None where none is kept."""

    @property
    def encoded(self) -> bytes:
        """The entry as JSON, the one form in which list, detail and stream show it.

        Made when asked for, 1.6 us: keeping it would cost 112 MB at 100,000 entries, a third of what the whole
        server may use. Whoever sends the same entries to many encodes them once and shares the bytes.
        """
        return encode_entry(self.entry)


def encode_entry(entry: CheckpointEntry) -> bytes:
    """The JSON of an entry, as every reader sees it."""
    return _encoder.encode(entry)


_encoder = msgspec.json.Encoder()


def checkpoint_id(root_name: str, relative_path: bytes) -> CheckpointId:
    """The slot of a path in a root: base32 of 80 bits of BLAKE2b(root name, NUL, relative path bytes).

    It survives overwriting the file, and is not derived from anything inside it.
    """
    digest = hashlib.blake2b(
        root_name.encode("utf-8", "surrogateescape") + b"\0" + relative_path, digest_size=ID_BITS // 8
    )
    return CheckpointId(base64.b32encode(digest.digest()).decode("ascii").lower())


def shown_path(path: bytes) -> tuple[str, str | msgspec.UnsetType]:
    """Return a path for people, and its bytes in base64 if it had to be escaped.

    Bytes that are not UTF-8 appear as `\\xNN`, so that two different names never look the same by accident
    of a replacement character.
    """
    try:
        return path.decode("utf-8"), msgspec.UNSET
    except UnicodeDecodeError:
        return path.decode("utf-8", "backslashreplace"), base64.b64encode(path).decode("ascii")


def rfc3339(time_ns: int, digits: int = 3) -> str:
    """A time in UTC as RFC 3339 says it, `2025-10-11T00:44:42.123Z`.

    Args:
        time_ns: Nanoseconds since the epoch. Years outside 1 to 9999, which a filesystem can hold and the format
            cannot, become the nearest that it can.
        digits: Of the fraction, 1 to 9; the rest is cut off.
    """
    seconds, fraction_ns = divmod(time_ns, 1_000_000_000)
    within = min(max(seconds, _FIRST_SECOND), _LAST_SECOND)
    moment = _EPOCH + dt.timedelta(seconds=within)
    fraction = f"{fraction_ns:09d}"[:digits]
    return f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}.{fraction}Z"


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_FIRST_SECOND = -62_135_596_800  # 0001-01-01T00:00:00Z
_LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z


def make_record(
    root: Root,
    relative_path: bytes,
    description: Description,
    health: Health,
    *,
    identities: Identities,
    metadata_source: MetadataSource,
    alias_of: CheckpointId | None = None,
) -> Record:
    """Build what the catalog keeps of one described checkpoint. The revision is the catalog's to give.

    Size and time are those of `identities.file`. Metrics that are not finite are dropped: JSON has none.
    """
    metadata, inspection = description.metadata, description.inspection
    exp_name, metrics = _short(metadata.exp_name), _shown_metrics(metadata.metrics)
    path, path_base64 = shown_path(relative_path)
    entry = CheckpointEntry(
        id=checkpoint_id(root.name, relative_path),
        path=path,
        path_base64=path_base64,
        root=shown_path(root.path)[0],
        checkpoint_path=shown_path(root.join(relative_path))[0],
        display_name=_display_name(exp_name, relative_path),
        exp_name=exp_name,
        run_id=_short(description.run_id),
        architecture=_short(metadata.model.architecture),
        backbone=_short(metadata.model.encoder.model_name),
        epoch=metadata.training.epoch,
        global_step=metadata.training.global_step,
        metrics=metrics,
        monitor=_short(metadata.checkpointing.monitor),
        monitor_mode=_short(metadata.checkpointing.mode),
        monitor_value=value_of(metrics, metadata.checkpointing.monitor),
        size_bytes=identities.file.size,
        modified_at=rfc3339(identities.file.mtime_ns),
        created_at=_short(metadata.created_at),
        format=None if inspection.format is Format.UNKNOWN else inspection.format.value,
        n_parameters=inspection.n_parameters,
        weights_bytes=inspection.weights_bytes,
        optimizer_bytes=inspection.optimizer_bytes,
        dtypes=inspection.dtypes,
        health=health,
        verified=inspection.level,
        safety=inspection.safety,
        findings=tuple(FindingRef(found.code, found.severity) for found in description.findings[:MAX_FINDINGS]),
        has_metadata=metadata_source is not MetadataSource.NONE,
        metadata_source=metadata_source,
        has_config=description.config_path is not None,
        config_path=description.config_path,
        content_id=inspection.content_id,
        alias_of=alias_of,
    )
    return Record(
        entry=entry,
        relative_path=relative_path,
        identities=identities.settled(description.settled_logs),
        modified_ns=identities.file.mtime_ns,
        text_key=text_key(description.search_text),
    )


def health_of(description: Description, *, age_s: float, abandoned_s: float) -> Health:
    """The health of a described checkpoint.

    Args:
        description: As described.
        age_s: Seconds since the file was last modified.
        abandoned_s: An incomplete file older than this is not being written any more.
    """
    if not description.inspection.is_complete and age_s < abandoned_s:
        return Health.WRITING
    errors = any(found.severity is Severity.ERROR for found in description.findings)
    return Health.INVALID if errors or not description.inspection.is_complete else Health.VALID


def metadata_source(sidecar: SidecarStatus) -> MetadataSource:
    """Where an entry's metadata is kept, given what lies beside the checkpoint."""
    if sidecar is SidecarStatus.OURS:
        return MetadataSource.DAEMON
    return MetadataSource.SIDECAR if sidecar is SidecarStatus.FOREIGN else MetadataSource.NONE


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}\u2026"


def _shown_metrics(metrics: Metrics) -> dict[str, float]:
    shown = ((name, value) for name, value in metrics.flat().items() if len(name) <= MAX_TEXT and math.isfinite(value))
    return dict(itertools.islice(shown, MAX_METRICS))


def _display_name(exp_name: str | None, relative_path: bytes) -> str:
    """Short and readable: `<experiment>/<stem>`, or the stem alone where nobody named the experiment."""
    stem = shown_path(stem_of(os.path.basename(relative_path)))[0]
    return f"{exp_name}/{stem}" if exp_name else stem
