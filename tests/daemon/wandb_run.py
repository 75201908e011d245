"""Sends two sets of figures by the real wandb, offline; run in a process of its own: wandb starts another one."""

import logging
import sys

import anyio
import structlog

from ckptd.daemon.collectors import StreamCounts
from ckptd.daemon.figures import Sources, send_figures
from ckptd.daemon.loop import LoopMonitor
from ckptd.daemon.metrics import RequestCounts
from ckptd.daemon.status import CatalogStatus, Status


def status() -> Status:
    """A service with two checkpoints."""
    return Status(instance="x", revision=2, started_at=0.0, state=CatalogStatus.HEALTHY, checkpoint_count=2)


async def main(directory: str) -> None:
    """Long enough for two sets."""
    log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger("ckptd"), wrapper_class=structlog.stdlib.BoundLogger
    )
    sources = Sources(status, StreamCounts, RequestCounts(), LoopMonitor())
    with anyio.move_on_after(float(sys.argv[2])):
        await send_figures("ckptd-tests", sources, every_s=0.5, directory=directory, log=log)


if __name__ == "__main__":
    logging.basicConfig()
    anyio.run(main, sys.argv[1])
