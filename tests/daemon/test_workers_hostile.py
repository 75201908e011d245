"""Hostile files of every format through the real pool: findings, no executed name, and nobody who waits."""

import os
import pathlib
from collections.abc import Iterable

import anyio
import pytest

from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles, SidecarStatus
from ckptd.daemon.workers import WorkerDied, WorkerPool, finding_for
from ckptd.daemon.zygote_process import ZYGOTE_COMMAND
from ckptd.validators.findings import Severity

from ..validators.hostile import KILLERS, containers, hostile_headers, hostile_pickles, hostile_texts
from ..validators.test_ambiguous_archives import AMBIGUOUS, MALFORMED
from ..validators.zip_files import archive, checkpoint_entries
from .test_workers_describe import AUDITED_COMMAND, HARMLESS
from .worker_pools import make_pool

pytestmark = pytest.mark.anyio

GOOD = archive(checkpoint_entries())
SMALL = 60_000
"""Pickles up to this size, in bytes, are tried in every container for each change; the floods in the slow tier."""
PLACES = ("legacy, object", "TorchScript, constants", "behind the end")
"""Containers of the default tier; inside a zip archive all pickles are met in test_workers_describe."""
HARMLESS_TEXTS = frozenset(
    (
        "a huge base 60 integer",
        "a huge float",
        "a huge hexadecimal",
        "a huge integer",
        "a long text",
        "binary",
        "escape codes",
        "many keys",
        "nothing",
        "only a comment",
        "the same key twice",
        "UTF-16",
    )
)
"""Documents that may be read as well: what they hold is data."""


class Outcomes:
    """What became of each file."""

    def __init__(self) -> None:
        self.described: dict[str, Description] = {}
        self.died: dict[str, WorkerDied] = {}
        self.beats = 0
        """How often the event loop came round meanwhile."""

    def errors(self, name: str) -> set[str]:
        """Codes of the errors that were found in one file."""
        if name in self.died:
            return {finding_for(self.died[name]).code}
        return {f.code for f in self.described[name].inspection.findings if f.severity is Severity.ERROR}


async def _describe(pool: WorkerPool, path: pathlib.Path, sidecar: pathlib.Path | None = None) -> Description:
    opened = [os.open(each, os.O_RDONLY) for each in (path, sidecar, sidecar) if each is not None]
    try:
        request = DescribeRequest(
            checkpoint_path=str(path),
            relative_path=os.fsencode(f"a/checkpoints/{path.name}"),
            sidecar_names=() if sidecar is None else (os.fsencode(f"{path.name}.metadata.yaml"),),
            config_name=None if sidecar is None else b"config.yaml",
        )
        files = OpenedFiles(
            checkpoint=opened[0],
            sidecars=tuple(opened[1:2]),
            config=opened[2] if len(opened) > 2 else None,
            owner=os.geteuid(),
        )
        return await pool.describe(request, files)
    finally:
        for descriptor in opened:
            os.close(descriptor)


async def _describe_all(pool: WorkerPool, directory: pathlib.Path, files: Iterable[tuple[str, bytes]]) -> Outcomes:
    """Describe all files, a good one behind every tenth, a few at a time. Fails if a good one is not valid."""
    outcomes = Outcomes()
    slots = anyio.Semaphore(24)
    directory.joinpath("good.ckpt").write_bytes(GOOD)

    async def one(name: str, path: pathlib.Path) -> None:
        try:
            outcomes.described[name] = await _describe(pool, path)
        except WorkerDied as death:
            outcomes.died[name] = death
        finally:
            slots.release()
            if path.name != "good.ckpt":
                os.unlink(path)

    async def beat() -> None:
        while True:
            await anyio.sleep(0.01)
            outcomes.beats += 1

    async with anyio.create_task_group() as background:
        background.start_soon(beat)
        async with anyio.create_task_group() as tasks:
            for number, (name, data) in enumerate(files):
                await slots.acquire()
                path = directory / f"{number}.ckpt"
                path.write_bytes(data)
                tasks.start_soon(one, name, path)
                if number % 10 == 0:
                    await slots.acquire()
                    tasks.start_soon(one, f"good {number}", directory / "good.ckpt")
        background.cancel_scope.cancel()
    names = (*outcomes.described, *outcomes.died)
    assert not [name for name in names if name.startswith("good") and outcomes.errors(name)]
    return outcomes


def _everywhere(pickles: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}, {place}": data for name, one in pickles.items() for place, data in containers(one).items()}


async def test_small_hostile_pickles_run_nothing_in_any_container(tmp_path: pathlib.Path) -> None:
    """CPython's audit events (PEP 578) of each whole job: no import, no opening, no call of a name."""
    everywhere = _everywhere(_small())
    files = {name: data for name, data in everywhere.items() if name.endswith(PLACES)} | hostile_headers()
    await _run_audited(tmp_path, files)
    assert len(files) > 400


