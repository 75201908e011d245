"""Who guesses tokens is told to slow down; who knows one is let in at once, and nobody else notices."""

import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from ckptd.daemon.http import AccessPolicy, connections
from ckptd.daemon.http.guesses import FREE, PEER, PEER_UID, Guesses, peer_of
from tests.daemon.fakes import FakeBackend, serving
from tests.daemon.test_security import LOOPBACK, READ_TOKEN, TOKEN, settings_of

WRONG = {"Authorization": "Bearer a-guess-of-enough-characters"}
RIGHT = {"Authorization": f"Bearer {TOKEN}"}


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# ---- the decision ------------------------------------------------------------------------------------------------


def test_so_many_wrong_tokens_are_free_and_the_next_one_says_when_it_would_be() -> None:
    guesses = Guesses(free=3, forgotten_s=6)
    assert [guesses.wait_s("a", 0) for _ in range(5)] == [0, 0, 0, 6, 6]
    assert guesses.wait_s("a", 5) == 1
    assert [guesses.wait_s("a", 6), guesses.wait_s("a", 6)] == [0, 6]
    assert [guesses.wait_s("a", 100) for _ in range(4)] == [0, 0, 0, 6], "all is forgotten"


def test_what_is_refused_does_not_count_so_nobody_is_put_off_for_ever() -> None:
    guesses = Guesses(free=3, forgotten_s=6)
    waits = [guesses.wait_s("a", second / 10) for second in range(600)]
    assert waits.count(0) == 3 + 9, "one in six seconds, under a steady fire"
    assert max(waits) <= 6


def test_a_peer_never_waits_for_what_another_one_did() -> None:
    guesses = Guesses(free=3)
    for _ in range(1000):
        guesses.wait_s("a", 0)
    assert guesses.wait_s("b", 0) == 0


def test_however_many_peers_there_are_the_memory_is_bounded_and_the_busy_one_is_kept() -> None:
    guesses = Guesses(free=3, max_peers=100)
    for number in range(1000):
        for _ in range(4):
            guesses.wait_s("busy", 0)
        guesses.wait_s(f"other {number}", 0)
    assert len(guesses) == 100
    assert guesses.wait_s("busy", 0) > 0
    assert guesses.wait_s("other 0", 0) == 0


def test_in_any_order_of_peers_and_times_no_more_are_free_than_a_plain_count_says() -> None:
    """Against a model that keeps every guess; the times are a seeded walk."""
    chance = random.Random(7)
    guesses, now = Guesses(free=5, forgotten_s=6), 0.0
    granted: dict[str, list[float]] = {}
    for _ in range(5000):
        now += chance.expovariate(1.0)
        peer = chance.choice("abc")
        if guesses.wait_s(peer, now) == 0:
            granted.setdefault(peer, []).append(now)
    for times in granted.values():
        for first, at in enumerate(times):
            within = sum(at <= other <= at + 60 for other in times[first:])
            assert within <= 5 + 10 + 1, "free ones, and those forgotten within a minute"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::9", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("testclient", "another", False),
    ],
)
def test_an_address_of_ipv6_counts_by_its_network(one: str, other: str, same: bool) -> None:
    assert (peer_of({PEER: one}) == peer_of({PEER: other})) is same


def test_a_user_of_the_unix_socket_counts_apart_from_others_and_from_addresses() -> None:
    peers = {peer_of(scope) for scope in ({PEER_UID: 0}, {PEER_UID: 1}, {PEER: "127.0.0.1"}, {"client": None}, {})}
    assert len(peers) == 4
    assert peer_of({"client": ("192.0.2.1", 5)}) == peer_of({PEER: "192.0.2.1"}), "where another server hosts ckptd"
    assert len(peer_of({PEER: "x" * 10_000})) <= 64


# ---- on the wire -------------------------------------------------------------------------------------------------


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    return FakeBackend(settings_of(str(tmp_path), tmp_path / "state"))


async def exhaust(http: httpx.AsyncClient) -> httpx.Response:
    """Send wrong tokens until it is too many; the refusal."""
    for _ in range(FREE):
        assert (await http.get("/checkpoints", headers=WRONG)).status_code == 401
    return await http.get("/checkpoints", headers=WRONG)


