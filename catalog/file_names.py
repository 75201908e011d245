"""What a checkpoint's file name says: epoch, step and metrics. A number that nobody named is nobody's epoch."""

import math
import os
import re

import msgspec

CHECKPOINT_SUFFIXES = (b".ckpt", b".pt", b".pth.tar", b".pth", b".safetensors")


class FileNameFacts(msgspec.Struct, frozen=True):
    """Facts that are spelled out in a file name."""

    epoch: int | None = None
    step: int | None = None
    metrics: dict[str, float] = {}


_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_WORD = r"[A-Za-z][A-Za-z0-9.@]*(?:[_/][A-Za-z0-9.@]+)*"
_END = r"(?=[-_](?![0-9.])|[-_][0-9]{8}(?![0-9])|\Z)"
# `epoch=28-step=23722-val_loss=0.12`: Lightning's own, CheckpointConnector `_format_checkpoint_name`
_EQUALS = re.compile(rf"(?:\A|(?<=[-_]))({_WORD})=({_NUMBER}){_END}")
# `epoch-05_step-000205_hmean-0.8756`: the dash names the value, the underscore parts the pairs
_DASHED = re.compile(rf"(?:\A|(?<=_))([A-Za-z][A-Za-z@/]*[0-9]?(?:_[A-Za-z@/]+[0-9]?)*)-({_NUMBER}){_END}")
# `epoch_05`, `step1000`, `model_epoch_3`
_COUNTED = re.compile(r"(?:\A|[-_.])(epoch|global_step|step)[-_]?([0-9]+)(?=[-_.]|\Z)", re.IGNORECASE)
# Directories of transformers' Trainer: the number is the global step (trainer_utils.PREFIX_CHECKPOINT_DIR)
_TRAINER = re.compile(r"checkpoint-([0-9]+)\Z")
_LEAD = re.compile(r"(?:(?:best|last|final|model|ckpt|checkpoint)[-_])+(?=[A-Za-z])")
_LIGHTNING_VERSION = re.compile(r"-v[0-9]+\Z")

_EPOCH = frozenset({"epoch"})
_STEP = frozenset({"step", "global_step"})
_SETTINGS = frozenset({"lr", "bs", "batch", "batch_size", "seed", "fold", "version", "v", "rank", "k", "run", "trial"})
# In `resnet-50_step-100` only the second number is a measurement: a dash alone does not make a metric.
_MEASURES = re.compile(
    r"(?:\A|[_/])(?:loss|acc|accuracy|hmean|precision|recall|f1|fscore|map|ap|iou|miou|auc|auroc|score|dice|psnr|ssim"
    r"|bleu|rouge|cer|wer|ppl|perplexity|mae|mse|rmse|error|err|top1|top5|kappa)(?:\Z|[_/@])"
)
# A metric named `val/hmean` became a directory: `epoch=3-val/hmean=0.87.ckpt`, or `val/hmean=0.87.ckpt`.
_FRAGMENT = re.compile(rf"(?:epoch|step|global_step|{_WORD})[=-]{_NUMBER}[-_](?:.*[-_])?{_WORD}\Z")
_STAGE = re.compile(r"(?:val|valid|validation|train|test|eval)\Z")
_PAIR_AHEAD = re.compile(rf"{_WORD}[=-]{_NUMBER}")

MAX_EPOCH = 10**7
MAX_STEP = 10**13


def stem_of(name: bytes) -> bytes:
    """A checkpoint's name without its suffix; the whole name where it has none that is known."""
    suffix = next((known for known in CHECKPOINT_SUFFIXES if name.endswith(known)), b"")
    return name[: len(name) - len(suffix)]


def is_name_fragment(directory_name: bytes) -> bool:
    """Whether a directory is the first half of a file name whose metric has a slash: `epoch=3-val`."""
    return bool(_FRAGMENT.match(os.fsdecode(directory_name)))


def is_stage(directory_name: bytes) -> bool:
    """Whether a directory is the first half of a metric's name: `val` of `val/hmean=0.87.ckpt`."""
    return bool(_STAGE.match(os.fsdecode(directory_name)))


def parse_file_name(path: bytes) -> FileNameFacts:
    """Read epoch, step and metrics from a checkpoint's name.

    Args:
        path: Base name, or a relative path: a directory that is the first half of a name (a metric with a slash
            in it) is read together with the rest.

    Returns:
        What is spelled out; `last_20251011_004442.ckpt` says nothing. Values that are not finite are left out.
    """
    text = _LIGHTNING_VERSION.sub("", _whole_name(path))
    lead = _LEAD.match(text)
    text = text[lead.end() :] if lead else text
    pairs = [(key, value, True) for key, value in _EQUALS.findall(text)]
    pairs = pairs or [(key, value, False) for key, value in _DASHED.findall(text)]
    epoch = step = None
    metrics: dict[str, float] = {}
    for key, value, explicit in pairs:
        lowered = key.lower()
        if lowered in _EPOCH:
            epoch = _count(value, MAX_EPOCH)
        elif lowered in _STEP:
            step = _count(value, MAX_STEP)
        elif lowered not in _SETTINGS and (explicit or _MEASURES.search(lowered)) and math.isfinite(float(value)):
            metrics[key] = float(value)
    for key, value in _COUNTED.findall(text):
        if key.lower() == "epoch":
            epoch = _count(value, MAX_EPOCH) if epoch is None else epoch
        else:
            step = _count(value, MAX_STEP) if step is None else step
    trainer = _TRAINER.match(os.fsdecode(os.path.basename(path)))
    if trainer:
        step = _count(trainer.group(1), MAX_STEP)
    return FileNameFacts(epoch, step, metrics)


def _whole_name(path: bytes) -> str:
    directory, name = os.path.split(path)
    text = os.fsdecode(stem_of(name))
    above = os.fsdecode(os.path.basename(directory))
    if _PAIR_AHEAD.match(text) and (_FRAGMENT.match(above) or _STAGE.match(above)):
        return f"{above}/{text}"
    return text


def _count(value: str, limit: int) -> int | None:
    return int(value) if value.isdigit() and len(value) < 20 and int(value) < limit else None
