"""Status: what the service knows of itself; health, metrics and the log line are made from it."""

import enum

import msgspec


class CatalogStatus(enum.StrEnum):
    """The one word for an operator."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """It answers, but something is late, missing or down; `reasons` says what."""
    UNHEALTHY = "unhealthy"
    """No root can be read: what it shows is what was last known."""


class RootStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One root, as it is now."""

    path: str
    online: bool
    watching: bool
    """Events arrive; otherwise only the sweep finds changes."""
    writable: bool | None = None
    """Sidecars can be written: False while a directory refuses them, None until one was tried."""
    complete_as_of: float | None = None
    """Start of the last sweep that ended without error and whose findings are published; epoch seconds."""
    sweep_started_at: float | None = None
    """A sweep is under way since then; epoch seconds."""
    last_sweep_s: float | None = None
    last_error: str | None = None
    sweep_error: str | None = None
    """Why the last sweep proved nothing, though the root can be opened: something in it fails."""


class RecentError(msgspec.Struct, frozen=True, kw_only=True):
    """Something that went wrong lately, for the operator."""

    at: float
    what: str
    path: str | None = None
    message: str


class VerifierStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What reads every byte in the background, as it is now."""

    level: str
    """How far checkpoints are to be verified."""
    by_level: dict[str, int] = {}
    """Entries by how far they are verified."""
    by_finding: dict[str, int] = {}
    """Entries by what was found, whoever found it."""
    verifying: str | None = None
    """The path that is being read."""
    queued: int = 0
    """Entries that were never verified so far, as far as is known."""
    bytes_per_s: float = 0.0
    """Over the last files."""
    bytes_read: int = 0
    """Since the start."""
    outcomes: dict[str, int] = {}
    """Verifications since the start, by how they ended."""
    oldest_verified_at: float | None = None
    """The verification that is due next for a scrub; epoch seconds."""
    problem: str | None = None
    """Why nothing is verified just now."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A consistent picture of the service at one moment."""

    instance: str
    revision: int
    started_at: float
    state: CatalogStatus
    reasons: tuple[str, ...] = ()
    complete_as_of: float | None = None
    """The oldest over all roots; None until every root was swept once."""
    roots: tuple[RootStatus, ...] = ()
    checkpoint_count: int = 0
    by_health: dict[str, int] = {}
    by_safety: dict[str, int] = {}
    """By what loading them with `weights_only=False` could do."""
    with_sidecar: int = 0
    """Valid checkpoints whose metadata lies beside them."""
    with_state_metadata: int = 0
    """Valid checkpoints whose metadata could only be kept in the state."""
    last_build_s: float | None = None
    """How long the last full picture took: at the start, or because somebody asked; None before the first."""
    last_build_at: float | None = None
    """When that was. A build that could not read every root makes no full picture, and leaves this as it was."""
    last_partial_build_at: float | None = None
    """When the latest build ended, if it could not read every root; what was swept since shows in `complete_as_of`."""
    fast_path_count: int = 0
    """Entries of that build taken over without reading the checkpoint (state or sidecar)."""
    slow_path_count: int = 0
    """Entries of that build that were inspected."""
    pending: int = 0
    """Paths that are known to need a look, or whose description is under way."""
    writing_sidecars: int = 0
    skipped_sidecars: int = 0
    skipped_links: int = 0
    search: str = "full"
    """What full-text search finds: `full`, or what is missing and why."""
    state_durable: bool = True
    """False while the state cannot be written; the catalog is then served from memory alone."""
    cache_hit_rate: float | None = None
    """Share of 304 among the answers that could have been one, since the start; None before the first."""
    recent_errors: tuple[RecentError, ...] = ()
    worker_crashes: int = 0
    sandbox: str = "unknown"
    """`full`, `partial: why` or `none: why`."""
    verification: VerifierStatus | None = None

    @property
    def metadata_coverage(self) -> float:
        """Share of valid checkpoints with metadata, beside the file or in the state; 1.0 when there are none."""
        valid = self.by_health.get("valid", 0)
        return 1.0 if not valid else (self.with_sidecar + self.with_state_metadata) / valid
