"""The command `ckptd`: finds the subcommand, imports only what it needs, turns errors into exit codes."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Protocol

from .commands.exits import ENVIRONMENT, INTERRUPTED, PIPE_CLOSED, CommandError

COMMANDS: dict[str, str] = {
    "serve": "watch trees of checkpoints and answer over HTTP",
    "ls": "list the checkpoints of a running daemon",
    "show": "everything known of one checkpoint",
    "diff": "what distinguishes two to four checkpoints",
    "validate": "inspect files or trees here and now, without a daemon",
    "metadata": "write the missing .metadata.yaml files of a tree, without a daemon",
    "index": "rebuild or verify .checkpoint_index.json",
    "watch": "follow the changes of a running daemon",
    "rebuild": "make a running daemon look at its trees again",
    "token": "print the token of a running daemon",
}
"""Subcommand → what it does. Each is a module of `commands` with `add_arguments` and `run`."""

_EXIT_CODES = """\
exit codes:
  0  fine
  1  a finding of severity error, or a difference
  2  usage: an argument or a setting cannot be used
  3  environment: no daemon there, port taken, state locked, not permitted

Every command takes --json. `ckptd COMMAND --help` has the details.
"""


class Command(Protocol):
    """What a module of `commands` offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        ...

    def run(self, options: argparse.Namespace) -> int:
        """Do the job; returns the exit code."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. The entry point of `ckptd`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser(arguments).parse_args(arguments)
    command: Command = options.command_module
    try:
        status = command.run(options)
        sys.stdout.flush()
    except CommandError as error:
        print(f"ckptd: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read has read enough. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        where = f": {os.fsdecode(error.filename)}" if error.filename is not None else ""
        print(f"ckptd: {error.strerror or error}{where}", file=sys.stderr)
        return ENVIRONMENT
    return status


def version() -> str:
    """The installed version, or `unknown` when ckptd runs from a bare source tree."""
    from importlib import metadata

    try:
        return metadata.version("ckptd")
    except metadata.PackageNotFoundError:
        return "unknown"


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ckptd",
        description="A live, always-right catalog of PyTorch checkpoints.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # Only the chosen command is imported: `ckptd --help` answers at once.
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=_EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:
            module = importlib.import_module(f".commands.{name}", __package__)
            module.add_arguments(subparser)
            subparser.set_defaults(command_module=module)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: reading the installed metadata costs 20 ms."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"ckptd {version()}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
