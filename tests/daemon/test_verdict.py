"""The service says of itself what is true, and why."""

import msgspec
import pytest

from ckptd.daemon.settings_loader import load_settings
from ckptd.daemon.status import CatalogStatus, RootStatus, Status
from ckptd.daemon.verdict import STALLED_S, judge_service

NOW = 1_000_000.0
ROOT = RootStatus(path="/outputs", online=True, watching=True)
GONE = RootStatus(path="/b", online=False, watching=False, last_error="gone")


def _status(**fields: object) -> Status:
    known: dict[str, object] = {
        "instance": "i",
        "revision": 1,
        "started_at": NOW - 100,
        "state": CatalogStatus.HEALTHY,
        "complete_as_of": NOW - 5,
        "roots": (ROOT,),
    }
    return Status(**(known | fields))  # type: ignore[arg-type]


def _judge(status: Status) -> Status:
    return judge_service(status, load_settings({}, env={}), now=NOW, sweep_due_s=10)


def test_a_service_without_trouble_is_healthy_and_gives_no_reasons() -> None:
    judged = _judge(_status(by_health={"valid": 4}, with_sidecar=4))
    assert (judged.state, judged.reasons) == (CatalogStatus.HEALTHY, ())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"complete_as_of": None}, "first sweep"),
        ({"complete_as_of": NOW - STALLED_S - 11}, "last complete sweep began 71 s ago"),
        (
            {"roots": (ROOT, GONE)},
            "/b is offline: gone",
        ),
        ({"roots": (RootStatus(path="/b", online=True, watching=False, last_error="limit"),)}, "not watched (limit)"),
        (
            {"roots": (msgspec.structs.replace(ROOT, sweep_error="I/O error"),)},
            "sweep of root /outputs proved nothing: I/O",
        ),
        ({"by_health": {"valid": 10}, "with_sidecar": 7}, "coverage is 70%, below 80%"),
        ({"last_build_s": 6.0}, "took 6.0 s, more than 5 s"),
        ({"state_durable": False}, "state cannot be written"),
        ({"by_health": {"offline": 3}}, "3 checkpoints are offline"),
        ({"by_health": {"offline": 1}}, "1 checkpoint is offline"),
    ],
)
def test_each_trouble_degrades_and_is_named(fields: dict[str, object], reason: str) -> None:
    judged = _judge(_status(**fields))
    assert judged.state is CatalogStatus.DEGRADED
    assert any(reason in given for given in judged.reasons), judged.reasons


def test_a_service_without_any_readable_root_is_unhealthy() -> None:
    judged = _judge(_status(roots=(RootStatus(path="/b", online=False, watching=False, last_error="I/O error"),)))
    assert judged.state is CatalogStatus.UNHEALTHY
    assert "no root can be read: /b: I/O error" in judged.reasons


def test_a_root_is_named_once_in_its_reason() -> None:
    error = "/b cannot be opened: No such file or directory"
    judged = _judge(_status(roots=(RootStatus(path="/b", online=False, watching=False, last_error=error),)))
    assert f"no root can be read: {error}" in judged.reasons


def test_low_coverage_is_no_trouble_while_sidecars_are_being_written() -> None:
    judged = _judge(_status(by_health={"valid": 10}, with_sidecar=0, writing_sidecars=10))
    assert judged.state is CatalogStatus.HEALTHY
