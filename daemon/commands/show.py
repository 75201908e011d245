"""ckptd show: everything known of one checkpoint, with what to do about what was found."""

import argparse
import os
import re
from typing import Any

from ..client import CatalogClient
from . import output
from .connection import add_connection_arguments, connected
from .exits import FINE, FOUND, USAGE, CommandError

_ID = re.compile(r"[a-z2-7]{16}")
_TOP = (
    *("checkpoint_path", "id", "health", "verified", "safety", "exp_name", "run_id", "architecture", "backbone"),
    *("epoch", "global_step", "monitor", "monitor_mode", "monitor_value", "format", "dtypes", "modified_at"),
    *("created_at", "metadata_source", "config_path", "content_id", "alias_of", "revision"),
)
_AMBIGUOUS_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which one."""
    parser.add_argument("checkpoint", metavar="ID_OR_PATH", help="an id from `ckptd ls`, or a path or the end of one")
    parser.add_argument("--tensors", action="store_true", help="also every tensor")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    add_connection_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Show it; 1 if it is invalid."""
    with connected(options) as client:
        checkpoint_id = _find(client, options.checkpoint)
        detail = client.get(checkpoint_id)
        tensors = client.tensors(checkpoint_id) if options.tensors else None
    if options.json:
        output.print_json(detail if tensors is None else detail | {"tensors": tensors})
    else:
        _print_detail(detail)
        if tensors is not None:
            rows = [
                (t["name"], t["dtype"], " x ".join(map(str, t["shape"])), output.size(t["nbytes"])) for t in tensors
            ]
            output.print_table(("tensor", "dtype", "shape", "size"), rows, ("size",))
    # A dangling link is invalid by a warning: nothing is wrong with the file that it led to.
    errors = any(found["severity"] == "error" for found in detail["findings"])
    return FOUND if errors or detail["health"] == "invalid" else FINE


def _find(client: CatalogClient, given: str) -> str:
    if _ID.fullmatch(given) and not os.path.lexists(given):
        return given
    absolute = os.path.join(os.path.realpath(os.path.dirname(given) or "."), os.path.basename(given))
    name = os.path.basename(given)
    ends: list[dict[str, Any]] = []
    for entry in client.iterate(q=name, include_invalid=True):
        if entry["checkpoint_path"] == absolute:
            return str(entry["id"])
        if ("/" + entry["path"]).endswith("/" + given.removeprefix("./")):
            ends.append(entry)
    exact = [entry for entry in ends if entry["path"] == given.removeprefix("./")]
    ends = exact if len(exact) == 1 else ends
    if len(ends) == 1:
        return str(ends[0]["id"])
    if not ends:
        raise CommandError(f"{given!r} is not in the catalog; `ckptd ls --all` lists what is", USAGE)
    shown = "".join(f"\n  {entry['id']}  {output.printable(entry['path'])}" for entry in ends[:_AMBIGUOUS_SHOWN])
    raise CommandError(f"{given!r} fits {len(ends)} checkpoints; name one by more of its path, or by id:{shown}", USAGE)


def _print_detail(detail: dict[str, Any]) -> None:
    rows = [(name, _shown(detail.get(name))) for name in _TOP if detail.get(name) not in (None, [], "")]
    rows += [(f"metrics.{name}", _shown(value)) for name, value in detail["metrics"].items()]
    rows.append(("size", output.size(detail["size_bytes"])))
    if detail["n_parameters"] is not None:
        rows.append(("parameters", output.count(detail["n_parameters"])))
        rows += [(f"parameters.{part}", output.count(n)) for part, n in detail.get("parameters_by_part", {}).items()]
    output.print_table(("field", "value"), rows)
    if detail.get("recognized"):
        output.print_table(("part", "recognised as", "confidence", "by"), map(_recognized, detail["recognized"]))
    for found in detail["findings"]:
        print(output.printable(f"{found['severity']}: {found['code']}{_message(found)}"))


def _recognized(part: dict[str, Any]) -> tuple[object, ...]:
    return part["part"], part["name"], f"{part['confidence']:.0%}", "; ".join(part["evidence"])


def _message(found: dict[str, Any]) -> str:
    message, remedy = found.get("message"), found.get("remedy")
    return f": {message}; {remedy}" if message else ""


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
