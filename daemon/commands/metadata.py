"""ckptd metadata: write the missing `.metadata.yaml` files of a tree, without a daemon."""

import argparse
import contextlib
import enum
import os
import sys
from collections import Counter
from typing import NamedTuple

from ckptd.catalog.describe import sidecar_for
from ckptd.catalog.description import Description, SidecarStatus
from ckptd.catalog.entry import shown_path
from ckptd.catalog.opening import status_of_checkpoint
from ckptd.catalog.renaming import rename_no_replace
from ckptd.catalog.roots import Root
from ckptd.catalog.sidecar import render, sidecar_path, write_sidecar
from ckptd.validators.findings import Severity

from ..settings import Settings, SidecarName
from . import output
from .describing import describe_all
from .exits import ENVIRONMENT, FINE, FOUND
from .flags import add_setting_flags, settings_from
from .targets import Target, find_targets, holding_roots, opened, writing_in

_SETTINGS = ("suffixes", "sidecar_name", "workers", "worker_memory_mb", "worker_timeout_s", "config")
_BACKUPS = 100


class Outcome(enum.StrEnum):
    """What became of one checkpoint's sidecar."""

    WRITTEN = "written"
    WOULD_WRITE = "would write"
    CURRENT = "current"
    """One is there and describes this file."""
    STALE = "stale"
    """A person's or a training's, about an earlier file of this name; `--repair` replaces it."""
    UNREADABLE = "unreadable"
    """There is one that is not metadata; `--repair` replaces it."""
    INVALID = "invalid checkpoint"
    """Nothing is written about a file that cannot be used."""
    FAILED = "failed"


class Result(NamedTuple):
    """One line of the answer."""

    target: Target
    outcome: Outcome
    detail: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Directories, dry run, repair."""
    parser.usage = "ckptd metadata [PATH ...] [--dry-run] [--repair] [--json] [settings]"
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="directories that hold checkpoints, or are one (default: outputs)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, write nothing")
    parser.add_argument(
        "--repair", action="store_true", help="also replace stale and unreadable ones; the old is kept as .bak"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    add_setting_flags(parser, ("roots", *_SETTINGS))


def run(options: argparse.Namespace) -> int:
    """Describe what has no current sidecar and write one; 1 if a checkpoint is invalid, 3 if a write was refused."""
    settings = settings_from(options)
    paths = options.paths or settings.roots
    roots = holding_roots(paths)
    with contextlib.nullcontext() if options.dry_run else writing_in(roots):
        targets = find_targets(paths, settings.suffixes)
        writer = _Writer(settings, dry_run=options.dry_run, repair=options.repair)
        results: list[Result] = []
        if targets.found:
            with output.progress("describing", len(targets.found)) as progress:

                def done(target: Target, description: Description) -> None:
                    results.append(writer.handle(target, description))
                    progress.advance()

                describe_all(targets.found, done, settings, trust_sidecar=True)
    _print(results, as_json=options.json)
    for problem in targets.problems:
        print(f"ckptd: {output.printable(problem)}", file=sys.stderr)
    outcomes = {result.outcome for result in results}
    if targets.problems or Outcome.FAILED in outcomes:
        return ENVIRONMENT
    return FOUND if Outcome.INVALID in outcomes else FINE


class _Writer:
    """Decides about one sidecar and writes it."""

    def __init__(self, settings: Settings, *, dry_run: bool, repair: bool) -> None:
        self._long_name = settings.sidecar_name is SidecarName.LONG
        self._dry_run = dry_run
        self._repair = repair

    def handle(self, target: Target, description: Description) -> Result:
        worst = next((found for found in description.findings if found.severity is Severity.ERROR), None)
        if worst is not None:
            return Result(target, Outcome.INVALID, f"{worst.code}: {worst.message}")
        status = description.sidecar
        if status in (SidecarStatus.OURS, SidecarStatus.FOREIGN):
            return Result(target, Outcome.CURRENT)
        if status is SidecarStatus.STALE and not self._repair:
            return Result(target, Outcome.STALE, "describes an earlier file of this name; --repair replaces it")
        if status is SidecarStatus.INVALID and not self._repair:
            return Result(target, Outcome.UNREADABLE, "is not metadata; --repair replaces it")
        if self._dry_run:
            return Result(target, Outcome.WOULD_WRITE)
        try:
            with opened(target.root) as root_fd:
                return self._write(root_fd, target, description)
        except OSError as error:
            return Result(target, Outcome.FAILED, error.strerror or str(error))

    def _write(self, root_fd: int, target: Target, description: Description) -> Result:
        checkpoint, identity = status_of_checkpoint(root_fd, target.path)
        if identity != description.inspection.identity:
            return Result(target, Outcome.FAILED, "the checkpoint changed meanwhile; run it again")
        path = sidecar_path(target.path, long_name=self._long_name)
        detail = ""
        if description.sidecar in (SidecarStatus.STALE, SidecarStatus.INVALID):
            detail = _set_aside(target.root, path)
        data = render(sidecar_for(description), description.user)
        ours = description.sidecar is SidecarStatus.STALE_OURS
        write_sidecar(root_fd, path, data, like=checkpoint, replace_ours=ours)
        return Result(target, Outcome.WRITTEN, detail)


def _set_aside(root: Root, path: bytes) -> str:
    """Rename what a person wrote to `.bak`; nothing is ever lost, an earlier `.bak` neither."""
    directory, name = os.path.split(root.join(path))
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for number in range(_BACKUPS):
            backup = name + (b".bak" if number == 0 else b".bak%d" % number)
            with contextlib.suppress(FileExistsError):
                rename_no_replace(directory_fd, name, backup)
                return f"the old one is {output.printable(shown_path(backup)[0])}"
        raise FileExistsError(f"there are {_BACKUPS} backups already; remove some")
    except FileNotFoundError:
        return ""  # the stale one has the other name, which is read after the one that is written now
    finally:
        os.close(directory_fd)


def _print(results: list[Result], *, as_json: bool) -> None:
    counts = Counter(result.outcome for result in results)
    if as_json:
        lines = [
            {"checkpoint_path": shown_path(r.target.absolute)[0], "outcome": r.outcome, "detail": r.detail}
            for r in results
        ]
        output.print_json({"checkpoints": lines, "counts": {str(outcome): n for outcome, n in counts.items()}})
        return
    told = [r for r in results if r.outcome is not Outcome.CURRENT]
    if told:
        rows = [(output.shown_path(r.target.absolute), r.outcome.value, r.detail) for r in told]
        output.print_table(("checkpoint", "metadata", "detail"), rows)
    summary = ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "none"
    print(f"{len(results)} checkpoints: {summary}", file=sys.stderr)
