"""How an inspection, a sidecar, a config and names become metadata, each value with where it came from."""

import os
import re
from collections.abc import Iterator, Sequence

import msgspec

from ckptd.validators.inspection import CallbackState, Inspection, Plain

from .description import Checkpointing, CheckpointMetadata, Model
from .entry import rfc3339, shown_path
from .experiment import FileNameFacts, experiment_name, parse_file_name
from .metadata import Keys, ParsedMetadata, as_text, metrics_of, read_model
from .metric_names import SLOTS


class Derived(msgspec.Struct, frozen=True):
    """Metadata, and for each known value (dotted field) its origin."""

    metadata: CheckpointMetadata
    provenance: dict[str, str]


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a checkpoint without opening it, and what lies beside it."""

    checkpoint_path: str
    """Absolute."""
    relative_path: bytes
    sidecar: ParsedMetadata | None = None
    """Of a person or a training, and about this very file."""
    config: Plain = None
    config_name: bytes | None = None


class _Facts(msgspec.Struct, frozen=True):
    origin: str
    fields: dict[str, Plain] = {}
    """By dotted metadata field; metrics apart."""
    metrics: dict[str, float] = {}
    """By the names they were logged under."""


_WANDB_RUN = re.compile(r"wandb/(?:offline-)?run-[0-9]{8}_[0-9]{6}-([^/]+)/")
_NOT_FACTS = ("schema_version", "checkpoint_path", "metrics", "source")
_RECOGNIZED = {"encoder": "model.encoder.model_name", "decoder": "model.decoder.name", "head": "model.head.name"}
"""Part → where its name goes."""
_CONFIG_HOLDERS = ("config", "cfg", "hparams")


def derive_metadata(inspection: Inspection, around: Surroundings) -> Derived:
    """Collect what is known of a checkpoint; for each field the first source that knows it wins.

    In order: a sidecar that is not ours (`sidecar`), the checkpoint itself (`checkpoint`), the config beside it
    (`config`), what its tensors are recognised as (`checkpoint` again: names that people gave come before names by
    which ckptd knows a model), its file name (`file_name`), its place in the tree (`layout`); `created_at` is the
    file's modification time (`file`) unless a sidecar knows better. What nobody knows is null.
    """
    fields: dict[str, Plain] = {}
    metrics: dict[str, float] = {}
    provenance: dict[str, str] = {}
    for facts in _sources(inspection, around):
        for field, value in facts.fields.items():
            if value is not None and field not in fields:
                fields[field] = value
                provenance[field] = facts.origin
        for name, value in metrics_of(facts.metrics).flat().items():
            if name not in metrics:
                metrics[name] = value
                provenance[_metric_field(name)] = facts.origin
    nested = _nested(fields)
    nested["metrics"] = metrics_of(metrics)
    nested["checkpoint_path"] = around.checkpoint_path
    return Derived(msgspec.convert(nested, CheckpointMetadata, from_attributes=True), provenance)


def _sources(inspection: Inspection, around: Surroundings) -> Iterator[_Facts]:
    if around.sidecar is not None:
        found = around.sidecar.metadata
        fields = {name: value for name, value in _dotted(found) if name.split(".")[0] not in _NOT_FACTS}
        yield _Facts("sidecar", fields, found.metrics.flat())
    yield _checkpoint_facts(inspection, around.checkpoint_path)
    yield _config_facts("checkpoint", inspection.hyper_parameters)
    yield _config_facts("config", around.config)
    yield _recognition_facts(inspection)
    yield _file_name_facts(parse_file_name(around.relative_path))
    yield _layout_facts(around)
    yield _Facts("file", {"created_at": rfc3339(inspection.identity.mtime_ns)})


def _metric_field(name: str) -> str:
    return f"metrics.{name}" if name in SLOTS else f"metrics.additional_metrics.{name}"


# ---- the checkpoint itself -------------------------------------------------------------------------------------


def _checkpoint_facts(inspection: Inspection, checkpoint_path: str) -> _Facts:
    fields: dict[str, Plain] = {
        "training.epoch": inspection.epoch,
        "training.global_step": inspection.global_step,
    }
    metrics: dict[str, float] = {}
    savers = [callback for callback in inspection.callbacks if callback.kind.endswith("ModelCheckpoint")]
    for saver in savers:
        score = score_of(saver, checkpoint_path)
        if score is not None and saver.monitor is not None:
            metrics.setdefault(saver.monitor, score)
    responsible = _saver_of(savers, checkpoint_path)
    if responsible is not None:
        keys = Keys(responsible.state)
        fields |= {
            "checkpointing.monitor": responsible.monitor,
            "checkpointing.mode": responsible.mode,
            "checkpointing.save_top_k": keys.integer("save_top_k"),
            "checkpointing.save_last": keys.plain("save_last"),
        }
    return _Facts("checkpoint", fields, metrics | {k: v for k, v in inspection.metrics.items() if k not in metrics})


def _recognition_facts(inspection: Inspection) -> _Facts:
    """The model and its parts, as their tensors show them; a part that is there in two kinds has no one name."""
    fields: dict[str, Plain] = {"model.architecture": inspection.architecture}
    for part, field in _RECOGNIZED.items():
        names = {found.name for found in inspection.recognized if found.part == part}
        if len(names) == 1:
            fields[field] = names.pop()
    return _Facts("checkpoint", fields)


def score_of(saver: CallbackState, checkpoint_path: str) -> float | None:
    """The monitored score of this very file, or None where the callback's state is about other files.

    A state lists the scores of all files that it keeps: `last.ckpt` holds the best one's score as well. The path in it
    is that of the machine that trained, so it is compared from its end: base names must be equal, and among several
    the one that shares most directories is meant; if that is not one, nobody knows.
    """
    scored = {path: score for path, score in saver.best_k_models.items() if score is not None}
    if saver.best_model_path and saver.best_model_score is not None:
        scored.setdefault(saver.best_model_path, saver.best_model_score)
    ranked = [(_shared_tail(path, checkpoint_path), score) for path, score in scored.items()]
    best = max((shared for shared, _ in ranked), default=0)
    scores = {score for shared, score in ranked if shared == best}
    return scores.pop() if best > 0 and len(scores) == 1 else None


def _saver_of(savers: Sequence[CallbackState], checkpoint_path: str) -> CallbackState | None:
    named = [saver for saver in savers if saver.monitor and score_of(saver, checkpoint_path) is not None]
    monitoring = named or [saver for saver in savers if saver.monitor]
    return monitoring[0] if len(monitoring) == 1 else (savers[0] if len(savers) == 1 else None)


def _shared_tail(path: str, other: str) -> int:
    """How many components two paths share at their ends; 0 if the base names differ."""
    pairs = zip(reversed(path.replace("\\", "/").split("/")), reversed(other.split("/")), strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(path.count("/"), other.count("/")) + 1)


# ---- config ----------------------------------------------------------------------------------------------------


def _config_facts(origin: str, config: Plain) -> _Facts:
    fields: dict[str, Plain] = {}
    for level in _config_levels(config):
        for field, value in _level_fields(level).items():
            if value is not None:
                fields.setdefault(field, value)
    return _Facts(origin, fields)


def _config_levels(config: Plain) -> Iterator[dict[str, Plain]]:
    """The config's mapping, unwrapped where W&B wrote it, and the mappings that commonly hold the real one."""
    if not isinstance(config, dict):
        return
    if "_wandb" in config or "wandb_version" in config:
        config = {k: v["value"] for k, v in config.items() if isinstance(v, dict) and "value" in v}
    yield config
    yield from (config[name] for name in _CONFIG_HOLDERS if isinstance(config.get(name), dict))


