"""CheckpointMetadata, schema 1.0: reading it leniently, older variants included, from a sidecar's untrusted bytes."""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from ckptd.validators.inspection import Plain

from .description import (
    Checkpointing,
    CheckpointMetadata,
    Decoder,
    Encoder,
    Head,
    Loss,
    Metrics,
    Model,
    Source,
    Training,
)
from .documents import DocumentError, load_document
from .metric_names import SLOTS, metric_key

_T = TypeVar("_T")
_MISSING = "???"  # OmegaConf's mark for a mandatory value that nobody set
_MAX_COUNT = 1 << 63


class MetadataError(ValueError):
    """Raised when a sidecar's bytes cannot be read as metadata."""


class ParsedMetadata(msgspec.Struct, frozen=True):
    """What a sidecar says."""

    metadata: CheckpointMetadata
    user: dict[str, Plain] = {}
    """Keys that the schema does not know, where they stood: `{"user": {…}, "training": {"note": …}}`."""


class Keys:
    """A mapping from which known keys are taken, each if its value has the right kind; `rest` is what nobody knew."""

    def __init__(self, value: Plain) -> None:
        self._rest: dict[str, Plain] = dict(value) if isinstance(value, dict) else {}
        self._sections: dict[str, Keys] = {}

    def section(self, *names: str) -> "Keys":
        """Take the first of `names` that is a mapping; an empty one if there is none."""
        for name in names:
            if isinstance(self._rest.get(name), dict):
                self._sections[name] = Keys(self._rest.pop(name))
                return self._sections[name]
            if name in self._rest and self._rest[name] is None:
                del self._rest[name]
        return Keys(None)

    def text(self, *names: str) -> str | None:
        """Take a text."""
        return self._take(as_text, names)

    def count(self, *names: str) -> int | None:
        """Take a number that counts: not negative, whole."""
        return self._take(as_count, names)

    def number(self, *names: str) -> float | None:
        """Take a finite number."""
        return self._take(as_number, names)

    def integer(self, *names: str) -> int | None:
        """Take a whole number of either sign."""
        return self._take(_as_integer, names)

    def flag(self, *names: str) -> bool | None:
        """Take a truth value."""
        return self._take(_as_flag, names)

    def plain(self, *names: str) -> Plain:
        """Take whatever is there."""
        return self._take(_as_set, names)

    def names(self) -> list[str]:
        """The keys that nobody took."""
        return list(self._rest)

    def rest(self) -> dict[str, Plain]:
        """What nobody took, sections included."""
        sections = {name: section.rest() for name, section in self._sections.items()}
        return self._rest | {name: rest for name, rest in sections.items() if rest}

    def _take(self, convert: Callable[[Plain], _T | None], names: tuple[str, ...]) -> _T | None:
        for name in names:
            if name not in self._rest:
                continue
            value = convert(self._rest[name])
            if value is not None or self._rest[name] is None:
                del self._rest[name]
            if value is not None:
                return value
        return None


def parse_metadata(data: bytes, *, is_json: bool = False) -> ParsedMetadata:
    """Read a sidecar.

    Understood besides schema 1.0: no `schema_version`; metrics, epoch, monitor at the top level; metrics in groups
    (`val: {hmean: …}`); an encoder, decoder, head, loss or model that is a bare name; numbers written as text.
    Ranges are not enforced. A value of the wrong kind counts as unknown and stays in `user`.

    Raises:
        MetadataError: the bytes are no document that may be read (see `documents`), or no mapping.
    """
    try:
        document = load_document(data, is_json=is_json)
    except DocumentError as error:
        raise MetadataError(str(error)) from error
    return parse_document(document)


def parse_document(document: Plain) -> ParsedMetadata:
    """Read a sidecar that is plain data already, as `parse_metadata`.

    Raises:
        MetadataError: it is no mapping.
    """
    if not isinstance(document, dict):
        what = "is empty" if document is None else f"holds a {type(document).__name__}, not keys and values"
        raise MetadataError(f"the document {what}")
    top = Keys(document)
    metadata = CheckpointMetadata(
        schema_version=top.text("schema_version") or "1.0",
        checkpoint_path=top.text("checkpoint_path"),
        exp_name=top.text("exp_name", "experiment_name"),
        created_at=top.text("created_at"),
        training=_training(top),
        model=read_model(top.section("model"), top),
        metrics=_metrics(top),
        checkpointing=_checkpointing(top),
        hydra_config_path=top.text("hydra_config_path"),
        wandb_run_id=top.text("wandb_run_id"),
        source=_source(top.section("source")),
    )
    return ParsedMetadata(metadata, top.rest())


# ---- sections --------------------------------------------------------------------------------------------------


def read_model(model: Keys, top: Keys) -> Model:
    """Read a model's parts from their section, or from the level above it where older files and flat configs put them.

    The name of a part is what is called a name, or the class of its `_target_`. The class of the model as a whole is
    not its architecture: a wrapper around every architecture has one class.
    """
    named = model.text("architecture", "architecture_name", "arch", "name")
    encoder = model.section("encoder", "backbone")
    encoder_name = encoder.text("model_name", "name", "encoder_name")
    return Model(
        architecture=named or top.text("architecture", "architecture_name", "arch", "model"),
        encoder=Encoder(
            model_name=encoder_name or _first_text((model, top), "encoder", "encoder_name", "backbone"),
            pretrained=encoder.flag("pretrained"),
            frozen=encoder.flag("frozen", "freeze"),
        ),
        decoder=_decoder(model, top),
        head=_head(model, top),
        loss=_loss(model, top),
    )


