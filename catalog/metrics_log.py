"""The metrics that Lightning's CSVLogger wrote at one step, found in a log of any size by a bounded look into it."""

import collections
import csv
import itertools
import math
import re
from collections.abc import Sequence

import msgspec

from ckptd.validators.reader import FileReader

WHOLE_BYTES = 256 << 10
"""Of a log up to this size every row is looked at."""
WINDOW_BYTES = 256 << 10
"""Of a larger one so much around the place where the step must be, which is found by halving: its rows are in order."""
PROBE_BYTES = 64 << 10
HEADER_BYTES = 256 << 10
MAX_COLUMNS = 4_096
MAX_ROWS = 200
"""Of one step; a training writes one for each of its parts."""
MAX_METRICS = 200
MAX_NAME = 200

_STEP, _EPOCH = "step", "epoch"
# What `trainer.test` logs at the last step may be about any other checkpoint.
_NOT_OF_TRAINING = re.compile(r"test(?:[/_.]|\Z)", re.IGNORECASE)
_NUMBER = re.compile(rb"[0-9]{1,18}(?:\.0*)?\Z")


class LoggedMetrics(msgspec.Struct, frozen=True):
    """What a log says of one step."""

    metrics: dict[str, float] = {}
    """By the names they were logged under. Of a name with two values nobody knows which one is meant."""
    is_final: bool = True
    """The log has gone on behind the step, or never will say anything of it: what comes later changes nothing."""


class _Log(msgspec.Struct, frozen=True):
    reader: FileReader
    size: int
    header: list[str]
    body: int
    """Where the first row begins."""

    def column(self, name: str) -> int | None:
        return self.header.index(name) if self.header.count(name) == 1 else None


def metrics_at(reader: FileReader, *, step: int | None, epoch: int | None) -> LoggedMetrics:
    """Read the metrics of one step; the rows of train and validation together.

    Rows are found by their step, and must not contradict the epoch: after the last epoch, a checkpoint counts one more
    than its rows. A log without steps is searched by epoch. What is not text, not whole or not a table says nothing.

    Args:
        reader: of the log.
        step: under which the loggers wrote when the checkpoint was saved (Lightning's are one behind).
        epoch: of the checkpoint.

    Raises:
        Unreadable: the system refused to read the log.
    """
    log = _opened(reader)
    if log is None:
        return LoggedMetrics(is_final=reader.size > HEADER_BYTES)
    steps, epochs = log.column(_STEP), log.column(_EPOCH)
    column, key = (steps, step) if _STEP in log.header else (epochs, epoch)
    if column is None or key is None:
        return LoggedMetrics()
    rows, last = _rows(log, column, key)
    kept = [row for row in rows if _fits(row, epochs, epoch)]
    passed = last is not None and (_is_beyond(last, column, key) or _is_beyond(last, epochs, epoch))
    return LoggedMetrics(_merged(log, kept), passed)


# ---- the table -------------------------------------------------------------------------------------------------


def _opened(reader: FileReader) -> _Log | None:
    """The log, with its header; None where there is none (yet)."""
    head = reader.read(0, min(HEADER_BYTES, reader.size))
    end = head.find(b"\n")
    if end < 0:
        return None
    header = _cells(head[:end])
    if header is None or len(header) > MAX_COLUMNS:
        header = []
    return _Log(reader, reader.size, [name.strip() for name in header], end + 1)


def _cells(line: bytes) -> list[str] | None:
    """The cells of one line; None where it is not one line of a table."""
    try:
        rows = list(csv.reader([line.decode("utf-8").rstrip("\r\n")], strict=True))
    except (UnicodeDecodeError, csv.Error):
        return None
    return rows[0] if len(rows) == 1 else None


def _number(row: Sequence[str], column: int | None) -> int | None:
    if column is None or column >= len(row):
        return None
    cell = row[column].strip()
    return int(float(cell)) if _NUMBER.match(cell.encode("utf-8", "replace")) else None


