"""What is served at `/` and for it: the page's files, its policy, what the server tells it, signing in."""

import gzip
import html
import json
import pathlib
import re

import httpx
import msgspec
import pytest

from ckptd.daemon.http.page_files import MAX_FILE_BYTES, PageError, PageFiles, load_page
from ckptd.daemon.http.security import AccessPolicy
from ckptd.daemon.settings import Settings
from ckptd.daemon.status import RootStatus
from tests.daemon.fakes import FakeBackend, serving

TOKEN = "0123456789abcdef0123456789abcdef"
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
SCRIPT = b"console.log('the page');\n" * 50
INDEX = """<!doctype html>
<html lang="en"><head><meta name="ckptd" content="" /><link rel="icon" href="./favicon.svg" />
<script type="module" crossorigin src="./assets/index-B1c2D3e4.js"></script></head><body></body></html>
"""


@pytest.fixture
def built(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory as Vite leaves it."""
    built = tmp_path / "dist"
    (built / "assets").mkdir(parents=True)
    (built / "index.html").write_text(INDEX)
    (built / "client.js").write_bytes(SCRIPT)
    (built / "favicon.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (built / "sign-in.css").write_text("body { margin: 0 }")
    (built / "assets" / "index-B1c2D3e4.js").write_bytes(SCRIPT)
    (built / "assets" / "index-B1c2D3e4.css").write_text("body { margin: 0 }")
    (built / "assets" / "plain.js").write_text("1")
    (built / "assets" / "secret.txt").write_text("not of the page")
    (built / ".stamp").write_text("abc")
    return built


@pytest.fixture
def page(built: pathlib.Path) -> PageFiles:
    page = load_page(str(built))
    assert page is not None
    return page


def backend_of(tmp_path: pathlib.Path, **settings: object) -> FakeBackend:
    backend = FakeBackend(Settings(roots=("/outputs",), state_dir=str(tmp_path), **settings))
    root = RootStatus(path='/srv/out "puts" <b>', online=True, watching=True)
    status = msgspec.structs.replace(backend.status(), roots=(root,))
    backend.status = lambda: status  # type: ignore[method-assign]
    return backend


@pytest.fixture
def backend(tmp_path: pathlib.Path) -> FakeBackend:
    return backend_of(tmp_path)


def told(text: str) -> dict[str, object]:
    """What the server tells the page about itself."""
    found = re.search(r'<meta name="ckptd" content="([^"]*)"', text)
    assert found is not None
    return dict(json.loads(html.unescape(found[1])))


@pytest.mark.anyio
async def test_the_page_is_told_who_serves_it_and_what_is_watched(backend: FakeBackend, page: PageFiles) -> None:
    async with serving(backend, page=page) as server, server.client() as http:
        answer = await http.get("/")
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        config = told(answer.text)
        assert config["instance"] == backend.catalog.instance
        assert config["roots"] == ['/srv/out "puts" <b>'], "quotes and markup are text"
        assert (config["streaming"], config["base"]) == (True, "/")
        assert answer.text.count("<b>") == 0


@pytest.mark.anyio
async def test_the_page_is_not_sent_again_until_something_in_it_has_changed(
    backend: FakeBackend, page: PageFiles
) -> None:
    async with serving(backend, page=page) as server, server.client() as http:
        for path in ("/", "/client.js", "/assets/index-B1c2D3e4.js"):
            for coding in ("gzip", "identity"):
                first = await http.get(path, headers={"Accept-Encoding": coding})
                known = {"Accept-Encoding": coding, "If-None-Match": first.headers["etag"]}
                again = await http.get(path, headers=known)
                assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
        first = await http.get("/")
        backend.catalog.renew_instance("another")
        changed = await http.get("/", headers={"If-None-Match": first.headers["etag"]})
        assert (changed.status_code, told(changed.text)["instance"]) == (200, "another")


@pytest.mark.anyio
async def test_the_policy_of_the_page_allows_its_own_files_and_nothing_inline(
    backend: FakeBackend, page: PageFiles
) -> None:
    async with serving(backend, page=page) as server, server.client() as http:
        answer = await http.get("/")
        assert len(answer.headers.get_list("content-security-policy")) == 1, "two would be combined"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert "camera=()" in answer.headers["permissions-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        data = await http.get("/checkpoints")
        assert data.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.anyio
async def test_files_named_by_their_contents_are_kept_for_ever_and_the_others_are_asked_for_again(
    backend: FakeBackend, page: PageFiles
) -> None:
    async with serving(backend, page=page) as server, server.client() as http:
        for path, kept in (
            ("/assets/index-B1c2D3e4.js", True),
            ("/assets/index-B1c2D3e4.css", True),
            ("/assets/plain.js", False),
            ("/client.js", False),
            ("/favicon.svg", False),
        ):
            answer = await http.get(path)
            assert answer.status_code == 200
            assert ("immutable" in answer.headers["cache-control"]) is kept


@pytest.mark.anyio
async def test_files_are_compressed_where_asked_and_have_their_own_types(backend: FakeBackend, page: PageFiles) -> None:
    types = {
        "/client.js": "text/javascript; charset=utf-8",
        "/assets/index-B1c2D3e4.css": "text/css; charset=utf-8",
        "/favicon.svg": "image/svg+xml",
    }
    async with serving(backend, page=page) as server, server.client() as http:
        for path, media_type in types.items():
            assert (await http.get(path)).headers["content-type"] == media_type
        raw = http.build_request("GET", "/client.js", headers={"Accept-Encoding": "gzip"})
        packed = await http.send(raw, stream=True)
        body = b"".join([chunk async for chunk in packed.aiter_raw()])
        assert packed.headers["content-encoding"] == "gzip"
        assert gzip.decompress(body) == SCRIPT
        plain = await http.get("/client.js", headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == SCRIPT
        assert plain.headers["etag"] != packed.headers["etag"]
        head = await http.head("/client.js", headers={"Accept-Encoding": "identity"})
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(SCRIPT))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    [
        "/assets/secret.txt",
        "/assets/nothing.js",
        "/assets/.stamp",
        "/assets/..%2Findex.html",
        "/assets/%2e%2e/index.html",
        "/assets/..%5cclient.js",
        "/index.html",
        "/.stamp",
        "/assets/",
        "/assets",
    ],
)
async def test_nothing_but_the_files_of_the_page_can_be_asked_for(
    backend: FakeBackend, page: PageFiles, path: str
) -> None:
    async with serving(backend, page=page) as server, server.client() as http:
        refused = await http.get(path)
        assert refused.status_code == 404
        assert refused.headers["content-type"] == "application/problem+json"


@pytest.mark.anyio
async def test_parameters_of_the_page_are_none_of_the_servers_business(backend: FakeBackend, page: PageFiles) -> None:
    async with serving(backend, page=page) as server, server.client() as http:
        for query in ("q=%ff", "sort=-hmean&detail=abc", "&".join(f"a{n}=1" for n in range(2000))):
            assert (await http.get(f"/?{query}")).status_code == 200


# ---- where there is no page ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_without_the_page_the_first_one_says_how_to_have_it(backend: FakeBackend) -> None:
    async with serving(backend) as server, server.client() as http:
        answer = await http.get("/")
        assert "CKPTD_PAGE" in answer.text
        assert "checkpoints/events" in answer.text
        assert (await http.get("/client.js")).status_code == 404


@pytest.mark.anyio
async def test_the_page_can_be_switched_off(tmp_path: pathlib.Path, page: PageFiles) -> None:
    async with serving(backend_of(tmp_path, page=False), page=page) as server, server.client() as http:
        answer = await http.get("/")
        assert "switched off" in answer.text
        assert "<script" not in answer.text
        assert (await http.get("/assets/index-B1c2D3e4.js")).status_code == 404


@pytest.mark.anyio
async def test_the_page_is_told_when_it_shall_not_listen(tmp_path: pathlib.Path, page: PageFiles) -> None:
    async with serving(backend_of(tmp_path, page_streaming=False), page=page) as server, server.client() as http:
        assert told((await http.get("/")).text)["streaming"] is False


def test_a_page_that_was_left_out_is_none_and_a_broken_one_says_what_to_do(built: pathlib.Path) -> None:
    assert load_page(str(built / "nowhere")) is None
    (built / "index.html").write_text("<!doctype html><title>another's</title>")
    with pytest.raises(PageError, match="build the page again"):
        load_page(str(built))


def test_a_directory_that_is_no_page_is_not_read_into_memory(built: pathlib.Path) -> None:
    with open(built / "assets" / "huge.js", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(PageError, match=r"huge\.js"):
        load_page(str(built))


# ---- signing in ------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_browser_without_the_token_gets_a_form_and_a_program_a_problem(
    backend: FakeBackend, page: PageFiles
) -> None:
    async with serving(backend, AccessPolicy(TOKEN), page=page) as server, server.client() as http:
        form = await http.get("/?q=a%22%3E%3Cb%3E&metric=hmean", headers=BROWSER)
        assert (form.status_code, form.headers["www-authenticate"]) == (401, 'Bearer realm="ckptd"')
        assert form.headers["content-type"].startswith("text/html")
        assert "ckptd token" in form.text
        assert '<input type="hidden" name="q" value="a&quot;&gt;&lt;b&gt;">' in form.text, "the page's state is kept"
        assert "script-src" not in form.headers["content-security-policy"], "and so forbidden"
        assert "form-action 'self'" in form.headers["content-security-policy"]
        for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
            program = await http.get("/", headers=headers)
            assert (program.status_code, program.headers["content-type"]) == (401, "application/problem+json")
        data = await http.get("/checkpoints", headers=BROWSER)
        assert data.headers["content-type"] == "application/problem+json", "only / is for people"


@pytest.mark.anyio
async def test_a_wrong_token_in_the_form_is_said_so_and_the_right_one_gets_in(
    backend: FakeBackend, page: PageFiles
) -> None:
    async with serving(backend, AccessPolicy(TOKEN), page=page) as server, server.client(headers=BROWSER) as http:
        wrong = await http.get("/", params={"token": "guess", "q": "best"})
        assert wrong.status_code == 401
        assert '<p role="alert">The token is wrong' in wrong.text
        assert "guess" not in wrong.text
        right = await http.get("/", params={"token": TOKEN, "q": "best"})
        assert (right.status_code, right.headers["location"]) == (303, "/?q=best")
        assert told((await http.get(right.headers["location"])).text)["base"] == "/"


@pytest.mark.anyio
async def test_the_form_has_its_style_before_anybody_signed_in_and_is_plain_without_a_page(
    backend: FakeBackend, page: PageFiles
) -> None:
    async with serving(backend, AccessPolicy(TOKEN), page=page) as server, server.client(headers=BROWSER) as http:
        assert 'href="./sign-in.css"' in (await http.get("/")).text
        for path in ("/sign-in.css", "/favicon.svg", "/client.js", "/assets/index-B1c2D3e4.js"):
            assert (await http.get(path)).status_code == 200, "what holds no secret needs no token"
    async with serving(backend, AccessPolicy(TOKEN)) as server, server.client(headers=BROWSER) as http:
        plain = (await http.get("/")).text
        assert "stylesheet" not in plain
        assert 'name="token"' in plain


@pytest.mark.anyio
async def test_a_page_elsewhere_may_import_the_client_if_its_origin_is_named(
    backend: FakeBackend, page: PageFiles
) -> None:
    studio = "https://studio.example"
    policy = AccessPolicy(TOKEN, origins=[studio])
    async with serving(backend, policy, page=page) as server, server.client() as http:
        named = await http.get("/client.js", headers={"Origin": studio})
        assert named.headers["access-control-allow-origin"] == studio
        assert "cross-origin-resource-policy" not in named.headers
        other = await http.get("/client.js", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers
        assert other.headers["cross-origin-resource-policy"] == "same-origin"


def test_signing_in_survives_links_from_other_sites(page: PageFiles) -> None:
    """With SameSite=Strict, a link to the page in a chat would ask those who are signed in to sign in again."""
    scope = {"method": "GET", "query_string": f"token={TOKEN}".encode(), "headers": [(b"host", b"localhost")]}
    answer = AccessPolicy(TOKEN).sign_in(scope, "/")
    assert answer is not None
    assert "SameSite=lax" in httpx.Headers(answer.headers.raw)["set-cookie"]
