"""Inspection beside torch.load and picklescan, file by file, in one run."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from files import cached, lightning_file, tensors_file
from picklescan.scanner import scan_file_path
from report import Row, against, print_report

from ckptd.validators import Level, inspect_checkpoint

RATIO_BUDGET = 10.0
SIXTY_BUDGET_MS = 100.0
READ_SHARE_BUDGET = 0.01

Reader = Callable[[str], object]


def _ckptd(path: str) -> object:
    inspection = inspect_checkpoint(path, level=Level.STRUCTURE)
    if not inspection.is_valid:
        raise SystemExit(f"{path}: {inspection.error_message}")
    return inspection


READERS: dict[str, Reader] = {
    "ckptd structure": _ckptd,
    "torch.load mmap weights_only": lambda path: torch.load(path, mmap=True, weights_only=True),
    "torch.load weights_only": lambda path: torch.load(path, weights_only=True),
    "picklescan": scan_file_path,
}


def run(*, quick: bool) -> None:
    """Print medians, ratios and the share of bytes read."""
    size = "30 MB" if quick else "307 MB"
    elements = 9_600 if quick else 96_000
    many = 2_000 if quick else 20_000
    files = [
        ("20 KB Lightning file", cached("lightning.ckpt", lightning_file), 100),
        (f"{size}, 800 tensors", cached(f"800x{elements}.ckpt", tensors_file(800, elements)), 15),
        (f"{many:,} tensors", cached(f"{many}x96.ckpt", tensors_file(many, 96)), 5),
    ]
    rows: list[Row] = []
    for name, path, repetitions in files:
        rows += _compare(name, [str(path)], 5 if quick else repetitions)
        rows.append(_share_read(name, path))
    rows += _compare("60 small files, all", [str(files[0][1])] * 60, 3 if quick else 10, SIXTY_BUDGET_MS)
    print_report("inspect", rows)


def _compare(name: str, paths: Sequence[str], repetitions: int, budget_ms: float | None = None) -> list[Row]:
    """Medians of all readers; they take turns, so that a busy machine is unfair to none."""
    times_ms: dict[str, list[float]] = {reader: [] for reader in READERS}
    for turn in range(repetitions + 1):
        for reader, read in READERS.items():
            start = time.perf_counter()
            for path in paths:
                read(path)
            if turn > 0:  # the first turn warms caches and imports
                times_ms[reader].append((time.perf_counter() - start) * 1e3)
    medians = {reader: statistics.median(times) for reader, times in times_ms.items()}
    ours, *others = READERS
    verdict = against(medians[ours], budget_ms) if budget_ms is not None else ""
    rows = [Row(f"{name}: {ours}", f"{medians[ours]:.2f} ms", f"{budget_ms:g} ms" if budget_ms else "", verdict)]
    for other in others:
        ratio = medians[other] / medians[ours]
        # Read in full, or many files at once: shown, not part of the budget.
        compared = other != "torch.load weights_only" and budget_ms is None
        rows.append(
            Row(
                f"{name}: {other}",
                f"{medians[other]:.2f} ms = {ratio:.1f} x ckptd",
                f">= {RATIO_BUDGET:g} x" if compared else "",
                against(ratio, RATIO_BUDGET, at_least=True) if compared else "",
            )
        )
    return rows


def _share_read(name: str, path: Path) -> Row:
    before = _characters_read()
    overhead = _characters_read() - before
    before = _characters_read()
    _ckptd(str(path))
    read = _characters_read() - before - overhead
    size = os.path.getsize(path)
    large = size > 100_000_000
    return Row(
        f"{name}: bytes read",
        f"{read:,} of {size:,} = {read / size:.2%}",
        f"<= {READ_SHARE_BUDGET:.0%}" if large else "",
        against(read / size, READ_SHARE_BUDGET) if large else "",
    )


def _characters_read() -> int:
    # rchar of /proc/self/io: bytes asked for by read and pread, from the page cache as well (proc_pid_io(5)).
    with open("/proc/self/io", encoding="ascii") as file:
        return int(file.readline().split()[1])
