"""The table in a real browser, on a real tree: what it shows, sorts, filters and remembers."""

import pathlib
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.service.daemons import Daemon, eventually
from tests.web.browser import DEADLINE_MS, Visitor
from tests.web.on_page import (
    ends_at,
    expect_address,
    expect_count,
    expect_first,
    expect_live,
    expect_sorted,
    names,
    query_of,
    row,
    rows,
    search,
    sort_by,
)
from tests.web.trees import HOSTILE, checkpoint, cut_off, runs, save, unsafe

TOTAL = 12 + len(HOSTILE) + 2


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    top = tmp_path_factory.mktemp("table")
    outputs = top / "outputs"
    runs(outputs)
    for seed, name in enumerate(HOSTILE):
        save(outputs / "hostile" / name, checkpoint(0, hmean=0.1, val_loss=2.0, seed=100 + seed))
    unsafe(outputs / "odd" / "surprising.ckpt")
    cut_off(outputs / "odd" / "torn.ckpt")
    with Daemon(outputs, top / "state", sidecars="off", quiet_s=0.2, abandoned_s=0.5) as daemon:
        eventually(
            lambda: (
                len(entries := daemon.entries()) == TOTAL and all(e["health"] != "writing" for e in entries.values())
            ),
            "all are judged",
        )
        yield daemon


@pytest.fixture
def page(visitor: Visitor, daemon: Daemon) -> Page:
    page = visitor.open(daemon.url)
    expect_live(page)
    return page


def test_every_checkpoint_is_there_with_its_health_in_words(page: Page) -> None:
    expect_count(page, str(TOTAL))
    expect(rows(page)).to_have_count(TOTAL)
    torn = row(page, "odd/torn")
    expect(torn.get_by_role("button", name="invalid")).to_be_visible()
    assert torn.locator("svg").count() > 0, "an icon and a word"
    expect(row(page, "odd/surprising")).to_contain_text("unsafe")
    best = row(page, "exp_1/epoch=3")
    expect(best).to_contain_text("0.8100")
    expect(best).to_contain_text("0.2600")


def test_names_from_disk_are_text_and_what_misleads_in_them_is_visible(page: Page, visitor: Visitor) -> None:
    expect(rows(page)).to_have_count(TOTAL)
    table = page.get_by_role("grid")
    assert table.locator("img, script, iframe").count() == 0
    expect(row(page, "<img src=x onerror=alert(1)>")).to_be_visible()
    text = table.inner_text()
    assert "\u202e" not in text
    assert "evil\\u202egnp" in text
    assert "tab\\tand\\nnewline" in text
    assert not [path for path in visitor.requests if path.endswith("/x")]


@pytest.mark.slow
def test_a_click_on_a_header_sorts_and_the_address_leads_back_to_it(page: Page) -> None:
    sort_by(page, "hmean")
    expect_sorted(page, "hmean", "descending")
    expect_first(page, "exp_2/epoch=3")
    assert names(page)[:3] == [f"exp_{n}/epoch=3-step=400-val_loss={0.25 + n / 100:.4f}" for n in (2, 1, 0)]
    sort_by(page, "hmean")
    expect_sorted(page, "hmean", "ascending")
    expect_address(page, "sort_by=", "sort_order=asc")
    page.reload()
    expect_live(page)
    expect_sorted(page, "hmean", "ascending")
    known = [name for name in names(page) if name.startswith("exp_")]
    assert known[0].startswith("exp_0/epoch=0")
    page.go_back()
    expect_sorted(page, "hmean", "descending")


def test_typing_filters_at_once_and_clearing_brings_all_back(page: Page) -> None:
    search(page, "exp_1 epoch:2..")
    expect_count(page, f"2 of {TOTAL}")
    expect(rows(page)).to_have_count(2)
    expect_address(page, "q=exp_1")
    page.reload()
    expect_count(page, f"2 of {TOTAL}")
    search(page, "nothing-is-called-so")
    expect(page.get_by_role("heading", name="No checkpoint matches")).to_be_visible()
    expect(page.get_by_text("“nothing-is-called-so”")).to_be_visible()
    page.get_by_role("button", name="Clear all filters").click()
    expect_count(page, str(TOTAL))
    assert "q=" not in query_of(page)


