"""ckptd token: the tokens that the daemon of these roots asks for."""

import argparse
import os
import sys

from ..sockets import STATE_SOCKET
from ..tokens import token_paths
from . import output
from .exits import FINE, CommandError
from .flags import add_setting_flags, settings_from

_SETTINGS = ("roots", "state_dir", "token_file", "read_token_file", "config")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which daemon."""
    parser.add_argument("--json", action="store_true", help="one JSON document; the token is null where none is needed")
    parser.add_argument("--read", action="store_true", help="the token that may only read, for people and dashboards")
    add_setting_flags(parser, _SETTINGS)


def run(options: argparse.Namespace) -> int:
    """Print it; nothing is printed for a daemon that asks for none."""
    settings = settings_from(options)
    full, reading = token_paths(settings.state_dir, settings.token_file, settings.read_token_file)
    path = reading if options.read else full
    if path is None:
        raise CommandError("there is no token for readers beside a token_file; name one by read_token_file")
    try:
        with open(path, encoding="ascii") as file:
            token: str | None = file.read(4096).strip()
    except FileNotFoundError:
        if not os.path.exists(os.path.join(settings.state_dir, STATE_SOCKET)):
            raise CommandError(
                f"there is no token at {path} and no daemon in {settings.state_dir}; "
                "start one with `ckptd serve`, or name its --state-dir or --roots"
            ) from None
        token = None
    if options.json:
        output.print_json({"token": token})
    elif token is not None:
        print(token)
    else:
        print("the daemon asks for no token", file=sys.stderr)
    return FINE
