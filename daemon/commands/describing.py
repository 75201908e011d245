"""Describing many checkpoints: in the worker pool, as the daemon does, or in this process where asked."""

import contextlib
import functools
import itertools
import os
import resource
from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.to_thread
import msgspec

from ckptd.catalog.describe import describe_opened, failed_description
from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles
from ckptd.catalog.entry import Identities, shown_path
from ckptd.catalog.experiment import DirectFiles, find_companions
from ckptd.catalog.opening import open_checkpoint
from ckptd.catalog.roots import Root
from ckptd.validators.architectures import load_table
from ckptd.validators.checks.weights import TorchMissing
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.findings import finding
from ckptd.validators.inspection import FileIdentity, Level

from ..logging import configure
from ..setting_types import LogLevel
from ..settings import Settings
from ..workers import WorkerDied, WorkerPool, ZygoteError, finding_for
from ..zygote_process import WEIGHTS_ZYGOTE_COMMAND, ZYGOTE_COMMAND
from .exits import ENVIRONMENT, CommandError
from .targets import Target, opened

HANDFUL = 32
"""Files that are opened in one go, then wait for the pool together: it takes small ones by the batch, and a thread for
each file would cost more than opening it."""
DESCRIPTORS_EACH = 6
"""Of one file at most: itself, its sidecars, its config."""
LARGE_BYTES = 100_000_000
SLOWEST_BYTES_PER_S = 20_000_000
"""A disk that is slower than this while every byte is read counts as hung."""
DIRECTORIES_AT_ONCE = 4
"""Checkpoints that are directories, of those; each takes up to `opening.OPENED_PARTS` descriptors."""
ATTEMPTS = 3
"""Looks at a file that changes while it is read."""

Describe = Callable[[DescribeRequest, OpenedFiles], Awaitable[Description]]
Done = Callable[[Target, Description], None]
Until = Callable[[], Awaitable[None]]
"""Returns when the work is to end at once."""
More = Callable[[], Awaitable[bool]]
"""Asked before more files are taken in hand; False ends the work after those that are."""


