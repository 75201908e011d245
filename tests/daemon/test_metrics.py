"""Metrics: the table in the documentation is what a real daemon tells, and each counts what it says it counts."""

import contextlib
import pathlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from ckptd.catalog.roots import Root
from ckptd.catalog.state import State
from ckptd.catalog.store import Catalog
from ckptd.daemon.hints import SortedChanges
from ckptd.daemon.journal import Journal
from ckptd.daemon.metrics import Metrics
from ckptd.daemon.settings import Settings
from ckptd.daemon.watcher import WatcherState, _Watch
from ckptd.validators.findings import CATALOGUE
from tests.catalog.catalog_records import put, record_of
from tests.daemon.fakes import FakeBackend, serving
from tests.daemon.verified_trees import RefusingState
from tests.scripts.metrics_table import documented
from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually
from tests.validators.hostile import hostile_checkpoint

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One that has met a good checkpoint, one that is none, and one that kills its reader."""
    tmp_path = tmp_path_factory.mktemp("metrics")
    outputs = tmp_path / "outputs"
    rename_in(outputs / "good.ckpt", checkpoint_bytes())
    rename_in(outputs / "text.ckpt", b"no checkpoint at all" * 10)
    rename_in(outputs / "killer.ckpt", hostile_checkpoint("nested_tuple_key"))
    with Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.05, heartbeat_s=0.2, workers=1) as running:
        eventually(lambda: len(running.entries()) == 3, "all are listed")
        eventually(lambda: running.entries()["good.ckpt"]["verified"] == "checksum", "the good one is verified")
        eventually(lambda: running.entries()["good.ckpt"]["has_metadata"], "the good one has its sidecar")
        yield running


def samples_of(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def told(daemon: Daemon) -> Samples:
    return samples_of(daemon.get("/metrics").text)


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all series that have these labels."""
    wanted = frozenset(labels.items())
    return sum(number for (known, its), number in samples.items() if known == name and wanted <= its)


def test_the_documented_metrics_are_those_that_exist_with_their_types_and_labels(daemon: Daemon) -> None:
    daemon.get("/checkpoints")
    daemon.rebuild()
    found: dict[str, tuple[str, set[frozenset[str]]]] = {}
    eventually(lambda: total(told(daemon), "ckptd_rebuild_duration_seconds_count"), "the rebuild is done")
    text = daemon.get("/metrics").text
    for family in text_string_to_metric_families(text):
        if family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {frozenset(s.labels.keys() - {"le"}) for s in family.samples if not s.name.endswith("_created")}
        found[name] = (family.type, labels)
    table = documented()
    assert found.keys() == table.keys()
    for name, (kind, labels) in found.items():
        assert kind == table[name].kind, name
        assert labels == {table[name].labels}, name


def test_what_arrived_is_counted_by_how_its_description_ended(daemon: Daemon) -> None:
    samples = told(daemon)
    count = "ckptd_describe_duration_seconds_count"
    assert value(samples, count, outcome="valid") >= 1
    assert value(samples, count, outcome="invalid") >= 1
    died = value(samples, count, outcome="worker_died")  # a young file is looked at twice
    assert died >= 1
    assert value(samples, "ckptd_worker_deaths_total", how="crashed") == died
    assert value(samples, "ckptd_worker_crashes_total") >= died
    assert value(samples, "ckptd_problems_total", kind="worker_died") == died
    assert value(samples, "ckptd_described_total") == total(samples, count)


def test_what_is_listed_is_counted_by_health_safety_level_and_finding(daemon: Daemon) -> None:
    samples = told(daemon)
    assert value(samples, "ckptd_checkpoints", health="valid") == 1
    assert value(samples, "ckptd_checkpoints", health="invalid") == 2
    assert value(samples, "ckptd_checkpoints_safety", safety="safe") == 1
    assert total(samples, "ckptd_checkpoints_safety") == 3
    assert value(samples, "ckptd_checkpoints_verified", level="checksum") >= 1
    assert value(samples, "ckptd_findings", code="worker.crashed") == 1
    codes = {dict(labels)["code"] for name, labels in samples if name == "ckptd_findings"}
    assert codes == set(CATALOGUE)
    assert value(samples, "ckptd_metadata_coverage_ratio") == 1.0
    assert value(samples, "ckptd_sidecars_written_total") == 1


def test_bytes_verified_and_the_time_it_took_are_counted_by_level_and_outcome(daemon: Daemon) -> None:
    samples = told(daemon)
    labels = {"level": "checksum", "outcome": "good"}
    assert value(samples, "ckptd_verify_duration_seconds_count", **labels) >= 1
    assert value(samples, "ckptd_verified_total", **labels) >= 1
    assert value(samples, "ckptd_verified_bytes_total") >= len(checkpoint_bytes())


