"""No view of the page has anything that axe-core calls a barrier, in light and dark, wide and narrow."""

import pathlib
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.service.daemons import Daemon, eventually
from tests.service.token_daemons import TokenDaemon
from tests.web.accessibility import violations
from tests.web.browser import Visitor
from tests.web.on_page import expect_live, row, rows, search
from tests.web.trees import cut_off, runs, unsafe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    top = tmp_path_factory.mktemp("accessible")
    runs(top / "outputs")
    unsafe(top / "outputs" / "odd" / "surprising.ckpt")
    cut_off(top / "outputs" / "odd" / "torn.ckpt")
    with Daemon(top / "outputs", top / "state", sidecars="off", quiet_s=0.2, abandoned_s=0.5) as daemon:
        eventually(lambda: len(daemon.entries()) == 14, "all are listed")
        yield daemon


def show_filters(page: Page) -> None:
    page.get_by_role("button", name="filter", exact=True).click()
    page.get_by_role("list", name="filter by").get_by_role("button", name="Metric").click()
    expect(page.get_by_label("At least")).to_be_visible()


def show_preferences(page: Page) -> None:
    page.get_by_role("button", name="view", exact=True).click()
    expect(page.get_by_role("button", name="roomy")).to_be_visible()


def show_no_match(page: Page) -> None:
    search(page, "nothing-is-called-so")
    expect(page.get_by_role("heading", name="No checkpoint matches")).to_be_visible()


def show_selection(page: Page) -> None:
    rows(page).nth(1).get_by_role("checkbox").click()
    expect(page.get_by_role("region", name="selection")).to_be_visible()


def show_part(name: str) -> Callable[[Page], None]:
    """Open the details of a checkpoint, and a part of them."""

    def show(page: Page) -> None:
        row(page, "exp_1/epoch=3").click()
        page.get_by_role("tab", name=name).click()
        expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
        expect(page.get_by_role("complementary").get_by_text("Loading…")).to_have_count(0)

    return show


def show_comparison(page: Page) -> None:
    for name in ("exp_0/epoch=3", "exp_1/epoch=3", "exp_2/epoch=1"):
        row(page, name).get_by_role("checkbox").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("rowheader", name="hmean")).to_be_visible()


def show_health(page: Page) -> None:
    page.get_by_role("banner").get_by_role("button", name="Health").click()
    expect(page.get_by_role("heading", name="Roots")).to_be_visible()


def show_keys(page: Page) -> None:
    page.get_by_role("button", name="keys").click()
    expect(page.get_by_role("dialog")).to_be_visible()


VIEWS: dict[str, Callable[[Page], None]] = {
    "table": lambda page: expect(rows(page).first).to_be_visible(),
    "filters": show_filters,
    "preferences": show_preferences,
    "no match": show_no_match,
    "selection": show_selection,
    "overview": show_part("Overview"),
    "metrics": show_part("Metrics"),
    "settings": show_part("Settings"),
    "tensors": show_part("Tensors"),
    "load": show_part("Load"),
    "comparison": show_comparison,
    "health": show_health,
    "keys": show_keys,
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_no_barrier(visitor: Visitor, daemon: Daemon, view: str, scheme: str) -> None:
    page = visitor.open(daemon.url, color_scheme=scheme, reduced_motion="reduce")
    expect_live(page)
    VIEWS[view](page)
    assert violations(page) == []


@pytest.mark.parametrize("view", ["table", "overview", "comparison", "health"])
def test_a_narrow_view_has_no_barrier(visitor: Visitor, daemon: Daemon, view: str) -> None:
    page = visitor.open(daemon.url, viewport={"width": 360, "height": 700}, reduced_motion="reduce")
    expect_live(page)
    VIEWS[view](page)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing moves the page sideways"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_sign_in_page_has_no_barrier(
    visitor: Visitor, tmp_path_factory: pytest.TempPathFactory, scheme: str
) -> None:
    visitor.expects("status of 401")
    top: pathlib.Path = tmp_path_factory.mktemp("door")
    (top / "outputs").mkdir()
    with TokenDaemon(top / "outputs", top / "state") as daemon:
        page = visitor.open(daemon.url, color_scheme=scheme)
        page.get_by_label("Token").fill("not-the-token-at-all")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_be_visible()
        assert violations(page) == []


def test_how_far_it_is_loaded_and_what_is_found_is_announced(visitor: Visitor, daemon: Daemon) -> None:
    page = visitor.open(daemon.url)
    said = page.locator('[role="status"][aria-live="polite"].sr-only')
    expect(said).to_have_text("14 checkpoints, live")
    search(page, "exp_1")
    expect(said).to_have_text("4 of 14")


def test_the_grid_says_how_many_rows_there_are_and_which_one_is_active(visitor: Visitor, daemon: Daemon) -> None:
    page = visitor.open(daemon.url)
    expect(rows(page)).to_have_count(14)
    grid = page.get_by_role("grid")
    assert grid.get_attribute("aria-rowcount") == "15", "the header is a row"
    grid.focus()
    page.keyboard.press("j")
    active = grid.get_attribute("aria-activedescendant")
    assert active is not None
    expect(page.locator(f"#{active}")).to_have_attribute("aria-rowindex", "3")
    assert page.locator('[role="grid"], [role="grid"] [tabindex="0"]').count() == 1, "one stop of the keyboard"
