"""A catalog of 100,000 checkpoints of 5,000 runs with their configs in a real state, behind the daemon's own HTTP."""

import asyncio
import contextlib
import multiprocessing
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from hub_backend import HubBackend
from hub_backend import record as bare_record

RUNS = 5_000
ARCHITECTURES = ("dbnet", "craft", "parseq", "vit_base", "resnet50d")
_OPTIMIZERS = ("AdamW", "SGD", "Lion", "Adam")
_EPOCH_NS = 1_760_000_000_000_000_000


class ListServer(NamedTuple):
    """One that runs."""

    pid: int
    port: int
    pipe: Connection

    def change(self, per_s: float) -> None:
        """Have so many checkpoints a second change from now on; 0 stops."""
        self.pipe.send(per_s)
        self.pipe.recv()


@contextlib.contextmanager
def list_server(entries: int, cores: set[int]) -> Iterator[ListServer]:
    """Serve a catalog of so many entries, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, entries, cores), daemon=True)
    process.start()
    try:
        port = ours.recv()
        assert process.pid is not None
        yield ListServer(process.pid, port, ours)
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, entries: int, cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)
    from ckptd.daemon.loop import LoopMonitor, new_event_loop

    monitor = LoopMonitor()
    with tempfile.TemporaryDirectory(prefix="ckptd-bench-list-") as directory:
        backend = ListBackend(entries, monitor, directory)
        backend.settle_memory()
        new_event_loop(monitor).run_until_complete(_run(pipe, backend))


class ListBackend(HubBackend):
    """As `HubBackend`, with a state behind it: commit comes before broadcast."""

    def __init__(self, entries: int, monitor: Any, directory: str) -> None:
        from ckptd.catalog.state import State

        super().__init__(0, monitor)
        self.state = State.open(directory, boot_id="bench", clock=time.time)
        self.lines = self.state.texts  # type: ignore[assignment]
        self.state.load()
        self._number = 0
        self._entries = entries
        for start in range(0, entries, 2_000):
            changes, descriptions = self._changes(range(start, min(start + 2_000, entries)))
            batch = self.catalog.prepare(changes)
            assert batch is not None
            self.state.commit(batch, descriptions, self.catalog.floor)
            self.catalog.publish(batch)
        self.catalog.snapshot()

    async def change_one(self) -> None:
        """One checkpoint changes; a twentieth of them begins a run of its own."""
        self._number += 1
        number = self._number * 7919 % self._entries
        changes, descriptions = self._changes([number], seed=self._number // 20)
        batch = self.catalog.prepare(changes)
        if batch is not None:
            await asyncio.to_thread(self.state.commit, batch, descriptions, self.catalog.floor)
            self.catalog.publish(batch)

    def _changes(self, numbers: Any, seed: int = 0) -> tuple[list[Any], dict[Any, Any]]:
        import msgspec

        from ckptd.catalog.description import CheckpointMetadata, Description
        from ckptd.catalog.search_text import text_key, text_of
        from ckptd.catalog.store import Change
        from ckptd.validators.inspection import Inspection

        changes, descriptions = [], {}
        lines: dict[int, str] = {}
        for number in numbers:
            run = number % RUNS
            line = lines.get(run) or lines.setdefault(run, text_of([_config(run + seed * RUNS)]))
            made = bare_record(number)
            choice = random.Random(number + self._number)
            path = f"lab/{ARCHITECTURES[run % 5]}_v{run % 40}/run_{run:05d}/checkpoints/epoch={number // RUNS:02d}.ckpt"
            entry = msgspec.structs.replace(
                made.entry,
                path=path,
                display_name=f"{ARCHITECTURES[run % 5]}_v{run % 40}/epoch={number // RUNS:02d}",
                exp_name=f"{ARCHITECTURES[run % 5]}_v{run % 40}",
                architecture=ARCHITECTURES[run % 5],
                run_id=f"run_{run:05d}",
                epoch=number // RUNS,
                metrics={"hmean": choice.random(), "validation_loss": choice.random()},
            )
            modified_ns = _EPOCH_NS + choice.randrange(10**15)
            record = msgspec.structs.replace(
                made, entry=entry, modified_ns=modified_ns, relative_path=path.encode(), text_key=text_key(line)
            )
            changes.append(Change(entry.id, lambda _, record=record: record))
            inspection = Inspection(checkpoint_path=path, identity=made.identities.file)
            metadata = CheckpointMetadata(exp_name=entry.exp_name)
            descriptions[entry.id] = Description(
                inspection=inspection, findings=(), metadata=metadata, search_text=line
            )
        return changes, descriptions


def _config(run: int) -> dict[str, Any]:
    """A training's config of 120 values."""
    choice = random.Random(run)
    section = {f"option_{n}": choice.choice(("auto", n, n / 8, True)) for n in range(10)}
    return {
        "optimizer": {
            "name": choice.choice(_OPTIMIZERS),
            "lr": choice.choice((1e-4, 3e-4, 1e-3)),
            "weight_decay": 0.01,
        },
        "seed": run,
        "data": {"root": f"/data/sets/{choice.choice(('icdar15', 'totaltext', 'ctw'))}", "workers": 8},
        **{f"section_{n}": section for n in range(11)},
    }


async def _run(pipe: Connection, backend: ListBackend) -> None:
    from ckptd.daemon.http import AccessPolicy, build_app
    from ckptd.daemon.http.connections import HttpConfig, HttpServer, Limits
    from ckptd.daemon.http.page_files import load_page

    app = build_app(backend, AccessPolicy(None, hosts=frozenset({"127.0.0.1"})), page=load_page())
    server = HttpServer(HttpConfig(app, Limits()))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as the daemon's own has it
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(backend.hub.run())
        tasks.create_task(server.serve([listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        pipe.send(listener.getsockname()[1])
        tasks.create_task(_obey(pipe, backend))


async def _obey(pipe: Connection, backend: ListBackend) -> None:
    per_s = 0.0
    asked = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), asked.set)
    while True:
        if per_s:
            await asyncio.sleep(1 / per_s)
            await backend.change_one()
        else:
            await asked.wait()
        asked.clear()
        if pipe.poll():
            per_s = pipe.recv()
            pipe.send(None)
