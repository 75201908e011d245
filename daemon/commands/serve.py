"""ckptd serve: run the service in the foreground."""

import argparse

from ..memory import share_arenas
from .flags import add_setting_flags, settings_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Positional roots, and a flag for every setting."""
    parser.usage = "ckptd serve [ROOT ...] [--host HOST] [--port PORT] [settings]"
    parser.add_argument("positional_roots", nargs="*", metavar="ROOT", help="directories to watch (default: outputs)")
    parser.add_argument("--json", action="store_true", help="the same as --log-format json")
    add_setting_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    if options.json and options.log_format is None:
        options.log_format = "json"
    settings = settings_from(options)
    share_arenas()
    # Imported after the settings, so that an error in them answers at once. The zygote imports beside us: on two cores
    # the first description comes a quarter of a second earlier.
    from ..answers import Limits
    from ..zygote_process import ZYGOTE_COMMAND, launch_zygote

    limits = Limits.of(
        workers=settings.workers,
        memory_mb=settings.worker_memory_mb,
        timeout_s=settings.worker_timeout_s,
        architectures=settings.architectures,
    )
    zygote = launch_zygote(ZYGOTE_COMMAND, limits)
    from ..logging import configure
    from ..reporting import reporting_errors
    from ..server import run as serve

    log = configure(settings)
    with reporting_errors(settings.sentry_dsn, log):
        return serve(settings, log, zygote)
