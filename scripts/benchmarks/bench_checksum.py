"""Reading every byte: levels `checksum` and `weights` beside cat, cold, and beside what others compute, cached."""

import hashlib
import math
import mmap
import os
import statistics
import subprocess
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import blake3
import torch
from files import cached
from isal import isal_zlib
from report import Row, against, print_report

from ckptd.validators import Level, inspect_checkpoint

COLD_BUDGET = 0.8
CHECKSUM_BUDGET_GB_PER_S = 10.0
_PIECE_BYTES = 1 << 20


def run(*, quick: bool) -> None:
    """Print medians in GB/s (10^9 bytes), cold and cached, and ratios; all ways take turns in one run."""
    path = cached(f"random-{200 if quick else 1000}mb.ckpt", _random_file(50_000_000 if quick else 250_000_000))
    torch.set_num_threads(1)
    turns = 5 if quick else 9
    print_report("checksum", [*_cold(path, turns), *_cached(path, turns)])


def _random_file(elements: int) -> Callable[[Path], None]:
    """A maker of files with float32 weights that no compression of the disk can shrink, 100 tensors."""

    def make(path: Path) -> None:
        weights = {f"model.layer{n}.weight": torch.randn(elements // 100) for n in range(100)}
        torch.save({"epoch": 3, "state_dict": weights}, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())

    return make


def _cold(path: Path, turns: int) -> list[Row]:
    size = path.stat().st_size
    ways: dict[str, Callable[[], object]] = {
        "cat FILE > /dev/null": lambda: subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True),
        "ckptd checksum": lambda: _valid(path, Level.CHECKSUM),
        "ckptd weights": lambda: _valid(path, Level.WEIGHTS),
        "zipfile.testzip": lambda: _testzip(path),
        "weights by mmap, no checksum": lambda: _mapped_weights(path),
    }
    speeds = _measure(ways, size, turns, before=lambda: _drop(path))
    base = speeds["cat FILE > /dev/null"]
    rows = []
    for name, speed in speeds.items():
        ratio = speed / base
        judged = name == "ckptd checksum"
        rows.append(
            Row(
                f"cold: {name}",
                f"{speed:.2f} GB/s = {ratio:.2f} x cat",
                f">= {COLD_BUDGET:g} x" if judged else "",
                against(ratio, COLD_BUDGET, at_least=True) if judged else "",
            )
        )
    return rows


def _cached(path: Path, turns: int) -> list[Row]:
    size = path.stat().st_size
    ways: dict[str, Callable[[], object]] = {
        "reading alone": lambda: _over(path, lambda piece: None),
        "ckptd checksum (CRC-32 and BLAKE3)": lambda: _valid(path, Level.CHECKSUM),
        "ckptd weights": lambda: _valid(path, Level.WEIGHTS),
        "zlib's CRC-32": lambda: _over(path, zlib.crc32),
        "sha256": lambda: _over(path, lambda piece: hashlib.sha256(piece).digest()),
        "blake2b": lambda: _over(path, lambda piece: hashlib.blake2b(piece).digest()),
    }
    rows = [Row(f"cached: {name}", f"{speed:.2f} GB/s") for name, speed in _measure(ways, size, turns).items()]
    data = os.urandom(_PIECE_BYTES)
    code: dict[str, Callable[[], object]] = {
        "CRC-32 (isal)": lambda: isal_zlib.crc32(data),
        "BLAKE3": lambda: blake3.blake3(data).digest(),
        "CRC-32 (isal) and BLAKE3": lambda: (isal_zlib.crc32(data), blake3.blake3(data).digest()),
        "CRC-32 (zlib)": lambda: zlib.crc32(data),
    }
    repeated = {name: _repeated(work) for name, work in code.items()}
    for name, speed in _measure(repeated, _PIECE_BYTES * _REPEATS, turns).items():
        judged = name == "CRC-32 (isal)"
        budget = f">= {CHECKSUM_BUDGET_GB_PER_S:g} GB/s" if judged else ""
        verdict = against(speed, CHECKSUM_BUDGET_GB_PER_S, at_least=True) if judged else ""
        rows.append(Row(f"in the core's cache: {name}", f"{speed:.2f} GB/s", budget, verdict))
    return rows


_REPEATS = 100


def _repeated(work: Callable[[], object]) -> Callable[[], object]:
    def repeat() -> None:
        for _ in range(_REPEATS):
            work()

    return repeat


def _measure(
    ways: dict[str, Callable[[], object]], size: int, turns: int, before: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Medians in GB/s; the ways take turns, so that a busy machine is unfair to none. The first turn warms up."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, work in ways.items():
            before()
            start = time.perf_counter()
            work()
            if turn:
                speeds[name].append(size / (time.perf_counter() - start) / 1e9)
    return {name: statistics.median(measured) for name, measured in speeds.items()}


def _valid(path: Path, level: Level) -> None:
    inspection = inspect_checkpoint(path, level)
    if not inspection.is_valid or inspection.level is not level:
        raise SystemExit(f"{path}: {inspection.error_message}")


def _testzip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def _mapped_weights(path: Path) -> None:
    """What level `weights` would be on a mapped file: a file that is truncated meanwhile would end the process."""
    weights = torch.load(path, mmap=True, weights_only=True)["state_dict"]
    for tensor in weights.values():
        low, high = torch.aminmax(tensor)
        assert math.isfinite(low.item() + high.item())


def _over(path: Path, work: Callable[[memoryview], object]) -> None:
    buffer = memoryview(mmap.mmap(-1, _PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            work(buffer[:count])


def _drop(path: Path) -> None:
    """Out of the page cache: the file is written back, so its pages are clean and may go."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
