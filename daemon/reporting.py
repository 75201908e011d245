"""Error reporting: unexpected errors go to Sentry where a project is named; what may be a user's stays here."""

import contextlib
import importlib
import logging
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import structlog

from .logging import RateLimiter

REPORTS_PER_MINUTE = 2
"""Of one place in the code; what happens for every file of a tree is one report, not 100,000."""
CLOSE_S = 2.0
"""At the end, reports that are on their way get so long."""
WITHHELD = "(withheld)"

_KEPT = ("event_id", "timestamp", "level", "logger", "platform", "release", "environment", "sdk", "logentry")
_KEPT_OF_FRAME = ("function", "module", "lineno", "in_app", "context_line", "pre_context", "post_context")
_MESSAGE_LIMIT = 200
_FOREIGN = re.compile(r"""(['"`]).*?\1|\S*[/\\=@:]\S+""")
"""What may have come into a message from outside: what is quoted, paths, addresses, assignments."""

_ExcInfo = tuple[type[BaseException], BaseException, types.TracebackType | None]


@contextlib.contextmanager
def reporting_errors(dsn: str | None, log: structlog.stdlib.BoundLogger, *, transport: Any = None) -> Iterator[None]:
    """Report what is logged as an error, and what ends the block, while inside.

    Without a DSN nothing is imported. Sentry's own client is used and none of its integrations: neither the standard
    library nor a host application's Sentry is touched.

    Args:
        dsn: of the Sentry project.
        log: is told when nothing can be reported.
        transport: see `sentry_sdk.Client`.
    """
    reporter = None if dsn is None else _open(dsn, log, transport)
    if reporter is None:
        yield
        return
    root = logging.getLogger()
    root.addHandler(reporter)
    try:
        yield
    except Exception as error:
        reporter.report("the service ended by an error", "critical", "ckptd", (type(error), error, error.__traceback__))
        raise
    finally:
        root.removeHandler(reporter)
        reporter.close()


class ErrorReporter(logging.Handler):
    """Sends each error that is logged, as far as it is ours to tell: see `scrubbed`."""

    def __init__(self, client: Any, event_from_exception: Any) -> None:
        super().__init__(logging.ERROR)
        self._client = client
        self._event_from_exception = event_from_exception
        self._limiter = RateLimiter(REPORTS_PER_MINUTE)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            fields = record.msg if isinstance(record.msg, dict) else {}
            # The template, not the text: arguments may be a user's.
            message = str(fields.get("event", "")) if fields else str(record.msg)
            exc_info = _exc_info(fields.get("exc_info") or record.exc_info)
            self.report(message, record.levelname.lower(), record.name, exc_info)
        except Exception:  # noqa: BLE001 - whatever fails here must not stop the service, nor be reported again
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """A report that cannot be made is none."""

    def report(self, message: str, level: str, logger: str, exc_info: _ExcInfo | None) -> None:
        """Send one event, unless the same place has sent enough of late."""
        if not self._limiter.allow((logger, message, _place(exc_info))):
            return
        event: dict[str, Any] = {}
        if exc_info is not None:
            event, _ = self._event_from_exception(
                exc_info, client_options=self._client.options, mechanism={"type": "logging", "handled": True}
            )
        self._limiter.ended()
        event |= {"level": "fatal" if level == "critical" else level, "logger": logger}
        event["logentry"] = {"message": message}
        self._client.capture_event(event)

    def close(self) -> None:
        """Send what is on its way, for at most `CLOSE_S`."""
        self._client.close(timeout=CLOSE_S)
        super().close()


def scrubbed(event: Mapping[str, Any], _hint: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What may leave of an event (Sentry's `before_send`): what happened in which of our lines, and nothing else.

    The texts of exceptions, variables, fields of the log, paths and the machine's name stay here. They may hold
    tokens, names of experiments, hyper-parameters, or a piece of a checkpoint. Of an `OSError` the system's own words
    are told.
    """
    kept = {key: event[key] for key in _KEPT if key in event}
    message = str((event.get("logentry") or {}).get("message", ""))
    kept["logentry"] = {"message": without_foreign_text(message)}
    values = (event.get("exception") or {}).get("values") or []
    if values:
        kept["exception"] = {"values": [_scrubbed_exception(value) for value in values]}
    return kept


def without_foreign_text(message: str) -> str:
    """The first line of a message, without what may have come into it from outside."""
    return _FOREIGN.sub("…", message.strip().partition("\n")[0])[:_MESSAGE_LIMIT]


def _scrubbed_exception(value: Mapping[str, Any]) -> dict[str, Any]:
    mechanism = value.get("mechanism") or {}
    number = ((mechanism.get("meta") or {}).get("errno") or {}).get("number")
    frames = (value.get("stacktrace") or {}).get("frames") or []
    return {
        "type": value.get("type"),
        "module": value.get("module"),
        "value": os.strerror(number) if isinstance(number, int) else WITHHELD,
        "mechanism": {"type": "logging", "handled": bool(mechanism.get("handled", True))},
        "stacktrace": {"frames": [_scrubbed_frame(frame) for frame in frames]},
    }


def _scrubbed_frame(frame: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: frame[key] for key in _KEPT_OF_FRAME if key in frame}
    # Sentry needs a file name; an absolute one says where on whose machine ckptd is installed.
    name = str(frame.get("filename") or "")
    return kept | {"filename": os.path.basename(name) if os.path.isabs(name) else name}


def _open(dsn: str, log: structlog.stdlib.BoundLogger, transport: Any) -> ErrorReporter | None:
    from .collectors import VERSION

    try:
        sdk = importlib.import_module("sentry_sdk")
        utils = importlib.import_module("sentry_sdk.utils")
    except ImportError as error:
        log.warning(
            "errors are not reported: sentry_dsn is set, and sentry-sdk cannot be imported",
            error=str(error),
            remedy="pip install 'ckptd[reporting]', or unset sentry_dsn and SENTRY_DSN",
        )
        return None
    client = sdk.Client(
        dsn=dsn,
        transport=transport,
        release=f"ckptd@{VERSION}",  # named, or the SDK runs git to find one
        server_name="ckptd",
        before_send=scrubbed,
        default_integrations=False,
        auto_enabling_integrations=False,
        auto_session_tracking=False,
        include_local_variables=False,
        max_breadcrumbs=0,
        send_client_reports=False,
    )
    return ErrorReporter(client, utils.event_from_exception)


def _exc_info(given: Any) -> _ExcInfo | None:
    """`exc_info` as logging and structlog take it: a flag, an exception or a triple."""
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    if given and not isinstance(given, tuple):
        given = sys.exc_info()
    return given if given and given[0] is not None else None


def _place(exc_info: _ExcInfo | None) -> tuple[str, int] | None:
    """Where an exception was raised."""
    traceback = exc_info[2] if exc_info is not None else None
    if traceback is None:
        return None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
