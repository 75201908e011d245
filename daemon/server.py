"""The server: a service behind sockets; signals, readiness and a clean stop."""

import contextlib
import faulthandler
import functools
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from ckptd.catalog.roots import RootError
from ckptd.catalog.state import StateError, StateLocked
from ckptd.validators.text import counted

from . import sockets
from .figures import Sources, send_figures
from .http.app import build_app
from .http.backend import RebuildMode
from .http.connections import HttpConfig, HttpServer, Limits
from .http.page_files import page_for
from .http.security import AccessPolicy
from .http.source import TOKEN_CHANGED
from .logging import tell_repeats
from .loop import new_event_loop
from .service import Service
from .settings import Settings
from .supervision import feed_watchdog, patient_start, status_line, tell_status
from .systemd import Notifier
from .tokens import AccessError
from .zygote_process import ZygoteProcess

DRAIN_S = 4.0
"""How long a clean stop may take before what is left is cut off."""
GIVE_UP_S = 12.0
"""A thread that waits for a disk which does not answer can be neither ended nor waited for. Three clean stops long, and
less than the 15 s after which the units have systemd kill the service."""
OWN_DESCRIPTORS = 512
"""Kept for files: checkpoints that are read, directories that are swept, the state."""
REPEATS_TOLD_S = 10.0
"""How often the log is asked for floods that are over."""
TRACKED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(settings: Settings, log: structlog.stdlib.BoundLogger, zygote: ZygoteProcess | None = None) -> int:
    """Serve until a signal ends it.

    Args:
        settings: see there.
        log: see `logging.configure`.
        zygote: one that was launched already with the settings' limits.

    Returns:
        The exit code: 0 after a clean stop, 2 for settings that cannot work, 3 where the machine refuses.
    """
    _prepare_process()
    notifier = Notifier(os.environ)
    stuck = threading.Timer(GIVE_UP_S, _give_up, [log])
    stuck.daemon = True
    try:
        with patient_start(notifier), contextlib.closing(Service.open(settings, log, zygote)) as service:
            listeners = sockets.bind(settings, os.environ)
            for overruled in sockets.overruled_settings(settings, listeners):
                log.warning(
                    f"{overruled} does not count: systemd handed over the socket of {listeners.url}",
                    remedy="change ListenStream= of the socket unit, or disable that unit",
                )
            try:
                # By the addresses that are really listened on: systemd may hand over others than the settings name.
                access = AccessPolicy.from_settings(settings, service.roots, listeners.addresses)
                monitor = service.metrics.loop
                monitor.watch_collector()
                anyio.run(
                    functools.partial(_serve, service, access, listeners, notifier, stuck.start, log),
                    backend_options={"loop_factory": functools.partial(new_event_loop, monitor)},
                )
            finally:
                sockets.remove_unix_sockets(listeners)
    except (RootError, AccessError) as error:
        log.error("cannot start", error=str(error))
        return 2
    except (StateLocked, StateError, OSError) as error:
        log.error("cannot start", error=str(error))
        return 3
    finally:
        # Python waits at its end for threads whose work nobody waits for any more.
        if not any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
            stuck.cancel()
    return 0


def _give_up(log: structlog.stdlib.BoundLogger) -> None:
    """Runs in a thread of its own, some time after the service was asked to end."""
    log.error(
        "the service does not end by itself: a disk does not answer, or work never ends",
        remedy="see the stacks that follow",
    )
    faulthandler.dump_traceback()
    sys.stderr.flush()
    os._exit(128 + signal.SIGTERM)  # the state is a write-ahead log: what was told is on disk


