"""What the Python client gives: typed answers of the daemon, changes, and errors."""

import enum
from typing import Any, TypeVar

import msgspec

from ckptd.catalog.description import CheckpointMetadata, SidecarStatus
from ckptd.catalog.entry import CheckpointEntry
from ckptd.catalog.facets import FacetValue
from ckptd.validators.findings import Severity
from ckptd.validators.inspection import CallbackState, Plain, Recognition, Seal, Shard, TensorInfo

_T = TypeVar("_T")


class ClientError(Exception):
    """Raised when the daemon cannot be reached, refuses, or says what cannot be understood; tells what to do."""

    def __init__(self, message: str, status: int | None = None, problem: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; None when nothing answered."""
        self.problem = dict(problem or {})
        """The daemon's own words (RFC 9457): `detail`, `remedy`, `field`, `value` and more."""


class CheckpointPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of the list."""

    checkpoints: tuple[CheckpointEntry, ...]
    total: int
    """Matching entries on all pages."""
    page: int
    page_size: int
    total_pages: int
    revision: int
    """Of the catalog that was asked."""
    next: str | None
    """Give it as `after` to get the next page, good whatever comes and goes; None where nothing follows."""
    facets: dict[str, tuple[FacetValue, ...]] | None = None
    """Counts by value, where they were asked for."""


class DetailedFinding(msgspec.Struct, frozen=True):
    """A finding, with its message and remedy where a description is kept."""

    code: str
    severity: Severity
    message: str | None = None
    remedy: str | None = None


class CheckpointDetail(CheckpointEntry, frozen=True, kw_only=True, gc=True):
    """Everything known of one checkpoint. What a description adds is empty where the daemon keeps none."""

    findings: tuple[DetailedFinding, ...] = ()  # type: ignore[assignment]  # the same with message and remedy
    metadata: CheckpointMetadata | None = None
    provenance: dict[str, str] = msgspec.field(default_factory=dict)
    """Dotted metadata field → where its value came from."""
    user: dict[str, Plain] = msgspec.field(default_factory=dict)
    """Keys of a person's sidecar that the schema does not know."""
    sidecar: SidecarStatus = SidecarStatus.NONE
    config: Plain = None
    redacted: int = 0
    """Values of config and hyper-parameters that are hidden: they looked like secrets."""
    verified_at: str | None = None
    """When every byte of this file was last read, RFC 3339."""
    hyper_parameters: dict[str, Plain] | None = None
    callbacks: tuple[CallbackState, ...] = ()
    parameters_by_part: dict[str, int] = msgspec.field(default_factory=dict)
    unsafe_globals: tuple[str, ...] = ()
    weights_only: bool | None = None
    """Whether `torch.load(weights_only=True)` would accept it; None where nobody can say."""
    model_class: str | None = None
    """Of a checkpoint that is a pickled or compiled module."""
    has_state_dict: bool = False
    can_load: bool | None = None
    is_valid: bool | None = None
    error_message: str | None = None
    warnings: tuple[str, ...] = ()
    architecture_valid: bool | None = None
    recognized: tuple[Recognition, ...] = ()
    lightning_version: str | None = None
    archive_id: str | None = None
    digest: str | None = None
    """Of every byte, where they were read."""
    seal: Seal = Seal.NONE
    shards: tuple[Shard, ...] = ()
    n_tensors: int = 0


class TensorPage(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a tensor table."""

    id: str
    total: int
    """Matching tensors in all."""
    nbytes: int
    limit: int
    offset: int
    tensors: tuple[TensorInfo, ...]


class Rebuild(msgspec.Struct, frozen=True, kw_only=True):
    """A rebuild that was asked for."""

    token: str
    mode: str
    revision: int | None = None
    """Of the catalog when it was done; None where nobody waited."""


class ChangeKind(enum.StrEnum):
    """What happened to a checkpoint."""

    UPSERT = "upsert"
    """It is new or changed; `entry` is its full state."""
    DELETE = "delete"
    """It left the catalog, or the filtered view of it."""
    SYNCED = "synced"
    """No checkpoint: everything up to `revision` has been told. Comes after each snapshot or resumption."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change as `watch` tells it."""

    kind: ChangeKind
    id: str | None = None
    entry: CheckpointEntry | None = None
    """As in lists."""
    reason: str | None = None
    """Why it was deleted: `removed`, `moved`, `filtered`; `absent` when a new snapshot no longer shows it."""
    event_id: str | None = None
    """Give it to `watch` as `last_event_id` to go on behind this change; None while that is not possible."""
    revision: int | None = None


class StreamState(enum.StrEnum):
    """How a watch stands with its daemon."""

    CONNECTING = "connecting"
    SNAPSHOT = "snapshot"
    """What exists is being told."""
    LIVE = "live"
    """Everything has been told; changes are told as they come."""
    WAITING = "waiting"
    """The daemon cannot be had just now; `reason` says why, and it is tried again in `retry_in_s`."""


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a watch stands with its daemon, for whoever shows it to a person."""

    state: StreamState
    reason: str | None = None
    retry_in_s: float | None = None
    complete_as_of: str | None = None
    """Nothing that was on disk by then is missing; RFC 3339. As of the last heartbeat."""
    progress: tuple[int, int] | None = None
    """Paths done and in all, while a sweep or rebuild works."""


def decode(data: bytes, kind: type[_T]) -> _T:
    """An answer of the daemon.

    Raises:
        ClientError: it is none, or one of a daemon whose version is too far from this one.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"what the daemon answered is not understood ({error}); is it a ckptd, and of this version?"
        raise ClientError(message) from error
