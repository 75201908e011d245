"""Describing many checkpoints: in the worker pool, as the daemon does, or in this process where asked."""

import contextlib
import functools
import itertools
import os
from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.to_thread
import msgspec

from ckptd.catalog.describe import describe_opened, failed_description
from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles
from ckptd.catalog.entry import Identities, shown_path
from ckptd.catalog.experiment import DirectFiles, find_companions
from ckptd.catalog.opening import open_checkpoint
from ckptd.validators.architectures import load_table
from ckptd.validators.checks.weights import TorchMissing
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.findings import finding
from ckptd.validators.inspection import FileIdentity, Level

from ..logging import configure
from ..settings import LogLevel, Settings
from ..workers import WorkerDied, WorkerPool, ZygoteError, finding_for
from ..zygote_process import WEIGHTS_ZYGOTE_COMMAND, ZYGOTE_COMMAND
from .exits import ENVIRONMENT, CommandError
from .targets import Target, opened

AHEAD = 16
"""Files opened per worker at one time: enough to hand small ones over in handfuls."""
DIRECTORIES_AT_ONCE = 4
"""Checkpoints that are directories, of those; each takes up to `opening.OPENED_PARTS` descriptors."""
ATTEMPTS = 3
"""Looks at a file that changes while it is read."""

Describe = Callable[[DescribeRequest, OpenedFiles], Awaitable[Description]]
Done = Callable[[Target, Description], None]


def describe_all(
    targets: Sequence[Target],
    done: Done,
    settings: Settings,
    *,
    level: Level = Level.STRUCTURE,
    trust_sidecar: bool = False,
    required_keys: tuple[str, ...] = (),
    in_process: bool = False,
) -> None:
    """Describe each target; `done` is called in the order of `targets`.

    A file that cannot be described gets a description that says so: nothing that a file contains raises.

    Args:
        targets: what to describe.
        done: told of each one.
        settings: number and limits of the workers.
        level: how much of each file to verify.
        trust_sidecar: let a sidecar of ours that matches the file stand in for the inspection.
        required_keys: keys, or the beginnings of keys, that each state dict must have besides those of the settings.
        in_process: without worker processes; a hostile file can then take the command down.

    Raises:
        CommandError: no worker can be started, or torch is missing for level `weights`.
    """
    one = _One(settings, level=level, trust_sidecar=trust_sidecar, required_keys=required_keys)
    try:
        anyio.run(_describe_all, targets, done, settings, one, in_process)
    except (ZygoteError, TorchMissing) as error:
        raise CommandError(str(error), ENVIRONMENT) from error
    except BaseExceptionGroup as group:
        # A task group wraps what `done` raised (a closed pipe); the caller wants that itself.
        raise _first(group) from None


async def _describe_all(
    targets: Sequence[Target], done: Done, settings: Settings, one: "_One", in_process: bool
) -> None:
    if in_process:
        for target in targets:
            done(target, await one.describe(target, one.in_process))
        return
    log = configure(settings.model_copy(update={"log_level": LogLevel.ERROR}))
    workers = min(settings.workers, len(targets)) or 1
    async with WorkerPool(
        workers=workers,
        memory_mb=settings.worker_memory_mb,
        timeout_s=settings.worker_timeout_s,
        log=log,
        command=WEIGHTS_ZYGOTE_COMMAND if one.level is Level.WEIGHTS else ZYGOTE_COMMAND,
        architectures=settings.architectures,
    ) as pool:
        in_order = _InOrder(targets, done)
        remaining = iter(enumerate(targets))

        async def work() -> None:
            for position, target in remaining:
                in_order.put(position, await one.describe(target, pool.describe))

        async with anyio.create_task_group() as tasks:
            for _ in range(min(len(targets), workers * AHEAD)):
                tasks.start_soon(work)


class _One:
    """The way of one file from its path to its description."""

    def __init__(
        self, settings: Settings, *, level: Level, trust_sidecar: bool, required_keys: tuple[str, ...]
    ) -> None:
        self._settings = settings
        self.level = level
        self._trust_sidecar = trust_sidecar
        self._required_keys = required_keys
        self._directories = anyio.CapacityLimiter(DIRECTORIES_AT_ONCE)

    async def describe(self, target: Target, describe: Describe) -> Description:
        async with self._directories if target.is_directory else contextlib.nullcontext():
            return await self._describe(target, describe)

    async def _describe(self, target: Target, describe: Describe) -> Description:
        for attempt in itertools.count(1):
            try:
                request, files, identities = await anyio.to_thread.run_sync(self._open, target)
            except OSError as error:
                return _unopened(target, f"the file cannot be opened: {error.strerror}")
            except Changed as error:
                if attempt == ATTEMPTS:
                    return _unopened(target, error.message)
                continue
            try:
                return await describe(request, files)
            except Changed as error:
                if attempt == ATTEMPTS:
                    return failed_description(request, identities.file, finding("file.unreadable", error.message))
            except Unreadable as error:
                return failed_description(request, identities.file, finding("file.unreadable", error.message))
            except WorkerDied as died:
                return failed_description(request, identities.file, finding_for(died))
            finally:
                for fd in files.all():
                    os.close(fd)
        raise AssertionError("unreachable")

    async def in_process(self, request: DescribeRequest, files: OpenedFiles) -> Description:
        """Describe without a worker."""
        table = load_table(self._settings.architectures)
        return await anyio.to_thread.run_sync(functools.partial(describe_opened, architectures=table), request, files)

    def _open(self, target: Target) -> tuple[DescribeRequest, OpenedFiles, Identities]:
        with opened(target.root) as root_fd:
            companions = find_companions(DirectFiles(root_fd), target.path)
            request, files, identities = open_checkpoint(root_fd, target.path, companions)
        request = msgspec.structs.replace(
            request,
            checkpoint_path=shown_path(target.absolute)[0],
            level=self.level,
            trust_sidecar=self._trust_sidecar,
            required_keys=(*self._required_keys, *self._settings.required_at(target.absolute)),
        )
        return request, files, identities


class _InOrder:
    """Hands on what arrives in any order, in the order in which it was asked for."""

    def __init__(self, targets: Sequence[Target], done: Done) -> None:
        self._targets = targets
        self._done = done
        self._waiting: dict[int, Description] = {}
        self._next = 0

    def put(self, position: int, description: Description) -> None:
        self._waiting[position] = description
        while self._next in self._waiting:
            self._done(self._targets[self._next], self._waiting.pop(self._next))
            self._next += 1


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _unopened(target: Target, why: str) -> Description:
    request = DescribeRequest(checkpoint_path=shown_path(target.absolute)[0], relative_path=target.path)
    return failed_description(request, FileIdentity(0, 0, 0, 0), finding("file.unreadable", why))
