"""Chromium on the page: a fresh profile for each test, and whatever the page does wrong fails it."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, Request, sync_playwright

REPO = pathlib.Path(__file__).parents[2]
WEB = REPO / "daemon" / "web"
DEADLINE_MS = int(os.environ.get("CKPTD_WEB_DEADLINE_MS", "45000"))
"""For one condition; the machine that runs the tests may be slow and loaded. Whoever writes tests waits less."""
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
_VIOLATIONS = """addEventListener('securitypolicyviolation', (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`))"""
_LOST = (
    r"net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING|SOCKET_NOT_CONNECTED)"
)
LOST_CONNECTION = re.compile(_LOST)
"""What Chromium says of a daemon that went away."""


def chromium() -> str | None:
    """The browser of the system."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


def need_browser() -> str:
    """The browser, and the page built; skips where they cannot be had, and fails where they must be (CI)."""
    found = chromium()
    if found is None:
        missing("Chromium is not installed")
    built = subprocess.run(
        [sys.executable, str(REPO / "scripts" / "page_backend.py")], capture_output=True, text=True, check=False
    )
    if built.returncode != 0:
        missing(f"the page cannot be built: {built.stderr}")
    assert found is not None
    return found


def missing(why: str) -> None:
    """Skip the test, or fail it where nothing may be missing: in CI."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@contextlib.contextmanager
def launched(executable: str) -> Iterator[Browser]:
    """Chromium. Playwright's event loop is there until it ends: no test with a loop of its own may run meanwhile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """A person with a browser of their own: no cookies, no memory, and a record of all that went wrong."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self._expected: list[re.Pattern[str]] = []
        self.problems: list[str] = []
        """What no page of ours may do: errors, violations of the policy, requests to others."""
        self.requests: list[str] = []
        """Paths that were asked for."""

    def expects(self, *patterns: str | re.Pattern[str]) -> None:
        """Errors that belong to what is tested."""
        self._expected += [re.compile(pattern) for pattern in patterns]

    def context(self, url: str, **options: Any) -> BrowserContext:
        """A profile. Pages opened in it may ask `url`'s host and no other."""
        context = self._browser.new_context(**({"viewport": {"width": 1400, "height": 900}} | options))
        self._contexts.append(context)
        context.set_default_timeout(DEADLINE_MS)
        context.add_init_script(_VIOLATIONS)
        context.on("console", self._heard)
        context.on("weberror", lambda error: self.problems.append(f"uncaught: {error.error}"))
        context.on("request", lambda request: self._asked(request, url))
        return context

    def open(self, url: str, path: str = "/", **options: Any) -> Page:
        """A page, in a profile of its own; options are those of the profile, such as `color_scheme="dark"`."""
        page = self.context(url, **options).new_page()
        page.goto(url + path, wait_until="domcontentloaded")
        return page

    def check(self) -> None:
        """Fail if anything went wrong that was not expected."""
        unexpected = [one for one in self.problems if not any(pattern.search(one) for pattern in self._expected)]
        assert not unexpected, "\n".join(unexpected)

    def close(self) -> None:
        """Leave nothing open."""
        for context in self._contexts:
            with contextlib.suppress(Error):
                context.close()

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _asked(self, request: Request, url: str) -> None:
        asked = urlsplit(request.url)
        self.requests.append(asked.path)
        if asked.scheme not in ("data", "blob") and f"{asked.scheme}://{asked.netloc}" != url:
            self.problems.append(f"asked another host: {request.url}")
