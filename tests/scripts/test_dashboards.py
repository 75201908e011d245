"""The alert rules and the dashboard ask only for what ckptd tells."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ckptd.catalog.entry import Health
from ckptd.daemon.status import CatalogStatus
from ckptd.validators.findings import CATALOGUE
from tests.scripts.metrics_table import REPO, series
from tests.scripts.promql import SCRAPED, grouped_by, selectors_of

RULES = REPO / "systemd/ckptd-alerts.yml"
DASHBOARD = REPO / "systemd/ckptd-dashboard.json"
UNIT_TESTS = Path(__file__).with_name("alerts_promtool.yml")
EXTERNAL = {"up": frozenset[str]()}
"""Series that Prometheus makes itself."""
FIXED = {
    "health": {health.value for health in Health},
    "code": set(CATALOGUE),
}


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def expressions() -> list[str]:
    targets = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    return [*(rule["expr"] for rule in rules()), *targets]


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_only_metrics_and_labels_that_are_documented(expression: str) -> None:
    """And with them those that exist: the table is compared with a real daemon's answer in test_metrics."""
    known = series() | EXTERNAL
    selectors = selectors_of(expression)
    assert selectors
    for selector in selectors:
        assert selector.metric in known
        assert selector.labels.keys() <= known[selector.metric] | SCRAPED
        for label, value in selector.labels.items():
            assert label not in FIXED or value in FIXED[label]
            if selector.metric == "ckptd_status" and label == "status":
                assert value in set(CatalogStatus)
    labels = frozenset[str]().union(*(known[selector.metric] for selector in selectors))
    assert grouped_by(expression) <= labels | SCRAPED


def test_the_reader_of_expressions_finds_unknown_names() -> None:
    """Else the test above would prove nothing."""
    (first, second) = selectors_of('sum by (le) (rate(ckptd_nothing_total{kind="x"}[5m])) / ckptd_revision')
    assert (first.metric, first.labels) == ("ckptd_nothing_total", {"kind": "x"})
    assert second.metric == "ckptd_revision"
    assert first.metric not in series()


def test_every_documented_metric_is_shown_or_alerted_on() -> None:
    """What nobody looks at is not worth its scrape; what has no panel is named here."""
    used = {selector.metric for expression in expressions() for selector in selectors_of(expression)}
    families = {re.sub(r"_(sum|count|bucket)$", "", name) if name not in series() else name for name in used}
    families |= {re.sub(r"_(sum|count|bucket)$", "", name) for name in used}
    unused = {name for name in series() if not name.endswith(("_sum", "_count", "_bucket"))} - families
    assert unused == {
        "ckptd_complete_as_of_timestamp_seconds",  # ckptd_sweep_lag_seconds is the same as an age
        "ckptd_removed_total",
        "ckptd_revision",
        "ckptd_rebuilds_total",  # the count of ckptd_rebuild_duration_seconds
        "ckptd_sweeps_total",
        "ckptd_start_timestamp_seconds",
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
    }


def test_every_alert_says_how_bad_it_is_and_what_to_do_and_is_documented() -> None:
    documented = (REPO / "docs/operations.md").read_text(encoding="utf-8")
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")
        assert f"| `{rule['alert']}` |" in documented


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    """Schema 39 or later, unique panel ids, no overlaps, each target on the chosen data source."""
    loaded = dashboard()
    assert loaded["schemaVersion"] >= 39
    panels = loaded["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Health",
        "Latency",
        "Live stream",
        "Validation",
        "Resources",
    ]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or {target["datasource"]["uid"] for target in panel["targets"]} == {
            "${datasource}"
        }
    assert {variable["name"] for variable in loaded["templating"]["list"]} == {"datasource", "instance"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here (Debian: prometheus)")
def test_prometheus_itself_accepts_the_rules_and_they_fire_when_they_should(tmp_path: Path) -> None:
    for file in (RULES, UNIT_TESTS):
        shutil.copy(file, tmp_path)
    for command in (["check", "rules", RULES.name], ["test", "rules", UNIT_TESTS.name]):
        told = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stdout + told.stderr


def test_the_unit_tests_of_the_rules_know_every_alert() -> None:
    """Also where promtool is not: a rule without one is found."""
    text = UNIT_TESTS.read_text(encoding="utf-8")
    for rule in rules():
        assert f"alertname: {rule['alert']}," in text
        assert f'alertname="{rule["alert"]}"' in text