@pytest.mark.slow
def test_filters_of_the_menu_are_chips_that_the_address_keeps(page: Page) -> None:
    page.get_by_role("button", name="filter", exact=True).click()
    page.get_by_role("checkbox", name=re.compile(r"^exp_2\b")).and_(page.locator(".filter-menu *")).check()
    expect_count(page, f"4 of {TOTAL}")
    page.get_by_role("button", name="Metric", exact=True).click()
    page.get_by_role("combobox", name="Metric").select_option("hmean")
    page.get_by_label("At least").fill("0.7")
    expect_count(page, f"2 of {TOTAL}")
    page.keyboard.press("Escape")
    expect_address(page, "exp_name=exp_2", "min_hmean=0.7")
    page.reload()
    expect_count(page, f"2 of {TOTAL}")
    chips = page.get_by_role("list", name="filters")
    expect(chips).to_contain_text("Experiment exp_2")
    chips.get_by_role("button", name="remove the filter Experiment exp_2").click()
    expect_count(page, f"6 of {TOTAL}")
    chips.get_by_role("button", name="Clear all").click()
    expect_count(page, str(TOTAL))
    assert query_of(page) == ""


@pytest.mark.slow
def test_invalid_ones_can_be_singled_out(page: Page) -> None:
    page.get_by_role("button", name="filter", exact=True).click()
    page.get_by_role("list", name="filter by").get_by_role("button", name="Health").click()
    page.get_by_role("checkbox", name=re.compile("^invalid")).check()
    expect_count(page, f"1 of {TOTAL}")
    expect(rows(page)).to_have_count(1)
    assert names(page) == ["odd/torn"]


@pytest.mark.slow
def test_columns_density_and_theme_are_kept(page: Page) -> None:
    header = page.get_by_role("columnheader", name="Architecture")
    expect(header).to_be_visible()
    page.get_by_role("button", name="view", exact=True).click()
    page.get_by_role("checkbox", name="Architecture").uncheck()
    page.get_by_role("button", name="move Experiment to the right").click()
    page.get_by_role("button", name="move Experiment to the right").click()  # past the one that is not shown
    page.get_by_role("button", name="roomy").click()
    page.get_by_role("button", name="dark").click()
    page.reload()
    expect_live(page)
    expect(header).to_have_count(0)
    titles = page.get_by_role("columnheader").all_inner_texts()
    assert titles.index("Epoch") < titles.index("Experiment")
    assert rows(page).first.evaluate("(row) => row.getBoundingClientRect().height") == 40
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_the_keyboard_alone_finds_selects_and_compares(page: Page) -> None:
    grid = page.get_by_role("grid")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox", name="search checkpoints")).to_be_focused()
    page.keyboard.type("exp_0 j")  # letters of a word, no commands
    search(page, "exp_0")
    expect_count(page, f"4 of {TOTAL}")
    page.keyboard.press("Escape")
    expect(grid).to_be_focused()
    listed = names(page)

    def active() -> str:
        shown = page.evaluate(
            """() => document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))
              ?.querySelector('.strong').title"""
        )
        return str(shown)

    page.keyboard.press("Home")
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert active() == listed[2]
    page.keyboard.press("k")
    assert active() == listed[1]
    page.keyboard.press("x")
    page.keyboard.press("End")
    assert active() == listed[-1]
    page.keyboard.press("x")
    expect(page.get_by_role("region", name="selection")).to_contain_text("2 of 4 selected")
    page.keyboard.press("c")
    expect_address(page, "view=compare")
    page.keyboard.press("Escape")
    expect_address(page, without=("view=",))
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.slow
def test_at_most_four_are_selected_and_the_selection_is_in_the_address(page: Page) -> None:
    for number in range(5):
        rows(page).nth(number).get_by_role("checkbox").click()
    expect(page.get_by_role("region", name="selection")).to_contain_text("4 of 4 selected")
    expect(rows(page).nth(4).get_by_role("checkbox")).not_to_be_checked()
    expect_address(page, "selected=")
    page.reload()
    expect(page.get_by_role("region", name="selection")).to_contain_text("4 of 4 selected")
    expect(rows(page).get_by_role("checkbox", checked=True)).to_have_count(4)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_name_metric_and_health_without_scrolling_sideways(
    visitor: Visitor, daemon: Daemon, scheme: str
) -> None:
    page = visitor.open(daemon.url, viewport={"width": 360, "height": 640}, color_scheme=scheme)
    expect_live(page)
    expect(row(page, "odd/torn")).to_contain_text("invalid")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]


