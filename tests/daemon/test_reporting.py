"""What leaves for Sentry, by the real SDK: that something went wrong and where, and nothing of a user's."""

import gzip
import http.server
import json
import logging
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
import structlog
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from ckptd.daemon.reporting import REPORTS_PER_MINUTE, WITHHELD, reporting_errors, without_foreign_text
from ckptd.daemon.settings_loader import SettingsError, load_settings
from tests.service.daemons import DEADLINE_S, Daemon, eventually

DSN = "https://public@sentry.invalid/42"
TOKEN = "tok-0123456789abcdef"
PATH = "/srv/outputs/secret_project/lr=0.00042/best.ckpt"


class Kept(Transport):
    """Keeps what the SDK would send."""

    def __init__(self) -> None:
        super().__init__({"dsn": DSN})
        self.sent: list[dict[str, Any]] = []
        self.bytes: list[bytes] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        """As `Transport`."""
        self.bytes.append(envelope.serialize())
        event = envelope.get_event()
        if event is not None:
            self.sent.append(dict(event))


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def log() -> Iterator[structlog.stdlib.BoundLogger]:
    """As the service's, without a handler of its own."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    yield structlog.wrap_logger(
        logging.getLogger("ckptd"),
        processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    assert root.handlers == handlers


def _fail_on(token: str, hyper_parameters: dict[str, float]) -> None:
    """Both are in its frame, and in the text of its error."""
    raise ValueError(f"cannot use {token} of {PATH}: {hyper_parameters}")


def test_a_report_says_what_happened_in_which_line_and_nothing_of_a_user_s(
    kept: Kept, log: structlog.stdlib.BoundLogger
) -> None:
    with reporting_errors(DSN, log, transport=kept):
        try:
            _fail_on(TOKEN, {"lr": 0.00042})
        except ValueError:
            log.exception("a look failed", path=PATH, token=TOKEN)
    (event,) = kept.sent
    assert (event["level"], event["logger"], event["logentry"]["message"]) == ("error", "ckptd", "a look failed")
    (error,) = event["exception"]["values"]
    assert (error["type"], error["value"]) == ("ValueError", WITHHELD)
    frame = error["stacktrace"]["frames"][-1]
    assert (frame["function"], frame["filename"].rpartition("/")[2]) == ("_fail_on", "test_reporting.py")
    assert "vars" not in frame
    assert event["release"].startswith("ckptd@")
    # The lines of source around it are our own code, public like the rest of it; they are cut out for the search.
    for frame in error["stacktrace"]["frames"]:
        for lines in ("pre_context", "context_line", "post_context"):
            frame.pop(lines, None)
    told = json.dumps(event)
    for secret in (TOKEN, PATH, "secret_project", "0.00042", "best.ckpt", str(pathlib.Path.home())):
        assert secret not in told


def test_of_an_error_of_the_system_its_own_words_are_told_and_not_the_file(
    kept: Kept, log: structlog.stdlib.BoundLogger, tmp_path: pathlib.Path
) -> None:
    name = PATH.split("/")[3]  # not written out here: the lines of source are told
    with reporting_errors(DSN, log, transport=kept):
        try:
            (tmp_path / name).stat()
        except OSError as error:
            log.error("state cannot be written", exc_info=error)
    (event,) = kept.sent
    assert event["exception"]["values"][-1]["value"] == "No such file or directory"
    assert name.encode() not in b"".join(kept.bytes)


def test_errors_of_libraries_are_told_without_what_was_put_into_their_texts(
    kept: Kept, log: structlog.stdlib.BoundLogger
) -> None:
    with reporting_errors(DSN, log, transport=kept):
        logging.getLogger("uvicorn.error").error("cannot read %s for '%s'", PATH, TOKEN)
        logging.getLogger("asyncio").error(f"Task failed: {PATH}\nfuture: <Task coro={TOKEN}>")
    assert [event["logentry"]["message"] for event in kept.sent] == ["cannot read %s for …", "Task failed: …"]
    assert TOKEN.encode() not in b"".join(kept.bytes)


def test_what_is_only_a_warning_is_not_reported(kept: Kept, log: structlog.stdlib.BoundLogger) -> None:
    with reporting_errors(DSN, log, transport=kept):
        log.warning("sidecar refused")
    assert kept.sent == []


def test_a_flood_from_one_place_is_a_few_reports_and_another_place_is_heard(
    kept: Kept, log: structlog.stdlib.BoundLogger
) -> None:
    with reporting_errors(DSN, log, transport=kept):
        for number in range(100):
            log.error("a checkpoint could not be verified", path=f"{number}.ckpt")
        log.error("no checkpoint can be described")
    assert len(kept.sent) == REPORTS_PER_MINUTE + 1


def test_an_error_that_ends_the_service_is_reported_and_goes_on(kept: Kept, log: structlog.stdlib.BoundLogger) -> None:
    with pytest.raises(RuntimeError), reporting_errors(DSN, log, transport=kept):
        raise RuntimeError(TOKEN)
    (event,) = kept.sent
    assert (event["level"], event["exception"]["values"][0]["type"]) == ("fatal", "RuntimeError")


def test_nobody_else_s_sentry_is_touched(kept: Kept, log: structlog.stdlib.BoundLogger) -> None:
    call_handlers, excepthook = logging.Logger.callHandlers, sys.excepthook
    with reporting_errors(DSN, log, transport=kept):
        assert not sentry_sdk.get_client().is_active()
        assert (logging.Logger.callHandlers, sys.excepthook) == (call_handlers, excepthook)


def test_a_transport_that_breaks_costs_nothing_but_the_report(log: structlog.stdlib.BoundLogger) -> None:
    class Broken(Kept):
        def capture_envelope(self, envelope: Envelope) -> None:
            raise ConnectionError(envelope)

    with reporting_errors(DSN, log, transport=Broken()):
        log.error("no checkpoint can be described")


def test_without_the_sdk_the_operator_is_told_and_the_service_goes_on(
    monkeypatch: pytest.MonkeyPatch, log: structlog.stdlib.BoundLogger, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)  # an import of it fails
    with reporting_errors(DSN, log):
        pass
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "ckptd[reporting]" in str(record.msg)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("state cannot be written; the catalog goes on", "state cannot be written; the catalog goes on"),
        ("no space on /srv/x y", "no space on … y"),
        ("token 'a b c' refused", "token … refused"),
        ("lr=0.1 of me@example.com", "… of …"),
        ("\n first\nsecond", "first"),
        ("x" * 500, "x" * 200),
    ],
)
def test_a_message_is_cut_down_to_our_own_words(message: str, told: str) -> None:
    assert without_foreign_text(message) == told


def test_the_dsn_is_the_setting_else_sentry_s_own_variable_and_a_wrong_one_is_refused(tmp_path: pathlib.Path) -> None:
    env = {"STATE_DIRECTORY": str(tmp_path), "SENTRY_DSN": DSN}
    assert load_settings({}, env).sentry_dsn == DSN
    assert load_settings({"sentry_dsn": "https://k@other.invalid/o/7"}, env).sentry_dsn == "https://k@other.invalid/o/7"
    assert load_settings({}, {"STATE_DIRECTORY": str(tmp_path)}).sentry_dsn is None
    with pytest.raises(SettingsError, match=r"sentry_dsn: 'sentry\.invalid' .*is not a DSN such as"):
        load_settings({"sentry_dsn": "sentry.invalid"}, env)


class _Sentry(http.server.ThreadingHTTPServer):
    """A Sentry of loopback, that takes every envelope."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Project)
        self.envelopes: queue.SimpleQueue[bytes] = queue.SimpleQueue()


