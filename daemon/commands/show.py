"""ckptd show: everything known of one checkpoint, with what to do about what was found."""

import argparse
from typing import Any

import msgspec

from ckptd.catalog.compare_values import flatten
from ckptd.catalog.entry import Health
from ckptd.validators.findings import Severity
from ckptd.validators.inspection import Recognition

from ..client import CheckpointDetail, DetailedFinding
from . import output
from .connection import add_connection_arguments, connected
from .exits import FINE, FOUND
from .naming import HOW, find_checkpoint

_TOP = (
    *("checkpoint_path", "id", "health", "verified", "safety", "exp_name", "run_id", "architecture", "backbone"),
    *("epoch", "global_step", "monitor", "monitor_mode", "monitor_value", "format", "dtypes", "modified_at"),
    *("created_at", "metadata_source", "config_path", "content_id", "alias_of", "lightning_version", "revision"),
)

_FIELDS = {
    "epoch": "training.epoch",
    "global_step": "training.global_step",
    "architecture": "model.architecture",
    "backbone": "model.encoder.model_name",
    "monitor": "checkpointing.monitor",
    "monitor_mode": "checkpointing.mode",
}
"""Field of an entry → of the metadata, under which `provenance` has it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which one."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=HOW)
    parser.add_argument("--tensors", action="store_true", help="also every tensor")
    parser.add_argument("--settings", action="store_true", help="also hyper-parameters and config")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    add_connection_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Show it; 1 if it is invalid."""
    with connected(options) as client:
        checkpoint_id = find_checkpoint(client, options.checkpoint)
        detail = client.get(checkpoint_id)
        tensors = client.tensors(checkpoint_id) if options.tensors else None
    if options.json:
        shown = msgspec.to_builtins(detail)
        output.print_json(shown if tensors is None else shown | {"tensors": tensors})
    else:
        _print_detail(detail)
        if options.settings:
            _print_settings(detail)
        if tensors is not None:
            rows = [(t.name, t.dtype, " x ".join(map(str, t.shape)), output.size(t.nbytes)) for t in tensors]
            output.print_table(("tensor", "dtype", "shape", "size"), rows, ("size",))
    # A dangling link is invalid by a warning: nothing is wrong with the file that it led to.
    errors = any(found.severity is Severity.ERROR for found in detail.findings)
    return FOUND if errors or detail.health is Health.INVALID else FINE


def _print_detail(detail: CheckpointDetail) -> None:
    known = [(name, getattr(detail, name)) for name in _TOP]
    rows = [(name, _shown(value)) for name, value in known if value not in (None, (), "")]
    rows += [(f"metrics.{name}", _shown(value)) for name, value in detail.metrics.items()]
    rows.append(("size", output.size(detail.size_bytes)))
    if detail.n_parameters is not None:
        rows.append(("parameters", output.count(detail.n_parameters)))
        rows += [(f"parameters.{part}", output.count(n)) for part, n in detail.parameters_by_part.items()]
    output.print_table(("field", "value", "from"), ((*row, _origin(detail, row[0])) for row in rows))
    if detail.recognized:
        output.print_table(("part", "recognised as", "confidence", "by"), map(_recognized, detail.recognized))
    for found in detail.findings:
        print(output.printable(f"{found.severity}: {found.code}{_message(found)}"))


def _print_settings(detail: CheckpointDetail) -> None:
    for title, value in (("hyper-parameter", detail.hyper_parameters), ("config", detail.config)):
        rows = [(name, _shown(setting)) for name, setting in flatten(value).items()]
        if rows:
            output.print_table((title, "value"), rows)


def _origin(detail: CheckpointDetail, field: str) -> str:
    """Where a value came from; nothing for what ckptd measured itself."""
    name = field.removeprefix("metrics.")
    for key in (_FIELDS.get(field, field), f"metrics.{name}", f"metrics.additional_metrics.{name}"):
        if key in detail.provenance:
            return detail.provenance[key]
    return ""


def _recognized(part: Recognition) -> tuple[object, ...]:
    return part.part, part.name, f"{part.confidence:.0%}", "; ".join(part.evidence)


def _message(found: DetailedFinding) -> str:
    return f": {found.message}; {found.remedy}" if found.message else ""


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
