"""Filters: the parameters of the list, as flags."""

import argparse
from typing import Any

from .exits import USAGE, CommandError

_ANY_OF = {
    "exp_name": "only this experiment",
    "architecture": "only this architecture",
    "format": "only this format: torch_zip, safetensors, …",
    "finding": "only with this finding",
}
_PLAIN = {
    "health": "only this health: writing, valid, invalid or offline",
    "safety": "only this safety: safe, unknown or unsafe",
    "verified": "only verified so far: none, structure, checksum or weights",
    "modified_after": "only newer ones, RFC 3339: 2026-01-31T12:00:00Z",
    "modified_before": "only older ones",
}


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each filter of `GET /checkpoints`."""
    parser.add_argument(
        "query",
        nargs="?",
        metavar="SEARCH",
        help='only what this search finds: words, "a phrase", field:value, hmean>0.8, size<10MB, -not',
    )
    for name, text in _ANY_OF.items():
        parser.add_argument(
            "--" + name.replace("_", "-"), dest=name, action="append", help=f"{text}; repeated: any of them"
        )
    for name, text in _PLAIN.items():
        parser.add_argument("--" + name.replace("_", "-"), dest=name, help=text)
    for bound, text in (("min", "at least"), ("max", "at most")):
        parser.add_argument(
            f"--{bound}",
            action="append",
            default=[],
            metavar="METRIC=VALUE",
            help=f"only with this metric {text} VALUE",
        )
    parser.add_argument("--all", action="store_true", help="also the invalid ones")


def filters_of(options: argparse.Namespace) -> dict[str, Any]:
    """The flags as parameters of the list.

    Raises:
        CommandError: a bound is not METRIC=VALUE; exit code 2.
    """
    parameters: dict[str, Any] = {name: getattr(options, name) for name in (*_ANY_OF, *_PLAIN)}
    parameters["q"] = options.query
    parameters["include_invalid"] = True if options.all else None
    for bound in ("min", "max"):
        for given in getattr(options, bound):
            metric, equals, value = given.partition("=")
            if not (metric and equals and value):
                raise CommandError(f"--{bound} {given!r} cannot be used; write --{bound} hmean=0.8", USAGE)
            parameters[f"{bound}_{metric}"] = value
    return parameters
