"""For any training loop: save a checkpoint together with its metadata, or describe one that was saved already."""

import errno
import logging
import operator
import os
from collections.abc import Callable, Mapping
from typing import IO, Any, TypedDict, Unpack, cast

import msgspec

from ckptd.validators.inspection import Plain

from ..describe import describe_checkpoint
from ..description import CheckpointMetadata, Description
from ..documents import MAX_BYTES
from ..entry import rfc3339
from ..recorded import NANOSECONDS
from ..sidecar import Author, author_of, sidecar_path
from .digesting import WrittenFile, written_whole
from .facts import NotWritten, NotYet, Style, TrainingFacts, write_facts

log = logging.getLogger("ckptd.callbacks")

Save = Callable[[Any, IO[bytes]], object]

_warned: set[tuple[str, str]] = set()


class Knowledge(TypedDict, total=False):
    """What a training loop knows of a checkpoint. What is left out is taken from the file, its config and its name."""

    metrics: Mapping[str, Any]
    """Measured on these weights, by any names: numbers, or scalar tensors, which are waited for."""
    epoch: int
    """Epochs are counted from 0."""
    global_step: int
    """Optimizer steps so far."""
    max_epochs: int
    training_phase: str
    """`training`, `validation`, `finetuning`, …"""
    exp_name: str
    monitor: str
    """The metric by which checkpoints of this run are compared."""
    mode: str
    """`min` or `max`: which value of the monitor is better."""
    architecture: str
    hydra_config_path: str
    wandb_run_id: str
    fields: Mapping[str, Plain]
    """Anything else of the schema, by dotted name: `{"model.encoder.model_name": "resnet18"}`."""


class Saved(msgspec.Struct, frozen=True):
    """A checkpoint that was saved."""

    path: str
    digest: str
    """Of every byte: `blake3:` and 64 hexadecimal digits."""
    size_bytes: int
    metadata: CheckpointMetadata | None
    """As it stands in the sidecar; None where it could not be written, which one warning says."""


def save_with_metadata(
    obj: object,
    path: str | os.PathLike[str],
    *,
    save: Save | None = None,
    durable: bool = True,
    **known: Unpack[Knowledge],
) -> Saved:
    """Save a checkpoint whole or not at all, and write its sidecar with what the training knows of it.

    The bytes go to a temporary file in the same directory, which is renamed into place: no reader ever sees half a
    checkpoint. Their BLAKE3 digest is taken while they are written and recorded in the sidecar, so that later damage
    shows also in archives without checksums. In a training of several processes, call it on one of them.

    Args:
        obj: what to save.
        path: where. A file there is replaced at once; a link is replaced, not followed. The directory is made.
        save: writes `obj` to an open file; by default `torch.save`.
        durable: wait until the disk has it.
        **known: see `Knowledge`.

    Returns:
        What was saved. That the sidecar could not be written is no error: one warning, once per directory.

    Raises:
        ValueError: something in `known` does not fit the schema, or `path` is no local path. Nothing was saved.
        OSError: the checkpoint could not be saved; what was there before is still there.
    """
    target = _local(path)
    facts = _facts(known)
    with written_whole(target, durable=durable) as (file, written):
        (_torch_save() if save is None else save)(obj, cast("IO[bytes]", file))
    return _described(target, written[0], facts)


def describe(path: str | os.PathLike[str], *, digest: bool = False, **known: Unpack[Knowledge]) -> CheckpointMetadata:
    """Write or refresh the sidecar of a checkpoint that is there, file or directory.

    What an earlier sidecar of a training says of the same bytes stays, where `known` says nothing else: scores of an
    evaluation join those of the training.

    Args:
        path: the checkpoint; of a link, its target is described.
        digest: read every byte now and record the digest, so that later damage shows whatever the format.
        **known: see `Knowledge`.

    Returns:
        What the sidecar says now.

    Raises:
        ValueError: something in `known` does not fit the schema, or `path` is no local path.
        NotWritten: a person's metadata file is there, or the checkpoint is not valid.
        NotYet: it is being written.
        OSError: it cannot be read, or the sidecar cannot be written.
    """
    target = os.path.realpath(_local(path))
    facts = _facts(known)
    os.stat(target)  # "not there" is an answer, not something to wait for
    facts = _joined_with_earlier(target, facts)
    if digest:
        facts = msgspec.structs.replace(facts, digest=None, read_digest=True)
    return write_facts(target, facts, Style(callback=f"{__name__}.describe"))


# ---- what is known ---------------------------------------------------------------------------------------------


_PLACES = {
    "epoch": "training.epoch",
    "global_step": "training.global_step",
    "max_epochs": "training.max_epochs",
    "training_phase": "training.training_phase",
    "exp_name": "exp_name",
    "monitor": "checkpointing.monitor",
    "mode": "checkpointing.mode",
    "architecture": "model.architecture",
    "hydra_config_path": "hydra_config_path",
    "wandb_run_id": "wandb_run_id",
}
"""Parameter → dotted field of the schema."""
_NOT_TO_SAY = frozenset({"schema_version", "checkpoint_path", "metrics", "source"})
"""What the file itself decides; metrics have their own parameter."""


