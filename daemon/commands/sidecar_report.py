"""The answer of `ckptd metadata`: lines, a table, JSON or CSV on standard output, a summary for people on the other."""

import csv
import errno
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ckptd.catalog.description import FieldChange
from ckptd.catalog.entry import shown_path
from ckptd.validators.inspection import Plain
from ckptd.validators.text import counted

from . import output
from .orphans import Orphan, OrphanOutcome
from .sidecar_results import Outcome, Result, audit_of
from .targets import Targets

FORMATS = ("table", "json", "jsonl", "csv")
_CSV = ("checkpoint_path", "metadata", "outcome", "detail")
_ROWS_ON_TERMINAL = 50
"""Written ones that are named on a terminal; of more, only how many."""
_DONE = frozenset({Outcome.WRITTEN, Outcome.WOULD_WRITE})


class Report:
    """Collects results; with `jsonl` each is told at once."""

    def __init__(self, form: str, *, dry_run: bool, repair: bool) -> None:
        """Args:
        form: one of `FORMATS`.
        dry_run: nothing was written.
        repair: what is wrong was corrected, or would be.
        """
        self._form = form
        self._dry_run = dry_run
        self._repair = repair
        self._shown_path = output.path_shortener()
        self._estimate: dict[str, float] = {}
        self.results: list[Result] = []
        self.orphans: list[Orphan] = []

    def add(self, result: Result) -> None:
        """Take the result of one checkpoint."""
        self.results.append(result)
        if self._form == "jsonl":
            print(json.dumps(msgspec.to_builtins(_document(result))), flush=True)

    def add_orphan(self, orphan: Orphan) -> None:
        """Take a sidecar without a checkpoint."""
        self.orphans.append(orphan)
        if self._form == "jsonl":
            print(json.dumps(_orphan_document(orphan)), flush=True)

    def estimate(self, described: int, took_s: float, written_per_s: float | None) -> None:
        """Say how long doing it would take, from what was measured just now.

        Args:
            described: checkpoints that were described.
            took_s: in so many seconds.
            written_per_s: sidecars that the disk takes in each second; None where that is not known.
        """
        writes = sum(result.outcome in (Outcome.WOULD_WRITE, Outcome.WOULD_REPAIR) for result in self.results)
        self._estimate = {"described_per_second": described / max(took_s, 1e-6)}
        if written_per_s is not None:
            self._estimate["written_per_second"] = written_per_s
            self._estimate["estimated_seconds"] = took_s + writes / written_per_s
        elif not writes:
            self._estimate["estimated_seconds"] = took_s

    def complain(self, problem: str) -> None:
        """Say what made the answer incomplete."""
        print(f"ckptd: {output.printable(problem)}", file=sys.stderr)

    def finish(self, targets: Targets, *, interrupted: bool) -> None:
        """Tell what there is to tell at the end."""
        self.results.sort(key=lambda result: result.target.absolute)
        if self._form == "json":
            output.print_json(self._whole_document(targets, interrupted=interrupted))
            return
        if self._form == "csv":
            self._print_csv()
        elif self._form == "table":
            self._print_rows()
            self._print_changes()
        sys.stdout.flush()
        for line in self._summary(targets, interrupted=interrupted):
            print(line, file=sys.stderr)

    # ---- standard output -----------------------------------------------------------------------------------

    def _print_rows(self) -> None:
        told = [result for result in self.results if result.outcome is not Outcome.CURRENT and not _is_refused(result)]
        if output.is_terminal() and sum(result.outcome in _DONE for result in told) > _ROWS_ON_TERMINAL:
            told = [result for result in told if result.outcome not in _DONE]
        rows = [(self._shown_path(r.target.absolute), r.outcome.value, r.detail) for r in told]
        rows += [
            (self._shown_path(o.absolute), o.outcome.value, o.detail or f"{_BY[o.author]}, its checkpoint is gone")
            for o in self.orphans
        ]
        if rows:
            output.print_table(("checkpoint", "metadata", "detail"), rows)

    def _print_changes(self) -> None:
        """Field by field what was corrected; a diff of what would be."""
        for result in self.results:
            if self._dry_run and self._repair and result.diff:
                for line in result.diff.splitlines():
                    print(output.printable(line))
                for _, change in _told(result):
                    if not change.missing:
                        print(f"# {'.'.join(map(output.printable, change.field))}: {output.printable(change.why)}")
        if self._dry_run or not self._repair:
            return
        rows = [
            (self._shown_path(result.target.root.join(path)), ".".join(change.field), *_old_new(change), change.why)
            for result in self.results
            for path, change in _told(result)
        ]
        if rows:
            output.print_table(("metadata file", "field", "was", "is", "why"), rows)

    def _print_csv(self) -> None:
        writer = csv.writer(sys.stdout)
        writer.writerow(_CSV)
        for result in self.results:
            path = shown_path(result.target.absolute)[0]
            writer.writerow((path, result.state.value, result.outcome.value, result.detail))
        for orphan in self.orphans:
            path = shown_path(orphan.absolute)[0]
            writer.writerow((path, orphan.author, orphan.outcome.value, orphan.detail))

    def _whole_document(self, targets: Targets, *, interrupted: bool) -> dict[str, Any]:
        counts = Counter(result.outcome for result in self.results)
        return {
            "checkpoints": [_document(result) for result in self.results],
            "counts": {str(outcome): n for outcome, n in counts.items()},
            "audit": audit_of(self.results)._asdict() | {"links": targets.links, "orphans": len(self.orphans)},
            "orphans": [_orphan_document(orphan) for orphan in self.orphans],
            "problems": [output.printable(problem) for problem in targets.problems],
            "interrupted": interrupted,
        } | ({"estimate": {name: round(value, 3) for name, value in self._estimate.items()}} if self._estimate else {})

    # ---- for people ----------------------------------------------------------------------------------------

    def _summary(self, targets: Targets, *, interrupted: bool) -> Iterator[str]:
        counts = Counter(result.outcome for result in self.results)
        outcomes = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
        yield f"{counted(len(self.results), 'checkpoint')}: {outcomes or 'none'}"
        if interrupted and len(self.results) < len(targets.found):
            left = len(targets.found) - len(self.results)
            yield f"ended early: {left:,} not looked at; the same command goes on from here"
        yield from self._causes()
        yield from self._table(targets)
        if "estimated_seconds" in self._estimate:
            yield self._estimated()

    def _table(self, targets: Targets) -> Iterator[str]:
        audit = audit_of(self.results)
        removed = Counter(orphan.outcome for orphan in self.orphans)
        orphans = f"{len(self.orphans):,}" + "".join(
            f", {n:,} {outcome}" for outcome, n in removed.items() if outcome is not OrphanOutcome.FOUND
        )
        before = "" if self._dry_run else "before: "
        rows: Sequence[tuple[str, str, int]] = (
            (
                "with metadata",
                f"{audit.with_metadata:,} (ckptd's {audit.ours:,}, others' {audit.foreign + audit.wrong:,})",
                1,
            ),
            ("without metadata", f"{audit.without_metadata:,}", 1),
            ("  of these stale", f"{audit.stale:,}", audit.stale),
            ("  of these unreadable", f"{audit.unreadable:,}", audit.unreadable),
            ("with wrong values or missing keys", f"{audit.wrong:,}", audit.wrong),
            ("invalid checkpoints, which get none", f"{audit.invalid:,}", audit.invalid),
            ("links, which get none", f"{targets.links:,}", targets.links),
            ("metadata.orphan: no checkpoint", orphans, len(self.orphans)),
        )
        for name, value, shown in rows:
            if shown:
                yield f"  {before}{name:<36} {value}"
        if any(orphan.outcome is OrphanOutcome.FOUND for orphan in self.orphans):
            yield "  orphans stay unless --remove-orphans is given; a person's are then renamed to .bak"

    def _estimated(self) -> str:
        measured = f"{self._estimate['described_per_second']:,.0f} described"
        if "written_per_second" in self._estimate:
            measured += f" and {self._estimate['written_per_second']:,.0f} written"
        return (
            f"estimated time: {output.duration(self._estimate['estimated_seconds'])} (measured: {measured} per second)"
        )

    def _causes(self) -> Iterator[str]:
        """One line for each reason for which the system refused, however many files it met."""
        causes: dict[str, list[Result]] = defaultdict(list)
        for result in self.results:
            if _is_refused(result):
                causes[result.detail].append(result)
        for reason, results in causes.items():
            places = sorted({os.path.dirname(result.target.absolute) for result in results})
            more = " and " + counted(len(places) - 1, "more directory", "more directories") if len(places) > 1 else ""
            where = f"{self._shown_path(places[0])}{more}"
            refused = counted(len(results), "sidecar")
            yield f"ckptd: {refused} not written: {reason}, in {where}; put that right and run it again"