def describe_all(
    targets: Sequence[Target],
    done: Done,
    settings: Settings,
    *,
    level: Level = Level.STRUCTURE,
    trust_sidecar: bool = False,
    required_keys: tuple[str, ...] = (),
    in_process: bool = False,
    propose_repairs: bool = False,
    more: More | None = None,
    until: Until | None = None,
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
        propose_repairs: say what is wrong with the sidecars that others wrote.
        more: asked before each handful of files in the pool; by default all are described.
        until: ends the work at once, what is in hand as well; nobody is told of that.

    Raises:
        CommandError: no worker can be started, or torch is missing for level `weights`.
    """
    one = _One(
        settings,
        level=level,
        trust_sidecar=trust_sidecar,
        required_keys=required_keys,
        propose_repairs=propose_repairs,
    )
    try:
        anyio.run(_describe_all, targets, done, settings, one, in_process, more or _always, until)
    except (ZygoteError, TorchMissing) as error:
        raise CommandError(str(error), ENVIRONMENT) from error
    except BaseExceptionGroup as group:
        # A task group wraps what `done` raised (a closed pipe); the caller wants that itself.
        raise _first(group) from None


async def _describe_all(
    targets: Sequence[Target],
    done: Done,
    settings: Settings,
    one: "_One",
    in_process: bool,
    more: More,
    until: Until | None,
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
        handfuls = iter([(at, targets[at : at + HANDFUL]) for at in range(0, len(targets), HANDFUL)])

        async def describe(position: int, target: Target, opening: "_Opening | None") -> None:
            in_order.put(position, await one.describe(target, pool.describe, opening))

        async def work() -> None:
            while await more() and (taken := next(handfuls, None)) is not None:
                start, handful = taken
                openings = await anyio.to_thread.run_sync(one.open_files, handful)
                async with anyio.create_task_group() as tasks:
                    for position, (target, opening) in enumerate(zip(handful, openings, strict=True), start):
                        tasks.start_soon(describe, position, target, opening)

        async with anyio.create_task_group() as end:
            if until is not None:
                end.start_soon(_cancel_after, until, end.cancel_scope)
            async with anyio.create_task_group() as tasks:
                for _ in range(_handfuls_at_once(workers)):
                    tasks.start_soon(work)
            end.cancel_scope.cancel()


async def _cancel_after(until: Until, scope: anyio.CancelScope) -> None:
    await until()
    scope.cancel()


async def _always() -> bool:
    return True


def _handfuls_at_once(workers: int) -> int:
    """Enough that the pool always finds something to do, and no more than there are descriptors for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    room = soft // 2 if soft != resource.RLIM_INFINITY else 1 << 20
    return max(1, min(workers + 2, room // (HANDFUL * DESCRIPTORS_EACH)))


class _One:
    """The way of one file from its path to its description."""

    def __init__(
        self,
        settings: Settings,
        *,
        level: Level,
        trust_sidecar: bool,
        required_keys: tuple[str, ...],
        propose_repairs: bool,
    ) -> None:
        self._settings = settings
        self.level = level
        self._trust_sidecar = trust_sidecar
        self._propose_repairs = propose_repairs
        self._required_keys = required_keys
        self._directories = anyio.CapacityLimiter(DIRECTORIES_AT_ONCE)

    async def describe(self, target: Target, describe: Describe, opening: "_Opening | None" = None) -> Description:
        """Describe one target; `opening` is what came of opening it, if that was done already."""
        async with self._directories if target.is_directory else contextlib.nullcontext():
            return await self._describe(target, describe, opening)

    async def _describe(self, target: Target, describe: Describe, opening: "_Opening | None") -> Description:
        for attempt in itertools.count(1):
            opened_before, opening = opening, None
            try:
                if opened_before is not None:
                    request, files, identities = _result_of(opened_before)
                else:
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

    def open_files(self, targets: Sequence[Target]) -> "list[_Opening | None]":
        """Open many files, and say what came of each; None for directories, which are opened one by one."""
        openings: list[_Opening | None] = []
        with contextlib.ExitStack() as stack:
            views: dict[Root, _Remembering] = {}
            for target in targets:
                if target.is_directory:
                    openings.append(None)
                    continue
                try:
                    if target.root not in views:
                        views[target.root] = _Remembering(stack.enter_context(opened(target.root)))
                    openings.append(self._open_beneath(views[target.root], target))
                except (OSError, Changed) as error:
                    openings.append(error)
        return openings

    def _open(self, target: Target) -> "_Opened":
        with opened(target.root) as root_fd:
            return self._open_beneath(_Remembering(root_fd), target)

    def _open_beneath(self, view: "_Remembering", target: Target) -> "_Opened":
        companions = find_companions(view, target.path)
        request, files, identities = open_checkpoint(view.root_fd, target.path, companions)
        request = msgspec.structs.replace(
            request,
            checkpoint_path=shown_path(target.absolute)[0],
            level=self.level,
            trust_sidecar=self._trust_sidecar,
            propose_repairs=self._propose_repairs,
            redaction=self._settings.redaction,
            required_keys=(*self._required_keys, *self._settings.required_at(target.absolute)),
            timeout_s=self._time_for(identities.file.size),
        )
        return request, files, identities

    def _time_for(self, size_bytes: int) -> float | None:
        """`worker_timeout_s` is meant for parsing; reading every byte of a large file takes longer."""
        if self.level is Level.STRUCTURE or size_bytes < LARGE_BYTES:
            return None
        return self._settings.worker_timeout_s + size_bytes / SLOWEST_BYTES_PER_S


_Opened = tuple[DescribeRequest, OpenedFiles, Identities]
_Opening = _Opened | OSError | Changed


def _result_of(opening: _Opening) -> _Opened:
    """What was opened.

    Raises:
        OSError, Changed: it could not be opened.
    """
    if isinstance(opening, (OSError, Changed)):
        raise opening
    return opening


class _Remembering:
    """The disk, asked once for each name: the files of a directory share the places where their config may lie."""

    def __init__(self, root_fd: int) -> None:
        self.root_fd = root_fd
        self._disk = DirectFiles(root_fd)
        self.status = functools.lru_cache(self._disk.status)
        self.names = functools.lru_cache(self._disk.names)


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