def _decoder(model: Keys, top: Keys) -> Decoder:
    part = _section((model, top), "decoder")
    return Decoder(
        name=_class_name(part) or _first_text((model, top), "decoder", "decoder_name"),
        in_channels=part.plain("in_channels"),
        inner_channels=part.plain("inner_channels"),
        output_channels=part.plain("output_channels", "out_channels"),
        params=part.plain("params"),
    )


def _head(model: Keys, top: Keys) -> Head:
    part = _section((model, top), "head")
    return Head(
        name=_class_name(part) or _first_text((model, top), "head", "head_name"),
        in_channels=part.plain("in_channels"),
        params=part.plain("params"),
    )


def _loss(model: Keys, top: Keys) -> Loss:
    part = _section((model, top), "loss", "criterion")
    return Loss(
        name=_class_name(part) or _first_text((model, top), "loss", "loss_name", "criterion"),
        params=part.plain("params"),
    )


def _training(top: Keys) -> Training:
    part = top.section("training")
    return Training(
        epoch=_or(part.count("epoch"), top.count, "epoch"),
        global_step=_or(part.count("global_step", "step"), top.count, "global_step", "step"),
        training_phase=part.text("training_phase", "phase") or top.text("training_phase"),
        max_epochs=_or(part.integer("max_epochs"), top.integer, "max_epochs"),
    )


def _checkpointing(top: Keys) -> Checkpointing:
    part = top.section("checkpointing")
    mode = part.text("mode", "monitor_mode") or top.text("mode", "monitor_mode")
    return Checkpointing(
        monitor=part.text("monitor") or top.text("monitor"),
        mode=mode,
        save_top_k=_or(part.integer("save_top_k"), top.integer, "save_top_k"),
        save_last=_or(part.plain("save_last"), top.plain, "save_last"),
    )


def _source(part: Keys) -> Source:
    return Source(
        generated_by=part.text("generated_by"),
        generated_at=part.text("generated_at"),
        size_bytes=part.count("size_bytes"),
        modified_at=part.text("modified_at"),
        archive_id=part.text("archive_id"),
        digest=part.text("digest"),
        body_digest=part.text("body_digest"),
    )


def _metrics(top: Keys) -> Metrics:
    sections = (top.section("metrics"), top.section("cleval_metrics"))
    found: dict[str, float] = {}
    for section in sections:
        groups = {name: section.section(name) for name in section.names()}
        for name in section.names():
            _note(found, name, section.number(name))
        for group, values in groups.items():
            prefix = "" if group == "additional_metrics" else f"{group}/"
            for name in values.names():
                _note(found, prefix + name, values.number(name))
    for name in top.names():
        if metric_key(name) in SLOTS:
            _note(found, name, top.number(name))
    return metrics_of(found)


def _note(found: dict[str, float], name: str, value: float | None) -> None:
    if value is not None:
        found.setdefault(name, value)


def metrics_of(named: Mapping[str, float]) -> Metrics:
    """Sort metrics by the names they were logged under into the schema's slots; values that are not finite are dropped.

    Where two names mean the same slot, the slot's own name wins, then the first; the other keeps its own name.
    """
    finite = {name: float(value) for name, value in named.items() if math.isfinite(value)}
    slots = {name: finite[name] for name in SLOTS if name in finite}
    additional: dict[str, float] = {}
    for name, value in finite.items():
        key = metric_key(name)
        if key in SLOTS and key not in slots:
            slots[key] = value
        elif name not in SLOTS and slots.get(key) != value:
            additional[name] = value
    return Metrics(**slots, additional_metrics=additional)


# ---- values ----------------------------------------------------------------------------------------------------


def as_text(value: Plain) -> str | None:
    """A text that says something: numbers are spelled out; interpolations and OmegaConf's `???` say nothing."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).strip()
    return None if not text or text == _MISSING or "${" in text else text


def as_number(value: Plain) -> float | None:
    """A finite number, also one written as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_count(value: Plain) -> int | None:
    """A whole number that is not negative, also one written as text."""
    number = _as_integer(value)
    return number if number is not None and number >= 0 else None


def _as_integer(value: Plain) -> int | None:
    number = as_number(value)
    if number is None or not number.is_integer() or abs(number) >= _MAX_COUNT:
        return None
    # not by way of a float, which loses digits above 2**53
    return int(value) if isinstance(value, int) or (isinstance(value, str) and _is_decimal(value)) else int(number)


def _is_decimal(text: str) -> bool:
    return text.strip().lstrip("+-").isdecimal()


def _as_flag(value: Plain) -> bool | None:
    return value if isinstance(value, bool) else None


def _as_set(value: Plain) -> Plain:
    return None if isinstance(value, str) and as_text(value) is None else value


def _or(value: _T | None, take: Callable[..., _T | None], *names: str) -> _T | None:
    return take(*names) if value is None else value


def _section(places: tuple[Keys, ...], *names: str) -> Keys:
    return next((part for part in (place.section(*names) for place in places) if part.names()), Keys(None))


def _first_text(places: tuple[Keys, ...], *names: str) -> str | None:
    return next(filter(None, (place.text(*names) for place in places)), None)


def _class_name(part: Keys) -> str | None:
    named = part.text("name", "_target_", "class_path")
    return named.rpartition(".")[2] if named else None
