"""ckptd metadata: describe what has no current sidecar and write one; audit, repair and tidy up a tree."""

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence

import anyio
import msgspec

from ckptd.catalog.backups import clean_swaps
from ckptd.catalog.describe import sidecar_for
from ckptd.catalog.description import Description
from ckptd.catalog.roots import Root
from ckptd.catalog.sidecar import clean_leftovers, render

from ..setting_types import SidecarName
from ..settings import Settings
from .current import is_current
from .describing import Done, More, describe_all
from .exits import ENVIRONMENT, FINE, FOUND
from .flags import add_setting_flags, settings_from
from .interrupts import Interrupts
from .orphans import OrphanOutcome, find_orphans, remove_orphan
from .pacing import pacing
from .sidecar_jobs import Job, foreseen, plan, untouched
from .sidecar_report import FORMATS, Report
from .sidecar_results import Outcome, Result, State
from .sidecar_writers import WAITING, SidecarWriters, written_per_s
from .targets import Target, Targets, find_targets, holding_roots, opened, writing_in

OnResult = Callable[[Result], None]

_SETTINGS = ("suffixes", "sidecar_name", "workers", "worker_memory_mb", "worker_timeout_s", "config")
_PAUSE_S = 0.01
_ABANDON_S = 1.0
_SAMPLE = 64
"""Files that are written, without a name, to learn how fast the disk is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Directories, what to do, form of the answer."""
    parser.usage = (
        "ckptd metadata [PATH ...] [--dry-run] [--repair] [--remove-orphans]\n"
        "                      [--workers N] [--progress] [--format FORMAT] [settings]"
    )
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="directories that hold checkpoints, or are one (default: outputs)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done and how long it would take, write nothing"
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="also correct what older generators got wrong, and replace stale and unreadable ones; "
        "the old is kept as .bak, every change is told",
    )
    parser.add_argument(
        "--remove-orphans",
        action="store_true",
        help="remove sidecars without a checkpoint; a person's are renamed to .bak",
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="a bar on a terminal, a line now and then in a pipe (default: for what takes long)",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="table",
        help="table: also tab-separated lines in a pipe (default); json: one document; "
        "jsonl: one for each checkpoint, as it is done; csv",
    )
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    add_setting_flags(parser, ("roots", *_SETTINGS))


def run(options: argparse.Namespace) -> int:
    """Write what is missing; 1 if a checkpoint is invalid, 3 if a write was refused, 130 after Ctrl-C."""
    settings = settings_from(options)
    paths = options.paths or settings.roots
    roots = holding_roots(paths)
    with (
        contextlib.nullcontext() if options.dry_run else writing_in(roots),
        Interrupts("finishing what is in hand; run the same command again to go on") as interrupts,
    ):
        targets = find_targets(paths, settings.suffixes)
        report = Report(options.format, dry_run=options.dry_run, repair=options.repair)
        run_ = _Run(options, settings, report, interrupts)
        if not options.dry_run:
            _clean(targets.leftovers)
        try:
            run_.describe(targets)
        except KeyboardInterrupt:
            if not interrupts.at_once:
                raise
        else:
            run_.look_at_orphans(targets)
        if not options.dry_run:
            _clean(targets.leftovers)
        report.finish(targets, interrupted=interrupts.received is not None)
    for problem in targets.problems:
        report.complain(problem)
    return interrupts.exit_code or _status(report, targets)


def _status(report: Report, targets: Targets) -> int:
    outcomes = {result.outcome for result in report.results}
    orphans = {orphan.outcome for orphan in report.orphans}
    if targets.problems or Outcome.FAILED in outcomes or OrphanOutcome.FAILED in orphans:
        return ENVIRONMENT
    return FOUND if Outcome.INVALID in outcomes else FINE