def test_a_rebuild_is_counted_once_and_its_time_taken(daemon: Daemon) -> None:
    """It was counted by the route and by the service."""
    before = told(daemon)
    with daemon.events() as events:
        token = daemon.rebuild("full")
        assert next(message for message in events if message["type"] == "rebuilt")["token"] == token
    after = told(daemon)
    for name in ("ckptd_rebuilds_total", "ckptd_rebuild_duration_seconds_count"):
        assert total(after, name, mode="full") - total(before, name, mode="full") == 1


def test_a_sweep_counts_its_looks_and_its_end(daemon: Daemon) -> None:
    before = told(daemon)
    daemon.rebuild()
    daemon.wait_complete()
    after = told(daemon)
    assert value(after, "ckptd_sweeps_total", outcome="ok") > value(before, "ckptd_sweeps_total", outcome="ok")
    assert value(after, "ckptd_sweep_lag_seconds") < 60
    assert value(after, "ckptd_sweep_due_seconds") >= 10
    assert total(after, "ckptd_watcher_events_total") >= 1
    assert total(after, "ckptd_root_online") == total(after, "ckptd_root_watching") == 1


def test_the_cache_hit_rate_is_the_share_of_304(daemon: Daemon) -> None:
    before = told(daemon)
    etag = daemon.get("/checkpoints").headers["etag"]
    for known in (etag, '"another"'):
        httpx.get(f"{daemon.url}/checkpoints", headers={"If-None-Match": known})
    after = told(daemon)

    def more(outcome: str) -> float:
        name = "ckptd_http_cacheable_requests_total"
        return total(after, name, outcome=outcome) - total(before, name, outcome=outcome)

    assert (more("not_modified"), more("modified"), more("unconditional")) == (1, 1, 1)
    hits = total(after, "ckptd_http_cacheable_requests_total", outcome="not_modified")
    everything = total(after, "ckptd_http_cacheable_requests_total")
    assert daemon.health()["cache_hit_rate"] == pytest.approx(hits / everything)
    assert value(after, "ckptd_http_response_bytes_total") > value(before, "ckptd_http_response_bytes_total")


def test_live_streams_are_counted_with_what_they_were_sent(daemon: Daemon) -> None:
    before = told(daemon)
    with daemon.events() as events:
        event_id = next(message for message in events if message["type"] == "complete")["_id"]
        next(message for message in events if message["type"] == "heartbeat")
        assert value(told(daemon), "ckptd_stream_listeners") == 1
    with daemon.events(last_event_id=event_id) as events:
        assert next(events)["type"] == "resumed"
    after = told(daemon)
    assert value(after, "ckptd_stream_opened_total") - value(before, "ckptd_stream_opened_total") == 2
    assert value(after, "ckptd_stream_resumed_total") - value(before, "ckptd_stream_resumed_total") == 1
    assert value(after, "ckptd_stream_bytes_total") > value(before, "ckptd_stream_bytes_total")
    assert value(after, "ckptd_stream_heartbeat_timestamp_seconds") >= value(after, "ckptd_start_timestamp_seconds")


