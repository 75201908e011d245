"""What is beside the table: details, comparison, health, help."""

import csv
import io
import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.service.daemons import Daemon, eventually
from tests.web.browser import Visitor
from tests.web.on_page import expect_address, expect_live, row
from tests.web.trees import HOSTILE, checkpoint, cut_off, runs, save, unsafe

TOTAL = 16


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    top = tmp_path_factory.mktemp("panels")
    outputs = top / "outputs"
    runs(outputs)
    unsafe(outputs / "odd" / "surprising.ckpt")
    cut_off(outputs / "odd" / "torn.ckpt")
    hostile = {'<img src=x onerror="alert(1)">': "<script>alert(1)</script>", "bidi": "a\u202eb", "long": "x" * 5000}
    save(outputs / "odd" / HOSTILE[0], checkpoint(0, hmean=0.1, val_loss=1.0, seed=50, **hostile))
    deep = checkpoint(0, hmean=0.1, val_loss=1.0, seed=51, layers=400, width=4)
    save(outputs / "odd" / "deep.ckpt", deep)
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


def details(page: Page, name: str, part: str | None = None) -> Locator:
    """Open the details of a checkpoint, and a part of them."""
    row(page, name).click()
    panel = page.get_by_role("complementary", name="details")
    expect(panel.get_by_role("heading", level=2)).to_contain_text(name)
    if part is not None:
        panel.get_by_role("tab", name=part).click()
        return panel.get_by_role("tabpanel", name=part)
    return panel


def test_details_say_what_it_is_and_where_each_fact_is_from(page: Page) -> None:
    panel = details(page, "exp_1/epoch=3")
    expect(panel).to_contain_text("0.2600")
    expect(panel).to_contain_text("from inside the checkpoint")
    expect(panel).to_contain_text("keep .hydra/ or config.yaml with the run")
    expect_address(page, "id=")
    page.keyboard.press("Escape")
    expect(panel).to_have_count(0)
    expect(page.get_by_role("grid")).to_be_focused()


@pytest.mark.slow
def test_the_badge_of_a_broken_one_opens_the_reason_and_the_remedy(page: Page) -> None:
    row(page, "odd/torn").get_by_role("button", name="invalid").click()
    panel = page.get_by_role("complementary", name="details")
    expect(panel).to_contain_text("archive.incomplete")
    expect(panel.get_by_role("listitem").filter(has_text="archive.incomplete")).to_contain_text("error")


@pytest.mark.slow
def test_an_unsafe_one_is_said_to_be_so_and_what_it_would_run(page: Page) -> None:
    panel = details(page, "odd/surprising")
    expect(panel).to_contain_text("unsafe")
    expect(panel).to_contain_text(re.compile(r"(posix|os)\W+system"))


@pytest.mark.slow
def test_hyper_parameters_from_a_stranger_are_text(page: Page, visitor: Visitor) -> None:
    settings = details(page, "<img src=x onerror=alert(1)>", "Settings")
    expect(settings).to_contain_text("<script>alert(1)</script>")
    panel = page.get_by_role("complementary", name="details")
    assert panel.locator("script, img, iframe").count() == 0
    assert "\u202e" not in panel.inner_text()
    assert not [path for path in visitor.requests if path.endswith("/x")]


@pytest.mark.slow
def test_tensors_are_a_table_that_holds_only_the_rows_on_the_screen(page: Page) -> None:
    tensors = details(page, "odd/deep", "Tensors")
    expect(tensors).to_contain_text("encoder")
    expect(tensors).to_contain_text(re.compile("1,?600"))
    assert page.get_by_role("complementary", name="details").locator("*").count() < 3_000


@pytest.mark.slow
def test_the_history_of_an_experiment_is_a_plot_and_a_table(page: Page) -> None:
    metrics = details(page, "exp_1/epoch=3", "Metrics")
    expect(metrics.locator("canvas").first).to_be_visible()
    show = metrics.get_by_text("as a table").or_(metrics.get_by_role("button", name=re.compile("table"))).first
    if show.count():
        show.click()
    table = metrics.get_by_role("table").last
    for value in ("0.5100", "0.6100", "0.7100", "0.8100"):
        expect(table).to_contain_text(value)


@pytest.mark.slow
def test_the_way_to_load_it_is_safe_and_can_be_copied(page: Page) -> None:
    load = details(page, "exp_1/epoch=3", "Load")
    expect(load).to_contain_text("weights_only=True")
    expect(load).to_contain_text("ckptd")


