"""ckptd diff: what distinguishes two to four checkpoints, known to a daemon or read here and now."""

import argparse
import sys
from collections.abc import Sequence

import msgspec

from ckptd.catalog.compare import FEWEST, MOST, SECTIONS, Agreement, Comparison, Sameness, Side, compare, sameness
from ckptd.catalog.compare_tensors import TensorChange, TensorSelection
from ckptd.catalog.compare_text import ATTRIBUTE_SECTIONS, Line, labels, lines, to_csv, to_markdown
from ckptd.catalog.description import Description
from ckptd.catalog.entry import Identities, health_of, make_record, metadata_source
from ckptd.validators.inspection import Level
from ckptd.validators.text import counted

from . import output
from .connection import add_connection_arguments, connected
from .describing import describe_all
from .exits import FINE, FOUND, USAGE, CommandError
from .flags import settings_from
from .naming import HOW, find_checkpoint
from .targets import Target, find_targets

EPILOG = """\
exit codes:
  0  nothing differs, and everything could be compared
  1  something differs; or nothing does, but some tensors could not be compared, which is said on standard error
  2  usage: an argument cannot be used, or names no checkpoint
  3  environment: no daemon there, a file cannot be read

Where files lie and when they were written is shown and is no difference. Tensors are compared by the checksums that the
files record; `--local --level checksum` verifies those first.
"""
_FORMATS = ("text", "json", "csv", "markdown")
_LEVELS = [level.value for level in (Level.STRUCTURE, Level.CHECKSUM)]
_TELLING = frozenset(TensorChange) - {TensorChange.SAME, TensorChange.ABSENT}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which ones, from where, how much of it."""
    parser.epilog = EPILOG
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help=f"{FEWEST} to {MOST}, each {HOW}")
    parser.add_argument("--local", action="store_true", help="read these files now, without a daemon: paths only")
    parser.add_argument(
        "--level", choices=_LEVELS, default=_LEVELS[0], help="with --local: how much of each file to verify"
    )
    parser.add_argument("--in-process", action="store_true", help="with --local: parse in this process")
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="compare only this; may be repeated (default: everything)"
    )
    parser.add_argument("--all", action="store_true", help="also what is equal")
    parser.add_argument("--limit", type=int, default=1000, metavar="N", help="at most so many tensors (default: 1000)")
    parser.add_argument("--format", choices=_FORMATS, default="text", help="form of the answer (default: text)")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    add_connection_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Compare; 0 where nothing differs, like diff(1)."""
    given = options.checkpoints
    if not FEWEST <= len(given) <= MOST:
        raise CommandError(f"{counted(len(given), 'checkpoint')} cannot be compared; name {FEWEST} to {MOST}", USAGE)
    if not 0 <= options.limit <= 10_000:
        raise CommandError(f"--limit {options.limit} cannot be used; use a number from 0 to 10000", USAGE)
    changes = frozenset(TensorChange) if options.all else _TELLING
    selection = TensorSelection(limit=options.limit, changes=changes)
    comparison = _local(options, selection) if options.local else _of_daemon(options, selection)
    sections = tuple(options.only or SECTIONS)
    _print(comparison, sections, options)
    verdict = sameness(comparison, sections)
    if verdict is Sameness.UNKNOWN:
        print(f"ckptd: {_doubt(comparison)}", file=sys.stderr)
    return FINE if verdict is Sameness.SAME else FOUND


def _of_daemon(options: argparse.Namespace, selection: TensorSelection) -> Comparison:
    with connected(options) as client:
        ids = [find_checkpoint(client, given) for given in options.checkpoints]
        for position, checkpoint_id in enumerate(ids):
            if checkpoint_id in ids[:position]:
                first = options.checkpoints[ids.index(checkpoint_id)]
                raise CommandError(
                    f"{first!r} and {options.checkpoints[position]!r} are the same checkpoint; name another one", USAGE
                )
        chosen = ",".join(sorted(selection.changes))
        return client.compare(*ids, tensor_limit=selection.limit, tensor_change=chosen)


def _local(options: argparse.Namespace, selection: TensorSelection) -> Comparison:
    settings = settings_from(options)
    targets = [_target(path, settings.suffixes) for path in options.checkpoints]
    found: list[tuple[Target, Description]] = []
    describe_all(
        targets,
        lambda target, description: found.append((target, description)),
        settings,
        level=Level(options.level),
        in_process=options.in_process,
    )
    sides = [
        _side(given, target, description, settings.abandoned_s)
        for given, (target, description) in zip(options.checkpoints, found, strict=True)
    ]
    return compare(sides, selection)


def _target(path: str, suffixes: Sequence[str]) -> Target:
    found = find_targets([path], suffixes)
    if len(found.found) != 1:
        raise CommandError(f"{path!r} holds {counted(len(found.found), 'checkpoint')}; name one of them", USAGE)
    return found.found[0]


def _side(given: str, target: Target, description: Description, abandoned_s: float) -> Side:
    record = make_record(
        target.root,
        target.path,
        description,
        health_of(description, age_s=abandoned_s, abandoned_s=abandoned_s),
        identities=Identities(file=description.inspection.identity),
        metadata_source=metadata_source(description.sidecar),
    )
    return Side(msgspec.structs.replace(record.entry, path=output.printable(given)), description)


def _print(comparison: Comparison, sections: Sequence[str], options: argparse.Namespace) -> None:
    if options.format == "json":
        output.print_json(comparison)
    elif options.format == "csv":
        sys.stdout.write(to_csv(comparison).replace("\r\n", "\n"))
    elif options.format == "markdown":
        sys.stdout.write(to_markdown(comparison))
    else:
        _print_text(comparison, ("identity", *sections), everything=options.all)


def _print_text(comparison: Comparison, sections: Sequence[str], *, everything: bool) -> None:
    heads = labels(comparison)
    for section in sections:
        shown = [line for line in lines(comparison, (section,)) if everything or _tells(line)]
        if not output.is_terminal():
            for line in shown:
                output.print_line((line.section, line.name, line.status, *line.values))
        elif shown:
            rows = [(line.name, line.status, *_with_best(line)) for line in shown]
            output.print_table((section.replace("_", "-"), "", *heads), rows)
            left = comparison.tensors.total - len(comparison.tensors.rows) if section == "tensors" else 0
            if left:
                print(f"{counted(left, 'more tensor')}; --limit lists more of them")


def _tells(line: Line) -> bool:
    """Whether a line is about a difference; of the tensors also their number."""
    if line.section in ATTRIBUTE_SECTIONS:
        return line.status != Agreement.EQUAL
    return line.status != "" or any(value not in ("", "0") for value in line.values)


def _with_best(line: Line) -> list[str]:
    best = {int(number) - 1 for number in line.best.split()}
    return [f"{value} (best)" if position in best else value for position, value in enumerate(line.values)]


def _doubt(comparison: Comparison) -> str:
    names = labels(comparison)
    unread = [name for name, known in zip(names, comparison.tensors.known, strict=True) if not known]
    if unread:
        return f"the tensors of {', '.join(unread)} are not known, so nothing can be said of them"
    count = sum(counts.unknown for counts in comparison.tensors.counts)
    without = [
        name
        for name, evidence in zip(names, comparison.tensors.checksums, strict=True)
        if evidence not in ("recorded", "verified")
    ]
    why = (
        f"there are no checksums of {', '.join(without)} to go by (`--local --level checksum` compares the whole files)"
        if without
        else "they are parts of larger storages, or laid out differently"
    )
    return f"nothing differs, but {counted(count, 'tensor')} could not be compared: {why}"
