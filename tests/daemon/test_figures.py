"""Figures for W&B: rates over the time between two sets, numbers only, and a wandb that fails costs nothing."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import types
from typing import Any

import anyio
import pytest
import structlog

from ckptd.daemon.collectors import StreamCounts
from ckptd.daemon.figures import Figures, Sources, send_figures
from ckptd.daemon.loop import LoopMonitor
from ckptd.daemon.metrics import CacheUse, Metrics, RequestCounts
from ckptd.daemon.status import CatalogStatus, Status, VerifierStatus
from tests.daemon.fakes import DEADLINE_S, until
from tests.service.daemons import Daemon, eventually

pytestmark = pytest.mark.anyio


def status() -> Status:
    return Status(
        instance="secret_instance",
        revision=7,
        started_at=0.0,
        state=CatalogStatus.HEALTHY,
        checkpoint_count=3,
        by_health={"valid": 2, "invalid": 1},
        with_sidecar=1,
        fast_path_count=2,
        slow_path_count=1,
        verification=VerifierStatus(level="checksum", queued=5, bytes_per_s=1e6),
    )


class Wandb(types.ModuleType):
    """The few calls of wandb that are made; the real one is 100 MB (see the last test)."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.options: dict[str, Any] = {}
        self.sets: list[dict[str, float]] = []
        self.finished = 0
        self.failures = 0

    def Settings(self, **options: Any) -> dict[str, Any]:  # noqa: N802 - the name is wandb's
        return options

    def init(self, **options: Any) -> "Wandb":
        self.options = options
        return self

    def log(self, figures: dict[str, float]) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no network")
        self.sets.append(figures)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def log() -> Any:
    return structlog.testing.CapturingLogger()


def test_rates_are_over_the_time_since_the_set_before() -> None:
    metrics, stream = Metrics(), StreamCounts(listeners=4)
    figures = Figures(Sources(status, lambda: stream, metrics.counts, metrics.loop), now=100.0)
    for code in (200, 200, 304, 500):
        cache = CacheUse.NOT_MODIFIED if code == 304 else CacheUse.UNCONDITIONAL if code == 200 else None
        metrics.observe_request("/checkpoints", "GET", code, 0.25, cache=cache)
    stream.frames_sent = 30
    taken = figures.take(110.0)
    assert taken["http/requests_per_s"] == pytest.approx(0.4)
    assert taken["http/mean_ms"] == pytest.approx(250)
    assert taken["http/error_share"] == pytest.approx(0.25)
    assert taken["http/cache_hit_rate"] == pytest.approx(1 / 3)
    assert taken["stream/frames_per_s"] == pytest.approx(3.0)
    assert (taken["stream/listeners"], taken["catalog/metadata_coverage"]) == (4.0, 0.5)
    later = figures.take(120.0)
    assert (later["http/requests_per_s"], later["http/mean_ms"], later["stream/frames_per_s"]) == (0, 0, 0)


def test_figures_are_numbers_alone() -> None:
    taken = Figures(Sources(status, StreamCounts, RequestCounts(), LoopMonitor()), now=0.0).take(1.0)
    assert {type(value) for value in taken.values()} == {float}
    assert not [name for name in taken if "secret" in name]


async def test_sets_are_sent_now_and_then_and_the_run_is_finished_at_the_end(
    wandb: Wandb, log: Any, tmp_path: pathlib.Path
) -> None:
    sources = Sources(status, StreamCounts, RequestCounts(), LoopMonitor())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_send, sources, 0.01, str(tmp_path), log)
        await until(lambda: len(wandb.sets) >= 3)
        tasks.cancel_scope.cancel()
    assert (wandb.options["project"], wandb.options["dir"], wandb.finished) == ("lab", str(tmp_path), 1)
    off = wandb.options["settings"]
    assert (off["console"], off["disable_git"], off["save_code"], off["x_disable_meta"]) == ("off", True, False, True)
    assert log.calls == []


async def test_a_failure_is_told_and_tried_again_later(
    wandb: Wandb, log: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptd.daemon.figures.RETRY_S", 0.01)
    wandb.failures = 1
    sources = Sources(status, StreamCounts, RequestCounts(), LoopMonitor())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_send, sources, 0.01, str(tmp_path), log)
        await until(lambda: wandb.sets)
        tasks.cancel_scope.cancel()
    ((_, _, fields),) = log.calls
    assert fields["error"] == "no network"


async def test_without_wandb_the_operator_is_told_once_and_nothing_else_happens(
    log: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    sources = Sources(status, StreamCounts, RequestCounts(), LoopMonitor())
    with anyio.fail_after(DEADLINE_S):
        await _send(sources, 0.01, str(tmp_path), log)
    ((_, _, fields),) = log.calls
    assert "pip install wandb" in fields["remedy"]


_WANDB = """
import json, os
def Settings(**options): return options
class Run:
    def log(self, figures):
        with open(os.path.join(self.dir, "sets"), "a") as file:
            file.write(json.dumps(figures) + chr(10))
    def finish(self): open(os.path.join(self.dir, "finished"), "x").close()
def init(**options):
    run = Run()
    run.dir = options["dir"]
    return run
"""


def test_a_daemon_sends_them_and_finishes_its_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules, outputs, state = tmp_path / "modules", tmp_path / "outputs", tmp_path / "state"
    modules.mkdir()
    outputs.mkdir()
    (modules / "wandb.py").write_text(_WANDB)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    sets = state / "sets"
    with Daemon(outputs, state, wandb_project="lab", wandb_every_s=1) as daemon:
        eventually(lambda: sets.exists() and sets.read_text().endswith("\n"), "a set is sent")
        assert daemon.stop() == 0
    assert json.loads(sets.read_text().splitlines()[0])["catalog/metadata_coverage"] == 1.0
    assert (state / "finished").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not here (100 MB, no dependency)")
def test_the_real_wandb_takes_them_offline(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "tests.daemon.wandb_run", str(tmp_path), "8"]
    environment = {"WANDB_MODE": "offline", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert told.returncode == 0, told.stderr
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    data = kept.read_bytes()
    assert b"catalog/metadata_coverage" in data
    assert b"ckptd-tests" in data


async def _send(sources: Sources, every_s: float, directory: str, log: Any) -> None:
    await send_figures("lab", sources, every_s=every_s, directory=directory, log=log)
