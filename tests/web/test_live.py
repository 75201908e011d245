"""The page while things happen: files come, change and go, the daemon dies and returns, the tab is hidden."""

import pathlib
import re
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.service.daemons import Daemon, eventually
from tests.service.token_daemons import TokenDaemon
from tests.web.browser import LOST_CONNECTION, Visitor
from tests.web.on_page import expect_count, expect_live, names, row, rows, search
from tests.web.trees import checkpoint, save

pytestmark = pytest.mark.slow
HEARTBEAT_S = 1


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> pathlib.Path:
    outputs = tmp_path / "outputs"
    for number in range(3):
        save(outputs / "exp" / f"first-{number}.ckpt", checkpoint(number, hmean=0.5, val_loss=0.5, seed=number))
    return outputs


@pytest.fixture
def daemon(outputs: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[Daemon]:
    with Daemon(outputs, tmp_path / "state", sidecars="off", heartbeat_s=HEARTBEAT_S, quiet_s=0.2) as daemon:
        daemon.wait_complete()
        yield daemon


def restart(daemon: Daemon) -> None:
    """Start it again where it was."""
    daemon.settings["port"] = daemon.url.rpartition(":")[2]
    daemon.start()


def test_a_new_file_appears_by_itself_and_one_that_goes_disappears(
    visitor: Visitor, daemon: Daemon, outputs: pathlib.Path
) -> None:
    page = visitor.open(daemon.url)
    expect_count(page, "3")
    arrived = save(outputs / "exp" / "arrived.ckpt", checkpoint(7, hmean=0.75, val_loss=0.1, seed=9))
    expect(row(page, "arrived")).to_be_visible()
    expect(row(page, "arrived")).to_have_class(re.compile("changed"))
    expect_count(page, "4")
    assert "arrived" in names(page)[0], "the newest is first"
    expect(row(page, "arrived")).not_to_have_class(re.compile("changed"))
    arrived.unlink()
    expect(row(page, "arrived")).to_have_count(0)
    expect_count(page, "3")


def test_a_file_that_is_overwritten_changes_in_its_row(visitor: Visitor, daemon: Daemon, outputs: pathlib.Path) -> None:
    page = visitor.open(daemon.url)
    expect(row(page, "first-1")).to_contain_text("0.5000")
    save(outputs / "exp" / "first-1.ckpt", checkpoint(40, hmean=0.9375, val_loss=0.5, seed=5))
    expect(row(page, "first-1")).to_contain_text("0.9375")
    expect(row(page, "first-1")).to_contain_text("40")
    expect_count(page, "3")


def test_whoever_scrolled_is_not_disturbed_until_they_ask_for_what_is_new(
    visitor: Visitor, tmp_path: pathlib.Path
) -> None:
    outputs = tmp_path / "many"
    data = checkpoint(1, hmean=0.5, val_loss=0.5)
    for number in range(120):
        save(outputs / f"run-{number:03d}" / "last.ckpt", data)
    with Daemon(outputs, tmp_path / "state", sidecars="off", quiet_s=0.2) as daemon:
        daemon.wait_complete()
        page = visitor.open(daemon.url)
        expect_count(page, "120")
        page.get_by_role("grid").evaluate("(grid) => { grid.scrollTop = 1000 }")
        expect(rows(page).first).to_be_visible()
        top = "() => document.elementFromPoint(300, 300).closest('[role=row]').id"
        before = page.evaluate(top)
        for number in range(3):
            save(outputs / f"new-{number}" / "last.ckpt", data)
        show = page.get_by_role("button", name="3 new · Show")
        expect(show).to_be_visible()
        assert page.evaluate(top) == before
        show.click()
        expect(row(page, "new-2")).to_be_visible()
        expect(show).to_have_count(0)
        expect_count(page, "123")


def test_the_daemon_dies_and_returns_and_the_page_goes_on_where_it_was(
    visitor: Visitor, daemon: Daemon, outputs: pathlib.Path
) -> None:
    visitor.expects(LOST_CONNECTION)
    page = visitor.open(daemon.url)
    expect_live(page)
    expect_count(page, "3")
    daemon.kill()
    banner = page.locator(".banner")
    expect(banner).to_contain_text("Not live")
    expect(banner).to_contain_text(re.compile(r"Next attempt in \d+ s|Trying"))
    expect(rows(page)).to_have_count(3)
    search(page, "first-2")
    expect_count(page, "1 of 3")
    search(page, "")
    save(outputs / "exp" / "meanwhile.ckpt", checkpoint(9, hmean=0.5, val_loss=0.5, seed=8))
    page.evaluate("document.querySelector('[role=row][id]').dataset.mark = 'kept'")
    restart(daemon)
    page.get_by_role("button", name="Retry now").click()
    expect_live(page)
    expect(banner).to_have_count(0)
    expect(row(page, "meanwhile")).to_be_visible()
    expect_count(page, "4")


def test_a_daemon_that_says_nothing_any_more_is_noticed(visitor: Visitor, daemon: Daemon) -> None:
    visitor.expects(LOST_CONNECTION)
    page = visitor.open(daemon.url)
    expect_live(page)
    daemon.signal(signal.SIGSTOP)
    expect(page.locator(".banner")).to_contain_text("Not live")
    daemon.signal(signal.SIGCONT)
    expect_live(page)


def test_a_daemon_whose_token_changed_asks_to_sign_in_again(
    visitor: Visitor, outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    visitor.expects(LOST_CONNECTION, "status of 401")
    with TokenDaemon(outputs, tmp_path / "state", sidecars="off", heartbeat_s=HEARTBEAT_S) as daemon:
        page = visitor.open(daemon.url, f"/?token={daemon.token}")
        expect_live(page)
        daemon.stop()
        (daemon.state / "token").write_text("another-token-of-enough-characters\n")
        restart(daemon)
        expect(page.locator(".banner")).to_contain_text("signed out")
        expect(rows(page)).to_have_count(3)
        page.get_by_role("link", name="Sign in").click()
        page.get_by_label("Token").fill("another-token-of-enough-characters")
        page.keyboard.press("Enter")
        expect_live(page)


def test_an_empty_tree_says_what_is_watched_and_how_to_fill_it(visitor: Visitor, tmp_path: pathlib.Path) -> None:
    outputs = tmp_path / "empty tree"
    outputs.mkdir()
    with Daemon(outputs, tmp_path / "state", sidecars="off") as daemon:
        daemon.wait_complete()
        page = visitor.open(daemon.url)
        expect(page.get_by_role("heading", name="No checkpoints yet")).to_be_visible()
        expect(page.get_by_text(str(outputs), exact=True)).to_be_visible()
        command = page.locator(".command code").inner_text()
        assert f"{outputs}/first.ckpt" in command
        save(outputs / "first.ckpt", checkpoint(0, hmean=0.5, val_loss=0.5))
        expect(rows(page)).to_have_count(1)


def test_a_page_that_shall_not_listen_fetches_the_list_and_does_so_again_when_asked(
    visitor: Visitor, outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with Daemon(outputs, tmp_path / "state", sidecars="off", no_page_streaming=None) as daemon:
        daemon.wait_complete()
        page = visitor.open(daemon.url)
        expect(page.get_by_role("banner")).to_contain_text("Fetched")
        expect(rows(page)).to_have_count(3)
        assert not [path for path in visitor.requests if path.endswith("/events")]
        save(outputs / "exp" / "later.ckpt", checkpoint(9, hmean=0.5, val_loss=0.5, seed=8))
        eventually(lambda: len(daemon.entries()) == 4, "it is listed")
        page.get_by_role("button", name="fetch again").click()
        expect(row(page, "later")).to_be_visible()


def test_without_server_sent_events_the_page_fetches_the_list(visitor: Visitor, daemon: Daemon) -> None:
    """A proxy that holds streams back: nothing comes of them, ever."""
    context = visitor.context(daemon.url)
    context.route(re.compile("/checkpoints/events"), lambda _: None)
    page = context.new_page()
    page.goto(daemon.url)
    expect(rows(page)).to_have_count(3)


def test_ten_tabs_of_one_browser_all_show_the_list_and_the_hidden_ones_give_their_connections_back(
    visitor: Visitor, daemon: Daemon, outputs: pathlib.Path
) -> None:
    """A browser opens six connections to one host: a seventh stream would hang, and with it every request."""
    context = visitor.context(daemon.url)
    tabs: list[Page] = []
    for _ in range(10):
        tab = context.new_page()
        # Headless Chromium calls every tab visible: what is in front is said here instead.
        tab.add_init_script(
            "Object.defineProperty(document, 'visibilityState', {get: () => window.__hidden ? 'hidden' : 'visible'});"
            "Object.defineProperty(document, 'hidden', {get: () => !!window.__hidden})"
        )
        for other in tabs[-1:]:
            show(other, visible=False)
        tab.goto(daemon.url)
        expect(rows(tab)).to_have_count(3)
        tabs.append(tab)
    save(outputs / "exp" / "late.ckpt", checkpoint(9, hmean=0.5, val_loss=0.5, seed=8))
    expect(row(tabs[-1], "late")).to_be_visible()
    expect(rows(tabs[0])).to_have_count(3)
    show(tabs[-1], visible=False)
    show(tabs[0], visible=True)
    expect(row(tabs[0], "late")).to_be_visible()


def show(tab: Page, *, visible: bool) -> None:
    """Bring a tab to the front, or behind another one."""
    tab.evaluate(
        "(hidden) => { window.__hidden = hidden; document.dispatchEvent(new Event('visibilitychange')) }", not visible
    )


def test_motion_is_left_out_for_those_who_prefer_none(visitor: Visitor, daemon: Daemon, outputs: pathlib.Path) -> None:
    page = visitor.open(daemon.url, reduced_motion="reduce")
    expect_live(page)
    save(outputs / "exp" / "arrived.ckpt", checkpoint(7, hmean=0.75, val_loss=0.1, seed=9))
    expect(row(page, "arrived")).to_be_visible()
    moving = page.evaluate(
        """() => document.getAnimations().filter((animation) =>
          animation.effect.getComputedTiming().duration > 50
          && animation.effect.getKeyframes().some((frame) => frame.transform || frame.translate || frame.top)).length"""
    )
    assert moving == 0
