"""Real checkpoints through the real pool: the job runs behind the sandbox, and imports nothing there."""

import os
import pathlib
import sys
from collections.abc import Iterator

import anyio
import pytest
import torch

from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles, SidecarStatus
from ckptd.daemon.workers import WorkerDied, WorkerPool, finding_for
from ckptd.daemon.zygote_process import ZYGOTE_COMMAND
from ckptd.validators.findings import Severity

from ..validators.hostile import KILLERS, checkpoint_around, hostile_pickles
from .worker_jobs import REPOSITORY
from .worker_pools import make_pool

pytestmark = pytest.mark.anyio

AUDITED_COMMAND = (
    *ZYGOTE_COMMAND[:-2],
    "-c",
    f"import sys; sys.path.insert(0, {REPOSITORY!r}); from tests.daemon.audited import serve; serve()",
)
HARMLESS = {
    "pickle.find_class",
    "builtins.id",
    "marshal.dumps",
    "object.__getattr__",
    "object.__setattr__",
    "sys._getframe",
    "mmap.__new__",
}
"""Audit events that parsing may cause. `pickle.find_class` is the name that a pickle asks for; it gets a stand-in."""

SIDECAR = """\
schema_version: '1.0'
exp_name: päckchen
training: {epoch: 7, global_step: 205}
model: {architecture: dbnet, encoder: {model_name: resnet18}}
metrics: {hmean: 0.91, additional_metrics: {loss: 1.5e-3}}
created_at: 2025-10-11T00:44:42Z
user: {note: "\\u00e9 and \\x41, 12:30:45, 2001-12-14t21:59:43.10-05:00", when: 2025-10-11, big: 0x1F}
"""
CONFIG = (
    "exp_name: päckchen\ntrainer: {max_epochs: 10}\nmodel: {encoder: {name: resnet18}, lr: .inf}\nwhen: 2025-10-11\n"
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Checkpoints of every kind, as torch writes them."""
    directory = tmp_path_factory.mktemp("checkpoints")
    small = {f"model.layer{i}.weight": torch.randn(4, 4) for i in range(20)}
    hyper = {"lr": 0.1, "name": "é\u2028", "nested": {"betas": (0.9, 0.999)}, "path": pathlib.PurePosixPath("/data")}
    dtypes = (torch.bfloat16, torch.int8, torch.bool)
    contents: dict[str, object] = {
        "plain.ckpt": {"state_dict": small, "epoch": 3, "global_step": 205, "hyper_parameters": hyper},
        "dtypes.ckpt": {"state_dict": {str(dtype): torch.zeros(3 + i, dtype=dtype) for i, dtype in enumerate(dtypes)}},
        "scores.ckpt": {"state_dict": small, "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}}},
        "module.ckpt": torch.nn.Linear(3, 3),
    }
    for name, content in contents.items():
        torch.save(content, directory / name)
    torch.save(contents["plain.ckpt"], directory / "legacy.ckpt", _use_new_zipfile_serialization=False)
    whole = (directory / "plain.ckpt").read_bytes()
    (directory / "cut.ckpt").write_bytes(whole[:-100])
    (directory / "empty.ckpt").write_bytes(b"")
    (directory / "text.ckpt").write_text("version https://git-lfs.github.com/spec/v1\n")
    (directory / "noise.ckpt").write_bytes(bytes(range(256)) * 64)
    return {path.name: path for path in directory.iterdir()}


async def _describe(
    pool: WorkerPool, path: pathlib.Path, *, sidecar: str | None = None, config: str | None = None
) -> Description:
    companions = []
    for suffix, text in ((".metadata.yaml", sidecar), (".config.yaml", config)):
        if text is not None:
            companions.append(path.with_name(path.name + suffix))
            companions[-1].write_text(text)
    opened = [os.open(each, os.O_RDONLY) for each in (path, *companions)]
    try:
        request = DescribeRequest(
            checkpoint_path=str(path),
            relative_path=os.fsencode(f"päckchen/checkpoints/{path.name}"),
            sidecar_names=() if sidecar is None else (os.fsencode(f"{path.name}.metadata.yaml"),),
            config_name=None if config is None else os.fsencode(f"{path.name}.config.yaml"),
        )
        files = OpenedFiles(
            checkpoint=opened[0],
            sidecars=() if sidecar is None else (opened[1],),
            config=None if config is None else opened[-1],
            owner=os.geteuid(),
        )
        return await pool.describe(request, files)
    finally:
        for descriptor in opened:
            os.close(descriptor)


@pytest.fixture
async def pool() -> Iterator[WorkerPool]:
    """The pool as the service makes it."""
    async with make_pool(memory_mb=1024, max_answer_mb=64, command=ZYGOTE_COMMAND) as pool:
        yield pool


async def test_a_checkpoint_with_its_companions_is_described(
    pool: WorkerPool, checkpoints: dict[str, pathlib.Path]
) -> None:
    description = await _describe(pool, checkpoints["plain.ckpt"], sidecar=SIDECAR, config=CONFIG)
    assert description.inspection.is_valid
    assert len(description.tensors) == 20
    assert description.sidecar is SidecarStatus.FOREIGN
    assert description.metadata.training.epoch == 7
    assert description.metadata.metrics.hmean == 0.91
    assert isinstance(description.config, dict)
    assert description.config["trainer"] == {"max_epochs": 10}


async def test_twenty_thousand_tensors_come_through(pool: WorkerPool, tmp_path: pathlib.Path) -> None:
    weight = torch.zeros(1)
    torch.save({"state_dict": {f"layer.{index}.weight": weight for index in range(20_001)}}, tmp_path / "many.ckpt")
    description = await _describe(pool, tmp_path / "many.ckpt")
    assert len(description.tensors) == 20_001
    assert description.tensors[-1].name.endswith("layer.20000.weight")


async def test_a_job_in_a_child_says_what_it_says_in_process(
    pool: WorkerPool, checkpoints: dict[str, pathlib.Path]
) -> None:
    from ckptd.catalog.describe import describe_opened

    for path in checkpoints.values():
        descriptor = os.open(path, os.O_RDONLY)
        request = DescribeRequest(checkpoint_path=str(path), relative_path=os.fsencode(path.name))
        files = OpenedFiles(checkpoint=descriptor)
        try:
            assert await pool.describe(request, files) == describe_opened(request, files)
        finally:
            os.close(descriptor)


async def test_no_file_causes_an_import_or_any_other_event(
    checkpoints: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """CPython's audit events (PEP 578) of a whole job, in the child, by file."""
    paths = dict(checkpoints)
    for name, data in hostile_pickles().items():
        if name not in KILLERS:
            paths[name] = tmp_path / name
            paths[name].write_bytes(checkpoint_around(data))
    async with make_pool(memory_mb=512, command=AUDITED_COMMAND) as pool:
        events = {
            name: set((await _describe(pool, path, sidecar=SIDECAR, config=CONFIG)).user) - HARMLESS
            for name, path in paths.items()
        }
    assert {name: caused for name, caused in events.items() if caused} == {}


@pytest.mark.parametrize(
    "text", ["a: !!python/object/apply:os.system [true]", "&a [*a]", "a: [" * 5000, "\x00", "{", "- 1"]
)
async def test_hostile_yaml_is_a_finding(pool: WorkerPool, checkpoints: dict[str, pathlib.Path], text: str) -> None:
    description = await _describe(pool, checkpoints["plain.ckpt"], sidecar=text, config=text)
    assert description.inspection.is_valid
    assert description.sidecar is SidecarStatus.INVALID


async def test_hostile_pickles_end_as_findings_and_take_nobody_along(
    checkpoints: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """All at once, mixed with good files, so that they share children with them."""
    invalid: set[str] = set()
    ended: set[str] = set()
    good: list[bool] = []

    async def hostile(name: str) -> None:
        path = tmp_path / name
        path.write_bytes(checkpoint_around(pickles[name]))
        try:
            description = await _describe(pool, path)
        except WorkerDied as death:
            assert finding_for(death).severity is Severity.ERROR  # noqa: PT017
            invalid.add(name)
        else:
            if not description.inspection.is_valid:
                invalid.add(name)
        ended.add(name)

    async def harmless() -> None:
        good.append((await _describe(pool, checkpoints["plain.ckpt"])).inspection.is_valid)

    pickles = hostile_pickles()
    async with make_pool(memory_mb=256, timeout_s=3, command=ZYGOTE_COMMAND) as pool:
        zygote = pool.zygote_pid
        async with anyio.create_task_group() as tasks:
            for name in pickles:
                tasks.start_soon(hostile, name)
                tasks.start_soon(harmless)
        assert pool.zygote_pid == zygote
    assert ended == set(pickles)
    assert invalid >= KILLERS
    assert good == [True] * len(pickles)


async def test_the_zygote_is_lean_and_holds_nothing_of_the_service(pool: WorkerPool) -> None:
    """Its environment is empty, its directory the root; it has loaded neither torch nor the server."""
    process = pathlib.Path(f"/proc/{pool.zygote_pid}")
    assert process.joinpath("environ").read_bytes() == b""
    assert process.joinpath("cwd").readlink() == pathlib.Path("/")
    mapped = process.joinpath("maps").read_text()
    assert "/torch/" not in mapped
    done = await anyio.run_process(
        [sys.executable, "-I", "-c", "import sys, ckptd.daemon.zygote, ckptd.catalog.describe; print(*sys.modules)"]
    )
    loaded = {name.partition(".")[0] for name in done.stdout.decode().split()}
    assert loaded.isdisjoint({"torch", "numpy", "starlette", "anyio", "asyncio", "watchfiles", "pydantic", "structlog"})
