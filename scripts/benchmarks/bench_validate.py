"""`ckptd validate` on a tree of many small checkpoints, beside loading them with torch and scanning them."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from files import cached, lightning_file, small_tree
from picklescan.scanner import scan_file_path
from report import Row, against, print_report

BUDGET_PER_S = 500
CKPTD = Path(sys.executable).with_name("ckptd")
_SAMPLE = 1000
"""Files that the readers in this process are measured on."""


def run(*, quick: bool) -> None:
    """Print checkpoints per second, whole commands from exec to exit."""
    count = 1_000 if quick else 10_000
    turns = 2 if quick else 3
    tree = cached(f"small-{count}", small_tree(count, cached("lightning.ckpt", lightning_file)))
    cores = len(os.sched_getaffinity(0))
    rows = [_command(f"{count:,} of 23 KB, {cores} jobs", [str(tree)], count, turns, BUDGET_PER_S)]
    rows.append(_command(f"{count:,} of 23 KB, 1 job", [str(tree), "--jobs", "1"], count, turns))
    rows.append(_command(f"{count:,} of 23 KB, checksum", [str(tree), "--level", "checksum"], count, turns))
    rows.append(_command(f"{count:,} of 23 KB, JSON", [str(tree), "--json"], count, turns))
    files = [str(path) for path in sorted(tree.rglob("*.ckpt"))[:_SAMPLE]]
    rows.append(_reader("torch.load(weights_only=True), one process", lambda path: torch.load(path), files))
    rows.append(_reader("picklescan, one process", scan_file_path, files))
    print_report("validate", rows)


def _command(what: str, arguments: Sequence[str], count: int, turns: int, budget: float | None = None) -> Row:
    seconds: list[float] = []
    before = _processor_s()
    for _ in range(turns):
        began = time.perf_counter()
        done = subprocess.run(
            [CKPTD, "validate", *arguments], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        seconds.append(time.perf_counter() - began)
        if done.returncode:
            raise SystemExit(
                f"ckptd validate {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr[-2000:]}"
            )
    cpu_ms = (_processor_s() - before) / turns / count * 1e3
    rate = count / statistics.median(seconds)
    verdict = against(rate, budget, at_least=True) if budget else ""
    shown = f"{rate:,.0f}/s, {statistics.median(seconds):.1f} s, {cpu_ms:.2f} ms of CPU each"
    return Row(what, shown, f">= {budget:g}/s" if budget else "", verdict)


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _reader(what: str, read: Callable[[str], object], files: Sequence[str]) -> Row:
    read(files[0])
    began = time.perf_counter()
    for path in files:
        read(path)
    return Row(what, f"{len(files) / (time.perf_counter() - began):,.0f}/s")