def _level_fields(level: dict[str, Plain]) -> dict[str, Plain]:
    model: dict[str, Plain] = next(
        (level[name] for name in ("model", "models") if isinstance(level.get(name), dict)), {}
    )
    for holder in ("init_args", "component_overrides"):  # LightningCLI; overrides of an architecture's parts
        if isinstance(model.get(holder), dict):
            model = model | model[holder]
    trainer = Keys(level.get("trainer"))
    experiment = Keys(level.get("experiment"))
    top = Keys(level)
    saver = _configured_saver(level)
    max_epochs = trainer.integer("max_epochs")
    parts: dict[str, Plain] = {
        "exp_name": top.text("exp_name", "experiment_name") or experiment.text("exp_name", "name"),
        "training.max_epochs": top.integer("max_epochs") if max_epochs is None else max_epochs,
    }
    found = Model() if not model and not _names_parts(level) else read_model(Keys(model), top)
    return parts | dict(_dotted(found, "model")) | dict(_dotted(saver, "checkpointing"))


def _names_parts(level: dict[str, Plain]) -> bool:
    parts = ("model", "architecture", "architecture_name", "arch", "encoder", "encoder_name", "backbone", "decoder")
    return any(name in level for name in (*parts, "head", "loss", "criterion"))


def _configured_saver(level: dict[str, Plain]) -> Checkpointing:
    """The one ModelCheckpoint of a config; nothing where there are several: nobody knows which wrote the file."""
    trainer = level.get("trainer")
    places = [level.get("callbacks"), trainer.get("callbacks") if isinstance(trainer, dict) else None]
    savers = [saver for place in places for saver in _savers_in(place)]
    if len(savers) != 1:
        return Checkpointing()
    keys = Keys(savers[0])
    return Checkpointing(
        monitor=keys.text("monitor"),
        mode=keys.text("mode"),
        save_top_k=keys.integer("save_top_k"),
        save_last=keys.plain("save_last"),
    )