def test_a_change_is_counted_when_it_is_published_and_so_is_its_commit(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    before = told(daemon)
    passing = daemon.roots[0] / "passing.ckpt"
    rename_in(passing, checkpoint_bytes(5))
    eventually(lambda: "passing.ckpt" in daemon.entries(), "it is listed")
    passing.unlink()
    eventually(lambda: "passing.ckpt" not in daemon.entries(), "it is gone")
    after = told(daemon)
    assert total(after, "ckptd_changes_total", type="delete") - total(before, "ckptd_changes_total", type="delete") == 1
    assert total(after, "ckptd_changes_total", type="upsert") > total(before, "ckptd_changes_total", type="upsert")
    assert value(after, "ckptd_removed_total") - value(before, "ckptd_removed_total") == 1
    commits = "ckptd_state_commit_duration_seconds_count"
    assert total(after, commits, outcome="ok") - total(before, commits, outcome="ok") >= 2


def test_health_has_every_field_that_operators_are_promised(daemon: Daemon) -> None:
    health = daemon.health()
    text = (pathlib.Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
    promised = {
        name
        for row in text.partition("## Metrics")[0].splitlines()
        if row.startswith("| `")
        for name in row.split("|")[1].replace("`", "").split(",")
    }
    assert {name.strip() for name in promised} <= health.keys()
    assert health["last_build_time"] == health["last_build_time_seconds"] > 0
    assert health["fast_path_count"] + health["slow_path_count"] == 3
    assert {error["what"] for error in health["recent_errors"]} == {"worker died"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here (Debian: prometheus)")
def test_prometheus_own_linter_has_nothing_to_say(daemon: Daemon) -> None:
    metrics = daemon.get("/metrics").content
    linted = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, check=False)
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, b"", b"")


# ---- without a daemon ------------------------------------------------------------------------------------------


def test_kinds_of_problems_and_methods_that_nobody_thought_of_are_counted_together() -> None:
    metrics = Metrics()
    for number in range(50):
        metrics.count_problem(f"something new {number}")
        metrics.observe_request("other", f"METHOD{number}", 405, 0.001)
    samples = samples_of(metrics.exposition().decode())
    assert value(samples, "ckptd_problems_total", kind="other") == 50
    labels = {"route": "other", "method": "other", "status": "4xx"}
    assert value(samples, "ckptd_http_request_duration_seconds_count", **labels) == 50


@pytest.mark.anyio
async def test_a_scrape_is_put_together_in_another_thread(tmp_path: Any) -> None:
    """It takes 20 ms and more; the live stream must not wait for it."""
    backend = FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")))
    put_together, threads = backend.metrics.exposition, []

    def observed() -> bytes:
        threads.append(threading.get_ident())
        return put_together()

    backend.metrics.exposition = observed  # type: ignore[method-assign]
    async with serving(backend) as server, server.client() as http:
        backend.put("a.ckpt")
        assert "ckptd_revision 1.0" in (await http.get("/metrics")).text
        backend.put("b.ckpt")
        assert "ckptd_revision 2.0" in (await http.get("/metrics")).text
    assert len(threads) == 2
    assert threading.get_ident() not in threads


@pytest.mark.anyio
async def test_a_request_that_is_cut_off_before_its_answer_is_no_error(tmp_path: Any) -> None:
    """As at the end of a drain. It was counted as one that failed inside."""
    backend = FakeBackend(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")))
    checkpoint_id = backend.put("a.ckpt")
    asked = anyio.Event()

    async def hanging(_: object) -> None:
        asked.set()
        await anyio.sleep_forever()

    backend.description = hanging  # type: ignore[method-assign, assignment]
    async with serving(backend) as server, server.client() as http, anyio.create_task_group() as tasks:
        await http.get("/health")

        async def ask() -> None:
            transport = httpx.ASGITransport(server.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as inside:
                await inside.get(f"/checkpoints/{checkpoint_id}")

        tasks.start_soon(ask)
        await asked.wait()
        tasks.cancel_scope.cancel()
    backend.metrics.take()
    samples = samples_of((await anyio.to_thread.run_sync(backend.metrics.exposition)).decode())
    assert total(samples, "ckptd_http_request_duration_seconds_count", status="2xx") == 1
    assert total(samples, "ckptd_http_request_duration_seconds_count", status="5xx") == 0


@pytest.mark.anyio
async def test_a_commit_that_fails_is_counted_as_such(tmp_path: pathlib.Path) -> None:
    metrics, catalog = Metrics(), Catalog("testing")
    with contextlib.closing(State.open(str(tmp_path / "state"), boot_id="boot", clock=lambda: 0.0)) as state:
        full = RefusingState(state)
        log: structlog.stdlib.BoundLogger = structlog.testing.CapturingLogger()  # type: ignore[assignment]
        journal = Journal(catalog, full, log, on_commit=metrics.observe_commit)  # type: ignore[arg-type]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(journal.run)
            await journal.submit(put(record_of("a.ckpt")))
            full.full.set()
            await journal.submit(put(record_of("b.ckpt")))
            tasks.cancel_scope.cancel()
    samples = samples_of((await anyio.to_thread.run_sync(metrics.exposition)).decode())
    for outcome in ("ok", "failed"):
        assert value(samples, "ckptd_state_commit_duration_seconds_count", outcome=outcome) == 1


def test_a_watch_counts_events_and_the_times_that_some_may_have_been_lost(tmp_path: pathlib.Path) -> None:
    state = WatcherState()
    log = structlog.stdlib.get_logger()
    root = Root(bytes(tmp_path))
    watch = _Watch(root, lambda _: None, state, log=log, step_ms=5, debounce_ms=50, poll_s=15.0, follow=())
    nothing = SortedChanges(frozenset(), frozenset(), frozenset())

    async def receive() -> None:
        watch._receive(nothing, 3, False)
        assert (state.events, state.overflows) == (3, 0)
        watch._receive(nothing, 1000, True)
        assert (state.events, state.overflows) == (1003, 1)
        watch._check_alive()
        assert state.overflows == 1
        watch._seen_alive_at -= 60  # the process was stopped, or the machine slept
        watch._check_alive()
        assert state.overflows == 2

    anyio.run(receive)
