"""What launchers and loggers leave on disk, written as they write it, for tests of what is known of a run."""

import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

import yaml

from tests.catalog.metadata_files import write

HYDRA_CONFIG = "exp_name: hydra_exp\nmodel: {encoder: {name: resnet18}}\ntrainer: {max_epochs: 3}\n"


def hydra(run: Path, *, config: str = HYDRA_CONFIG, overrides: list[str] | None = None, **settings: Any) -> None:
    """`.hydra` of one job: hydra/core/utils.py, `run_job`."""
    hydra = {
        "run": {"dir": "outputs/${now:%Y-%m-%d}/${now:%H-%M-%S}"},
        "job": {"name": "train", "config_name": "train", "num": 0},
        "overrides": {"hydra": [], "task": overrides or []},
        "runtime": {"output_dir": "/train/outputs/2025-10-11/00-44-42", "choices": {"model": "dbnet"}},
    } | settings
    write(run / ".hydra/config.yaml", config)
    write(run / ".hydra/overrides.yaml", yaml.safe_dump(overrides or []))
    write(run / ".hydra/hydra.yaml", yaml.safe_dump({"hydra": hydra}))


def wandb(parent: Path, run_id: str, *, begun: dt.datetime, ended: dt.datetime, offline: bool = False) -> Path:
    """The local files of a W&B run whose machine lived two hours ahead of UTC; the directory `files`."""
    local = begun + dt.timedelta(hours=2)
    run = parent / "wandb" / f"{'offline-' if offline else ''}run-{local:%Y%m%d_%H%M%S}-{run_id}"
    config = {"_wandb": {"desc": None, "value": {"cli_version": "0.19.1"}}}
    config |= {"exp_name": {"desc": None, "value": f"exp_{run_id}"}, "max_epochs": {"desc": None, "value": 7}}
    first = [
        write(run / "files/requirements.txt", "torch==2.5.0\n"),
        write(run / "files/wandb-metadata.json", json.dumps({"program": "train.py", "args": ["trainer.max_epochs=8"]})),
    ]
    last = [
        write(run / "files/config.yaml", yaml.safe_dump(config)),
        write(run / "files/output.log", "done\n"),
        write(run / f"run-{run_id}.wandb", b":W&B"),
    ]
    for files, moment in ((first, begun), (last, ended)):
        for file in files:
            os.utime(file, (moment.timestamp(),) * 2)
    return run / "files"


def summary(files: Path, **values: Any) -> Path:
    """`wandb-summary.json`: the last value of each name."""
    own = {"_runtime": 9, "_timestamp": 1.7e9, "_wandb": {"runtime": 9}}
    return write(files / "wandb-summary.json", json.dumps(own | values))


def csv_log(version: Path, rows: list[dict[str, Any]]) -> Path:
    """`metrics.csv` of a CSVLogger, with CRLF as Python's csv module ends lines."""
    names = sorted({name for row in rows for name in row})
    lines = [",".join(names)] + [",".join(str(row.get(name, "")) for name in names) for row in rows]
    return write(version / "metrics.csv", "".join(f"{line}\r\n" for line in lines))


def lightning_rows(steps: int, *, per_epoch: int) -> list[dict[str, Any]]:
    """As a Trainer logs: a training row for each batch; at the end of an epoch validation and means, by themselves."""
    rows: list[dict[str, Any]] = []
    for step in range(steps):
        epoch = step // per_epoch
        rows.append({"epoch": epoch, "step": step, "train_loss_step": 1 / (step + 1)})
        if (step + 1) % per_epoch == 0:
            rows.append({"epoch": epoch, "step": step, "val_loss": 0.5 + step, "val/hmean": step / 1000})
            rows.append({"epoch": epoch, "step": step, "train_loss_epoch": 2.0 + epoch})
    return rows


def lightning(epoch: int, global_step: int, **extra: Any) -> dict[str, Any]:
    """The keys by which a checkpoint is known to be Lightning's."""
    return {"epoch": epoch, "global_step": global_step, "pytorch-lightning_version": "2.6.0", **extra}
