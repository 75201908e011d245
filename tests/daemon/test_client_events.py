"""The parser of server-sent events: however the bytes are cut, the events are the same (WHATWG HTML, 9.2.6)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.daemon.client import ClientError
from ckptd.daemon.client_events import MAX_RETRY_MS, Event, EventParser


def parse(*chunks: bytes, last_id: str = "") -> list[Event]:
    parser = EventParser(last_id)
    return [event for chunk in chunks for event in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b"data: a\n\n", [Event(b"a", "")]),
        (b"data:a\ndata: b\ndata\n\n", [Event(b"a\nb\n", "")]),
        (b"id: 1\ndata: a\n\ndata: b\n\nid:\ndata: c\n\n", [Event(b"a", "1"), Event(b"b", "1"), Event(b"c", "")]),
        (b"id: 1\n\ndata: a\n\n", [Event(b"a", "1")]),
        (b"id: 1\ndata: a\n\nid: 2\n", [Event(b"a", "1")]),
        (b"id: 1\0\ndata: a\n\n", [Event(b"a", "")]),
        (b": comment\nevent: x\nodd: y\nodd\ndata: a\n\n", [Event(b"a", "")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event(b"a", "")]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [Event(b"a", ""), Event(b"b", ""), Event(b"c", "")]),
        (b"data:  two spaces\n\n", [Event(b" two spaces", "")]),
        (b"data: a: b\n\n", [Event(b"a: b", "")]),
        (b"\n\n\n", []),
        (b"data: unfinished", []),
        (b"data: unfinished\n", []),
    ],
)
def test_events_are_read_as_browsers_read_them_however_they_are_cut(text: bytes, events: list[Event]) -> None:
    assert parse(text) == events
    assert parse(*(text[i : i + 1] for i in range(len(text)))) == events
    for cut in range(len(text)):
        assert parse(text[:cut], text[cut:]) == events


@given(
    st.lists(st.sampled_from([b"data: x\n", b"id: 7\r\n", b"\r", b"\n", b"id\n", b"retry: 5\n", b": \xe2\x80\xa8\n"]))
)
def test_cutting_changes_nothing(parts: list[bytes]) -> None:
    text = b"".join(parts)
    assert parse(*parts) == parse(text) == parse(*(bytes([byte]) for byte in text))


def test_the_cursor_that_was_given_stands_until_another_one_comes() -> None:
    assert parse(b"data: a\n\nid: 2\ndata: b\n\n", last_id="1") == [Event(b"a", "1"), Event(b"b", "2")]


@pytest.mark.parametrize(
    ("text", "retry_ms"),
    [(b"3000", 3000), (b"", None), (b"-1", None), (b"1.5", None), (b"x", None), (b"9" * 5000, MAX_RETRY_MS)],
)
def test_a_reconnection_time_is_taken_if_it_is_one(text: bytes, retry_ms: int | None) -> None:
    parser = EventParser()
    assert list(parser.feed(b"retry: " + text + b"\n")) == []
    assert parser.retry_ms == retry_ms


@pytest.mark.parametrize("piece", [b"x" * 100, b"data: x\n" * 20])
def test_an_event_without_end_is_given_up(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptd.daemon.client_events.MAX_EVENT_BYTES", 10_000)
    parser = EventParser()
    events = (event for _ in range(2_000) for event in parser.feed(piece))
    with pytest.raises(ClientError, match="more than 10000 bytes"):
        list(events)
