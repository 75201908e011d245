"""ckptd ls: the list of a running daemon."""

import argparse
import itertools

from ckptd.catalog.entry import CheckpointEntry

from . import output
from .connection import add_connection_arguments, connected
from .exits import FINE
from .filters import add_filter_arguments, filters_of

_COLUMNS = ("checkpoint", "health", "epoch", "metric", "parameters", "size", "modified", "id")
_RIGHT = ("epoch", "parameters", "size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Filters, order, number."""
    add_filter_arguments(parser)
    parser.add_argument("--sort-by", metavar="FIELD", help="a field or a metric (default: the time of modification)")
    parser.add_argument("--sort-order", choices=("asc", "desc"), help="ascending or descending")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many")
    parser.add_argument("--json", action="store_true", help="one JSON array of entries")
    add_connection_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """List what matches."""
    parameters = filters_of(options) | {"sort_by": options.sort_by, "sort_order": options.sort_order}
    if options.limit is not None:
        parameters["page_size"] = max(1, min(options.limit, 1000))
    with connected(options) as client:
        entries = list(itertools.islice(client.iterate(**parameters), options.limit))
    if options.json:
        output.print_json(entries)
    elif output.is_terminal():
        output.print_table(_COLUMNS, map(_row, entries), _RIGHT)
    else:
        output.print_table((), map(_line, entries))
    return FINE


def metric_of(entry: CheckpointEntry) -> str:
    """The monitored metric, else the first, as `name=value`."""
    if entry.monitor_value is not None:
        return f"{entry.monitor}={entry.monitor_value:.4g}"
    return next((f"{name}={value:.4g}" for name, value in entry.metrics.items()), "")


def _row(entry: CheckpointEntry) -> tuple[object, ...]:
    return (
        entry.path,
        entry.health,
        entry.epoch,
        metric_of(entry),
        output.count(entry.n_parameters),
        output.size(entry.size_bytes),
        output.age(entry.modified_at),
        entry.id,
    )


def _line(entry: CheckpointEntry) -> tuple[object, ...]:
    """For programs: whole numbers and times as they are."""
    fields = ("id", "checkpoint_path", "health", "epoch", "global_step", "monitor", "monitor_value")
    return tuple(getattr(entry, field) for field in (*fields, "size_bytes", "modified_at"))
