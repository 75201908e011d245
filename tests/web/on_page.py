"""The words in which the tests speak of the page."""

import json
import re

from playwright.sync_api import Locator, Page, expect

from tests.service.daemons import eventually
from tests.web.browser import DEADLINE_MS

ROWS = '[role="row"][id^="row-"]'


def rows(page: Page) -> Locator:
    """Those of the table that are drawn, in the order of the document; the header is none."""
    return page.locator(ROWS)


def row(page: Page, name: str) -> Locator:
    """The row of a checkpoint, by a piece of its name."""
    return rows(page).filter(has=page.locator(f".strong[title*={json.dumps(name)}]")).first


def names(page: Page) -> list[str]:
    """What is listed, from the top of the screen downwards."""
    shown = page.evaluate(
        """(rows) => [...document.querySelectorAll(rows)]
          .map((row) => [row.getBoundingClientRect().top, row.querySelector('.strong').title])
          .sort(([a], [b]) => a - b)""",
        ROWS,
    )
    return [name for _, name in shown]


def expect_first(page: Page, name: str) -> None:
    """The table comes to begin with a checkpoint, by a piece of its name."""
    eventually(
        lambda: any(name in first for first in names(page)[:1]), f"{name} is first", deadline_s=DEADLINE_MS / 1e3
    )


def expect_live(page: Page) -> None:
    """The snapshot has come, and changes are listened to; a narrow screen says so by a dot alone."""
    expect(page.get_by_role("banner").locator(".status")).to_contain_text("Live")


def expect_count(page: Page, text: str) -> None:
    """Beside the search: how many there are, or how many match of how many."""
    expect(page.get_by_role("banner").locator(".count")).to_have_text(text)


def search(page: Page, text: str) -> None:
    """Type into the search box."""
    page.get_by_role("searchbox", name="search checkpoints").fill(text)


def sort_by(page: Page, title: str) -> None:
    """Click a column's header."""
    page.get_by_role("columnheader", name=title).get_by_role("button").click()


def expect_sorted(page: Page, title: str, direction: str) -> None:
    """A column says that it sorts the table."""
    expect(page.get_by_role("columnheader", name=title)).to_have_attribute("aria-sort", direction)


def ends_at(element: Locator) -> float:
    """Where something ends, in pixels from the left edge of the window."""
    return float(element.evaluate("(element) => element.getBoundingClientRect().right"))


def query_of(page: Page) -> str:
    """What the address says behind the question mark."""
    return page.url.partition("?")[2]


def expect_address(page: Page, *parts: str, without: tuple[str, ...] = ()) -> None:
    """The address comes to have these, and none of those."""
    for part in parts:
        expect(page).to_have_url(re.compile(re.escape(part)))
    for part in without:
        expect(page).not_to_have_url(re.compile(re.escape(part)))
