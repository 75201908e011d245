"""Fixtures of the browser tests."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.web.browser import DEADLINE_MS, Visitor, launched, need_browser

expect.set_options(timeout=DEADLINE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for the tests of a module: the loop of Playwright must be gone before others' tests with a loop begin."""
    with launched(need_browser()) as browser:
        yield browser


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    """Whoever opens the page; fails the test if the page did anything wrong."""
    visitor = Visitor(browser)
    try:
        yield visitor
        visitor.check()
    finally:
        visitor.close()
