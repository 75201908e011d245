"""/client.js, as docs/streaming.md shows it: in somebody else's page, against a real daemon."""

import pathlib
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.service.daemons import Daemon
from tests.web.browser import LOST_CONNECTION, Visitor
from tests.web.trees import checkpoint, save

pytestmark = pytest.mark.slow
DOCS = pathlib.Path(__file__).parents[2] / "docs" / "streaming.md"


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> pathlib.Path:
    outputs = tmp_path / "outputs"
    for exp_name in ("dbnet", "craft"):
        save(outputs / exp_name / "checkpoints" / "first.ckpt", checkpoint(1, hmean=0.5, val_loss=0.5))
    return outputs


@pytest.fixture
def daemon(outputs: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[Daemon]:
    with Daemon(outputs, tmp_path / "state", sidecars="off") as daemon:
        daemon.wait_complete()
        yield daemon


def studio(visitor: Visitor, daemon: Daemon, html: str) -> Page:
    """A page on the daemon's origin that is not the daemon's, as a studio behind the same proxy has it."""
    page = visitor.context(daemon.url).new_page()
    body = f"<!doctype html><link rel=icon href=data:,><title>studio</title>{html}"
    page.route("**/studio.html", lambda route: route.fulfill(body=body, content_type="text/html"))
    page.goto(f"{daemon.url}/studio.html")
    return page


def example() -> str:
    (html,) = re.findall(r"^```html\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(html)


def test_the_example_shows_what_is_there_and_what_happens_also_while_the_daemon_was_away(
    visitor: Visitor, daemon: Daemon, outputs: pathlib.Path
) -> None:
    visitor.expects(LOST_CONNECTION)
    page = studio(visitor, daemon, example())
    items = page.get_by_role("listitem")
    expect(items).to_have_text([re.compile("dbnet/first: valid, hmean 0.5")])
    arrived = save(outputs / "dbnet" / "checkpoints" / "second.ckpt", checkpoint(2, hmean=0.75, val_loss=0.25))
    expect(items).to_have_count(2)
    expect(items.nth(1)).to_contain_text("dbnet/second: valid, hmean 0.75")
    arrived.unlink()
    expect(items).to_have_count(1)
    daemon.kill()
    (outputs / "dbnet" / "checkpoints" / "first.ckpt").unlink()
    save(outputs / "dbnet" / "checkpoints" / "third.ckpt", checkpoint(3, hmean=0.25, val_loss=0.25))
    daemon.settings["port"] = daemon.url.rpartition(":")[2]
    daemon.start()
    expect(items).to_have_text([re.compile("dbnet/third: valid, hmean 0.25")])


LOOK = """<output></output><script type="module">
  import { streamCheckpoints } from '/client.js'
  const found = []
  await streamCheckpoints(%s, {
    onBatch: (checkpoints) => found.push(...checkpoints.map(({ display_name }) => display_name)),
    onComplete: ({ total }) => { document.querySelector('output').textContent = `${total}: ${found.sort().join(' ')}` },
    onError: (error) => { document.querySelector('output').textContent = error.message },
  }, { query: { include_invalid: true }, streaming: %s })
</script>"""


@pytest.mark.parametrize(
    ("limit", "streaming", "asked"),
    [("50", "true", "/checkpoints/stream"), ("50", "false", "/checkpoints"), ("Infinity", "true", "/checkpoints")],
)
def test_one_look_is_a_stream_or_pages_and_shows_the_same(
    visitor: Visitor, daemon: Daemon, limit: str, streaming: str, asked: str
) -> None:
    page = studio(visitor, daemon, LOOK % (limit, streaming))
    expect(page.locator("output")).to_have_text("2: craft/first dbnet/first")
    assert {path for path in visitor.requests if path.startswith("/checkpoints")} == {asked}