@pytest.mark.anyio
async def test_after_too_many_wrong_tokens_the_refusal_says_when_to_come_back(backend: FakeBackend) -> None:
    clock = Clock()
    async with serving(backend, AccessPolicy(TOKEN, hosts=LOOPBACK, clock=clock)) as server, server.client() as http:
        refused = await exhaust(http)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "6")
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["connection"] == "close", "each further guess has to connect first"
        assert "ckptd token" in refused.json()["remedy"]
        live = await http.get("/checkpoints/events", headers=WRONG)
        assert (live.status_code, live.headers["retry-after"]) == (429, "6")
        assert (await http.post("/rebuild", headers=WRONG)).status_code == 429
        clock.now = 5.5
        assert (await http.get("/checkpoints", headers=WRONG)).headers["retry-after"] == "1"
        clock.now = 6
        assert (await http.get("/checkpoints", headers=WRONG)).status_code == 401
        assert backend.rebuilds == []


@pytest.mark.anyio
async def test_a_right_token_or_cookie_is_let_in_at_once_whatever_else_came_from_there(backend: FakeBackend) -> None:
    policy = AccessPolicy(TOKEN, read_token=READ_TOKEN, hosts=LOOPBACK, clock=Clock())
    async with serving(backend, policy) as server, server.client() as http:
        assert (await exhaust(http)).status_code == 429
        for token in (TOKEN, READ_TOKEN):
            assert (await http.get("/checkpoints", headers={"Authorization": f"Bearer {token}"})).status_code == 200
        assert (await http.get("/checkpoints")).status_code == 401, "to ask without one is no guess"
        assert (await http.get("/health", headers=WRONG)).status_code == 200
        assert (await http.get("/", params={"token": "a-guess-of-the-link"})).status_code == 429
        assert (await http.get("/", params={"token": TOKEN})).status_code == 303
        assert (await http.get("/checkpoints", headers=WRONG)).status_code == 200, "by its cookie"
        assert (await http.post("/rebuild", headers=RIGHT)).status_code == 202


@pytest.mark.anyio
async def test_who_signs_in_by_the_form_is_told_in_the_form(backend: FakeBackend) -> None:
    async with serving(backend, AccessPolicy(TOKEN, hosts=LOOPBACK, clock=Clock())) as server, server.client() as http:
        page = {"Accept": "text/html"}
        for _ in range(FREE):
            assert (await http.get("/", params={"token": "mistyped"}, headers=page)).status_code == 401
        refused = await http.get("/", params={"token": "mistyped"}, headers=page)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "6")
        assert '<p role="alert">Too many wrong tokens' in refused.text
        assert 'type="password"' in refused.text
        assert (await http.get("/", headers=page)).status_code == 401, "to look at the form is no guess"


@pytest.mark.anyio
async def test_an_invented_address_in_a_header_makes_no_new_peer(backend: FakeBackend) -> None:
    """uvicorn believes X-Forwarded-For of loopback; who guesses there may write what it likes into it."""
    async with serving(backend, AccessPolicy(TOKEN, hosts=LOOPBACK, clock=Clock())) as server, server.client() as http:
        assert (await exhaust(http)).status_code == 429
        for number in range(5):
            headers = WRONG | {"X-Forwarded-For": f"192.0.2.{number}"}
            assert (await http.get("/checkpoints", headers=headers)).status_code == 429


@pytest.mark.anyio
async def test_users_of_the_unix_socket_are_counted_each_for_themselves(
    backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = AccessPolicy(TOKEN, hosts=LOOPBACK, clock=Clock())
    async with serving(backend, policy, uds=str(tmp_path / "sock")) as server, server.client() as owner:
        monkeypatch.setattr(connections, "_peer_uid", lambda _: 4_242)
        async with server.client() as guesser:
            for _ in range(FREE):
                assert (await guesser.post("/rebuild", headers=WRONG)).status_code == 403
            assert (await guesser.post("/rebuild", headers=WRONG)).status_code == 429
            assert (await guesser.get("/health/checkpoints", headers=WRONG)).status_code == 429, "it would tell as well"
            assert (await guesser.get("/checkpoints")).status_code == 200, "what the socket's mode allows stays"
            assert (await guesser.post("/rebuild", headers=RIGHT)).status_code == 202
        monkeypatch.setattr(connections, "_peer_uid", lambda _: 4_243)
        async with server.client() as another:
            assert (await another.post("/rebuild", headers=WRONG)).status_code == 403
        monkeypatch.undo()
        assert (await owner.post("/rebuild", headers=WRONG)).status_code == 202, "who needs none cannot guess"


@pytest.mark.anyio
async def test_an_open_catalog_counts_nothing(backend: FakeBackend) -> None:
    policy: Any = AccessPolicy(None, hosts=LOOPBACK, clock=Clock())
    async with serving(backend, policy) as server, server.client() as http:
        for _ in range(FREE + 2):
            assert (await http.get("/checkpoints", headers=WRONG)).status_code == 200
        assert len(policy._guesses) == 0
