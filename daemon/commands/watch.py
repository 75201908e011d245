"""ckptd watch: what happens in a running daemon, line by line, until stopped."""

import argparse
import asyncio
from datetime import datetime
from typing import Any

import msgspec

from ..client import CatalogClient, Change, ChangeKind
from . import output
from .connection import add_connection_arguments, connected
from .exits import FINE
from .filters import add_filter_arguments, filters_of
from .ls import metric_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Filters, and whether what exists is told first."""
    add_filter_arguments(parser)
    parser.add_argument("--new", action="store_true", help="only what happens from now on, not what exists")
    parser.add_argument("--json", action="store_true", help="JSON lines, as in a pipe")
    add_connection_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Follow the changes until the reader or a signal ends it."""
    filters = filters_of(options)
    as_json = options.json or not output.is_terminal()
    with connected(options) as client:
        client.health()  # `watch` waits for a daemon that is away; the first time it shall be there
        asyncio.run(_follow(client, filters, as_json=as_json, only_new=options.new))
    return FINE


async def _follow(client: CatalogClient, filters: dict[str, Any], *, as_json: bool, only_new: bool) -> None:
    quiet = only_new
    paths: dict[str | None, str] = {}
    async for change in client.watch(**filters):
        if change.entry is not None:
            paths[change.id] = change.entry["path"]
        if not quiet:
            print(_line(change) if as_json else _sentence(change, paths), flush=True)
        if change.kind is ChangeKind.SYNCED:
            quiet = False
        if change.kind is ChangeKind.DELETE:
            paths.pop(change.id, None)


def _line(change: Change) -> str:
    return msgspec.json.encode(change).decode()


def _sentence(change: Change, paths: dict[str | None, str]) -> str:
    now = datetime.now().astimezone().strftime("%H:%M:%S")
    if change.kind is ChangeKind.SYNCED:
        return f"{now}   up to date at revision {change.revision}"
    path = output.printable(paths.get(change.id) or str(change.id))
    if change.entry is None:
        return f"{now} - {path} ({change.reason})"
    entry = change.entry
    codes = [found["code"] for found in entry["findings"] if found["severity"] != "info"]
    return " ".join(word for word in (f"{now} + {path}", entry["health"], metric_of(entry), *codes) if word)
