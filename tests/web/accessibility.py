"""axe-core on the page as it stands."""

from playwright.sync_api import Page

from tests.web.browser import WEB, missing

AXE = WEB / "node_modules" / "axe-core" / "axe.min.js"


def violations(page: Page) -> list[str]:
    """What axe finds wrong, one line each: the rule, what it asks for, and where.

    The policy of the page forbids to insert a script; Playwright's evaluation is not bound by it.
    """
    if not AXE.exists():
        missing("axe-core is not installed: npm ci in daemon/web")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document).then(({violations, passes}) => [violations, passes.length])")
    assert found[1] > 10, "axe looked at something"
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: " + "; ".join(str(node["target"]) for node in one["nodes"][:4])
        for one in found[0]
    ]
