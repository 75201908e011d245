"""`ckptd metadata` on a tree without sidecars, beside a plain loop that writes them with PyYAML and fsync."""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from files import CACHE, cached, lightning_file, small_tree
from report import Row, against, print_report

BUDGET_PER_S = 300
REBUILT = 60
REBUILT_BUDGET_S = 1.0
CKPTD = Path(sys.executable).with_name("ckptd")
_LOOP = 500
"""Files that the loop in this process is measured on."""


def run(*, quick: bool) -> None:
    """Print sidecars per second, whole commands from exec to exit; each file and its name durable."""
    count = 1_000 if quick else 10_000
    turns = 2 if quick else 3
    source = cached(f"small-{count}", small_tree(count, cached("lightning.ckpt", lightning_file)))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        tree = Path(directory) / "tree"
        shutil.copytree(source, tree)
        loop = _loop_per_s(tree)
        rate, cpu_ms = _written_per_s(tree, count, turns)
        rows += [
            Row(
                f"{count:,} missing, {len(os.sched_getaffinity(0))} cores",
                f"{rate:,.0f}/s, {cpu_ms:.2f} ms of CPU each",
                f">= {BUDGET_PER_S}/s",
                against(rate, BUDGET_PER_S, at_least=True),
            ),
            Row("torch.load, PyYAML, fsync: a plain loop", f"{loop:,.0f}/s"),
            Row("ratio to the loop", f"{rate / loop:.1f}x"),
            Row("the same command again, nothing to do", f"{count / _seconds(tree):,.0f}/s"),
            Row("dry run of that", f"{count / _seconds(tree, '--dry-run'):,.0f}/s"),
        ]
        small = Path(directory) / "small"
        shutil.copytree(cached(f"small-{REBUILT}", small_tree(100, cached("lightning.ckpt", lightning_file))), small)
        for path in sorted(small.rglob("*.ckpt"))[REBUILT:]:
            path.unlink()
        seconds = statistics.median(_rebuilt_s(small) for _ in range(2 * turns + 1))
        verdict = against(seconds, REBUILT_BUDGET_S)
        rows.append(Row(f"{REBUILT} rebuilt, cold process", f"{seconds:.2f} s", f"{REBUILT_BUDGET_S:g} s", verdict))
    print_report("metadata", rows)


def _written_per_s(tree: Path, count: int, turns: int) -> tuple[float, float]:
    """The median rate, and processor time for each sidecar."""
    seconds = []
    before = _processor_s()
    for _ in range(turns):
        _forget(tree)
        seconds.append(_seconds(tree))
    return count / statistics.median(seconds), (_processor_s() - before) / turns / count * 1e3


def _rebuilt_s(tree: Path) -> float:
    _forget(tree)
    return _seconds(tree)


def _forget(tree: Path) -> None:
    for path in tree.rglob("*.metadata.yaml"):
        path.unlink()
    os.sync()


def _seconds(tree: Path, *arguments: str) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        [CKPTD, "metadata", str(tree), *arguments], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    took_s = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"ckptd metadata: exit code {done.returncode}\n{done.stderr.decode()[-2000:]}")
    return took_s


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _loop_per_s(tree: Path) -> float:
    """What a script would do: load, take epoch and step, write YAML, sync file and directory."""
    files = sorted(tree.rglob("*.ckpt"))[:_LOOP]
    began = time.perf_counter()
    for path in files:
        loaded = torch.load(path, map_location="cpu")
        document = {"checkpoint_path": str(path), "epoch": loaded["epoch"], "global_step": loaded["global_step"]}
        final = path.with_name(path.name + ".metadata.yaml")
        temporary = final.with_suffix(".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            yaml.safe_dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(final)
        directory = os.open(final.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    return len(files) / (time.perf_counter() - began)
