"""ckptd rebuild: make a running daemon look at its trees again."""

import argparse

from . import output
from .connection import add_connection_arguments, connected
from .exits import FINE, CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much is trusted, and whether to wait."""
    parser.add_argument(
        "--mode",
        choices=("sweep", "full"),
        default="sweep",
        help="sweep: look at the whole tree, unchanged files are not read again; full: read every checkpoint again",
    )
    parser.add_argument("--wait", action="store_true", help="return when it is done")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="longest wait; none by default")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    add_connection_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Ask for it, and wait where asked to; 3 when the wait is over before it is done."""
    with connected(options) as client:
        try:
            answer = client.rebuild(options.mode, wait=options.wait, timeout_s=options.timeout)
        except TimeoutError:
            raise CommandError(f"the rebuild was not done within {options.timeout:g} s; it goes on") from None
    if options.json:
        output.print_json(answer)
    elif options.wait:
        print(f"rebuilt: {answer.mode}, now at revision {answer.revision}")
    else:
        print(f"rebuild begun: {answer.mode}, token {answer.token}")
    return FINE