def _is_beyond(row: Sequence[str], column: int | None, key: int | None) -> bool:
    number = _number(row, column)
    return number is not None and key is not None and number > key


def _fits(row: Sequence[str], column: int | None, epoch: int | None) -> bool:
    number = _number(row, column)
    return number is None or epoch is None or number in (epoch, epoch - 1)


def _merged(log: _Log, rows: Sequence[Sequence[str]]) -> dict[str, float]:
    found: dict[str, set[float]] = {}
    columns = [(name, index) for index, name in enumerate(log.header) if _is_metric(name)]
    for row in rows:
        for name, index in columns:
            value = _value(row[index])
            if value is not None:
                found.setdefault(name, set()).add(value)
    repeated = {name for name, times in collections.Counter(log.header).items() if times > 1}
    certain = {name: values.pop() for name, values in found.items() if len(values) == 1 and name not in repeated}
    return dict(list(certain.items())[:MAX_METRICS])


def _is_metric(name: str) -> bool:
    return name not in ("", _STEP, _EPOCH) and len(name) <= MAX_NAME and _NOT_OF_TRAINING.match(name) is None


def _value(cell: str) -> float | None:
    if not cell or len(cell) > 40:
        return None
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# ---- where the rows are ----------------------------------------------------------------------------------------


def _rows(log: _Log, column: int, key: int) -> tuple[list[list[str]], list[str] | None]:
    """The rows whose column has the key, and the last row of the log."""
    if log.size - log.body <= WHOLE_BYTES:
        data = log.reader.read(log.body, log.size - log.body)
        return _matching(log, data, column, key), _last(log, data)
    tail = log.reader.read(log.size - PROBE_BYTES, PROBE_BYTES)
    begin = _place(log, column, key)
    if begin is None:
        return [], _last(log, tail)
    data = log.reader.read(begin, min(WINDOW_BYTES, log.size - begin))
    if begin > log.body:
        data = data[data.find(b"\n") + 1 :]
    rows = _matching(log, data, column, key)
    end = _last(log, data)
    whole = begin + WINDOW_BYTES >= log.size or (end is not None and _is_beyond(end, column, key))
    return rows if whole else [], _last(log, tail)


def _matching(log: _Log, data: bytes, column: int, key: int) -> list[list[str]]:
    """The whole lines that have the key in a column. What has quotes before it is no row of a logger's."""
    pattern = rb'^(?:[^,"\n]*,){%d}0*%d(?:\.0*)?(?:,[^\n]*)?\r?\n' % (column, key)
    matches = list(itertools.islice(re.finditer(pattern, data, re.MULTILINE), MAX_ROWS + 1))
    rows = [] if len(matches) > MAX_ROWS else [_cells(match.group()) for match in matches]
    return [row for row in rows if row is not None and len(row) == len(log.header)]


def _last(log: _Log, data: bytes) -> list[str] | None:
    """The last whole row; a line without its end is being written."""
    end = data.rfind(b"\n")
    while end > 0:
        begin = data.rfind(b"\n", 0, end) + 1
        row = _cells(data[begin:end])
        if row is not None and len(row) == len(log.header):
            return row
        if not begin:
            return None
        end = begin - 1
    return None


def _place(log: _Log, column: int, key: int) -> int | None:
    """An offset just before the first row with the key, by halving; None where the rows say nothing of their order."""
    low, high = log.body, log.size
    while high - low > PROBE_BYTES:
        middle = (low + high) // 2
        number = _number_behind(log, middle, column)
        if number is None:
            return None
        if number < key:
            low = middle
        else:
            high = middle
    return low


def _number_behind(log: _Log, offset: int, column: int) -> int | None:
    """The number in the first whole row behind an offset."""
    data = log.reader.read(offset, min(PROBE_BYTES, log.size - offset))
    lines = data.split(b"\n")[1:-1]
    numbers = (_number(cells, column) for line in lines[:100] if (cells := _cells(line)) is not None)
    return next((number for number in numbers if number is not None), None)
