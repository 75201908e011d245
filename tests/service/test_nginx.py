"""Behind nginx, under a prefix, with the guide's own configuration: the live stream's suite, sign-in, origins."""

import dataclasses
import functools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
import yaml

from ckptd.daemon.client import CatalogClient
from tests.service.checkpoints import checkpoint_bytes, write_in_place
from tests.service.daemons import eventually
from tests.service.documented import block
from tests.service.doors import Door
from tests.service.stream_suite import HEARTBEAT_S, StreamSuite
from tests.service.token_daemons import TokenDaemon

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SECTION = "### Behind nginx"
pytestmark = pytest.mark.skipif(NGINX is None and not os.environ.get("CI"), reason="nginx is not installed")

WHOLE = """
daemon off;
worker_processes 1;
pid {top}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    gzip on;
    gzip_types *;
    gzip_min_length 1;
    client_body_temp_path {top}/body;
    proxy_temp_path {top}/proxy;
    fastcgi_temp_path {top}/fastcgi;
    uwsgi_temp_path {top}/uwsgi;
    scgi_temp_path {top}/scgi;
    {server}
}}
"""
"""Around the guide's server: compression of everything, the worst case for a stream."""


class Site:
    """The daemon and nginx before it."""

    def __init__(self, top: pathlib.Path) -> None:
        self.outputs = top / "outputs"
        write_in_place(self.outputs / "seed.ckpt", checkpoint_bytes())
        (top / "ckptd.yaml").write_text(block("guide.md", SECTION, "yaml"))
        settings = {"config": top / "ckptd.yaml", "heartbeat_s": HEARTBEAT_S, "sidecars": "off"}
        self.daemon = TokenDaemon(self.outputs, top / "state", **settings)
        self.daemon.start()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.config = top / "nginx.conf"
        server = block("guide.md", SECTION, "nginx")
        for documented, here in (
            ("listen 80;", f"listen 127.0.0.1:{self.port};"),
            ("http://127.0.0.1:8765/", f"{self.daemon.url}/"),
        ):
            assert documented in server, f"the guide's configuration has no {documented!r}"
            server = server.replace(documented, here)
        self.config.write_text(WHOLE.format(top=top, server=_with_squeezing(server)))
        self.log = top / "nginx.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [str(NGINX), "-c", str(self.config), "-p", str(top)], stdout=log, stderr=log
            )

    @property
    def url(self) -> str:
        """Of the site, without the prefix."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """Of a reader that knows the token, and the site by its name."""
        return {"Authorization": f"Bearer {self.daemon.token}", "Host": "lab.example"}

    def is_up(self) -> bool:
        """Whether the catalog can be read through it."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            answer = httpx.get(f"{self.url}/ckptd/checkpoints", headers=self.headers, trust_env=False)
        except httpx.TransportError:
            return False
        return answer.status_code == 200 and answer.json()["total"] == 1

    def close(self) -> None:
        """Leave nothing behind."""
        self.process.terminate()
        self.process.wait()
        with self.daemon:
            pass


def _with_squeezing(server: str) -> str:
    """The same with a second location, at which nginx compresses streams instead of the daemon."""
    location = server[server.index("    location") : server.rindex("}")]
    squeezing = location.replace("/ckptd/ {", "/squeezed/ {\n        proxy_set_header Accept-Encoding '';")
    assert squeezing != location
    return server.replace(location, location + squeezing)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("nginx"))
    try:
        eventually(site.is_up, f"nginx passes on what the daemon says; its log: {site.log}")
        yield site
    finally:
        site.close()


@pytest.fixture(scope="module")
def door(site: Site) -> Door:
    return Door(
        f"{site.url}/ckptd",
        site.outputs,
        functools.partial(site.daemon.signal, signal.SIGTERM),
        prefix="/ckptd",
        headers=site.headers,
        kept=("x-accel-buffering",),
    )


