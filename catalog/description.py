"""Description: everything known of one checkpoint; the answer of the one job that all callers run.

The types alone, so that whoever only carries a description needs none of the code that makes one.
"""

import enum

import msgspec

from ckptd.validators.findings import Finding
from ckptd.validators.inspection import FileIdentity, Inspection, Level, Plain, TensorInfo


class SidecarStatus(enum.StrEnum):
    """What was found beside a checkpoint."""

    NONE = "none"
    OURS = "ours"
    """Written by ckptd and untouched since (its body digest matches)."""
    FOREIGN = "foreign"
    """A person's or a training's, also ours edited by hand. Never overwritten."""
    STALE = "stale"
    """Describes an earlier file of this name; foreign."""
    STALE_OURS = "stale_ours"
    """The same, but ours: it may be replaced."""
    INVALID = "invalid"
    """Not readable as metadata; foreign."""


class ShardFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of a checkpoint that is a directory, as whoever opened the checkpoint found it."""

    name: bytes
    """Relative to the checkpoint."""
    identity: FileIdentity
    opened: bool
    """Whether a descriptor of it travels along; of a directory with very many files only the first ones are opened."""


class RedactionRules(msgspec.Struct, frozen=True, array_like=True):
    """What is redacted besides what `redaction` knows by itself."""

    names: tuple[str, ...] = ()
    """Names of keys whose values are redacted, in any case: `license`, `customer`."""


class DescribeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a description needs to know besides the opened files. Travels to the worker."""

    checkpoint_path: str
    """Absolute; for people, and for names in it. Never opened."""
    relative_path: bytes
    """Beneath the root."""
    level: Level = Level.STRUCTURE
    sidecar_names: tuple[bytes, ...] = ()
    """Relative paths of the opened sidecars, in the order in which they are consulted."""
    config_name: bytes | None = None
    """Relative path of the opened config."""
    run_failed: bool = False
    record_names: tuple[bytes, ...] = ()
    """Relative paths of the opened records of the run, see `experiment.Companions`."""
    wandb_run: str | None = None
    """The id of the W&B run that wrote the checkpoint."""
    trust_sidecar: bool = False
    """A sidecar of ours that matches size and time stands in for the inspection (the fast path)."""
    propose_repairs: bool = False
    """Say what is wrong with the sidecars that others wrote."""
    required_keys: tuple[str, ...] = ()
    """Keys or prefixes of keys (`model.encoder`) that the state dict must have."""
    redaction: RedactionRules | None = RedactionRules()
    """What nobody shall read in configs and hyper-parameters; None: everything is shown as it is."""
    shards: tuple[ShardFile, ...] = ()
    """The files of a checkpoint that is a directory, sorted by name; none for a file."""
    directory_name: str | None = None
    """The directory's own name, which has a say in its format; `checkpoint_path` may be that of a link to it."""
    timeout_s: float | None = None
    """Wall time that this job may take; None: the pool's own limit."""
    mb_per_s: float | None = None
    """How fast a background verification may read, in 10^6 bytes per second; None: as fast as it goes."""
    fresh: bool = False
    """Read the disk and not what the page cache holds of the file: needed by a scrub, and needed as well where the
    descriptors were opened with O_DIRECT (`opening.reopen_direct`), which is the better way to do it."""
    spare_cache: bool = False
    """What is read does not stay in the page cache. Background pools ask for it by themselves."""


class OpenedFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors for a request, opened by whoever asks; the caller closes them."""

    checkpoint: int
    """Of the file; of the directory itself (O_PATH will do) where the checkpoint is one."""
    sidecars: tuple[int, ...] = ()
    config: int | None = None
    records: tuple[int, ...] = ()
    shards: tuple[int, ...] = ()
    """Of the files of a directory that are `opened`, in the order of `DescribeRequest.shards`."""
    owner: int | None = None
    """User id of the checkpoint's owner; None where nobody asked, and then no other file is parsed beside it."""

    def all(self) -> tuple[int, ...]:
        """Every descriptor: checkpoint, sidecars, config, records, shards."""
        config = () if self.config is None else (self.config,)
        return (self.checkpoint, *self.sidecars, *config, *self.records, *self.shards)


class Encoder(msgspec.Struct, frozen=True, kw_only=True):
    model_name: str | None = None
    pretrained: bool | None = None
    frozen: bool | None = None


class Decoder(msgspec.Struct, frozen=True, kw_only=True):
    name: str | None = None
    in_channels: Plain = None
    """An integer or a list of them."""
    inner_channels: Plain = None
    output_channels: Plain = None
    params: Plain = None


class Head(msgspec.Struct, frozen=True, kw_only=True):
    name: str | None = None
    in_channels: Plain = None
    params: Plain = None


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    name: str | None = None
    params: Plain = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    architecture: str | None = None
    encoder: Encoder = Encoder()
    decoder: Decoder = Decoder()
    head: Head = Head()
    loss: Loss = Loss()


