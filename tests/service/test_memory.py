"""What the service takes does not grow with the number of its threads."""

import concurrent.futures
import pathlib

from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually

HEAP_BYTES = 64 << 20
"""HEAP_MAX_SIZE of glibc's malloc on 64 bits: the heaps of every arena but the first begin at a multiple of it."""
REQUESTS = 200


def heaps(pid: int) -> int:
    """How many heaps of further arenas a process has."""
    found = 0
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        bounds, rights, _, device, *_ = line.split()
        start = int(bounds.partition("-")[0], 16)
        found += rights == "rw-p" and device == "00:00" and start % HEAP_BYTES == 0
    return found


def test_threads_share_two_arenas_of_the_allocator(tmp_path: pathlib.Path) -> None:
    """Without that each of 40 threads has its own, and what is free in one serves no other."""
    outputs = tmp_path / "outputs"
    for number in range(20):
        rename_in(outputs / f"{number}.ckpt", checkpoint_bytes(number % 4))
    with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1) as daemon:
        ids = eventually(lambda: [e["id"] for e in daemon.entries().values()], "checkpoints are listed")
        daemon.wait_complete()
        with concurrent.futures.ThreadPoolExecutor(16) as clients:
            answers = clients.map(lambda n: daemon.get(f"/checkpoints/{ids[n % len(ids)]}"), range(REQUESTS))
            assert {answer.status_code for answer in answers} == {200}
        threads = len(list(pathlib.Path(f"/proc/{daemon.pid}/task").iterdir()))
        assert threads > 4, "too few threads to show anything"
        assert heaps(daemon.pid) <= 2