class TestBefore:
    """What a proxy could break besides streams."""

    def test_without_the_token_nobody_is_let_in(self, site: Site) -> None:
        refused = httpx.get(f"{site.url}/ckptd/checkpoints", headers={"Host": "lab.example"}, trust_env=False)
        assert refused.status_code == 401
        assert refused.headers["content-type"] == "application/problem+json"

    def test_the_sign_in_link_leads_back_under_the_prefix_with_a_cookie_for_it(self, site: Site) -> None:
        with httpx.Client(headers={"Host": "lab.example"}, trust_env=False) as http:
            visit = http.get(f"{site.url}/ckptd/?token={site.daemon.token}")
            assert (visit.status_code, visit.headers["location"]) == (303, "/ckptd/")
            cookie = visit.headers["set-cookie"].lower()
            assert "; path=/ckptd/" in cookie
            assert "httponly" in cookie
            named = cookie.partition(";")[0]
            assert http.get(f"{site.url}/ckptd/checkpoints", headers={"Cookie": named}).status_code == 200

    def test_behind_https_the_cookie_is_secure(self, site: Site) -> None:
        """As nginx tells it of the outer connection; a client's own claim is overwritten."""
        claim = {"Host": "lab.example", "X-Forwarded-Proto": "https"}
        with httpx.Client(headers=claim, trust_env=False) as http:
            through = http.get(f"{site.url}/ckptd/?token={site.daemon.token}")
            straight = http.get(f"{site.daemon.url}/?token={site.daemon.token}")
        assert "; secure" not in through.headers["set-cookie"].lower()
        assert "; secure" in straight.headers["set-cookie"].lower()

    def test_another_host_name_is_refused(self, site: Site) -> None:
        headers = site.headers | {"Host": "rebound.example"}
        answer = httpx.get(f"{site.url}/ckptd/checkpoints", headers=headers, trust_env=False)
        assert (answer.status_code, answer.json()["field"]) == (421, "Host")

    def test_a_page_of_the_site_may_ask_for_a_rebuild_and_a_page_of_another_may_not(self, site: Site) -> None:
        own = site.headers | {"Origin": "https://lab.example", "Sec-Fetch-Site": "same-origin"}
        other = site.headers | {"Origin": "https://other.example", "Sec-Fetch-Site": "cross-site"}
        assert httpx.post(f"{site.url}/ckptd/rebuild", headers=own, trust_env=False).status_code == 202
        assert httpx.post(f"{site.url}/ckptd/rebuild", headers=other, trust_env=False).status_code == 403

    def test_even_a_stream_that_nginx_compresses_is_passed_on_at_once(self, site: Site, door: Door) -> None:
        """Because of `X-Accel-Buffering`: its compression is flushed for each event."""
        squeezed = dataclasses.replace(door, url=f"{site.url}/squeezed")
        with squeezed.listen({"Accept-Encoding": "gzip"}) as listening:
            assert listening.response.headers["content-encoding"] == "gzip"
            assert "x-accel-buffering" not in listening.response.headers
            listening.until("heartbeat")
            began = time.monotonic()
            for _ in range(5):
                listening.until("heartbeat")
            assert time.monotonic() - began > 2 * HEARTBEAT_S

    def test_the_python_client_works_under_the_prefix(self, site: Site) -> None:
        with CatalogClient(f"{site.url}/ckptd", token=site.daemon.token) as client:
            seed = client.list(q="seed").checkpoints[0]
            assert client.get(seed.id).path == "seed.ckpt"

    def test_the_prefix_without_its_slash_leads_to_the_page(self, site: Site) -> None:
        moved = httpx.get(f"{site.url}/ckptd", headers=site.headers, trust_env=False)
        assert moved.status_code == 301
        assert moved.headers["location"].endswith("/ckptd/")

    def test_the_documented_settings_are_what_the_documented_server_needs(self) -> None:
        settings = yaml.safe_load(block("guide.md", SECTION, "yaml"))
        server = block("guide.md", SECTION, "nginx")
        assert f"location {settings['root_path']}/ {{" in server
        assert settings["cors_origins"] == ["https://lab.example"]
        assert "server_name lab.example;" in server


class TestStream(StreamSuite):
    pass