def _facts(known: Knowledge) -> TrainingFacts:
    unknown = known.keys() - _PLACES.keys() - {"metrics", "fields"}
    if unknown:
        raise TypeError(f"unknown: {', '.join(sorted(unknown))}; other fields of the schema go into fields={{…}}")
    if known.get("mode") not in (None, "min", "max"):
        raise ValueError(f"mode is {known.get('mode')!r}; it says which value of the monitor is better: 'min' or 'max'")
    values: dict[str, Plain] = {_PLACES[name]: value for name, value in known.items() if name in _PLACES}
    values = {field: value for field, value in (values | dict(known.get("fields") or {})).items() if value is not None}
    for field in values:
        if field not in _FIELDS:
            raise ValueError(f"the metadata has no field {field!r}; it has {', '.join(sorted(_FIELDS))}")
    _check_types(values)
    return TrainingFacts(known=values, metrics=dict(known.get("metrics") or {}))


def _check_types(values: Mapping[str, Plain]) -> None:
    for field, value in values.items():
        nested: Plain = value
        for name in reversed(field.split(".")):
            nested = {name: nested}
        try:
            msgspec.convert(nested, CheckpointMetadata)
        except msgspec.ValidationError as error:
            raise ValueError(f"{field} cannot be {value!r}: {error}") from error


def _fields_of(kind: Any, prefix: str = "") -> list[str]:
    found: list[str] = []
    for field in msgspec.structs.fields(kind):
        name = prefix + field.name
        nested = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        if name not in _NOT_TO_SAY:
            found += _fields_of(field.type, name + ".") if nested else [name]
    return found


_FIELDS = frozenset(_fields_of(CheckpointMetadata))


def _joined_with_earlier(target: str, facts: TrainingFacts) -> TrainingFacts:
    """Add what a training's sidecar says of the same bytes."""
    description = describe_checkpoint(target)
    if not _is_trainings(target):
        return facts
    earlier = {
        field: operator.attrgetter(field)(description.metadata)
        for field, origin in description.provenance.items()
        if origin == "sidecar" and field in _FIELDS
    }
    return msgspec.structs.replace(
        facts,
        known=earlier | facts.known,
        metrics=_earlier_metrics(description) | dict(facts.metrics),
        digest=_earlier_digest(description),
        saved=description.inspection.identity,
    )


def _earlier_metrics(description: Description) -> dict[str, Any]:
    origins = description.provenance
    return {
        name: value
        for name, value in description.metadata.metrics.flat().items()
        if "sidecar" in (origins.get(f"metrics.{name}"), origins.get(f"metrics.additional_metrics.{name}"))
    }


def _earlier_digest(description: Description) -> str | None:
    """The recorded digest, if the file has not been touched since: the new sidecar carries the file's present time."""
    recorded, identity = description.recorded, description.inspection.identity
    untouched = recorded is not None and recorded.modified_at == rfc3339(identity.mtime_ns, NANOSECONDS)
    return recorded.digest if recorded is not None and untouched else None


def _is_trainings(target: str) -> bool:
    try:
        with open(sidecar_path(os.fsencode(target)), "rb") as file:
            return author_of(file.read(MAX_BYTES + 1)) is Author.TRAINING
    except OSError:
        return False


# ---- saving ----------------------------------------------------------------------------------------------------


def _local(path: str | os.PathLike[str]) -> str:
    given = os.fspath(path)
    if "://" in given:
        raise ValueError(f"{given} is not a path of this machine's file system; save it with the tools of its store")
    return os.path.abspath(given)


def _torch_save() -> Save:
    import torch

    return torch.save


def _described(target: str, written: WrittenFile, facts: TrainingFacts) -> Saved:
    facts = msgspec.structs.replace(facts, digest=written.digest, saved=written.identity)
    metadata = None
    try:
        metadata = write_facts(target, facts, Style(callback=f"{__name__}.save_with_metadata"))
    except NotWritten as problem:
        _warn(target, problem.kind, str(problem))
    except NotYet as problem:
        _warn(target, "late", f"no metadata was written for a save: {problem}")
    except OSError as error:
        kind = errno.errorcode.get(error.errno or 0, "error")
        _warn(target, kind, f"no metadata was written: {target}: {error.strerror}; ckptd describes what is missing")
    except Exception as error:  # noqa: BLE001 - the rim: the checkpoint is saved, and the training goes on
        _warn(target, type(error).__name__, f"no metadata was written for {target}: {error!r}")
    return Saved(target, written.digest, written.identity.size, metadata)


def _warn(target: str, kind: str, message: str) -> None:
    place = os.path.dirname(target), kind
    if place not in _warned:
        _warned.add(place)
        log.warning("%s (told once for this directory)", message)