@pytest.mark.slow
def test_name_metric_and_health_are_on_the_screen_however_wide_the_window(page: Page) -> None:
    for width in (360, 640, 768, 1024, 1440):
        page.set_viewport_size({"width": width, "height": 800})
        for title in ("Checkpoint", "hmean", "Health"):
            header = page.get_by_role("columnheader", name=title)
            eventually(
                lambda header=header, width=width: ends_at(header) <= width,  # type: ignore[misc]
                f"{title} ends within {width} pixels",
                deadline_s=DEADLINE_MS / 1e3,
            )
    page.set_viewport_size({"width": 1024, "height": 800})
    page.get_by_role("button", name="view", exact=True).click()
    expect(page.locator(".column-choice", has_text="Architecture")).to_contain_text("no room")
    expect(page.locator(".column-choice", has_text="Epoch")).not_to_contain_text("no room")


@pytest.mark.slow
def test_a_menu_ends_within_the_window(page: Page) -> None:
    for width in (360, 660, 768, 1440):
        page.set_viewport_size({"width": width, "height": 700})
        page.get_by_role("button", name="filter", exact=True).click()
        menu = page.get_by_role("dialog", name="filter")
        expect(menu).to_be_visible()
        assert ends_at(menu) <= width
        assert menu.evaluate("(menu) => menu.getBoundingClientRect().left") >= 0
        page.keyboard.press("Escape")


@pytest.mark.slow
def test_a_narrow_screen_shows_the_end_of_long_names_and_a_tap_or_enter_the_whole(
    visitor: Visitor, daemon: Daemon
) -> None:
    page = visitor.open(daemon.url, viewport={"width": 360, "height": 640}, has_touch=True)
    expect_live(page)
    line = row(page, "exp_1/epoch=3")
    end = line.get_by_text("=0.2600", exact=True)
    expect(end).to_be_visible()
    name = line.get_by_role("gridcell").nth(1)
    assert ends_at(end) <= ends_at(name), "it is not cut off"
    expect(name).to_contain_text("exp_1/")
    line.tap()
    heading = page.get_by_role("complementary", name="details").get_by_role("heading", level=2)
    expect(heading).to_have_text("exp_1/epoch=3-step=400-val_loss=0.2600")
    page.keyboard.press("Escape")
    expect(heading).to_have_count(0)
    expect(page.get_by_role("grid")).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(heading).to_have_text(page.locator(".row.open .strong").get_attribute("title") or "")


@pytest.mark.slow
def test_paths_can_be_copied(visitor: Visitor, daemon: Daemon) -> None:
    page = visitor.open(daemon.url, permissions=["clipboard-read", "clipboard-write"])
    expect_live(page)
    line = row(page, "exp_0/epoch=3")
    line.hover()
    line.get_by_role("button", name="copy the path").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert pathlib.Path(copied).name.startswith("epoch=3-step=400")
    assert pathlib.Path(copied).exists()
