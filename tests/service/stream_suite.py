"""The live stream's suite: what must hold by whatever way a reader comes. Test modules give it their `door`."""

import pathlib
import time
import uuid

import pytest

from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.contract import contract
from tests.service.doors import Door, Listening

HEARTBEAT_S = 0.3
"""What the service behind every door is set to."""


def show_up(path: pathlib.Path, listening: Listening) -> None:
    """A checkpoint appears, and is told."""
    rename_in(path, checkpoint_bytes())
    while path.name not in {entry["path"] for entry in listening.until("upsert")[-1]["checkpoints"]}:
        pass


class StreamSuite:
    """Needs a fixture `door`. What ends the service comes last."""

    @pytest.fixture
    def path(self, door: Door) -> pathlib.Path:
        """Where a test's own checkpoint goes."""
        return door.outputs / f"{uuid.uuid4().hex}.ckpt"

    def test_a_stream_begins_with_a_snapshot(self, door: Door) -> None:
        with door.listen() as listening:
            headers = listening.response.headers
            assert headers["content-type"].startswith("text/event-stream")
            assert headers["cache-control"] == "no-store"
            events = listening.until("complete")
        assert [event["type"] for event in events] == ["reset", "batch", "complete"]
        assert "seed.ckpt" in {entry["path"] for entry in events[1]["checkpoints"]}
        for event in events:
            contract().validate("LiveMessage", event)

    def test_a_change_arrives_while_the_stream_is_open(self, door: Door, path: pathlib.Path) -> None:
        """Nothing on the way keeps it back: no further event is needed to push it through."""
        with door.listen() as listening:
            listening.until("complete")
            show_up(path, listening)
            path.unlink()
            gone = listening.until("delete")[-1]["checkpoints"]
            assert [entry["path"] for entry in gone] == [path.name]

    def test_heartbeats_come_one_by_one(self, door: Door) -> None:
        """Nothing on the way collects small events to pass them on together."""
        with door.listen() as listening:
            listening.until("complete")
            listening.until("heartbeat")
            began = time.monotonic()
            beats = [listening.until("heartbeat")[-1] for _ in range(5)]
            assert time.monotonic() - began > 2 * HEARTBEAT_S
        assert all(beat["complete_as_of"] for beat in beats)

    def test_who_returns_with_the_last_events_id_misses_nothing(self, door: Door, path: pathlib.Path) -> None:
        with door.listen() as listening:
            listening.until("complete")
            cursor = listening.last_event_id
        rename_in(path, checkpoint_bytes())
        for headers, parameters in (({"Last-Event-ID": cursor}, {}), ({}, {"last_event_id": cursor})):
            with door.listen(headers, **parameters) as listening:
                assert listening.next() == {"type": "resumed", "revision": int(cursor.split(".")[-2])}
                told = {entry["path"] for entry in listening.until("upsert")[-1]["checkpoints"]}
                while path.name not in told:
                    told |= {entry["path"] for entry in listening.until("upsert")[-1]["checkpoints"]}

    @pytest.mark.parametrize("cursor", ["gibberish", "a.b.c", "x" * 3000, "other.1.0", "%00%ff", "-.-1.0"])
    def test_a_doubtful_cursor_gets_a_snapshot_and_no_error(self, door: Door, cursor: str) -> None:
        with door.listen({"Last-Event-ID": cursor}) as by_header, door.listen(last_event_id=cursor) as by_query:
            for listening in (by_header, by_query):
                assert listening.until("complete")[0]["type"] == "reset"

    def test_a_filter_applies_to_snapshot_and_changes(self, door: Door, path: pathlib.Path) -> None:
        with door.listen(q=path.stem) as listening:
            assert listening.until("complete")[-1]["total"] == 0
            rename_in(path.with_name("unseen-" + path.name[:8] + ".ckpt"), checkpoint_bytes(1))
            rename_in(path, checkpoint_bytes())
            assert [entry["path"] for entry in listening.until("upsert")[-1]["checkpoints"]] == [path.name]

    def test_a_reader_that_asks_for_gzip_gets_it_and_changes_at_once(self, door: Door, path: pathlib.Path) -> None:
        with door.listen({"Accept-Encoding": "gzip"}) as listening:
            assert listening.response.headers["content-encoding"] == "gzip"
            listening.until("complete")
            show_up(path, listening)

    def test_head_says_what_get_would_and_ends(self, door: Door) -> None:
        with door.client() as http:
            head = http.head(f"{door.url}/checkpoints/events")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")

    def test_other_methods_are_refused_with_what_is_allowed(self, door: Door) -> None:
        with door.client() as http:
            refused = http.post(f"{door.url}/checkpoints/events")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert refused.headers["content-type"] == "application/problem+json"

    def test_a_misspelt_filter_is_refused_before_the_stream_begins(self, door: Door) -> None:
        refused = door.get("/checkpoints/events", exp_nam="x")
        assert (refused.status_code, refused.json()["field"]) == (400, "exp_nam")

    def test_the_stream_that_ends_ends(self, door: Door) -> None:
        answer = door.get("/checkpoints/stream", limit="1")
        door.check(answer)
        assert answer.text.count("data: ") == 2

    def test_an_unchanged_list_is_a_304(self, door: Door) -> None:
        with door.client() as http:
            first = http.get(f"{door.url}/checkpoints?q=seed")
            door.check(first)
            known = {"If-None-Match": first.headers["etag"]}
            for _ in range(20):  # others' changes end the validity of every list
                again = http.get(f"{door.url}/checkpoints?q=seed", headers=known)
                if again.status_code == 304:
                    return
                known = {"If-None-Match": again.headers["etag"]}
        pytest.fail("never a 304")

    def test_the_description_names_the_prefix_and_every_link_stays_beneath_it(self, door: Door) -> None:
        document = door.get("/openapi.json").json()
        assert document["servers"] == [{"url": door.prefix or "/"}]
        page = door.get("/")
        assert '="./' in page.text or 'href="checkpoints"' in page.text, "relative to wherever the page lies"
        assert '="/' not in page.text

    def test_shutdown_says_bye_and_when_to_come_back(self, door: Door) -> None:
        with door.listen() as plain, door.listen({"Accept-Encoding": "gzip"}) as packed:
            plain.until("complete")
            packed.until("complete")
            door.stop()
            for listening in (plain, packed):
                assert listening.until("bye")[-1]["reason"] == "shutdown"
                assert listening.retry_ms is not None
                assert listening.next() is None, "bye is the last word"
