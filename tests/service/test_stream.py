"""The live stream's suite over TCP and over a Unix socket."""

import pathlib
import signal
from collections.abc import Iterator

import pytest

from tests.service.checkpoints import checkpoint_bytes, write_in_place
from tests.service.daemons import Daemon
from tests.service.doors import Door
from tests.service.stream_suite import HEARTBEAT_S, StreamSuite


@pytest.fixture(scope="module", params=["tcp", "uds"])
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    top = tmp_path_factory.mktemp(request.param)
    outputs = top / "outputs"
    write_in_place(outputs / "seed.ckpt", checkpoint_bytes())
    with Daemon(outputs, top / "state", heartbeat_s=HEARTBEAT_S, sidecars="off") as daemon:
        daemon.wait_complete()
        uds: pathlib.Path | None = top / "state/ckptd.sock" if request.param == "uds" else None
        url = "http://localhost" if uds else daemon.url
        yield Door(url, outputs, lambda: daemon.signal(signal.SIGTERM), uds=uds)


class TestStream(StreamSuite):
    pass