async def test_contradictory_archives_run_nothing(tmp_path: pathlib.Path) -> None:
    """A message that is made for the first time must not need a module either: behind the sandbox none can be had."""
    await _run_audited(tmp_path, AMBIGUOUS | MALFORMED)


@pytest.mark.slow
async def test_small_hostile_pickles_run_nothing_wherever_a_reader_meets_a_pickle(tmp_path: pathlib.Path) -> None:
    await _run_audited(tmp_path, _everywhere(_small()))


def _small() -> dict[str, bytes]:
    """Those that neither kill nor take long."""
    pickles = hostile_pickles().items()
    return {n: data for n, data in pickles if len(data) < SMALL and n not in KILLERS and "doubling" not in n}


async def _run_audited(directory: pathlib.Path, files: dict[str, bytes]) -> None:
    async with make_pool(memory_mb=512, command=AUDITED_COMMAND) as pool:
        outcomes = await _describe_all(pool, directory, files.items())
    assert outcomes.died == {}
    events = {name: set(description.user) - HARMLESS for name, description in outcomes.described.items()}
    assert {name: caused for name, caused in events.items() if caused} == {}
    assert set(events) >= set(files)


async def test_hostile_headers_are_findings_within_the_limits(tmp_path: pathlib.Path) -> None:
    harmless = {"escape codes", "much metadata", "spaces"}
    async with make_pool(memory_mb=256, timeout_s=10, command=ZYGOTE_COMMAND) as pool:
        outcomes = await _describe_all(pool, tmp_path, hostile_headers().items())
    assert {name for name in hostile_headers() if not outcomes.errors(name)} == harmless
    assert outcomes.died == {}


async def test_hostile_sidecars_and_configs_never_spoil_the_checkpoint(tmp_path: pathlib.Path) -> None:
    checkpoint = tmp_path / "good.ckpt"
    checkpoint.write_bytes(GOOD)
    statuses = {}
    async with make_pool(memory_mb=256, timeout_s=20, command=AUDITED_COMMAND) as pool:
        for name, text in hostile_texts().items():
            sidecar = tmp_path / "text.yaml"
            sidecar.write_bytes(text)
            description = await _describe(pool, checkpoint, sidecar)
            assert not [f for f in description.inspection.findings if f.severity is Severity.ERROR], name
            assert set(description.user) <= HARMLESS, name
            statuses[name] = description.sidecar
    accepted = {name for name, status in statuses.items() if status is not SidecarStatus.INVALID}
    assert accepted <= HARMLESS_TEXTS


@pytest.mark.slow
@pytest.mark.timeout(280)
async def test_every_attack_in_every_container_ends_as_a_finding(tmp_path: pathlib.Path) -> None:
    """Crashes, hangs and floods included: each ends by a limit at the latest, beside good files that never notice."""
    pickles = hostile_pickles()
    files = {name: data for name, data in _everywhere(pickles).items() if len(data) >= SMALL or _is_killer(name)}
    async with make_pool(memory_mb=256, timeout_s=2, command=ZYGOTE_COMMAND) as pool:
        zygote = pool.zygote_pid
        with anyio.fail_after(270):
            outcomes = await _describe_all(pool, tmp_path, files.items())
        assert pool.zygote_pid == zygote
    assert {*outcomes.described, *outcomes.died} >= set(files)
    killed = {name for name in files if _is_killer(name)}
    assert {name for name in killed if not outcomes.errors(name)} == set()
    assert all(finding_for(death).severity is Severity.ERROR for death in outcomes.died.values())
    assert outcomes.beats > 100  # the loop was never held up


def _is_killer(name: str) -> bool:
    return name.partition(",")[0] in KILLERS


@pytest.mark.slow
async def test_a_header_of_a_hundred_megabytes_is_parsed_within_the_limits_or_refused(tmp_path: pathlib.Path) -> None:
    """The largest header that the format allows, of spaces, and of a million tensors."""
    import struct

    entry = b'"tensor%08d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    for header in (b"{" + b" " * 99_999_998 + b"}", b"{" + b",".join(entry % n for n in range(1_400_000)) + b"}"):
        assert len(header) <= 100_000_000
        path = tmp_path / "large.ckpt"
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        async with make_pool(memory_mb=512, timeout_s=20, command=ZYGOTE_COMMAND) as pool:
            try:
                description = await _describe(pool, path)
            except WorkerDied as death:
                assert finding_for(death).severity is Severity.ERROR  # noqa: PT017
            else:
                assert description.inspection.findings
