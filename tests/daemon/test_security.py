"""Who gets in: what the settings lead to, and what each request must prove."""

import asyncio
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptd.catalog.roots import Root
from ckptd.daemon.http import AccessError, AccessPolicy, connections
from ckptd.daemon.http.security import readable_by_everyone
from ckptd.daemon.setting_types import Access
from ckptd.daemon.settings import Settings
from ckptd.daemon.tokens import TokenFiles
from tests.daemon.fakes import FakeBackend, RawListener, serving, until

TOKEN = "a-token-of-32-characters-or-more"
LOOPBACK = frozenset({"localhost"})


@pytest.fixture
def public_root() -> Iterator[str]:
    """A directory that everyone on the machine can list; pytest's own lie under one that only we can enter."""
    path = tempfile.mkdtemp(dir="/tmp")
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


def settings_of(root: str, state: Path, **fields: Any) -> Settings:
    return Settings(roots=(root,), state_dir=str(state), **fields)


def policy_of(settings: Settings, bound: list[str] | None = None) -> AccessPolicy:
    return AccessPolicy.from_settings(settings, [Root(os.fsencode(root)) for root in settings.roots], bound)


# ---- what the settings lead to ---------------------------------------------------------------------------------


def test_loopback_is_open_when_everyone_may_read_the_roots_anyway(public_root: str, tmp_path: Path) -> None:
    assert policy_of(settings_of(public_root, tmp_path)).is_open
    assert not (tmp_path / "token").exists()


def test_a_private_root_needs_a_token_that_only_the_owner_can_read_and_that_stays(
    public_root: str, tmp_path: Path
) -> None:
    os.chmod(public_root, 0o750)
    first = policy_of(settings_of(public_root, tmp_path))
    assert not first.is_open
    assert stat.S_IMODE(os.stat(tmp_path / "token").st_mode) == 0o600
    assert len((tmp_path / "token").read_text().strip()) >= 40
    second = policy_of(settings_of(public_root, tmp_path))
    assert second.link("http://x") == first.link("http://x")


def test_a_closed_directory_above_a_root_closes_it(public_root: str) -> None:
    inner = os.path.join(public_root, "private", "outputs")
    os.makedirs(inner)
    assert readable_by_everyone(os.fsencode(inner))
    os.chmod(os.path.dirname(inner), 0o700)
    assert not readable_by_everyone(os.fsencode(inner))
    assert not readable_by_everyone(os.fsencode(os.path.join(public_root, "missing")))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "node17.cluster.example"])
def test_an_address_that_others_reach_always_needs_a_token(host: str, public_root: str, tmp_path: Path) -> None:
    assert not policy_of(settings_of(public_root, tmp_path, host=host)).is_open
    assert not policy_of(settings_of(public_root, tmp_path), bound=["127.0.0.1", host]).is_open


def test_anonymous_readers_are_let_in_from_afar_only_when_asked_for_and_with_a_warning(
    public_root: str, tmp_path: Path
) -> None:
    policy = policy_of(settings_of(public_root, tmp_path, host="0.0.0.0", allow_anonymous=True))
    assert policy.is_open
    assert "allow_anonymous" in policy.warnings[0]


def test_a_token_is_asked_for_where_the_settings_say_so(public_root: str, tmp_path: Path) -> None:
    assert not policy_of(settings_of(public_root, tmp_path, access=Access.TOKEN)).is_open
    given = tmp_path / "given"
    given.write_text(TOKEN + "\n")
    policy = policy_of(settings_of(public_root, tmp_path, token_file=str(given)))
    assert policy.link("http://x") == f"http://x/?token={TOKEN}"
    assert "chmod 600" in policy.warnings[0]


