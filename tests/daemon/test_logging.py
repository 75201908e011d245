"""One stream for all logging: its form, its bounds, and that nothing in a file name can forge it."""

import io
import json
import logging

import pytest

from ckptd.daemon.logging import REPEATS_PER_MINUTE, RateLimiter, configure, tell_repeats
from ckptd.daemon.settings import Settings


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored_root_logger():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_off_a_terminal_each_event_is_one_json_line_with_a_utc_time():
    stream = io.StringIO()
    configure(Settings(), stream).info("catalog built", entries=16)
    (line,) = lines(stream)
    assert (line["event"], line["entries"], line["level"]) == ("catalog built", 16, "info")
    assert line["time"].endswith("Z")


def test_on_a_terminal_it_is_for_people_unless_json_is_asked_for():
    stream = Terminal()
    configure(Settings(), stream).info("catalog built", entries=16)
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream.getvalue())
    assert "catalog built" in stream.getvalue()
    stream = Terminal()
    configure(Settings(log_format="json"), stream).info("catalog built")
    assert lines(stream)[0]["event"] == "catalog built"


def test_loggers_of_the_standard_library_arrive_in_the_same_form():
    stream = io.StringIO()
    configure(Settings(), stream)
    logging.getLogger("uvicorn.error").warning("listening on %s", "[::]")
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("listening on [::]", "warning", "uvicorn.error")


def test_the_level_holds_for_all_and_chatty_libraries_stay_quiet_at_info():
    stream = io.StringIO()
    log = configure(Settings(log_level="warning"), stream)
    log.info("no")
    logging.getLogger("uvicorn.error").info("no")
    configure(Settings(), stream)
    logging.getLogger("watchfiles.main").info("3 changes detected")
    assert stream.getvalue() == ""


def test_configuring_again_moves_the_log_and_does_not_double_it():
    first, second = io.StringIO(), io.StringIO()
    configure(Settings(), first)
    configure(Settings(), second).info("once")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1


def test_bound_fields_stay_with_their_logger():
    stream = io.StringIO()
    log = configure(Settings(), stream)
    log.bind(root="/a").info("swept")
    log.info("swept")
    assert ["root" in line for line in lines(stream)] == [True, False]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_file_name_cannot_begin_a_line_or_colour_the_terminal(log_format):
    stream = Terminal()
    name = 'x\n{"event": "forged"}\x1b[31m\udcff'
    configure(Settings(log_format=log_format), stream).warning("file unreadable", path=name)
    text = stream.getvalue()
    text.encode()
    assert len(text.splitlines()) == 1
    assert "\x1b[31m" not in text.partition("path=")[2]


def test_an_exception_is_logged_with_its_traceback_and_without_local_variables():
    for log_format in ("json", "console"):
        stream = Terminal()
        log = configure(Settings(log_format=log_format), stream)
        secret = "s3cr3t" + "-value"
        try:
            raise OSError(5, "Input/output error", "x.ckpt")
        except OSError:
            log.exception("sweep failed")
        assert "Input/output error" in stream.getvalue()
        assert secret not in stream.getvalue()


def test_repeats_of_an_event_are_bounded_whatever_its_fields_and_others_are_not_touched():
    stream = io.StringIO()
    log = configure(Settings(), stream)
    for number in range(REPEATS_PER_MINUTE + 20):
        log.warning("sidecar refused", path=f"{number}.ckpt")
    log.warning("another")
    events = [line["event"] for line in lines(stream)]
    assert events.count("sidecar refused") == REPEATS_PER_MINUTE
    assert events[-1] == "another"


def test_debug_is_not_bounded():
    stream = io.StringIO()
    log = configure(Settings(log_level="debug"), stream)
    for _ in range(REPEATS_PER_MINUTE + 1):
        log.debug("looked")
    assert len(lines(stream)) == REPEATS_PER_MINUTE + 1


def test_after_the_minute_the_rest_is_counted_and_the_event_may_appear_again():
    now = [0.0]
    limiter = RateLimiter(limit=2, clock=lambda: now[0])
    assert [limiter.allow("a") for _ in range(5)] == [True, True, False, False, False]
    assert limiter.ended() == []
    now[0] = 60.0
    assert limiter.ended() == [("a", 3)]
    assert limiter.ended() == []
    assert limiter.allow("a")


def test_a_flood_that_is_over_is_told_also_where_nothing_is_logged_after_it():
    now = [0.0]
    stream = io.StringIO()
    log = configure(Settings(), stream, clock=lambda: now[0])
    for _ in range(REPEATS_PER_MINUTE + 1203):
        log.warning("sidecar refused")
    tell_repeats()
    assert "repeated" not in stream.getvalue()
    now[0] = 60.0
    tell_repeats()
    assert lines(stream)[-1]["event"] == "repeated 1,203 more times in 60 s: sidecar refused"
    assert lines(stream)[-1]["level"] == "warning"
    tell_repeats()
    assert len(lines(stream)) == REPEATS_PER_MINUTE + 1


def test_a_flood_is_told_when_the_log_ends():
    stream = io.StringIO()
    log = configure(Settings(), stream)
    for _ in range(REPEATS_PER_MINUTE + 2):
        log.warning("sidecar refused")
    logging.getLogger().handlers[-1].close()
    assert lines(stream)[-1]["event"] == "repeated 2 more times in 60 s: sidecar refused"


def test_a_flood_is_told_also_when_it_had_to_make_room_for_other_events():
    limiter = RateLimiter(limit=2, clock=lambda: 0.0)
    for _ in range(5):
        limiter.allow("a")
    for number in range(1000):
        limiter.allow(number)
    assert limiter.ended() == [("a", 3)]
    assert limiter.ended() == []


def test_an_event_within_its_limit_needs_no_summary():
    now = [0.0]
    limiter = RateLimiter(limit=2, clock=lambda: now[0])
    limiter.allow("a")
    now[0] = 61.0
    assert limiter.ended() == []


def test_the_limiter_s_memory_is_bounded():
    limiter = RateLimiter(clock=lambda: 0.0)
    for number in range(5000):
        limiter.allow(number)
    assert len(limiter._windows) <= 512


def test_a_log_that_cannot_be_written_does_not_stop_the_service():
    stream = io.StringIO()
    log = configure(Settings(), stream)
    stream.close()
    log.error("into the void")
