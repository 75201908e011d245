"""How an inspection, a sidecar, a config and names become metadata, each value with where it came from."""

import os
from collections.abc import Iterator, Sequence

import msgspec

from ckptd.validators.inspection import CallbackState, Inspection, Plain

from .description import Checkpointing, CheckpointMetadata, Model
from .entry import rfc3339, shown_path
from .experiment import FileNameFacts, experiment_name, parse_file_name, run_id
from .metadata import Keys, ParsedMetadata, as_text, metrics_of, read_model
from .metric_names import SLOTS
from .run_facts import Run, unwrapped
from .run_files import HYDRA, HYDRA_CONFIG


class Derived(msgspec.Struct, frozen=True):
    """Metadata and run id, and for each known value (dotted field) its origin."""

    metadata: CheckpointMetadata
    provenance: dict[str, str]
    run_id: str | None = None


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a checkpoint without opening it, and what lies beside it."""

    checkpoint_path: str
    """Absolute."""
    relative_path: bytes
    sidecar: ParsedMetadata | None = None
    """Of a person or a training, and about this very file."""
    config: Plain = None
    config_name: bytes | None = None
    run: Run = Run()
    record_names: tuple[bytes, ...] = ()
    wandb_run: str | None = None


class _Facts(msgspec.Struct, frozen=True):
    origin: str
    fields: dict[str, Plain] = {}
    """By dotted metadata field; metrics apart."""
    metrics: dict[str, float] = {}
    """By the names they were logged under."""


_NOT_FACTS = ("schema_version", "checkpoint_path", "metrics", "source")
_RECOGNIZED = {"encoder": "model.encoder.model_name", "decoder": "model.decoder.name", "head": "model.head.name"}
"""Part → where its name goes."""
_FILES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".onnx", ".yaml", ".yml", ".json", ".py")
_CONFIG_HOLDERS = ("config", "cfg", "hparams")


def derive_metadata(inspection: Inspection, around: Surroundings) -> Derived:
    """Collect what is known of a checkpoint; for each field the first source that knows it wins.

    In order: a sidecar that is not ours (`sidecar`), the checkpoint itself (`checkpoint`), the config beside it
    (`config`), what the run's launcher and loggers kept besides (`hydra`, `hparams`, `wandb`), what its tensors are
    recognised as (`checkpoint` again: names that people gave come before names by which ckptd knows a model), what was
    logged at its very step (`metrics_csv`, `wandb_summary`), its file name (`file_name`), its place in the tree
    (`layout`); `created_at` is the file's modification time (`file`) unless a sidecar knows better. What nobody knows
    is null.
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
    run_id = fields.pop("run_id", None)
    nested = _nested(fields)
    nested["metrics"] = metrics_of(metrics)
    nested["checkpoint_path"] = around.checkpoint_path
    return Derived(msgspec.convert(nested, CheckpointMetadata, from_attributes=True), provenance, run_id)


def _sources(inspection: Inspection, around: Surroundings) -> Iterator[_Facts]:
    if around.sidecar is not None:
        found = around.sidecar.metadata
        fields = {name: value for name, value in _dotted(found) if name.split(".")[0] not in _NOT_FACTS}
        yield _Facts("sidecar", fields, found.metrics.flat())
    yield _checkpoint_facts(inspection, around.checkpoint_path)
    yield _config_facts("checkpoint", inspection.hyper_parameters)
    yield _config_facts("config", around.config)
    yield _config_facts("hydra", around.run.overrides)
    yield _Facts("hydra", {"exp_name": around.run.experiment})
    yield _Facts("mlflow", {"exp_name": around.run.mlflow_experiment})
    yield _config_facts("hparams", around.run.hparams)
    yield _config_facts("wandb", around.run.wandb_config)
    yield _config_facts("wandb", around.run.wandb_arguments)
    yield _recognition_facts(inspection)
    yield _Facts("metrics_csv", metrics=around.run.logged)
    yield _Facts("wandb_summary", metrics=around.run.summary)
    yield _file_name_facts(parse_file_name(around.relative_path))
    yield _layout_facts(around)
    yield _run_facts(around)
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
    config = unwrapped(config)
    if not isinstance(config, dict):
        return
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
    named = _architecture(found.architecture, level)
    found = msgspec.structs.replace(found, architecture=named)
    return parts | dict(_dotted(found, "model")) | dict(_dotted(saver, "checkpointing"))


def _architecture(named: str | None, level: dict[str, Plain]) -> str | None:
    """The architecture that a config names. A file of weights or settings is none (`model: yolov8n.pt`).

    transformers/configuration_utils.py, `PretrainedConfig.architectures`: the class of the model that was saved.
    """
    if named is not None:
        return None if named.endswith(_FILES) else named
    classes = level.get("architectures")
    if not isinstance(classes, list) or not isinstance(level.get("model_type"), str):
        return None
    return as_text(classes[0]) if len(classes) == 1 else None


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
    return _Facts(
        "layout",
        {
            "exp_name": experiment_name(around.relative_path, _root_basename(around)),
            "run_id": run_id(around.relative_path, _root_basename(around)),
            "hydra_config_path": _hydra_config(around),
            "wandb_run_id": around.wandb_run,
        },
    )


def _hydra_config(around: Surroundings) -> str | None:
    """Hydra's config of the run, also where the checkpoint has one of its own."""
    records = [name for name in around.record_names if os.path.basename(os.path.dirname(name)) == HYDRA]
    named = [os.path.join(os.path.dirname(name), HYDRA_CONFIG) for name in records]
    if around.config_name is not None and HYDRA in around.config_name.split(b"/"):
        named.insert(0, around.config_name)
    return shown_path(named[0])[0] if named else None


def _run_facts(around: Surroundings) -> _Facts:
    """Which run it was, where the tree does not show it (any more): where Hydra let it write, or W&B's id."""
    output = around.run.output_directory
    found = run_id(os.fsencode(output.strip("/")) + b"/checkpoints/x") if output else None
    if found is not None:
        return _Facts("hydra", {"run_id": found})
    return _Facts("wandb", {"run_id": around.wandb_run})


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
