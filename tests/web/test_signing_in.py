"""The door of the page, in a real browser: its policy, the link with the token, the form."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Route, expect

from tests.service.token_daemons import TokenDaemon
from tests.web.browser import Visitor
from tests.web.trees import checkpoint, save


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenDaemon]:
    top = tmp_path_factory.mktemp("signing")
    save(top / "outputs" / "exp" / "checkpoints" / "best.ckpt", checkpoint(1, hmean=0.5, val_loss=0.5))
    with TokenDaemon(top / "outputs", top / "state", sidecars="off") as daemon:
        yield daemon


@pytest.fixture
def stranger(visitor: Visitor) -> Visitor:
    visitor.expects("status of 401")
    return visitor


@pytest.mark.slow
def test_a_stranger_sees_a_form_with_its_style_and_how_to_get_the_token(daemon: TokenDaemon, stranger: Visitor) -> None:
    page = stranger.open(daemon.url)
    expect(page).to_have_title("Sign in · ckptd")
    expect(page.get_by_label("Token")).to_be_focused()
    expect(page.get_by_text("ckptd token", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Sign in")).to_have_css("cursor", "pointer")  # of the style sheet


def test_the_form_says_that_a_token_is_wrong_and_lets_the_right_one_in_where_it_was_going(
    daemon: TokenDaemon, stranger: Visitor
) -> None:
    page = stranger.open(daemon.url, "/?q=best")
    page.get_by_label("Token").fill("not-the-token-at-all")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The token is wrong")
    page.get_by_label("Token").fill(daemon.token)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#app")).not_to_be_empty()
    assert "token" not in page.url
    assert "q=best" in page.url


@pytest.mark.slow
def test_the_link_signs_in_for_good_also_when_it_is_followed_from_another_site(
    daemon: TokenDaemon, visitor: Visitor
) -> None:
    """A chat or a wiki: another site than 127.0.0.1."""
    visitor.expects("asked another host: http://localhost")
    context = visitor.context(daemon.url)
    page = context.new_page()
    elsewhere = daemon.url.replace("127.0.0.1", "localhost") + "/elsewhere"
    for link in (f"{daemon.url}/?token={daemon.token}", f"{daemon.url}/"):
        page.route(elsewhere, _page_with_link(link))
        page.goto(elsewhere)
        page.get_by_role("link", name="the page").click()
        expect(page.locator("#app")).not_to_be_empty()
        assert "token" not in page.url
        page.unroute(elsewhere)
    (cookie,) = context.cookies()
    assert cookie["httpOnly"] is True
    assert daemon.token not in cookie["value"]


def test_the_policy_lets_no_inline_script_or_style_or_other_host_through(daemon: TokenDaemon, visitor: Visitor) -> None:
    page = visitor.open(daemon.url, f"/?token={daemon.token}")
    expect(page.locator("#app")).not_to_be_empty()
    visitor.expects("policy: ", "Content Security Policy", "asked another host", "Refused to")
    outcome = page.evaluate(
        """async (elsewhere) => {
          const script = document.createElement('script')
          script.textContent = 'window.ran = true'
          document.body.append(script)
          document.body.insertAdjacentHTML('beforeend', '<p id="styled" style="color: rgb(1, 2, 3)">x</p>')
          const fetched = await fetch(elsewhere).then(() => 'fetched', () => 'refused')
          return [window.ran === true, getComputedStyle(document.getElementById('styled')).color, fetched]
        }""",
        daemon.url.replace("127.0.0.1", "localhost") + "/health",
    )
    assert outcome[0] is False
    assert outcome[1] != "rgb(1, 2, 3)"
    assert outcome[2] == "refused"


def _page_with_link(link: str) -> Callable[[Route], None]:
    body = f'<!doctype html><title>wiki</title><a href="{link}">the page</a>'
    return lambda route: route.fulfill(content_type="text/html", body=body)