@pytest.mark.slow
def test_the_plot_is_loaded_when_it_is_first_needed(page: Page, visitor: Visitor) -> None:
    scripts = {path for path in visitor.requests if path.endswith(".js")}
    details(page, "exp_1/epoch=3", "Metrics").locator("canvas").first.wait_for()
    assert {path for path in visitor.requests if path.endswith(".js")} > scripts


def compare(page: Page, *names: str) -> Locator:
    for name in names:
        row(page, name).get_by_role("checkbox").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    table = page.get_by_role("table", name=re.compile("attributes of"))
    expect(table).to_be_visible()
    return table


@pytest.mark.slow
def test_a_comparison_marks_what_differs_and_what_is_best_by_direction(page: Page) -> None:
    table = compare(page, "exp_0/epoch=3", "exp_1/epoch=3")
    expect(table.get_by_role("row", name=re.compile("differs: hmean"))).to_contain_text("larger is better")
    best = table.get_by_role("row", name=re.compile("differs: hmean")).get_by_role("cell", name=re.compile("^best"))
    expect(best).to_contain_text("0.8100")
    loss = table.get_by_role("row", name=re.compile("differs: validation_loss"))
    expect(loss.get_by_role("cell", name=re.compile("^best"))).to_contain_text("0.2500")
    equal = table.get_by_role("row", name=re.compile("equal: epoch"))
    expect(equal).to_be_visible()
    page.get_by_role("checkbox", name="differences only").check()
    expect(equal).to_have_count(0)
    expect(page.get_by_role("main")).to_contain_text("other weights")


@pytest.mark.slow
def test_the_address_of_a_comparison_shows_it_to_others(page: Page, visitor: Visitor, daemon: Daemon) -> None:
    compare(page, "exp_0/epoch=3", "exp_1/epoch=3", "exp_2/epoch=3")
    page.get_by_role("checkbox", name="differences only").check()
    expect_address(page, "view=compare", "ids=", "differences=only")
    other = visitor.open(daemon.url, page.url.removeprefix(daemon.url))
    expect(other.get_by_role("table", name=re.compile("attributes of 3"))).to_be_visible()
    expect(other.get_by_role("checkbox", name="differences only")).to_be_checked()


@pytest.mark.slow
def test_the_address_of_a_part_of_the_details_shows_it_to_others(page: Page, visitor: Visitor, daemon: Daemon) -> None:
    details(page, "exp_1/epoch=3", "Tensors")
    expect_address(page, "id=", "tab=tensors")
    other = visitor.open(daemon.url, page.url.removeprefix(daemon.url))
    expect(other.get_by_role("tab", name="Tensors")).to_have_attribute("aria-selected", "true")
    page.go_back()
    expect(page.get_by_role("tab", name="Overview")).to_have_attribute("aria-selected", "true")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["CSV", "Markdown", "JSON"])
def test_a_comparison_can_be_taken_along(page: Page, form: str) -> None:
    compare(page, "exp_0/epoch=3", "exp_1/epoch=3")
    with page.expect_download() as download:
        page.get_by_role("link", name=form, exact=True).click()
    text = download.value.path().read_text()
    if form == "CSV":
        assert len({len(line) for line in csv.reader(io.StringIO(text))}) == 1
    elif form == "JSON":
        assert len(json.loads(text)["checkpoints"]) == 2
    assert "0.81" in text
    assert "hmean" in text


@pytest.mark.slow
def test_health_counts_findings_and_a_rebuild_is_told_when_it_is_done(page: Page) -> None:
    page.get_by_role("banner").get_by_role("button", name="Health").click()
    health = page.get_by_role("region", name="health of the catalog")
    expect(health.get_by_role("row", name=re.compile("archive.incomplete"))).to_contain_text("1")
    health.get_by_role("button", name="Sweep now").click()
    expect(health.get_by_role("status").first).to_contain_text(re.compile("done|swept|complete|ended", re.IGNORECASE))
    health.get_by_role("button", name="archive.incomplete").click()
    expect(row(page, "odd/torn")).to_be_visible()
    expect(page.get_by_role("banner").locator(".count")).to_have_text(f"1 of {TOTAL}")


@pytest.mark.slow
def test_a_checkpoint_that_is_gone_is_said_to_be_gone(visitor: Visitor, daemon: Daemon) -> None:
    visitor.expects("status of 404", "status of 410")
    page = visitor.open(daemon.url, "/?id=aaaaaaaaaaaaaaaa")
    panel = page.get_by_role("complementary", name="details")
    expect(panel).to_contain_text(re.compile("no checkpoint|gone|not there|never", re.IGNORECASE))
