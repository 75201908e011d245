"""LiveTable: the newest checkpoints of a daemon on a terminal, as they change."""

import heapq
import time
from collections import Counter, OrderedDict

from rich import box
from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ckptd.catalog.entry import CheckpointEntry, Health
from ckptd.validators.text import counted

from ..client import Change, ChangeKind, StreamState, StreamStatus
from . import output
from .ls import metric_of

HIGHLIGHT_S = 4.0
"""A change stands out for so long; what was deleted stays that long."""
_COLUMNS = ("checkpoint", "health", "epoch", "metric", "parameters", "size", "modified")
_RIGHT = ("epoch", "parameters", "size")
_FRAME_LINES = 4
"""Heading, rule, the line of status, and one to spare: what scrolls would leave a trail."""
_GONE, _NEW = Style(strike=True, dim=True), Style(bold=True)
_HEALTH = {Health.VALID: "green", Health.WRITING: "yellow", Health.INVALID: "red", Health.OFFLINE: "magenta"}


class LiveTable:
    """What is shown. Holds every entry that was told: the newest of those that are left must be known at any time."""

    def __init__(self) -> None:
        self.is_stale = True
        """Something has changed since it was drawn."""
        self._entries: dict[str, CheckpointEntry] = {}
        self._changed_at: OrderedDict[str, float] = OrderedDict()
        self._gone: OrderedDict[str, tuple[CheckpointEntry, float]] = OrderedDict()
        self._health: Counter[Health] = Counter()
        self._status = StreamStatus(state=StreamState.CONNECTING)
        self._is_synced = False

    def apply(self, change: Change) -> None:
        """Take one change."""
        self.is_stale = True
        now = time.monotonic()
        if change.kind is ChangeKind.SYNCED:
            self._is_synced = True
            return
        assert change.id is not None
        before = self._entries.pop(change.id, None)
        if before is not None:
            self._health[before.health] -= 1
        self._changed_at.pop(change.id, None)
        self._gone.pop(change.id, None)
        if change.entry is not None:
            self._entries[change.id] = change.entry
            self._health[change.entry.health] += 1
            if self._is_synced:
                self._changed_at[change.id] = now
        elif before is not None:
            self._gone[change.id] = (before, now)

    def stands(self, status: StreamStatus) -> None:
        """Take how the watch stands with the daemon."""
        self.is_stale = True
        self._status = status

    def draw(self, height: int) -> RenderableType:
        """The table, not higher than `height` lines."""
        self.is_stale = False
        self._forget(time.monotonic() - HIGHLIGHT_S)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
        for column in _COLUMNS:
            table.add_column(
                column,
                justify="right" if column in _RIGHT else "left",
                overflow="ellipsis",
                no_wrap=True,
                ratio=1 if column == "checkpoint" else None,
            )
        shown = [*self._entries.values(), *(entry for entry, _ in self._gone.values())]
        for entry in heapq.nlargest(max(1, height - _FRAME_LINES), shown, key=lambda entry: entry.modified_at):
            style = _GONE if entry.id in self._gone else _NEW if entry.id in self._changed_at else None
            table.add_row(*_cells(entry), style=style)
        return Group(table, Text(self._summary(), overflow="ellipsis", no_wrap=True))

    def _forget(self, before: float) -> None:
        while self._changed_at and next(iter(self._changed_at.values())) < before:
            self._changed_at.popitem(last=False)
        while self._gone and next(iter(self._gone.values()))[1] < before:
            self._gone.popitem(last=False)

    def _summary(self) -> str:
        counts = ", ".join(f"{count:,} {health}" for health, count in sorted(self._health.items()) if count)
        total = counted(len(self._entries), "checkpoint") + (f": {counts}" if counts else "")
        return f"{total}  |  {describe_status(self._status)}"


def describe_status(status: StreamStatus) -> str:
    """How a watch stands with its daemon, in a few words."""
    match status.state:
        case StreamState.WAITING:
            return output.printable(f"waiting for the daemon ({status.reason}), next try in {status.retry_in_s:.0f} s")
        case StreamState.LIVE if status.progress is not None:
            done, total = status.progress
            return f"live, looking at the tree: {done:,} of {total:,}"
        case StreamState.LIVE if status.complete_as_of is not None:
            return f"live, complete as of {output.age(status.complete_as_of)}"
        case state:
            return str(state)


def _cells(entry: CheckpointEntry) -> tuple[Text, ...]:
    health = Text(entry.health, style=_HEALTH[entry.health])
    rest = (
        "" if entry.epoch is None else str(entry.epoch),
        metric_of(entry),
        output.count(entry.n_parameters),
        output.size(entry.size_bytes),
        output.age(entry.modified_at),
    )
    return (Text(output.printable(entry.path)), health, *(Text(output.printable(cell)) for cell in rest))
