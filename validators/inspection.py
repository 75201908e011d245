"""What an inspection says of one checkpoint: facts, findings and verdicts, as plain typed data.

These types cross the process boundary between worker and daemon as JSON or msgpack, decoded into exactly
these structs: nothing that a file contains can become anything but data.
"""

import enum
from typing import Any

import msgspec

from .findings import Finding, Severity

Plain = Any
"""None, bool, int, float, str, and lists and str-keyed dicts of these: what JSON can say.

(A recursive alias would make every use of a value a cast; the producers normalise, see `unpickle.to_plain`.)
"""


class Level(enum.StrEnum):
    """How much of a file has been verified."""

    NONE = "none"
    """Nothing was read; what is known comes from a sidecar."""
    STRUCTURE = "structure"
    """Directory, headers, pickle and every tensor's bounds. Milliseconds."""
    CHECKSUM = "checksum"
    """Also every byte against its recorded checksum. Disk speed."""
    WEIGHTS = "weights"
    """Also every floating point value finite. Needs torch."""

    def covers(self, other: "Level") -> bool:
        """Whether what this level verifies includes all that `other` does."""
        levels = list(Level)
        return levels.index(self) >= levels.index(other)


class Format(enum.StrEnum):
    """What is on disk."""

    TORCH_ZIP = "torch_zip"
    """`torch.save` since 1.6: a ZIP64 archive with `data.pkl`."""
    TORCHSCRIPT = "torchscript"
    """`torch.jit.save`: a zip with `code/` and `constants.pkl`."""
    TORCH_LEGACY = "torch_legacy"
    """`torch.save` before 1.6: five pickles, then raw storages."""
    TORCH_TAR = "torch_tar"
    """`torch.save` before 0.1.10: a tar archive of pickles; recognised, not described."""
    SAFETENSORS = "safetensors"
    DCP = "dcp"
    """A directory of torch.distributed.checkpoint: `.metadata` and `*.distcp` shards."""
    FSDP = "fsdp"
    """The same as Lightning's FSDP strategy writes it: also `meta.pt`, written last."""
    DEEPSPEED = "deepspeed"
    """A directory of rank files, `mp_rank_00_model_states.pt` and the optimizer's partitions."""
    TRANSFORMERS = "transformers"
    """`checkpoint-N` of the transformers Trainer."""
    UNKNOWN = "unknown"


class Seal(enum.StrEnum):
    """What the structure alone says about wholeness."""

    SEALED = "sealed"
    """The format's end mark is where the file ends."""
    OPEN = "open"
    """The end mark is missing: bytes are still to come, or never will."""
    NONE = "none"
    """The format has no end mark; only quiet time can tell."""


class Safety(enum.StrEnum):
    """What loading with `weights_only=False` could do."""

    SAFE = "safe"
    """Proved: only names that rebuild tensors and plain containers."""
    UNSAFE = "unsafe"
    """A name that is known to run code or reach the system."""
    UNKNOWN = "unknown"
    """Other names: custom classes, or nothing was proved."""


class FileIdentity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which state of which file: equal identities mean the bytes need not be read again.

    The device is left out on purpose: its number changes across reboots and re-mounts.
    """

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class TensorInfo(msgspec.Struct, frozen=True, gc=False):
    """One tensor as the pickle describes it. Nothing of its data was read."""

    name: str
    """Dotted path inside the checkpoint, e.g. `state_dict.encoder.weight`."""
    dtype: str
    """torch's name without the prefix: `float32`, `bfloat16`, `int64`, …"""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """In elements, one per dimension."""
    storage: str
    """Key of the storage record; tensors that share memory share the key."""
    storage_offset: int
    """In elements, from the start of the storage."""
    nbytes: int
    """Elements times element size; what the tensor itself needs."""
    role: str
    """`weights`, `optimizer` or `other`: the part of the checkpoint that it belongs to."""
    requires_grad: bool = False
    storage_nbytes: int | None = None
    """What the whole storage has, as it is in the file; None where the tensor has none there."""
    storage_crc32: int | None = None
    """CRC-32 of the whole storage as the file records it, whether or not anybody has verified it; None where the file
    records none. Equal ones (of equal size) stand for equal bytes, as far as 32 bits against accident go."""


