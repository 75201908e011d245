"""The access log: what is asked for, one event a request, and nothing in it that is anybody's secret."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from ckptd.daemon.http import AccessPolicy
from ckptd.daemon.http.access_log import client_kind
from ckptd.daemon.logging import REPEATS_PER_MINUTE, configure
from ckptd.daemon.settings import Settings
from ckptd.daemon.settings_loader import SettingsError, load_settings
from tests.daemon.fakes import FakeBackend, serving, until

pytestmark = pytest.mark.anyio
TOKEN = "tok-0123456789abcdef"


class Log:
    """A daemon's log, as its lines."""

    def __init__(self, settings: Settings) -> None:
        self.stream = io.StringIO()
        self.logger = configure(settings, self.stream)

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The access log's events."""
        lines = map(json.loads, self.stream.getvalue().splitlines())
        return [line for line in lines if line["event"] == "request"]


@pytest.fixture(autouse=True)
def _restored_root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def backend_of(tmp_path: Any, access_log: str) -> FakeBackend:
    return FakeBackend(
        Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state"), access_log=access_log)  # type: ignore[arg-type]
    )


async def test_errors_alone_are_told_of_by_default(tmp_path: Any) -> None:
    backend = FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")))
    log = Log(backend.settings)
    async with serving(backend, log=log.logger) as server, server.client() as http:
        etag = (await http.get("/checkpoints")).headers["etag"]
        await http.get("/checkpoints", headers={"If-None-Match": etag})
        assert log.requests == []
        await http.get("/checkpoints/abcdefghijklmnop")
        (line,) = log.requests
    assert (line["method"], line["route"], line["status"]) == ("GET", "/checkpoints/{id}", 404)
    assert (line["level"], line["client"], line["over"]) == ("info", "python", "tcp")
    assert line["bytes"] > 0
    assert line["duration_ms"] >= 0


async def test_all_tells_of_every_request_whatever_their_number_and_of_a_stream_when_it_ends(tmp_path: Any) -> None:
    backend = backend_of(tmp_path, "all")
    log = Log(backend.settings)
    async with serving(backend, log=log.logger) as server, server.client() as http:
        for _ in range(REPEATS_PER_MINUTE + 5):
            await http.get("/health")
        listener = await server.listen()
        await listener.until("complete")
        assert len(log.requests) == REPEATS_PER_MINUTE + 5
        await listener.close()
        await until(lambda: len(log.requests) == REPEATS_PER_MINUTE + 6, "the end of the stream is told")
    line = log.requests[-1]
    assert (line["route"], line["status"], line["bytes"]) == ("/checkpoints/events", 200, None)


async def test_off_tells_of_none(tmp_path: Any) -> None:
    backend = backend_of(tmp_path, "off")
    log = Log(backend.settings)
    async with serving(backend, log=log.logger) as server, server.client() as http:
        await http.get("/nowhere")
        await http.get("/checkpoints")
    assert log.requests == []


async def test_no_query_no_header_no_address_and_no_token_is_ever_logged(tmp_path: Any) -> None:
    backend = backend_of(tmp_path, "all")
    log = Log(backend.settings)
    access = AccessPolicy(TOKEN, hosts=frozenset({"localhost"}))
    async with serving(backend, access, log=log.logger) as server, server.client() as http:
        await http.get("/", params={"token": TOKEN})
        await http.get("/", params={"token": TOKEN + "wrong"})
        await http.get("/checkpoints", headers={"Authorization": f"Bearer {TOKEN}"}, params={"q": "secret_project"})
        await http.get("/secret_project/x", headers={"Cookie": "a=secret_cookie", "User-Agent": "secret_agent/1"})
    statuses = [line["status"] for line in log.requests]
    assert statuses == [303, 401, 200, 401]
    text = log.stream.getvalue()
    for secret in (TOKEN, "secret", "127.0.0.1", "Bearer"):
        assert secret not in text


async def test_a_failure_inside_is_a_warning(tmp_path: Any) -> None:
    backend = backend_of(tmp_path, "errors")
    log = Log(backend.settings)
    async with serving(backend, log=log.logger) as server, server.client() as http:
        checkpoint_id = backend.put("a.ckpt")

        async def broken(_: object) -> None:
            raise OSError("the disk is on fire")

        backend.description = broken  # type: ignore[method-assign, assignment]
        await http.get(f"/checkpoints/{checkpoint_id}")
        (line,) = log.requests
    assert (line["status"], line["level"]) == (500, "warning")


async def test_a_flood_of_one_refusal_is_bounded_and_hides_no_other(tmp_path: Any) -> None:
    backend = backend_of(tmp_path, "errors")
    log = Log(backend.settings)
    async with serving(backend, log=log.logger) as server, server.client() as http:
        for number in range(REPEATS_PER_MINUTE + 20):
            await http.get(f"/nowhere/{number}")
        await http.post("/rebuild", params={"mode": "sideways"})
    told = [(line["route"], line["status"]) for line in log.requests]
    assert told.count(("other", 404)) == REPEATS_PER_MINUTE
    assert told[-1] == ("/rebuild", 400)


async def test_over_a_unix_socket_is_told(tmp_path: Any) -> None:
    backend = backend_of(tmp_path, "all")
    log = Log(backend.settings)
    async with serving(backend, uds=str(tmp_path / "s"), log=log.logger) as server, server.client() as http:
        await http.get("/health")
    assert log.requests[0]["over"] == "unix"


@pytest.mark.parametrize(
    ("agent", "kind"),
    [
        (b"Mozilla/5.0 (X11)", "browser"),
        (b"curl/8.5", "curl"),
        (b"python-httpx/0.28", "python"),
        (b"Prometheus/2.42.0", "prometheus"),
        (b"ckptd/0.1.0", "ckptd"),
        (b"\xff\xfe", "other"),
        (None, "other"),
    ],
)
def test_clients_are_told_by_kind(agent: bytes | None, kind: str) -> None:
    assert client_kind({"headers": [] if agent is None else [(b"user-agent", agent)]}) == kind


def test_yaml_s_off_is_off(tmp_path: Any) -> None:
    """YAML 1.1 reads a bare `off` as false."""
    config = tmp_path / "ckptd.yaml"
    config.write_text("access_log: off\n")
    assert load_settings({}, {"STATE_DIRECTORY": str(tmp_path)}, str(config)).access_log == "off"
    config.write_text("access_log: some\n")
    with pytest.raises(SettingsError, match="access_log: 'some'"):
        load_settings({}, {"STATE_DIRECTORY": str(tmp_path)}, str(config))
