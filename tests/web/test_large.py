"""The page with 100,000 checkpoints, and below a path prefix."""

import pathlib
import re
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.service.checkpoints import checkpoint_bytes, write_in_place
from tests.service.daemons import eventually
from tests.service.test_nginx import NGINX, Site
from tests.web.browser import REPO, Visitor
from tests.web.on_page import expect_count, expect_live, names, rows, search, sort_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ENTRIES = 100_000


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A catalog of 100,000 in a real state behind the daemon's own HTTP: the one that scripts/bench measures."""
    sys.path.insert(0, str(REPO / "scripts" / "benchmarks"))
    try:
        from list_backend import list_server

        with list_server(ENTRIES, {0, 1}) as server:
            yield f"http://127.0.0.1:{server.port}"
    finally:
        sys.path.remove(str(REPO / "scripts" / "benchmarks"))


def test_a_hundred_thousand_are_listed_filtered_sorted_and_scrolled_to_the_end(visitor: Visitor, url: str) -> None:
    context = visitor.context(url)
    context.add_init_script(
        """window.seen = []
        new MutationObserver(() => {
          const bar = document.querySelector('[role="progressbar"]')
          if (bar) seen.push([Number(bar.getAttribute('aria-valuenow')), bar.getAttribute('aria-valuetext')])
        }).observe(document, { childList: true, subtree: true, attributes: true })"""
    )
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(url, wait_until="commit")
    expect(rows(page).first).to_be_visible()
    expect(page.get_by_role("banner").locator(".count")).to_have_text("100,000", timeout=120_000)
    expect_live(page)
    seen = page.evaluate("window.seen")
    assert any(re.search(r"[\d,]+ of 100,000", text) for _, text in seen if text), (
        f"a determinate bar, with numbers: {seen[:5]}"
    )
    assert [now for now, _ in seen] == sorted(now for now, _ in seen), "which never goes back"
    assert rows(page).count() < 100, "only what is on the screen is drawn"

    search(page, "run_00017")
    expect_count(page, "20 of 100,000")
    search(page, "")
    expect_count(page, "100,000")
    sort_by(page, "Epoch")
    page.get_by_role("grid").focus()
    page.keyboard.press("End")
    expect(page.locator('[role="row"][aria-rowindex="100001"]')).to_be_visible()
    page.keyboard.press("Home")
    expect(page.locator('[role="row"][aria-rowindex="2"]')).to_be_visible()
    assert page.evaluate("document.querySelectorAll('*').length") < 3_000
    assert names(page)


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_below_a_path_prefix_behind_nginx_everything_is_found(visitor: Visitor, tmp_path: pathlib.Path) -> None:
    site = Site(tmp_path)
    try:
        eventually(site.is_up, f"nginx passes on what the daemon says; its log: {site.log}")
        page = visitor.open(site.url, f"/ckptd/?token={site.daemon.token}")
        expect_live(page)
        expect_count(page, "1")
        assert "token" not in page.url
        assert page.url.startswith(f"{site.url}/ckptd/")
        rows(page).first.click()
        expect(page.get_by_role("complementary", name="details")).to_contain_text("seed.ckpt")
        write_in_place(site.outputs / "second.ckpt", checkpoint_bytes(1))
        expect_count(page, "2")
        assert all(path.startswith("/ckptd/") for path in visitor.requests), set(visitor.requests)
    finally:
        site.close()
