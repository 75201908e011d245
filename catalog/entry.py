"""CheckpointEntry: what a list shows of one checkpoint; encoded to JSON once, when it changes."""

import base64
import enum
import hashlib
from typing import NewType

import msgspec

from ckptd.validators.findings import Severity
from ckptd.validators.inspection import FileIdentity, Level, Safety

CheckpointId = NewType("CheckpointId", str)
Revision = NewType("Revision", int)

ID_BITS = 80


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


class CheckpointEntry(msgspec.Struct, frozen=True, kw_only=True):
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


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as the catalog keeps it: with the files behind it and its JSON."""

    entry: CheckpointEntry
    relative_path: bytes
    """Relative to the root, as the filesystem spells it."""
    identities: Identities
    modified_ns: int
    """Sort key of "newest first"; the entry shows it as `modified_at`."""
    encoded: bytes = b""
    """The entry as JSON, made when it was published."""


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
