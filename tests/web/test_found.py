"""The search of the page finds what only the daemon knows, and does without it where it cannot be asked."""

import pathlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.service.daemons import Daemon, eventually
from tests.web.browser import LOST_CONNECTION, Visitor
from tests.web.on_page import expect_count, expect_live, names, rows, search
from tests.web.trees import checkpoint, save

pytestmark = pytest.mark.slow


def write(path: pathlib.Path, optimizer: str, seed: int) -> None:
    save(path, checkpoint(0, hmean=0.5, val_loss=1.0, seed=seed, optimizer=optimizer))


@pytest.fixture
def daemon(tmp_path: pathlib.Path) -> Iterator[Daemon]:
    for seed, optimizer in enumerate(("lion", "adamw", "adamw")):
        write(tmp_path / "outputs" / f"run_{seed}" / "last.ckpt", optimizer, seed)
    with Daemon(tmp_path / "outputs", tmp_path / "state", sidecars="off", verify="none", quiet_s=0.2) as daemon:
        eventually(lambda: len(daemon.entries()) == 3, "all are listed")
        yield daemon


@pytest.fixture
def page(visitor: Visitor, daemon: Daemon) -> Page:
    page = visitor.open(daemon.url)
    expect_live(page)
    expect(rows(page)).to_have_count(3)
    return page


def test_a_hyper_parameter_is_found_though_no_row_shows_it(page: Page) -> None:
    search(page, "lion")
    expect_count(page, "1 of 3")
    expect(rows(page).first).to_contain_text("run_0")
    search(page, "-lion")
    expect_count(page, "2 of 3")
    search(page, "adamw run_2")
    expect_count(page, "1 of 3")
    search(page, "")
    expect_count(page, "3")


def test_what_is_written_while_a_search_stands_is_found_by_it(page: Page, daemon: Daemon) -> None:
    search(page, "lion")
    expect_count(page, "1 of 3")
    write(daemon.roots[0] / "run_9" / "last.ckpt", "lion", 9)
    expect_count(page, "2 of 4")


def test_without_the_daemon_the_page_finds_what_it_knows_and_says_that_this_is_not_all(
    page: Page, daemon: Daemon, visitor: Visitor
) -> None:
    visitor.expects(LOST_CONNECTION)
    daemon.kill()
    expect(page.get_by_text("Not live")).to_be_visible()
    search(page, "run_1")
    expect_count(page, "1 of 3")
    assert len(names(page)) == 1
    expect(page.get_by_role("banner")).to_contain_text("configs were not searched")