class Training(msgspec.Struct, frozen=True, kw_only=True):
    epoch: int | None = None
    global_step: int | None = None
    training_phase: str | None = None
    max_epochs: int | None = None


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    precision: float | None = None
    recall: float | None = None
    hmean: float | None = None
    validation_loss: float | None = None
    additional_metrics: dict[str, float] = {}

    def flat(self) -> dict[str, float]:
        """All known metrics by name."""
        named = {
            "precision": self.precision,
            "recall": self.recall,
            "hmean": self.hmean,
            "validation_loss": self.validation_loss,
        }
        return {name: value for name, value in named.items() if value is not None} | self.additional_metrics


class Checkpointing(msgspec.Struct, frozen=True, kw_only=True):
    monitor: str | None = None
    mode: str | None = None
    save_top_k: int | None = None
    save_last: Plain = None
    """True, False or `link`."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Which file the metadata describes, and who wrote it."""

    generated_by: str | None = None
    generated_at: str | None = None
    size_bytes: int | None = None
    modified_at: str | None = None
    archive_id: str | None = None
    digest: str | None = None
    body_digest: str | None = None


class CheckpointMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Metadata schema 1.0. Every key is written, absent values as null. Field order is the file's order."""

    schema_version: str = "1.0"
    checkpoint_path: str | None = None
    exp_name: str | None = None
    created_at: str | None = None
    training: Training = Training()
    model: Model = Model()
    metrics: Metrics = Metrics()
    checkpointing: Checkpointing = Checkpointing()
    hydra_config_path: str | None = None
    wandb_run_id: str | None = None
    source: Source = Source()


class FieldChange(msgspec.Struct, frozen=True, array_like=True):
    """One value of a sidecar that is to become another."""

    field: tuple[str, ...]
    """Where it stands, key by key."""
    old: Plain
    new: Plain
    why: str
    missing: bool = False
    """There was no such key."""


class SidecarRepair(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one sidecar that ckptd did not write, and what should stand there."""

    name: bytes
    """Relative path, beneath the root."""
    identity: FileIdentity
    """Of the sidecar that this is about."""
    status: SidecarStatus
    changes: tuple[FieldChange, ...] = ()
    data: bytes = b""
    """The whole file with these changes; empty where there is no use in changing it (stale, unreadable)."""


class RecordedDigest(msgspec.Struct, frozen=True):
    """What a training recorded of the bytes that it saved."""

    digest: str
    """Of the whole file, `blake3:` and 64 hexadecimal digits."""
    modified_at: str | None = None
    """The file's modification time when it had been written, RFC 3339 with nanoseconds."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """One checkpoint, described."""

    inspection: Inspection
    findings: tuple[Finding, ...]
    """Of the inspection, the sidecar and the surroundings, worst first."""
    metadata: CheckpointMetadata
    provenance: dict[str, str] = {}
    """Dotted metadata field, or `run_id` → where its value came from: `sidecar`, `checkpoint`, `config`, `hydra` (the
    command line), `hparams`, `metrics_csv`, `wandb`, `wandb_summary`, `mlflow`, `file_name`, `layout`, `file` (its
    modification time)."""
    run_id: str | None = None
    sidecar: SidecarStatus = SidecarStatus.NONE
    outdated: bool = False
    """The sidecar is ours and fits the file, but more, or something else, has become known since it was written."""
    sidecar_identities: tuple[FileIdentity, ...] = ()
    config_identity: FileIdentity | None = None
    settled_logs: tuple[bool, ...] = ()
    """For each log that the training writes (`metrics.csv`, `wandb-summary.json`), in the order of the request's
    records: whether what is written to it later changes nothing."""
    config_path: str | None = None
    """Where the config lies, relative to the root, as shown to people; None where there is none."""
    config: Plain = None
    """The config beside the checkpoint, as plain data; None where there is none or it cannot be read."""
    user: dict[str, Plain] = {}
    """Keys of a person's sidecar that the schema does not know."""
    redacted: int = 0
    """Values of config, hyper-parameters, sidecar and records that were redacted: they looked like secrets."""
    repairs: tuple[SidecarRepair, ...] = ()
    """Sidecars of others that are stale, unreadable or wrong, where `propose_repairs` asked for them."""
    recorded: RecordedDigest | None = None
    """The digest that its training took while saving it, where a sidecar records one."""
    verified_at: str | None = None
    """When every byte of this file was last read, RFC 3339; None where nobody has. Not of the description itself: it is
    set where a verification is shown with it, see `verification.apply`."""
    search_text: str = ""
    """What full-text search finds of hyper-parameters and config, see `search_text`."""

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensor table."""
        return self.inspection.tensors