class _Project(http.server.BaseHTTPRequestHandler):
    server: _Sentry

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.envelopes.put(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        """The test's output is no access log."""


@pytest.fixture
def sentry() -> Iterator[_Sentry]:
    with _Sentry() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_daemon_reports_over_the_wire_and_keeps_its_token(
    tmp_path: pathlib.Path, sentry: _Sentry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token file that vanished is an error at a reload; neither its path nor its token leaves."""
    monkeypatch.setenv("SENTRY_DSN", f"http://public@127.0.0.1:{sentry.server_address[1]}/42")
    outputs, token_file = tmp_path / "outputs", tmp_path / "the_token"
    outputs.mkdir()
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)
    daemon = Daemon(outputs, tmp_path / "state", token_file=token_file, no_allow_anonymous=None)
    daemon.launch()
    with daemon:
        eventually(lambda: "readers need the token" in daemon.log(), "the service answers")
        token_file.unlink()
        daemon.signal(signal.SIGHUP)
        envelope = sentry.envelopes.get(timeout=DEADLINE_S)
        assert b"the tokens were not read again" in envelope
        for secret in (TOKEN, "the_token", str(tmp_path)):
            assert secret.encode() not in envelope


def test_unless_they_are_configured_neither_sentry_nor_wandb_is_imported(tmp_path: pathlib.Path) -> None:
    code = (
        "import sys; from ckptd.daemon.cli import main; main(sys.argv[1:]);"
        "print(sorted(sys.modules.keys() & {'sentry_sdk', 'wandb', 'ckptd.daemon.reporting'}))"
    )
    (tmp_path / "outputs").mkdir()
    daemon = Daemon(tmp_path / "outputs", tmp_path / "state")
    daemon.log_file.touch()
    command = [sys.executable, "-c", code, *daemon.command()[3:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        daemon.process = process  # type: ignore[assignment]
        eventually(daemon.is_up, "the service answers")
        process.terminate()
        assert process.communicate(timeout=DEADLINE_S)[0].strip() == "['ckptd.daemon.reporting']"