async def _serve(
    service: Service,
    access: AccessPolicy,
    listeners: sockets.Listeners,
    notifier: Notifier,
    on_stopping: Callable[[], None],
    log: structlog.stdlib.BoundLogger,
) -> None:
    page = await anyio.to_thread.run_sync(page_for, service.settings, log)
    config = HttpConfig(
        build_app(service, access, log=log, page=page),
        Limits(max_connections=_max_connections(service.settings, log)),
        root_path=service.settings.root_path,
        drain_s=int(DRAIN_S),
    )
    server = HttpServer(config)
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        await tasks.start(_obey_signals, service, access, stop, notifier, log)
        tasks.start_soon(server.serve, listeners.sockets)
        async with service.running():
            access.announce(listeners.url, log)
            notifier.ready(f"serving {counted(len(service.catalog), 'checkpoint')} at {listeners.url}")
            tasks.start_soon(feed_watchdog, notifier)
            tasks.start_soon(tell_status, notifier, functools.partial(_status_line, service, listeners.url))
            tasks.start_soon(_tell_repeats)
            tasks.start_soon(_send_figures, service, log)
            await stop.wait()
            on_stopping()
            notifier.stopping()
            if listeners.handed_over:
                await server.take_no_more()
            with anyio.move_on_after(DRAIN_S):
                await service.hub.close()
            server.should_exit = True
        tasks.cancel_scope.cancel()


async def _obey_signals(
    service: Service,
    access: AccessPolicy,
    stop: anyio.Event,
    notifier: Notifier,
    log: structlog.stdlib.BoundLogger,
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    with anyio.open_signal_receiver(*TRACKED_SIGNALS) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                notifier.reloading()
                if await _reload(access, log):
                    service.hub.end_streams(TOKEN_CHANGED)
                service.request_rebuild(RebuildMode.SWEEP)
                notifier.ready("reloaded")
            elif stop.is_set():
                log.warning("stopped at once by a second signal", signal=signal.Signals(number).name)
                sys.stderr.flush()
                os._exit(128 + number)  # the state is a write-ahead log: what was told is on disk
            else:
                log.info("stopping", signal=signal.Signals(number).name)
                stop.set()


async def _reload(access: AccessPolicy, log: structlog.stdlib.BoundLogger) -> bool:
    """Whether other tokens are in force now."""
    try:
        changed = await anyio.to_thread.run_sync(access.reload)
    except AccessError as error:
        log.error("the tokens were not read again; the old ones stay in force", error=str(error))
        return False
    if changed:
        log.info("other tokens are in force; old ones, their cookies and streams have ended")
    return changed


def _status_line(service: Service, url: str) -> str:
    return status_line(service.status(), service.hub.counts.listeners, url)


async def _tell_repeats() -> None:
    """Floods that are over are told also where nothing is logged after them."""
    while True:
        await anyio.sleep(REPEATS_TOLD_S)
        tell_repeats()


async def _send_figures(service: Service, log: structlog.stdlib.BoundLogger) -> None:
    settings = service.settings
    if settings.wandb_project is None:
        return
    sources = Sources(service.status, lambda: service.hub.counts, service.metrics.counts, service.metrics.loop)
    await send_figures(
        settings.wandb_project, sources, every_s=settings.wandb_every_s, directory=settings.state_dir, log=log
    )


def _max_connections(settings: Settings, log: structlog.stdlib.BoundLogger) -> int:
    """As many as were set, as far as the descriptors go: without one, nothing at all could be accepted or read."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = max(1, descriptors - OWN_DESCRIPTORS)
    if descriptors == resource.RLIM_INFINITY or settings.max_connections <= possible:
        return settings.max_connections
    log.warning(
        "fewer connections than max_connections are possible",
        max_connections=settings.max_connections,
        possible=possible,
        remedy="raise the limit of open files (LimitNOFILE= of the unit, ulimit -n), or lower max_connections",
    )
    return possible


def _prepare_process() -> None:
    """What belongs to the whole process: descriptors, and signals that must not end it."""
    faulthandler.enable()  # systemd's watchdog sends SIGABRT: the journal then says where the event loop hung
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the default 1,024 is for programs that select()
    # The kernel sends SIGIO when somebody opens a file on which a lease is tried (look.has_writer).
    signal.signal(signal.SIGIO, signal.SIG_IGN)