_BY = {"ckptd": "by ckptd", "training": "by a training", "person": "by a person"}


def _is_refused(result: Result) -> bool:
    """Whether the system refused, for a reason that has nothing to do with this one file."""
    return result.outcome is Outcome.FAILED and result.errno not in (None, errno.EEXIST)


def _told(result: Result) -> Iterator[tuple[bytes, FieldChange]]:
    """Changes one by one; keys that were added without a value are told together, at their end."""
    added: dict[bytes, list[str]] = defaultdict(list)
    for path, change in result.changes:
        if change.missing and _is_empty(change.new):
            added[path].append(".".join(change.field))
        else:
            yield path, change
    for path, fields in added.items():
        why = f"schema 1.0 has {'this key' if len(fields) == 1 else 'these keys'}"
        yield path, FieldChange((", ".join(fields),), None, None, why, missing=True)


def _is_empty(value: Plain) -> bool:
    return all(map(_is_empty, value.values())) if isinstance(value, dict) else value is None


def _old_new(change: FieldChange) -> tuple[str, str]:
    return "(missing)" if change.missing else json.dumps(change.old), json.dumps(change.new)


def _document(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = {
        "checkpoint_path": shown_path(result.target.absolute)[0],
        "metadata": result.state,
        "outcome": result.outcome,
        "detail": result.detail,
    }
    if result.changes:
        document["changes"] = [
            {
                "metadata_path": shown_path(result.target.root.join(path))[0],
                "field": ".".join(change.field),
                "missing": change.missing,
                "old": change.old,
                "new": change.new,
                "why": change.why,
            }
            for path, change in result.changes
        ]
    return document


def _orphan_document(orphan: Orphan) -> dict[str, str]:
    return {
        "metadata_path": shown_path(orphan.absolute)[0],
        "author": orphan.author,
        "outcome": str(orphan.outcome),
        "detail": orphan.detail,
    }
