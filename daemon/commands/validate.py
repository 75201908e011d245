"""ckptd validate: inspect files or trees here and now; a line for each, and what to do about what was found."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from ckptd.catalog.description import Description
from ckptd.catalog.entry import shown_path
from ckptd.validators.findings import Severity
from ckptd.validators.inspection import Level

from ..settings import Settings
from . import output
from .describing import describe_all
from .exits import ENVIRONMENT, FINE, FOUND
from .flags import add_setting_flags, settings_from
from .targets import Target, find_targets

_LIMITS = ("suffixes", "workers", "worker_memory_mb", "worker_timeout_s", "config")
_LEVELS = [level.value for level in (Level.STRUCTURE, Level.CHECKSUM)]
_SLOWEST_BYTES_PER_S = 20_000_000
"""A disk that is slower than this while every byte is read counts as hung."""
_COLUMNS = ("checkpoint", "verdict", "verified", "safety", "parameters", "size", "findings")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Paths, form of the answer, limits of the workers."""
    parser.usage = "ckptd validate PATH [PATH ...] [--level LEVEL] [--json] [settings]"
    parser.add_argument("paths", nargs="+", metavar="PATH", help="checkpoints, or directories that hold them")
    parser.add_argument(
        "--level",
        choices=_LEVELS,
        default=_LEVELS[0],
        help="structure: archive, pickle and every tensor's bounds, in milliseconds (default); "
        "checksum: also every byte against its recorded checksum, at the speed of the disk",
    )
    parser.add_argument("--in-process", action="store_true", help="parse in this process instead of sandboxed workers")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    add_setting_flags(parser, _LIMITS)


def run(options: argparse.Namespace) -> int:
    """Validate; 1 if a checkpoint has a finding of severity error."""
    settings = settings_from(options)
    targets = find_targets(options.paths, settings.suffixes)
    level = Level(options.level)
    settings = _with_time_to_read(settings, targets.found, level)
    report = _Report(as_json=options.json)
    if targets.found:
        with output.progress("validating", len(targets.found)) as progress:

            def done(target: Target, description: Description) -> None:
                report.add(target, description)
                progress.advance()

            describe_all(targets.found, done, settings, level=level, in_process=options.in_process)
    report.finish()
    for problem in targets.problems:
        print(f"ckptd: {output.printable(problem)}", file=sys.stderr)
    if targets.problems:
        return ENVIRONMENT
    return FOUND if report.invalid else FINE


def _with_time_to_read(settings: Settings, targets: Sequence[Target], level: Level) -> Settings:
    """`worker_timeout_s` is meant for parsing; reading every byte of the largest file takes longer."""
    if level is Level.STRUCTURE:
        return settings
    largest = max(map(_size_bytes, targets), default=0)
    timeout_s = settings.worker_timeout_s + largest / _SLOWEST_BYTES_PER_S
    return settings.model_copy(update={"worker_timeout_s": timeout_s})


def _size_bytes(target: Target) -> int:
    try:
        return os.stat(target.absolute).st_size
    except OSError:  # told when it is opened
        return 0


class _Report:
    """Collects results; in a pipe each is told at once, in order."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._results: list[tuple[Target, Description]] = []
        self.invalid = 0

    def add(self, target: Target, description: Description) -> None:
        self._results.append((target, description))
        self.invalid += not _is_valid(description)
        if not self._as_json and not output.is_terminal():
            output.print_table(_COLUMNS, [_row(target, description)])

    def finish(self) -> None:
        valid = len(self._results) - self.invalid
        if self._as_json:
            checkpoints = [_document(target, description) for target, description in self._results]
            output.print_json({"checkpoints": checkpoints, "valid": valid, "invalid": self.invalid})
            return
        if output.is_terminal() and self._results:
            output.print_table(_COLUMNS, [_row(*result) for result in self._results], right=("parameters", "size"))
        for target, description in self._results:
            for found in description.findings:
                if found.severity is not Severity.INFO:
                    shown = output.shown_path(target.absolute)
                    message = output.printable(found.message)
                    print(f"{shown}: {found.severity}: {found.code}: {message}; {found.remedy}", file=sys.stderr)
        print(f"{len(self._results)} checkpoints: {valid} valid, {self.invalid} invalid", file=sys.stderr)


def _is_valid(description: Description) -> bool:
    return not any(found.severity is Severity.ERROR for found in description.findings)


def _row(target: Target, description: Description) -> tuple[object, ...]:
    inspection = description.inspection
    return (
        output.shown_path(target.absolute),
        "valid" if _is_valid(description) else "invalid",
        inspection.level.value,
        inspection.safety.value,
        output.count(inspection.n_parameters),
        output.size(inspection.identity.size),
        " ".join(found.code for found in description.findings),
    )


def _document(target: Target, description: Description) -> dict[str, Any]:
    inspection = description.inspection
    return {
        "checkpoint_path": shown_path(target.absolute)[0],
        "is_valid": _is_valid(description),
        "can_load": inspection.can_load,
        "format": inspection.format,
        "verified": inspection.level,
        "safety": inspection.safety,
        "unsafe_globals": inspection.unsafe_globals,
        "epoch": description.metadata.training.epoch,
        "global_step": description.metadata.training.global_step,
        "architecture": description.metadata.model.architecture,
        "metrics": description.metadata.metrics.flat(),
        "n_parameters": inspection.n_parameters,
        "size_bytes": inspection.identity.size,
        "content_id": inspection.content_id,
        "digest": inspection.digest,
        "findings": description.findings,
    }