@pytest.mark.parametrize("content", [b"", b"short\n", b"two lines of\nmore than sixteen", b"\xff" * 32])
def test_a_file_that_holds_no_token_is_refused_and_said_why(content: bytes, public_root: str, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(content)
    with pytest.raises(AccessError, match="holds no token: write one line"):
        policy_of(settings_of(public_root, tmp_path, token_file=str(given)))
    given.unlink()
    with pytest.raises(AccessError, match="cannot be read"):
        policy_of(settings_of(public_root, tmp_path, token_file=str(given)))


def test_a_token_that_cannot_be_kept_is_an_error_not_an_open_door(public_root: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AccessError, match="make it writable"):
        policy_of(settings_of(public_root, tmp_path / "file", access=Access.TOKEN))


def test_a_leaked_mode_of_the_kept_token_is_corrected(public_root: str, tmp_path: Path) -> None:
    policy_of(settings_of(public_root, tmp_path, access=Access.TOKEN))
    os.chmod(tmp_path / "token", 0o644)
    policy_of(settings_of(public_root, tmp_path, access=Access.TOKEN))
    assert stat.S_IMODE(os.stat(tmp_path / "token").st_mode) == 0o600


# ---- what a request must prove ---------------------------------------------------------------------------------


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    return FakeBackend(settings_of(str(tmp_path), tmp_path / "state"))


@pytest.mark.anyio
async def test_without_the_token_nothing_is_told_but_liveness(backend: FakeBackend) -> None:
    async with serving(backend, AccessPolicy(TOKEN, hosts=LOOPBACK)) as server, server.client() as http:
        for path in ("/", "/checkpoints", "/checkpoints/events", "/health/checkpoints", "/metrics", "/nothing"):
            refused = await http.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer realm="ckptd"')
            assert refused.headers["content-type"] == "application/problem+json"
        assert (await http.post("/rebuild")).status_code == 401
        assert backend.rebuilds == []
        assert (await http.get("/health")).json() == {"status": "ok"}


@pytest.mark.anyio
async def test_the_bearer_of_the_token_gets_in_and_of_another_does_not(backend: FakeBackend) -> None:
    async with serving(backend, AccessPolicy(TOKEN, hosts=LOOPBACK)) as server, server.client() as http:
        for given, status in ((TOKEN, 200), (TOKEN[:-1], 401), (TOKEN + "x", 401), ("", 401), ("ü", 401)):
            answer = await http.get("/checkpoints", headers={b"Authorization": f"Bearer {given}".strip().encode()})
            assert answer.status_code == status
        listener = await server.listen(headers=f"Authorization: bearer {TOKEN}\r\n")
        await listener.until("complete")


@pytest.mark.anyio
async def test_the_link_signs_a_browser_in_by_a_cookie_that_is_not_the_token(backend: FakeBackend) -> None:
    policy = AccessPolicy(TOKEN, hosts=LOOPBACK)
    async with serving(backend, policy) as server, server.client() as http:
        visit = await http.get(policy.link(server.url) + "&tab=2")
        assert (visit.status_code, visit.headers["location"]) == (303, "/?tab=2")
        cookie = visit.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
        assert TOKEN not in cookie
        assert (await http.get("/checkpoints")).status_code == 200, "the client sends the cookie"
        http.cookies.clear()
        name = cookie.partition("=")[0]
        assert (await http.get("/checkpoints", headers={"Cookie": f"{name}=guess"})).status_code == 401
        assert (await http.get("/checkpoints", headers={"Cookie": "=;;="})).status_code == 401
        for method in ("GET", "HEAD"):
            assert (await http.request(method, "/?token=wrong")).status_code == 401


def test_cookies_of_two_daemons_on_one_host_have_different_names() -> None:
    scope: Any = {"method": "GET", "query_string": f"token={TOKEN}".encode(), "headers": [(b"host", b"localhost")]}
    one = AccessPolicy(TOKEN).sign_in(scope, "/")
    scope["query_string"] = f"token={TOKEN}2".encode()
    other = AccessPolicy(TOKEN + "2").sign_in(scope, "/")
    assert one is not None
    assert other is not None
    assert one.headers["set-cookie"].partition("=")[0] != other.headers["set-cookie"].partition("=")[0]


@pytest.mark.anyio
async def test_after_a_reload_the_old_token_and_its_cookies_have_ended(backend: FakeBackend, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text(TOKEN)
    policy = AccessPolicy(TOKEN, hosts=LOOPBACK, token_files=TokenFiles(str(kept)))
    kept.write_text("another-token-of-enough-characters")
    await asyncio.to_thread(policy.reload)
    async with serving(backend, policy) as server, server.client() as http:
        old = await http.get("/checkpoints", headers={"Authorization": f"Bearer {TOKEN}"})
        new = await http.get("/checkpoints", headers={"Authorization": f"Bearer {kept.read_text()}"})
        assert (old.status_code, new.status_code) == (401, 200)


@pytest.mark.anyio
async def test_the_unix_socket_needs_no_token_unless_a_proxy_speaks_through_it(
    backend: FakeBackend, tmp_path: Path
) -> None:
    path = str(tmp_path / "sock")
    async with serving(backend, AccessPolicy(TOKEN, hosts=LOOPBACK), uds=path) as server, server.client() as http:
        assert (await http.get("/checkpoints")).status_code == 200
        assert (await http.post("/rebuild")).status_code == 202
        server.app._access.trust_unix_socket = False  # as where another application owns the socket
        assert (await http.get("/checkpoints")).status_code == 401
        server.app._access.trust_unix_socket = True
        for header in ("X-Forwarded-For", "Forwarded", "Via"):
            assert (await http.get("/checkpoints", headers={header: "for=192.0.2.1"})).status_code == 401


@pytest.mark.anyio
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "localhost.evil.example", "192.0.2.1", "[2001:db8::1]"]
)
async def test_a_name_that_was_rebound_to_loopback_is_not_answered(backend: FakeBackend, host: str) -> None:
    async with serving(backend) as server, server.client() as http:
        refused = await http.get("/checkpoints", headers={"Host": host})
        assert (refused.status_code, refused.json()["field"], refused.json()["value"]) == (421, "Host", host)
        live = RawListener(*await _connect(server.address))
        await live.ask("/checkpoints/events", host=host)
        assert b" 421 " in live.head
        await live.close()
        for good in ("localhost", "LOCALHOST:1", "127.0.0.1:8765", "127.9.9.9", "[::1]:8765"):
            assert (await http.get("/checkpoints", headers={"Host": good})).status_code == 200