class CallbackState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one Lightning callback, with the values of its 0-dim score tensors."""

    key: str
    """As in the checkpoint: the class name and its arguments."""
    kind: str
    """Class name: `ModelCheckpoint`, `EarlyStopping`, …"""
    monitor: str | None = None
    mode: str | None = None
    """`min` or `max`."""
    best_model_path: str | None = None
    best_model_score: float | None = None
    current_score: float | None = None
    best_k_models: dict[str, float | None] = {}
    """Path → score. A score belongs to a file only if the file's own path is a key here."""
    last_model_path: str | None = None
    state: dict[str, Plain] = {}
    """Everything, as plain data."""


class Recognition(msgspec.Struct, frozen=True, kw_only=True):
    """What the names and shapes of the tensors say about one part of a model."""

    part: str
    """`model`, `encoder`, `decoder` or `head`."""
    name: str
    """The architecture, as the table names it: `resnet50`, `pan`, …"""
    family: str
    """`resnet`, …"""
    confidence: float
    """0 to 1: the share of the family's expected keys and shapes that were found."""
    evidence: tuple[str, ...] = ()
    """What was found, in words: keys and shapes."""


class Shard(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One file of a checkpoint that is a directory."""

    name: str
    """Relative to the directory."""
    size_bytes: int


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one look at one file established."""

    checkpoint_path: str
    """As given by the caller; shown to people, never opened again."""
    format: Format = Format.UNKNOWN
    level: Level = Level.STRUCTURE
    seal: Seal = Seal.NONE
    identity: FileIdentity
    """The file's state, the same before and after the reading."""
    findings: tuple[Finding, ...] = ()

    safety: Safety = Safety.UNKNOWN
    unsafe_globals: tuple[str, ...] = ()
    """Names outside the allowlist, `module.name`, worst first."""
    imports: tuple[str, ...] = ()
    """Every name that `torch.load(weights_only=False)` would import, `module.name`, in order of appearance."""
    weights_only: bool | None = None
    """Whether `torch.load(weights_only=True)` would accept the pickle; None where there is none, or nobody can say."""
    model_class: str | None = None
    """`module.name` of the class, where a whole module was pickled or compiled instead of its state dict."""

    tensors: tuple[TensorInfo, ...] = ()
    n_parameters: int | None = None
    """Elements of the weights; memory shared by several tensors is counted once."""
    parameters_by_part: dict[str, int] = {}
    """The same by top-level part of the state dict, prefixes such as `model.` stripped."""
    weights_bytes: int | None = None
    optimizer_bytes: int | None = None
    dtypes: tuple[str, ...] = ()
    """Of the weights, the most used first."""
    has_state_dict: bool = False

    epoch: int | None = None
    global_step: int | None = None
    logged_step: int | None = None
    """Under which Lightning's loggers wrote what belongs to this save; their steps are not `global_step`."""
    lightning_version: str | None = None
    hyper_parameters: dict[str, Plain] | None = None
    callbacks: tuple[CallbackState, ...] = ()
    metrics: dict[str, float] = {}
    """Scores that the checkpoint itself carries at its top level (`cleval_metrics`, `metrics`)."""

    architecture: str | None = None
    """As recognised from the tensors; None where they are of no family in the table."""
    architecture_valid: bool | None = None
    """Whether all keys that were required are there; None where none were required."""
    recognized: tuple[Recognition, ...] = ()
    """The parts that were recognised, with the evidence; the whole model first."""
    shards: tuple[Shard, ...] = ()
    """The files of a checkpoint that is a directory, by name."""

    archive_id: str | None = None
    """Digest of the central directory and `data.pkl`: changes with the archive, costs no tensor bytes."""
    content_id: str | None = None
    """Digest of the weights by name, dtype, shape and checksum; None where checksums are absent."""
    digest: str | None = None
    """Of every byte of the file, where level `checksum` was asked for; equal digests mean equal files."""

    @property
    def is_valid(self) -> bool:
        """No finding is an error."""
        return not any(f.severity is Severity.ERROR for f in self.findings)

    @property
    def is_complete(self) -> bool:
        """False when the end mark is missing: the file may be whole at the next look."""
        return self.seal is not Seal.OPEN

    @property
    def can_load(self) -> bool:
        """`torch.load` is expected to succeed; not a promise that it is safe."""
        return self.is_valid

    @property
    def error_message(self) -> str | None:
        """The first error, or None."""
        return next((f.message for f in self.findings if f.severity is Severity.ERROR), None)

    @property
    def warnings(self) -> list[str]:
        """Messages of the findings that are warnings."""
        return [f.message for f in self.findings if f.severity is Severity.WARNING]