def _clean(leftovers: Iterable[tuple[Root, bytes]]) -> None:
    """Remove what killed runs left behind: temporary files, and files that they were about to exchange."""
    for root, directory in dict.fromkeys((root, os.path.dirname(path)) for root, path in leftovers):
        with contextlib.suppress(OSError), opened(root) as root_fd:
            clean_leftovers(root_fd, directory)
            clean_swaps(root_fd, directory, now=time.time())


class _Run:
    """One run over the targets."""

    def __init__(self, options: argparse.Namespace, settings: Settings, report: Report, interrupts: Interrupts) -> None:
        self._dry_run: bool = options.dry_run
        self._repair: bool = options.repair
        self._remove_orphans: bool = options.remove_orphans
        self._progress: bool | None = options.progress
        self._settings = settings
        self._report = report
        self._interrupts = interrupts
        self._sample: list[Job] = []

    def describe(self, targets: Targets) -> None:
        """Describe what is not current, and do or foresee what is to be done about it."""
        what = "looking at checkpoints" if self._dry_run else "writing metadata"
        with pacing(what, len(targets.found), shown=self._progress) as progress:

            def on_result(result: Result) -> None:
                self._report.add(result)
                progress.advance()

            remaining: list[Target] = []
            for target in targets.found:
                if is_current(target, self._settings):
                    on_result(Result(target, State.OURS, Outcome.CURRENT))
                else:
                    remaining.append(target)
            if not remaining:
                return
            if self._dry_run:
                self._foresee(remaining, on_result)
            else:
                self._write(remaining, on_result)

    def look_at_orphans(self, targets: Targets) -> None:
        """List orphans, and remove them where asked."""
        for orphan in find_orphans(targets.orphans):
            removes = self._remove_orphans and not self._dry_run and self._interrupts.received is None
            self._report.add_orphan(remove_orphan(orphan) if removes else orphan)

    def _write(self, targets: Sequence[Target], on_result: OnResult) -> None:
        writers = SidecarWriters(on_result, long_name=self._settings.sidecar_name is SidecarName.LONG)

        def done(target: Target, description: Description) -> None:
            job = plan(target, _lean(description), repair=self._repair)
            if job.does_nothing:
                writers.tell(untouched(job))
            else:
                writers.put(job)

        async def more() -> bool:
            while writers.waiting > WAITING and not writers.failed:  # noqa: ASYNC110 - threads empty it, not tasks
                await anyio.sleep(_PAUSE_S)
            return self._interrupts.received is None and not writers.failed

        try:
            self._describe_all(targets, done, more)
            writers.close()
        except BaseException:
            writers.abandon(_ABANDON_S)
            raise

    def _foresee(self, targets: Sequence[Target], on_result: OnResult) -> None:
        began = time.perf_counter()

        def done(target: Target, description: Description) -> None:
            job = plan(target, _lean(description), repair=self._repair)
            if job.does_nothing:
                on_result(untouched(job))
                return
            if job.writes and len(self._sample) < _SAMPLE:
                self._sample.append(job)
            with opened(target.root) as root_fd:
                on_result(foreseen(job, root_fd))

        async def more() -> bool:
            return self._interrupts.received is None

        self._describe_all(targets, done, more)
        self._report.estimate(len(targets), time.perf_counter() - began, self._written_per_s())

    def _describe_all(self, targets: Sequence[Target], done: Done, more: More) -> None:
        with self._interrupts.asked():
            describe_all(
                targets,
                done,
                self._settings,
                trust_sidecar=True,
                propose_repairs=True,
                more=more,
                until=self._interrupts.second,
            )
        if self._interrupts.at_once:
            raise KeyboardInterrupt

    def _written_per_s(self) -> float | None:
        if not self._sample:
            return None
        data = [render(sidecar_for(job.description), job.description.user) for job in self._sample]
        return written_per_s(data, os.path.dirname(self._sample[0].target.absolute))


def _lean(description: Description) -> Description:
    """Without what no sidecar tells: many descriptions wait to be written at one time."""
    inspection = msgspec.structs.replace(description.inspection, tensors=())
    return msgspec.structs.replace(description, inspection=inspection, search_text="", config=None)