@pytest.mark.anyio
async def test_only_the_own_page_or_no_page_may_ask_for_a_change(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        for headers, status in (
            ({}, 202),
            ({"Origin": server.url, "Sec-Fetch-Site": "same-origin"}, 202),
            ({"Sec-Fetch-Site": "none"}, 202),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"}, 403),
        ):
            assert (await http.post("/rebuild", headers=headers)).status_code == status
        assert len(backend.rebuilds) == 3


@pytest.mark.anyio
async def test_pages_elsewhere_may_read_only_if_their_origin_is_named(backend: FakeBackend) -> None:
    studio = "https://studio.example"
    policy = AccessPolicy(None, hosts=LOOPBACK, origins=[studio])
    async with serving(backend, policy) as server, server.client() as http:
        for path in ("/checkpoints", "/health"):
            named = await http.get(path, headers={"Origin": studio})
            other = await http.get(path, headers={"Origin": "https://other.example"})
            assert named.headers["access-control-allow-origin"] == studio
            assert "origin" in named.headers["vary"].lower()
            assert "access-control-allow-origin" not in other.headers
        live = await server.listen(headers=f"Origin: {studio}\r\n")
        assert f"access-control-allow-origin: {studio}".encode() in live.head
        asked = {"Origin": studio, "Access-Control-Request-Method": "GET"}
        preflight = await http.options("/checkpoints", headers=asked)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, studio)
        other = await http.options("/checkpoints", headers=asked | {"Origin": "https://other"})
        assert not [name for name in other.headers if name.startswith("access-control")]


