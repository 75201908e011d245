"""A request whose work never ends keeps no service from ending."""

import contextlib
import pathlib
import sys

import httpx
import pytest

from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon

_ENDLESS = """
import itertools, sys
from ckptd.catalog import compare
compare.compare_tensors = lambda *_, **__: [None for _ in itertools.count() if False]
from ckptd.daemon.cli import main
sys.exit(main())
"""


class EndlessDaemon(Daemon):
    """The service with a comparison that works for ever."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", _ENDLESS, *super().command()[3:]]


@pytest.mark.slow
def test_a_stop_does_not_wait_for_work_that_never_ends(tmp_path: pathlib.Path) -> None:
    """It was cut off, and then Python waited for its thread at its own end, for ever."""
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for name in ("a.ckpt", "b.ckpt"):
        rename_in(outputs / name, checkpoint_bytes())
    with EndlessDaemon(outputs, tmp_path / "state") as daemon:
        daemon.wait_complete()
        ids = [("id", entry["id"]) for entry in daemon.entries().values()]
        with contextlib.suppress(httpx.TimeoutException):
            httpx.get(f"{daemon.url}/checkpoints/compare", params=ids, timeout=2)
        assert daemon.stop() == 143
        assert "does not end by itself" in daemon.log()
