"""Logging: one stream for ckptd, uvicorn and watchfiles; pretty on a terminal, JSON elsewhere, repeats bounded."""

import collections
import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Hashable
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ckptd.validators.text import counted

from .setting_types import LogFormat
from .settings import Settings

REPEATS_PER_MINUTE = 30
"""One event may appear so often in a minute; what exceeds it is counted and told in one line."""

REQUEST_EVENT = "request"
"""The access log's event. Answers that went well are not repeats of each other: whoever asks for them all gets all."""

_WINDOW_S = 60.0
_EVENTS_TRACKED = 512
_TOO_CHATTY = ("httpx", "httpcore", "watchfiles", "uvicorn.access")
"""Third-party loggers whose `info` says each request or each file event."""


def configure(
    settings: Settings, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
) -> structlog.stdlib.BoundLogger:
    """Send all logging of the process to `stream` and return ckptd's logger.

    The standard library's root logger is replaced at the handler that an earlier call installed, others are kept.
    There is no global context: bind what belongs to a part and hand that logger down.

    Args:
        settings: `log_format` and `log_level` are used.
        stream: by default stderr.
        clock: by which repeats are counted; monotonic seconds.
    """
    stream = sys.stderr if stream is None else stream
    handler = _Handler(stream, RateLimiter(clock=clock))
    handler.setFormatter(_formatter(stream, settings.log_format))
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    root = logging.getLogger()
    for earlier in [known for known in root.handlers if isinstance(known, _Handler)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _TOO_CHATTY:
        logging.getLogger(name).setLevel(level if level < logging.INFO else max(level, logging.WARNING))
    return cast(
        "structlog.stdlib.BoundLogger",
        structlog.wrap_logger(
            logging.getLogger("ckptd"),
            processors=[
                structlog.stdlib.filter_by_level,
                *_shared(),
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        ),
    )


def tell_repeats() -> None:
    """Have the log tell of floods that are over, also where nothing else happens that would."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            with handler.lock or contextlib.nullcontext():
                handler.tell_repeats()


class RateLimiter:
    """Counts events by key in windows of a minute. Pure but for the clock that it is given."""

    def __init__(self, limit: int = REPEATS_PER_MINUTE, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._windows: dict[Hashable, tuple[float, int]] = {}
        self._cut: collections.deque[tuple[Hashable, int]] = collections.deque(maxlen=_EVENTS_TRACKED)

    def allow(self, key: Hashable) -> bool:
        """Whether the event may appear now; it is counted either way."""
        now = self._clock()
        start, count = self._windows.get(key, (now, 0))
        if key not in self._windows and len(self._windows) >= _EVENTS_TRACKED:
            self._cut_short()
        self._windows[key] = (start, count + 1)
        return count < self._limit

    def ended(self, *, all_of_them: bool = False) -> list[tuple[Hashable, int]]:
        """Forget the windows that are over; returns (key, events left out) of those that were over the limit."""
        oldest = math.inf if all_of_them else self._clock() - _WINDOW_S
        over = [*self._cut, *((key, count) for key, (start, count) in self._windows.items() if start <= oldest)]
        self._cut.clear()
        for key, _ in over:
            self._windows.pop(key, None)
        return [(key, count - self._limit) for key, count in over if count > self._limit]

    def _cut_short(self) -> None:
        """Make room for another event by ending the oldest window before its time."""
        key = next(iter(self._windows))
        _, count = self._windows.pop(key)
        if count > self._limit:
            self._cut.append((key, count))


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to the stream, bounding repeats of the same event; `debug` is never bounded."""

    def __init__(self, stream: TextIO, limiter: RateLimiter) -> None:
        super().__init__(stream)
        self._limiter = limiter

    def emit(self, record: logging.LogRecord) -> None:
        self.tell_repeats()
        if record.levelno < logging.INFO or _is_each_worth_a_line(record) or self._limiter.allow(_key(record)):
            super().emit(record)

    def tell_repeats(self, *, all_of_them: bool = False) -> None:
        """Tell how often events were left out whose minute is over, or all of them at the end."""
        for key, left_out in self._limiter.ended(all_of_them=all_of_them):
            super().emit(_summary(key, left_out))

    def close(self) -> None:
        """Tell what was left out before the log ends."""
        if not self.stream.closed:
            self.tell_repeats(all_of_them=True)
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """A log that cannot be written (closed pipe, full disk) must not stop the service nor log about itself."""


def _key(record: logging.LogRecord) -> Hashable:
    # The template, not the text: a thousand files with the same trouble are one event.
    if not isinstance(record.msg, dict):
        return record.name, record.levelno, str(record.msg)
    message = str(record.msg.get("event", ""))
    if message == REQUEST_EVENT:  # one flood of refused requests must not hide that another route fails
        message = f"{message} {record.msg.get('route')} {record.msg.get('status')}"
    return record.name, record.levelno, message


def _is_each_worth_a_line(record: logging.LogRecord) -> bool:
    return isinstance(record.msg, dict) and record.msg.get("event") == REQUEST_EVENT and record.msg["status"] < 400


def _summary(key: Hashable, left_out: int) -> logging.LogRecord:
    name, level, message = cast("tuple[str, int, str]", key)
    text = f"repeated {counted(left_out, 'more time')} in {_WINDOW_S:.0f} s: {message}"
    return logging.LogRecord(name, level, __file__, 0, text, None, None)


def _shared() -> list[Processor]:
    return [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.stdlib.PositionalArgumentsFormatter(),
    ]


def _formatter(stream: TextIO, log_format: LogFormat) -> logging.Formatter:
    terminal = stream.isatty()
    if log_format is LogFormat.CONSOLE or (log_format is LogFormat.AUTO and terminal):
        # The plain traceback: rich's shows local variables, and with them tokens.
        renderer: Processor = structlog.dev.ConsoleRenderer(
            colors=terminal, timestamp_key="time", exception_formatter=structlog.dev.plain_traceback
        )
        last: list[Processor] = [_printable, renderer]
    else:
        # json, not msgspec: names that are not UTF-8 arrive as surrogates, which it escapes.
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *_shared()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """File names may hold newlines and terminal escapes; they are shown, not obeyed."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable() and key not in ("exception", "stack"):
            event[key] = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
    return event