@pytest.mark.anyio
async def test_every_answer_carries_the_security_headers(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        answers = [await http.get(path) for path in ("/", "/checkpoints", "/nothing", "/health", "/checkpoints?x=1")]
        for answer in answers:
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        live = await server.listen()
        for name in ("x-content-type-options", "referrer-policy", "content-security-policy", "cross-origin-resource"):
            assert f"\r\n{name}".encode() in live.head.lower()


async def _connect(address: Any) -> Any:

    return await asyncio.open_connection(*address)


# ---- reading is not changing -----------------------------------------------------------------------------------

READ_TOKEN = "a-token-of-32-characters-to-read"


@pytest.mark.anyio
async def test_the_token_for_readers_reads_everything_and_changes_nothing(backend: FakeBackend) -> None:
    policy = AccessPolicy(TOKEN, read_token=READ_TOKEN, hosts=LOOPBACK)
    async with serving(backend, policy) as server, server.client() as http:
        reader, owner = ({"Authorization": f"Bearer {token}"} for token in (READ_TOKEN, TOKEN))
        for path in ("/checkpoints", "/metrics", "/openapi.json"):
            assert (await http.get(path, headers=reader)).status_code == 200
        refused = await http.post("/rebuild", headers=reader)
        assert refused.status_code == 403
        assert "ckptd token" in refused.json()["remedy"]
        assert backend.rebuilds == []
        assert (await http.post("/rebuild", headers=owner)).status_code == 202
        for headers, may in ((reader, False), (owner, True)):
            assert (await http.get("/health/checkpoints", headers=headers)).json()["may_rebuild"] is may


@pytest.mark.anyio
async def test_a_browser_that_signed_in_to_read_cannot_change(backend: FakeBackend) -> None:
    policy = AccessPolicy(TOKEN, read_token=READ_TOKEN, hosts=LOOPBACK)
    async with serving(backend, policy) as server, server.client() as http:
        signed_in = await http.get("/", params={"token": READ_TOKEN}, follow_redirects=False)
        assert signed_in.status_code == 303
        assert READ_TOKEN not in str(signed_in.headers)
        assert (await http.get("/checkpoints")).status_code == 200
        assert (await http.post("/rebuild")).status_code == 403
        await http.get("/", params={"token": TOKEN}, follow_redirects=False)
        assert (await http.post("/rebuild")).status_code == 202


def test_a_token_for_readers_is_generated_beside_a_generated_token_and_never_beside_a_given_one(
    public_root: str, tmp_path: Path
) -> None:
    policy_of(settings_of(public_root, tmp_path, access=Access.TOKEN))
    kept, reading = ((tmp_path / name).read_text() for name in ("token", "read-token"))
    assert kept != reading
    assert stat.S_IMODE(os.stat(tmp_path / "read-token").st_mode) == 0o600
    given = tmp_path / "given"
    given.write_text(TOKEN)
    given.chmod(0o600)
    policy = policy_of(settings_of(public_root, tmp_path / "other", token_file=str(given)))
    assert not (tmp_path / "other" / "read-token").exists()
    assert policy.token_files == TokenFiles(str(given))


def test_who_names_a_token_for_readers_has_readers_asked_for_it(public_root: str, tmp_path: Path) -> None:
    """Also where everybody could be let in: else the file, or its absence, would go unnoticed."""
    given = tmp_path / "given"
    given.write_text(READ_TOKEN)
    policy = policy_of(settings_of(public_root, tmp_path, read_token_file=str(given)))
    assert not policy.is_open
    assert policy.token_files == TokenFiles(str(tmp_path / "token"), str(given))
    given.unlink()
    with pytest.raises(AccessError, match="cannot be read"):
        policy_of(settings_of(public_root, tmp_path, read_token_file=str(given)))


def test_one_token_for_both_is_refused(public_root: str, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text(TOKEN)
    with pytest.raises(AccessError, match="the same token"):
        policy_of(settings_of(public_root, tmp_path, token_file=str(given), read_token_file=str(given)))


@pytest.mark.anyio
async def test_who_may_open_the_unix_socket_reads_and_only_its_owner_and_root_change(
    backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says who connected: here that is us, and the daemon is somebody else's."""
    path = str(tmp_path / "sock")
    async with serving(backend, AccessPolicy(TOKEN, hosts=LOOPBACK), uds=path) as server, server.client() as http:
        assert (await http.get("/health/checkpoints")).json()["may_rebuild"] is True
        monkeypatch.setattr(connections, "_peer_uid", lambda _: 4_242)
        async with server.client() as stranger:
            assert (await stranger.get("/health/checkpoints")).json()["may_rebuild"] is False
            assert (await stranger.post("/rebuild")).status_code == 403
            owner = {"Authorization": f"Bearer {TOKEN}"}
            assert (await stranger.post("/rebuild", headers=owner)).status_code == 202


# ---- other tokens ----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_streams_end_with_bye_when_the_tokens_change_and_resume_with_the_new_one_alone(
    backend: FakeBackend, tmp_path: Path
) -> None:
    kept = tmp_path / "token"
    kept.write_text(TOKEN)
    policy = AccessPolicy(TOKEN, hosts=LOOPBACK, token_files=TokenFiles(str(kept)))
    backend.put("a.ckpt")
    async with serving(backend, policy) as server, server.client() as http:
        live = await server.listen(headers=f"Authorization: Bearer {TOKEN}\r\n")
        await live.until("complete")
        assert await asyncio.to_thread(policy.reload) is False
        kept.write_text("another-token-of-enough-characters")
        assert await asyncio.to_thread(policy.reload) is True
        backend.hub.end_streams("the token was changed")
        assert b'"reason":"the token was changed"' in await live.until("bye")
        await until(lambda: len(backend.hub) == 0, "the stream is forgotten")
        again = await http.get("/checkpoints/events", headers={"Authorization": f"Bearer {TOKEN}"})
        assert again.status_code == 401


@pytest.mark.anyio
async def test_a_stalled_listener_of_the_old_token_is_cut_off_as_well(tmp_path: Path) -> None:
    backend = FakeBackend(settings_of(str(tmp_path), tmp_path / "state"), send_timeout_s=0.2)
    backend.put_many(40_000)
    async with serving(backend) as server:
        stalled = await server.listen()  # and reads no more
        await until(lambda: len(backend.hub) == 1)
        backend.hub.end_streams("the token was changed")
        await until(lambda: len(backend.hub) == 0, "who does not read is forgotten")
        await stalled.close()