def _savers_in(callbacks: Plain) -> Iterator[dict[str, Plain]]:
    if not isinstance(callbacks, dict | list):
        return
    for name, callback in callbacks.items() if isinstance(callbacks, dict) else enumerate(callbacks):
        if not isinstance(callback, dict):
            continue
        target = as_text(callback.get("_target_") or callback.get("class_path")) or ""
        if target.endswith("ModelCheckpoint") or (not target and name in ("model_checkpoint", "checkpoint")):
            arguments = callback.get("init_args")
            yield arguments if isinstance(arguments, dict) else callback


# ---- names and places ------------------------------------------------------------------------------------------


def _file_name_facts(named: FileNameFacts) -> _Facts:
    return _Facts("file_name", {"training.epoch": named.epoch, "training.global_step": named.step}, named.metrics)


def _layout_facts(around: Surroundings) -> _Facts:
    config = "" if around.config_name is None else shown_path(around.config_name)[0]
    run = _WANDB_RUN.search(config) or _WANDB_RUN.search(shown_path(around.relative_path)[0])
    hydra = config if ".hydra" in config.split("/") else None
    return _Facts(
        "layout",
        {
            "exp_name": experiment_name(around.relative_path, _root_basename(around)),
            "hydra_config_path": hydra,
            "wandb_run_id": run.group(1) if run else None,
        },
    )


def _root_basename(around: Surroundings) -> bytes:
    depth = around.relative_path.count(b"/") + 1
    parts = around.checkpoint_path.split("/")
    return os.fsencode(parts[-depth - 1]) if len(parts) > depth + 1 else b""


# ---- dotted fields ---------------------------------------------------------------------------------------------


def _dotted(value: msgspec.Struct, prefix: str = "") -> Iterator[tuple[str, Plain]]:
    for name in value.__struct_fields__:
        inner = getattr(value, name)
        field = f"{prefix}.{name}" if prefix else name
        if isinstance(inner, msgspec.Struct):
            yield from _dotted(inner, field)
        elif inner is not None:
            yield field, inner


def _nested(fields: dict[str, Plain]) -> dict[str, Plain]:
    nested: dict[str, Plain] = {}
    for field, value in fields.items():
        *sections, name = field.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return nested
