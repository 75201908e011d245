"""What older generators got wrong in a sidecar, and what is right: change by change, each with its reason.

Pure: documents in, changes out. A value that nothing speaks against is never touched, and what cannot be known becomes
null. Sidecars that ckptd or one of its callbacks wrote need none of this.
"""

import copy
import math
from collections.abc import Iterator, Mapping

import msgspec

from ckptd.validators.inspection import Plain

from .description import CheckpointMetadata, FieldChange, Metrics
from .metadata import as_count, as_number, as_text, metrics_of, parse_document
from .metric_names import SLOTS, metric_key, value_of

PLACEHOLDERS = frozenset({"ocrmodel", "unknown"})
"""What older generators wrote where they did not know the architecture: the class around every model, and a word."""
FAKE_EPOCHS = frozenset({998, 999})
"""What they wrote for `last` and `best`, so that these sorted behind all others."""

_Path = tuple[str, ...]
_KNOWN_MAJOR = "1"
_PARTS: Mapping[_Path, tuple[str, str]] = {
    ("model", "architecture"): ("architecture", "architecture"),
    ("model", "architecture_name"): ("architecture", "architecture"),
    ("model", "arch"): ("architecture", "architecture"),
    ("model", "name"): ("architecture", "architecture"),
    ("model",): ("architecture", "architecture"),
    ("architecture",): ("architecture", "architecture"),
    ("architecture_name",): ("architecture", "architecture"),
    ("arch",): ("architecture", "architecture"),
    ("model", "encoder"): ("encoder", "model_name"),
    ("model", "encoder", "model_name"): ("encoder", "model_name"),
    ("model", "encoder", "name"): ("encoder", "model_name"),
    ("encoder",): ("encoder", "model_name"),
    ("model", "decoder"): ("decoder", "name"),
    ("model", "decoder", "name"): ("decoder", "name"),
    ("decoder",): ("decoder", "name"),
    ("model", "head"): ("head", "name"),
    ("model", "head", "name"): ("head", "name"),
    ("head",): ("head", "name"),
    ("model", "loss"): ("loss", "name"),
    ("model", "loss", "name"): ("loss", "name"),
    ("loss",): ("loss", "name"),
}
"""Where a document may name the model and its parts → part, and the field of its name."""
_NAMED = frozenset({"model", "encoder", "decoder", "head", "loss"})
"""Sections that older layouts write as a bare name."""
_EPOCHS = frozenset({("training", "epoch"), ("epoch",)})
_METRIC_SECTIONS = frozenset({"metrics", "cleval_metrics"})
_TAIL = 3
"""Components of an absolute path that must agree for it to be this file, seen by another machine or through a link."""
_CLOSE = 1e-6
"""Relative difference of a score that was stored in single precision, or printed and read again."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a checkpoint without its sidecars."""

    checkpoint_path: str
    """Absolute."""
    known: CheckpointMetadata
    """Of the checkpoint, its config and its name."""
    named: Mapping[str, float] = {}
    """Metrics in the file name, by the names there."""


def repaired(document: Plain, evidence: Evidence) -> tuple[Plain, tuple[FieldChange, ...]]:
    """Correct what a sidecar is known to have wrong, and add the keys of schema 1.0 that it lacks.

    Args:
        document: the sidecar as plain data; it is not modified.
        evidence: what else is known.

    Returns:
        The corrected document and what was changed in it; the same document and no changes where all is well, and
        where it is of a later schema or no mapping.
    """
    if not isinstance(document, dict) or _is_newer(document):
        return document, ()
    work = copy.deepcopy(document)
    changes = [*_wrong_values(work, evidence)]
    for change in changes:
        _set(work, change.field, change.new)
    changes += _completed(work)
    return (work, tuple(changes)) if changes else (document, ())


def _is_newer(document: dict[str, Plain]) -> bool:
    version = as_text(document.get("schema_version"))
    return version is not None and version.split(".")[0] != _KNOWN_MAJOR


# ---- wrong values ----------------------------------------------------------------------------------------------


def _wrong_values(document: dict[str, Plain], evidence: Evidence) -> Iterator[FieldChange]:
    said = parse_document(document).metadata
    fake_hmean = _fake_hmean(said, evidence)
    for path, value in _leaves(document):
        if value is None:
            continue
        if path == ("checkpoint_path",):
            yield from _path_change(path, value, evidence)
        elif path in _PARTS:
            yield from _name_change(path, value, evidence)
        elif path in _EPOCHS:
            yield from _epoch_change(path, value, evidence)
        elif fake_hmean is not None and _is_hmean(path) and as_number(value) == said.metrics.hmean:
            right = evidence.known.metrics.hmean
            yield FieldChange(path, value, right, f"it is the value of {fake_hmean}, which this run monitored")
    if fake_hmean is not None:
        yield from _moved_score(fake_hmean, said, document)


def _path_change(path: _Path, value: Plain, evidence: Evidence) -> Iterator[FieldChange]:
    actual = evidence.checkpoint_path
    said = as_text(value)
    if said == actual:
        return
    if said is None or not said.startswith("/"):
        yield FieldChange(path, value, actual, "it is relative, and nothing says to which directory")
    elif said.split("/")[-_TAIL:] != actual.split("/")[-_TAIL:]:
        yield FieldChange(path, value, actual, "it is the path of another file")


