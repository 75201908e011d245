"""Figures: how the service performs, sent to Weights & Biases now and then where a project is named."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog

from .collectors import VERSION, StreamCounts
from .loop import LoopMonitor
from .metrics import RequestCounts
from .status import Status

RETRY_S = 600.0
"""After a failure, W&B is tried again after so long."""
FINISH_S = 3.0
"""At the end, what is on its way gets so long."""


class Sources(msgspec.Struct, frozen=True):
    """Where the figures come from; called on the event loop's thread."""

    status: Callable[[], Status]
    stream: Callable[[], StreamCounts]
    requests: RequestCounts
    loop: LoopMonitor


class Figures:
    """Sets of figures; rates are over the time since the set before."""

    def __init__(self, sources: Sources, now: float) -> None:
        self._sources = sources
        self._at = now
        self._before = msgspec.structs.replace(sources.requests)
        self._frames = sources.stream().frames_sent

    def take(self, now: float) -> dict[str, float]:
        """The figures as of `now`, monotonic seconds. Numbers only: no names, no paths."""
        status, stream = self._sources.status(), self._sources.stream()
        requests = msgspec.structs.replace(self._sources.requests)
        before, seconds = self._before, max(now - self._at, 1e-9)
        answered = requests.answered - before.answered
        figures = {
            "catalog/checkpoints": status.checkpoint_count,
            "catalog/invalid": status.by_health.get("invalid", 0),
            "catalog/metadata_coverage": status.metadata_coverage,
            "catalog/revision": status.revision,
            "catalog/pending": status.pending,
            "build/seconds": status.last_build_s or 0.0,
            "build/fast_path": status.fast_path_count,
            "build/slow_path": status.slow_path_count,
            "http/requests_per_s": answered / seconds,
            "http/mean_ms": 1000 * (requests.seconds - before.seconds) / answered if answered else 0.0,
            "http/error_share": (requests.failed - before.failed) / answered if answered else 0.0,
            "http/cache_hit_rate": requests.cache_hit_rate or 0.0,
            "stream/listeners": stream.listeners,
            "stream/frames_per_s": (stream.frames_sent - self._frames) / seconds,
            "loop/longest_step_ms": 1000 * self._sources.loop.steps().longest_s,
            "verify/bytes_per_s": 0.0 if status.verification is None else status.verification.bytes_per_s,
            "verify/queued": 0 if status.verification is None else status.verification.queued,
            "workers/crashes": status.worker_crashes,
        }
        self._at, self._before, self._frames = now, requests, stream.frames_sent
        return {name: float(value) for name, value in figures.items()}


async def send_figures(
    project: str, sources: Sources, *, every_s: float, directory: str, log: structlog.stdlib.BoundLogger
) -> None:
    """Send figures to a W&B project until cancelled. wandb is imported here, and nowhere else.

    Args:
        project: of W&B; who sends, and whether online or offline, is for wandb's own environment to say.
        sources: where the figures come from.
        every_s: time between two sets, in seconds.
        directory: where wandb keeps its files.
        log: is told when figures cannot be sent.
    """
    # A thread of its own: wandb waits for its process and for the network.
    thread = anyio.CapacityLimiter(1)
    figures = Figures(sources, anyio.current_time())
    run: Any = None
    try:
        while True:
            await anyio.sleep(every_s)
            taken = figures.take(anyio.current_time())
            try:
                run = run or await anyio.to_thread.run_sync(_begin, project, directory, limiter=thread)
                await anyio.to_thread.run_sync(run.log, taken, limiter=thread)
            except ImportError as error:
                remedy = "pip install wandb, or unset wandb_project"
                log.warning("no figures are sent: wandb cannot be imported", error=str(error), remedy=remedy)
                return
            except Exception as error:  # noqa: BLE001 - wandb raises many kinds, and none of them is the catalog's
                log.warning("figures could not be sent to W&B", error=str(error), retry_in_s=RETRY_S)
                run = None
                await anyio.sleep(RETRY_S)
    finally:
        if run is not None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(FINISH_S):
                await anyio.to_thread.run_sync(run.finish, limiter=thread, abandon_on_cancel=True)


def _begin(project: str, directory: str) -> Any:
    """Runs in a thread. What wandb would gather of itself (code, git, packages, the machine) is turned off."""
    wandb = importlib.import_module("wandb")
    quiet: Mapping[str, Any] = {
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "save_code": False,
        "silent": True,
        "x_disable_machine_info": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
    }
    return wandb.init(
        project=project,
        job_type="ckptd",
        dir=directory,
        config={"version": VERSION},
        settings=wandb.Settings(**quiet),
    )
