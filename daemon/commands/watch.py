"""ckptd watch: what happens in a running daemon; a live table on a terminal, JSON lines in a pipe, until stopped."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import msgspec

from ..client import CatalogClient, Change, ChangeKind, StreamState, StreamStatus
from . import output
from .connection import add_connection_arguments, connected
from .exits import FINE
from .filters import add_filter_arguments, filters_of
from .ls import metric_of

DRAWS_PER_S = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Filters, form, and where to begin."""
    add_filter_arguments(parser)
    parser.add_argument("--new", action="store_true", help="only what happens from now on, not what exists")
    parser.add_argument(
        "--since", metavar="EVENT_ID", help="go on behind this `event_id` of an earlier run, not from the beginning"
    )
    parser.add_argument("--lines", action="store_true", help="a line for each change, instead of the live table")
    parser.add_argument("--json", action="store_true", help="JSON lines, as in a pipe")
    add_connection_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Follow the changes until the reader or a signal ends it."""
    filters = filters_of(options)
    with connected(options) as client:
        client.health()  # `watch` waits for a daemon that is away; the first time it shall be there
        if options.json or not output.is_terminal():
            asyncio.run(_tell(client, filters, options, as_json=True))
        elif options.lines:
            asyncio.run(_tell(client, filters, options, as_json=False))
        else:
            asyncio.run(_show(client, filters, options))
    return FINE


async def _tell(client: CatalogClient, filters: dict[str, Any], options: argparse.Namespace, *, as_json: bool) -> None:
    paths: dict[str | None, str] = {}
    changes = client.watch(last_event_id=options.since, on_status=_Absence().stands, **filters)
    async for change in _new_only(changes) if options.new else changes:
        if change.entry is not None:
            paths[change.id] = change.entry.path
        print(msgspec.json.encode(change).decode() if as_json else _sentence(change, paths), flush=True)
        if change.kind is ChangeKind.DELETE:
            paths.pop(change.id, None)


async def _show(client: CatalogClient, filters: dict[str, Any], options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.live import Live

    from .live_table import LiveTable

    table, console = LiveTable(), Console()

    async def draw(live: Live) -> None:
        drawn_at = 0.0
        while True:
            now = asyncio.get_running_loop().time()
            if table.is_stale or now - drawn_at >= 1:  # "3 s ago" goes on by itself
                live.update(table.draw(console.height), refresh=True)
                drawn_at = now
            await asyncio.sleep(1 / DRAWS_PER_S)

    changes = client.watch(last_event_id=options.since, on_status=table.stands, **filters)
    try:
        with Live(table.draw(console.height), console=console, auto_refresh=False, vertical_overflow="crop") as live:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(draw(live))
                async for change in _new_only(changes) if options.new else changes:
                    table.apply(change)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None  # the refusal itself, for whoever turns it into an exit code


async def _new_only(changes: AsyncIterator[Change]) -> AsyncIterator[Change]:
    """Without what exists: everything up to the first `synced`."""
    begun = False
    async for change in changes:
        if begun:
            yield change
        begun = begun or change.kind is ChangeKind.SYNCED


class _Absence:
    """Says on standard error when the daemon is away, and when it is back."""

    def __init__(self) -> None:
        self._is_away = False

    def stands(self, status: StreamStatus) -> None:
        """Take how the watch stands with the daemon."""
        if status.state is StreamState.WAITING and not self._is_away:
            self._is_away = True
            print(output.printable(f"ckptd: waiting for the daemon: {status.reason}"), file=sys.stderr, flush=True)
        elif status.state is StreamState.LIVE and self._is_away:
            self._is_away = False
            print("ckptd: the daemon is back", file=sys.stderr, flush=True)


def _sentence(change: Change, paths: dict[str | None, str]) -> str:
    now = datetime.now().astimezone().strftime("%H:%M:%S")
    if change.kind is ChangeKind.SYNCED:
        return f"{now}   up to date at revision {change.revision}"
    path = output.printable(paths.get(change.id) or str(change.id))
    if change.entry is None:
        return f"{now} - {path} ({change.reason})"
    entry = change.entry
    codes = [found.code for found in entry.findings if found.severity != "info"]
    return " ".join(word for word in (f"{now} + {path}", entry.health, metric_of(entry), *codes) if word)
