"""Connection: how a command finds the daemon, and what it says when there is none."""

import argparse
import contextlib
import glob
import os
import socket
from collections.abc import Iterator

from ..client import CatalogClient, ClientError, find_daemon
from ..settings import Settings
from ..sockets import STATE_SOCKET
from .exits import ENVIRONMENT, USAGE, CommandError
from .flags import add_setting_flags, settings_from

_SETTINGS = ("roots", "state_dir", "config")
_REFUSED = (401, 403, 421, 429)


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """What tells one daemon from another: its address, or the roots or state that it was started with."""
    parser.add_argument("--url", help="address of the daemon (default: CKPTD_URL, else the socket in its state)")
    add_setting_flags(parser, _SETTINGS)


@contextlib.contextmanager
def connected(options: argparse.Namespace) -> Iterator[CatalogClient]:
    """A client of the daemon; its errors become the command's.

    Raises:
        CommandError: no daemon is there (3), it refuses (3), or does not know what was asked for (2).
    """
    try:
        with _client(options) as client:
            yield client
    except ClientError as error:
        asked_wrongly = error.status is not None and 400 <= error.status < 500 and error.status not in _REFUSED
        raise CommandError(str(error), USAGE if asked_wrongly else ENVIRONMENT) from None


def _client(options: argparse.Namespace) -> CatalogClient:
    settings = settings_from(options)
    env = dict(os.environ)
    if options.url is not None:
        env["CKPTD_URL"] = options.url
    elif options.roots is not None or options.state_dir is not None:
        env.pop("CKPTD_URL", None)  # a flag names another daemon than the environment does
    try:
        return find_daemon(settings.state_dir, env)
    except ClientError:
        lonely = _only_daemon(settings, options)
        if lonely is None:
            raise
        return CatalogClient(uds=lonely)


def _only_daemon(settings: Settings, options: argparse.Namespace) -> str | None:
    """The socket of the one daemon that this user runs, when nothing was said about which one is meant.

    So `ckptd ls` works from any directory; with two daemons it would be a guess, and is not made.
    """
    named = (options.url, options.roots, options.state_dir, options.config)
    if any(given is not None for given in named) or any(name in os.environ for name in ("CKPTD_ROOTS", "CKPTD_CONFIG")):
        return None
    pattern = os.path.join(glob.escape(os.path.dirname(settings.state_dir)), "*", STATE_SOCKET)
    alive = [path for path in glob.glob(pattern) if _answers(path)]
    return alive[0] if len(alive) == 1 else None


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
