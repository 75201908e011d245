"""A running daemon and what trainings write beside their checkpoints while they run."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.catalog.metadata_files import save
from tests.catalog.run_trees import csv_log, hydra, lightning, lightning_rows
from tests.service.daemons import DEADLINE_S, Daemon, eventually

ROWS = lightning_rows(64, per_epoch=8)
DESCRIBED = "ckptd_describe_duration_seconds_count"
OTHERS = 5
PATH = "exp/version_0/checkpoints/epoch=1-step=16.ckpt"


def append(log: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """As a CSVLogger goes on in its file."""
    names = log.read_text().splitlines()[0].split(",")
    with open(log, "a") as file:
        file.write("".join(",".join(str(row.get(name, "")) for name in names) + "\r\n" for row in rows))


def descriptions(daemon: Daemon) -> int:
    """How many files have been described since the start, whatever came of it."""
    counts = [line for line in daemon.get("/metrics").text.splitlines() if line.startswith(f"{DESCRIBED}{{")]
    return sum(int(float(line.split()[1])) for line in counts)


def swept(daemon: Daemon) -> None:
    """Wait until whatever lies on disk now has been found and published."""
    daemon.rebuild()
    daemon.wait_complete()


def entry_where(daemon: Daemon, path: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The entry of a path, once it is as it should be."""

    def probe() -> dict[str, Any] | None:
        entry = daemon.entries().get(path)
        return entry if entry is not None and holds(entry) else None

    return eventually(probe, f"{path} is listed as it should be")


def detail_of(daemon: Daemon, entry: dict[str, Any]) -> dict[str, Any]:
    return dict(daemon.get(f"/checkpoints/{entry['id']}").json())


@pytest.mark.slow
def test_metrics_that_are_logged_later_arrive_and_a_growing_log_costs_no_more_descriptions(
    tmp_path: pathlib.Path,
) -> None:
    """A CSVLogger flushes long after the checkpoint is saved, and writes on for as long as the training runs."""
    root = tmp_path / "outputs"
    version = root / "exp/version_0"
    before, of_the_step, later = ROWS[:15], ROWS[15:20], ROWS[20:]
    assert 15 in {row["step"] for row in of_the_step}
    assert later[0]["step"] > 15
    log = csv_log(version, [dict.fromkeys(["train_loss_epoch", "val_loss", "val/hmean"], "") | row for row in before])
    save(root / PATH, **lightning(1, 16))
    for number in range(OTHERS):
        save(version / f"checkpoints/other-{number}.ckpt", **lightning(0, 2 + number))
    with Daemon(root, tmp_path / "state", sweep_min_s=1, sidecar_delay_s=0) as daemon:
        entry = entry_where(daemon, PATH, lambda entry: entry["health"] == "valid")
        assert entry["metrics"] == {}
        append(log, of_the_step)
        entry = entry_where(daemon, PATH, lambda entry: "validation_loss" in entry["metrics"])
        assert (entry["metrics"]["validation_loss"], entry["metrics"]["hmean"]) == (15.5, 0.015)
        detail = detail_of(daemon, entry)
        assert detail["provenance"]["metrics.validation_loss"] == "metrics_csv"
        sidecar = root / f"{PATH}.metadata.yaml"
        eventually(lambda: sidecar.exists() and "hmean: 0.015" in sidecar.read_text(), "the sidecar says so too")
        shown = subprocess.run(
            [sys.executable, "-m", "ckptd.daemon.cli", "show", entry["id"]],
            env=os.environ | {"CKPTD_URL": daemon.url},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        origins = {line.split()[0]: line.split()[1:] for line in shown.stdout.splitlines() if line.strip()}
        assert origins["metrics.validation_loss"] == ["15.5", "metrics_csv"], shown.stderr
        assert origins["run_id"] == ["version_0", "layout"]
        append(log, later[:1])
        swept(daemon)
        swept(daemon)
        described = descriptions(daemon)
        assert described > OTHERS
        for row in later[1:8]:
            append(log, [row])
            swept(daemon)
        # Each file may be read once more because it is young; at each append it would be seven times each.
        assert descriptions(daemon) <= described + OTHERS + 1
        assert entry_where(daemon, PATH, lambda _: True)["metrics"]["validation_loss"] == 15.5


@pytest.mark.slow
def test_a_run_that_gets_its_config_later_is_known_by_it(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "outputs"
    path = "2025-10-11/00-44-42/checkpoints/last.ckpt"
    save(root / path)
    with Daemon(root, tmp_path / "state", sweep_min_s=1) as daemon:
        entry_where(daemon, path, lambda entry: entry["exp_name"] is None and entry["run_id"] == "2025-10-11/00-44-42")
        hydra(root / "2025-10-11/00-44-42", config="lr: 1\n", overrides=["+exp_name=from_cli"])
        entry = entry_where(daemon, path, lambda entry: entry["exp_name"] == "from_cli")
        assert (entry["has_config"], entry["config_path"]) == (True, "2025-10-11/00-44-42/.hydra/config.yaml")
        detail = detail_of(daemon, entry)
        assert {name: detail["provenance"][name] for name in ("exp_name", "run_id")} == {
            "exp_name": "hydra",
            "run_id": "layout",
        }


@pytest.mark.slow
def test_hostile_records_cost_a_checkpoint_nothing_but_their_facts(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "outputs"
    run = root / "exp/version_0"
    save(run / "checkpoints/last.ckpt", **lightning(1, 16))
    (run / "metrics.csv").write_bytes(b'epoch,step,"a\n1,15,\xff\0"' + b"," * 3_000_000)
    (run / "hparams.yaml").write_text("a: &a [1]\nb: *a\n")
    files = run / "wandb/run-20251011_004442-3kd8s0ab/files"
    files.mkdir(parents=True)
    (files / "wandb-summary.json").write_text("[" * 100_000)
    (files / "wandb-metadata.json").write_text(json.dumps({"args": [1, None, "a" * 100_000, "x.y=${z}", {}]}))
    (files / "config.yaml").write_bytes(b"\0")
    (run / ".hydra").mkdir()
    (run / ".hydra/config.yaml").write_text("{" * 10_000)
    (run / ".hydra/overrides.yaml").write_text("!!python/object/apply:os.system [id]")
    (run / ".hydra/hydra.yaml").write_bytes(b"hydra: {runtime: {output_dir: [1], choices: 5}}")
    with Daemon(root, tmp_path / "state", sweep_min_s=1) as daemon:
        entry = entry_where(daemon, "exp/version_0/checkpoints/last.ckpt", lambda entry: entry["health"] != "writing")
        assert entry["health"] == "valid"
        assert (entry["exp_name"], entry["run_id"], entry["metrics"]) == ("exp", "version_0", {})
        assert not any(found["severity"] == "error" for found in entry["findings"])