def _name_change(path: _Path, value: Plain, evidence: Evidence) -> Iterator[FieldChange]:
    said = as_text(value)
    if said is None or not _is_placeholder(said):
        return
    part, field = _PARTS[path]
    model = evidence.known.model
    known = model.architecture if part == "architecture" else getattr(getattr(model, part), field)
    right = None if known is None or _is_placeholder(known) else known
    yield FieldChange(path, value, right, f"{said!r} is no {part}, an older generator wrote it for all")


def _is_placeholder(name: str) -> bool:
    return name.strip().lower() in PLACEHOLDERS


def _epoch_change(path: _Path, value: Plain, evidence: Evidence) -> Iterator[FieldChange]:
    said, known = as_count(value), evidence.known.training.epoch
    if said not in FAKE_EPOCHS or said == known:
        return
    says = "the checkpoint does not say so" if known is None else f"the checkpoint says {known}"
    yield FieldChange(path, value, known, f"older generators wrote {said} to sort a file last, and {says}")


# ---- hmean -----------------------------------------------------------------------------------------------------


def _is_hmean(path: _Path) -> bool:
    section, *names = path
    if not names:
        return metric_key(section) == "hmean"
    return section in _METRIC_SECTIONS and metric_key("/".join(names)) == "hmean"


def _fake_hmean(said: CheckpointMetadata, evidence: Evidence) -> str | None:
    """The monitored metric whose value was written as `hmean`; None where that is really one, or may well be."""
    hmean = said.metrics.hmean
    if hmean is None or _is_close(hmean, evidence.known.metrics.hmean) or _is_harmonic(said.metrics):
        return None
    others = {name: value for name, value in said.metrics.flat().items() if metric_key(name) != "hmean"}
    for monitor in (said.checkpointing.monitor, evidence.known.checkpointing.monitor):
        if monitor is None or metric_key(monitor) == "hmean":
            continue
        for scores in (evidence.known.metrics.flat(), metrics_of(evidence.named).flat(), others):
            if _is_close(hmean, value_of(scores, monitor)):
                return monitor
    return None


def _is_harmonic(metrics: Metrics) -> bool:
    """Whether precision and recall stand beside hmean and bear it out."""
    p, r = metrics.precision, metrics.recall
    if p is None or r is None or metrics.hmean is None or p + r <= 0:
        return False
    return math.isclose(metrics.hmean, 2 * p * r / (p + r), rel_tol=1e-3)


def _is_close(value: float, other: float | None) -> bool:
    return other is not None and math.isclose(value, other, rel_tol=_CLOSE)


def _moved_score(monitor: str, said: CheckpointMetadata, document: dict[str, Plain]) -> Iterator[FieldChange]:
    """The score goes where it belongs, unless it is there already."""
    others = {name: value for name, value in said.metrics.flat().items() if metric_key(name) != "hmean"}
    if value_of(others, monitor) is not None:
        return
    key = metric_key(monitor)
    path = ("metrics", key) if key in SLOTS else ("metrics", "additional_metrics", monitor)
    there = _get(document, path)
    if there is None and _has_room(document, path):
        missing = not _is_there(document, path)
        yield FieldChange(path, None, said.metrics.hmean, "this is whose value stood as hmean", missing)


# ---- missing keys ----------------------------------------------------------------------------------------------


def _completed(document: dict[str, Plain]) -> list[FieldChange]:
    """Add the keys of schema 1.0 that are missing: null, or what older layouts have elsewhere in the document.

    `source` is for whoever wrote the file to say, and is not added.
    """
    schema = msgspec.to_builtins(parse_document(document).metadata)
    del schema["source"]
    changes = list(_missing(document, schema, ()))
    for change in changes:
        _set(document, change.field, change.new)
    return changes


def _missing(there: dict[str, Plain], schema: dict[str, Plain], above: _Path) -> Iterator[FieldChange]:
    for name, value in schema.items():
        path = (*above, name)
        if name not in there:
            yield FieldChange(path, None, value, "schema 1.0 has this key", missing=True)
        elif isinstance(value, dict) and value and name != "additional_metrics":
            inner = there[name]
            if isinstance(inner, dict):
                yield from _missing(inner, value, path)
            elif inner is None or (isinstance(inner, str) and name in _NAMED):
                yield FieldChange(path, inner, value, "schema 1.0 has keys here")


# ---- paths of a document ---------------------------------------------------------------------------------------


def _leaves(document: dict[str, Plain], above: _Path = ()) -> Iterator[tuple[_Path, Plain]]:
    """Values by path; a document is at most `documents.MAX_DEPTH` deep."""
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), value


def _get(document: Plain, path: _Path) -> Plain:
    for name in path:
        if not isinstance(document, dict):
            return None
        document = document.get(name)
    return document


def _is_there(document: Plain, path: _Path) -> bool:
    holder = _get(document, path[:-1])
    return isinstance(holder, dict) and path[-1] in holder


def _has_room(document: Plain, path: _Path) -> bool:
    """Whether the value can be put there: what is on the way is a mapping, or nothing."""
    return all(isinstance(_get(document, path[:depth]), dict | None) for depth in range(1, len(path)))


def _set(document: dict[str, Plain], path: _Path, value: Plain) -> None:
    for name in path[:-1]:
        if not isinstance(document.get(name), dict):
            document[name] = {}
        document = document[name]
    document[path[-1]] = copy.deepcopy(value)
