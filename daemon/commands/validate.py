"""ckptd validate: inspect files or trees here and now; a line for each, and what to do about what was found."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from ckptd.catalog.description import Description
from ckptd.catalog.directories import list_beneath
from ckptd.catalog.entry import shown_path
from ckptd.validators.findings import Severity
from ckptd.validators.inspection import Level
from ckptd.validators.text import counted

from ..settings import Settings
from . import output
from .describing import describe_all
from .exits import ENVIRONMENT, FINE, FOUND, USAGE, CommandError
from .flags import add_setting_flags, settings_from
from .globs import find_matching
from .grouping import Group, group_findings
from .targets import Target, opened

_LIMITS = ("suffixes", "architectures", "workers", "worker_memory_mb", "worker_timeout_s", "config")
_LEVELS = [level.value for level in (Level.STRUCTURE, Level.CHECKSUM, Level.WEIGHTS)]
_COLUMNS = ("checkpoint", "verdict", "verified", "safety", "parameters", "size", "findings")
_RIGHT = ("parameters", "size")
_WARNINGS_SHOWN = 5
"""Checkpoints that are named for one warning; with `--json` all are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Paths, depth, form of the answer, limits of the workers."""
    parser.usage = (
        "ckptd validate PATH [PATH ...] [--level LEVEL] [--jobs N] [--require KEY] [--only-invalid]\n"
        "                      [--fail-on SEVERITY] [--json] [--junit FILE] [settings]"
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="checkpoints, directories that hold them, or quoted globs ('**' too)"
    )
    parser.add_argument(
        "--level",
        choices=_LEVELS,
        default=_LEVELS[0],
        help="structure: archive, pickle and every tensor's bounds, in milliseconds (default); "
        "checksum: also every byte against its recorded checksum, at the speed of the disk; "
        "weights: also every value, for NaN and infinities (needs torch)",
    )
    parser.add_argument("-j", "--jobs", dest="workers", metavar="N", help="files looked at at one time: --workers")
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="KEY",
        help="a key, or the beginning of keys (model.encoder), that each state dict must have; may be repeated",
    )
    parser.add_argument("--only-invalid", action="store_true", help="tell only of checkpoints that fail")
    parser.add_argument(
        "--fail-on",
        choices=(Severity.ERROR.value, Severity.WARNING.value),
        default=Severity.ERROR.value,
        help="least severity of a finding that counts as failed (default: error)",
    )
    parser.add_argument("--in-process", action="store_true", help="parse in this process instead of sandboxed workers")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    parser.add_argument("--junit", metavar="FILE", help="also write a JUnit XML report for CI; - is standard output")
    add_setting_flags(parser, _LIMITS)


def run(options: argparse.Namespace) -> int:
    """Validate; 1 if a checkpoint has a finding of severity error."""
    if options.json and options.junit == "-":
        raise CommandError("--json and --junit - both want standard output; give --junit a file", USAGE)
    settings = settings_from(options)
    targets = find_matching(options.paths, settings.suffixes)
    level = Level(options.level)
    with _opened_report(options.junit) as junit:
        report = _Report(options, level)
        _describe(targets.found, report.add, settings, options)
        report.finish()
        if junit is not None:
            report.write_junit(junit, targets.problems)
    for problem in targets.problems:
        print(f"ckptd: {output.printable(problem)}", file=sys.stderr)
    if targets.problems:
        return ENVIRONMENT
    return FOUND if report.failed else FINE


def _describe(
    targets: Sequence[Target],
    add: Callable[[Target, Description], None],
    settings: Settings,
    options: argparse.Namespace,
) -> None:
    if not targets:
        return
    level = Level(options.level)
    by_size = level is not Level.STRUCTURE and sys.stderr.isatty()
    sizes = {target: _size_bytes(target) for target in targets} if by_size else {}
    with output.progress("validating", len(targets), sum(sizes.values()) if by_size else None) as progress:

        def done(target: Target, description: Description) -> None:
            add(target, description)
            progress.advance(sizes.get(target, 0))

        describe_all(
            targets,
            done,
            settings,
            level=level,
            required_keys=tuple(options.require),
            in_process=options.in_process,
        )


def _size_bytes(target: Target) -> int:
    try:
        if not target.is_directory:
            return os.stat(target.absolute).st_size
        with opened(target.root) as root_fd:
            return list_beneath(root_fd, target.path).identity.size
    except OSError:  # told when it is opened
        return 0


@contextlib.contextmanager
def _opened_report(path: str | None) -> Iterator[BinaryIO | None]:
    """The file of the JUnit report, opened before the work begins: hours later is too late to learn that it cannot."""
    if path is None:
        yield None
    elif path == "-":
        sys.stdout.flush()
        yield sys.stdout.buffer
    else:
        with open(path, "wb") as file:
            yield file


class _Report:
    """Collects results; in a pipe each is told at once, in order."""

    def __init__(self, options: argparse.Namespace, level: Level) -> None:
        self._as_json = options.json
        self._only_invalid = options.only_invalid
        self._fail_on = Severity(options.fail_on)
        self._level = level
        self._quiet = options.json or options.junit == "-"
        self._terminal = output.is_terminal()
        self._shown_path = output.path_shortener()
        self._started_at = time.time()
        self._results: list[tuple[Target, Description]] = []
        self.failed = 0

    def add(self, target: Target, description: Description) -> None:
        """Take the description of the next checkpoint."""
        self._results.append((target, description))
        fails = self._fails(description)
        self.failed += fails
        if not self._quiet and not self._terminal and (fails or not self._only_invalid):
            output.print_line(self._row(target, description))

    def finish(self) -> None:
        """Tell what there is to tell at the end."""
        told = [result for result in self._results if not self._only_invalid or self._fails(result[1])]
        groups = group_findings(self._results)
        if self._as_json:
            output.print_json(self._document(told, groups))
            return
        if self._terminal and told and not self._quiet:
            output.print_table(_COLUMNS, [self._row(*result) for result in told], right=_RIGHT)
        sys.stdout.flush()  # lines before what is said of them, where both go to one place
        for group in groups:
            if group.severity is not Severity.INFO and (not self._only_invalid or self._is_fatal(group.severity)):
                self._print_group(group)
        print(self._summary(), file=sys.stderr)

    def write_junit(self, file: BinaryIO, problems: Sequence[str]) -> None:
        """Write the report for CI."""
        # Imported here: only who asks for it pays for the XML library.
        from .junit import Case, render_junit

        cases = [Case(self._shown_path(target.absolute), description) for target, description in self._results]
        took_s = time.time() - self._started_at
        shown = [output.printable(problem) for problem in problems]
        file.write(render_junit(cases, shown, fail_on=self._fail_on, started_at=self._started_at, took_s=took_s))

    def _is_fatal(self, severity: Severity) -> bool:
        return severity in (Severity.ERROR, self._fail_on)

    def _fails(self, description: Description) -> bool:
        return any(self._is_fatal(found.severity) for found in description.findings)

    def _print_group(self, group: Group) -> None:
        noun = "checkpoint" if group.checkpoints == 1 else "checkpoints"
        print(f"{group.severity}: {group.code}: {group.checkpoints:,} {noun}; {group.remedy}", file=sys.stderr)
        shown = group.found if group.severity is Severity.ERROR else group.found[:_WARNINGS_SHOWN]
        for target, found in shown:
            print(f"  {self._shown_path(target.absolute)}: {output.printable(found.message)}", file=sys.stderr)
        if len(shown) < len(group.found):
            print(f"  and {len(group.found) - len(shown):,} more; --json names them all", file=sys.stderr)

    def _summary(self) -> str:
        invalid = sum(not _is_valid(description) for _, description in self._results)
        parts = [f"{len(self._results) - invalid} valid, {invalid} invalid"]
        if self.failed != invalid:
            parts.append(f"{self.failed} failed by --fail-on {self._fail_on}")
        less = sum(_is_valid(each) and not each.inspection.level.covers(self._level) for _, each in self._results)
        if less:
            parts.append(f"{less} could not be verified as far as {self._level}")
        return f"{counted(len(self._results), 'checkpoint')}: {'; '.join(parts)}"

    def _row(self, target: Target, description: Description) -> tuple[object, ...]:
        inspection = description.inspection
        return (
            self._shown_path(target.absolute),
            "valid" if _is_valid(description) else "invalid",
            inspection.level.value,
            inspection.safety.value,
            output.count(inspection.n_parameters),
            output.size(inspection.identity.size),
            " ".join(dict.fromkeys(found.code for found in description.findings)),
        )

    def _document(self, told: Sequence[tuple[Target, Description]], groups: Sequence[Group]) -> dict[str, Any]:
        invalid = sum(not _is_valid(description) for _, description in self._results)
        return {
            "checkpoints": [_document(target, description) for target, description in told],
            "valid": len(self._results) - invalid,
            "invalid": invalid,
            "failed": self.failed,
            "findings": {
                group.code: {"severity": group.severity, "checkpoints": group.checkpoints, "remedy": group.remedy}
                for group in groups
            },
        }


def _is_valid(description: Description) -> bool:
    return not any(found.severity is Severity.ERROR for found in description.findings)


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
        "weights_only": inspection.weights_only,
        "model_class": inspection.model_class,
        "epoch": description.metadata.training.epoch,
        "global_step": description.metadata.training.global_step,
        "architecture": description.metadata.model.architecture,
        "architecture_valid": inspection.architecture_valid,
        "metrics": description.metadata.metrics.flat(),
        "n_parameters": inspection.n_parameters,
        "size_bytes": inspection.identity.size,
        "content_id": inspection.content_id,
        "digest": inspection.digest,
        "shards": inspection.shards,
        "findings": description.findings,
    }
