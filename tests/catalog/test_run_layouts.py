"""In every layout that trainings use, experiment, run, config, step and metrics are right, or null."""

import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ckptd.catalog.description import Description
from tests.catalog.metadata_files import described, save, write
from tests.catalog.run_trees import HYDRA_CONFIG, csv_log, hydra, lightning, lightning_rows, summary, wandb

T0 = dt.datetime(2025, 10, 10, 22, 44, 42, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


def nothing(root: Path) -> None:
    """Only the checkpoint."""


def with_hydra(run: str, **settings: Any) -> Callable[[Path], None]:
    return lambda root: hydra(root / run, **settings)


def with_csv(version: str, hparams: str = "lr: 0.1\n") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        csv_log(root / version, lightning_rows(24, per_epoch=8))
        write(root / version / "hparams.yaml", hparams)

    return make


def with_wandb(place: str, *ids: str, offline: bool = False, **values: Any) -> Callable[[Path], None]:
    """Runs of one hour each, one after the other; the checkpoint is of the first one's time."""

    def make(root: Path) -> None:
        for number, run_id in enumerate(ids):
            begun = T0 + 2 * number * HOUR
            files = wandb(root / place, run_id, begun=begun, ended=begun + HOUR, offline=offline)
            os.utime(summary(files, **values), ((begun + HOUR).timestamp(),) * 2)

    return make


def all_of(*makers: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda root: [make(root) for make in makers] and None


def with_file(path: str, text: str) -> Callable[[Path], None]:
    return lambda root: write(root / path, text) and None


def facts(description: Description) -> dict[str, Any]:
    """What the table speaks of; nulls left out, metrics one by one, each with its origin."""
    metadata, origin = description.metadata, description.provenance
    values = {
        "exp_name": metadata.exp_name,
        "run_id": description.run_id,
        "training.epoch": metadata.training.epoch,
        "training.global_step": metadata.training.global_step,
        "training.max_epochs": metadata.training.max_epochs,
        "model.architecture": metadata.model.architecture,
        "model.encoder.model_name": metadata.model.encoder.model_name,
        "hydra_config_path": metadata.hydra_config_path,
        "wandb_run_id": metadata.wandb_run_id,
    }
    slots = ("precision", "recall", "hmean", "validation_loss")
    for name, value in metadata.metrics.flat().items():
        values[f"metrics.{name}" if name in slots else f"metrics.additional_metrics.{name}"] = value
    known = {name: (value, origin[name]) for name, value in values.items() if value is not None}
    return known | ({"config": description.config_path} if description.config_path else {})


END_OF_EPOCH_1 = {
    "training.epoch": (1, "checkpoint"),
    "training.global_step": (16, "checkpoint"),
    "metrics.validation_loss": (15.5, "metrics_csv"),
    "metrics.hmean": (0.015, "metrics_csv"),
    "metrics.additional_metrics.train_loss_step": (1 / 16, "metrics_csv"),
    "metrics.additional_metrics.train_loss_epoch": (3.0, "metrics_csv"),
}
HYDRA = {
    "exp_name": ("hydra_exp", "config"),
    "training.max_epochs": (3, "config"),
    "model.encoder.model_name": ("resnet18", "config"),
}
DATE = ("2025-10-11/00-44-42", "layout")
WANDB = "wandb/run-20251011_004442-3kd8s0ab/files/config.yaml"


def named(name: str, run: str | None = None, **others: Any) -> dict[str, Any]:
    return {"exp_name": (name, "layout")} | ({"run_id": (run, "layout")} if run else {}) | others


LAYOUTS: list[tuple[str, Callable[[Path], None], dict[str, Any], dict[str, Any]]] = [
    # path, what lies around it, what is in the checkpoint, what must be known
    ("exp/checkpoints/best.ckpt", nothing, {}, named("exp")),
    ("exp/checkpoints/best-v1.ckpt", nothing, {}, named("exp")),
    ("exp/checkpoints/last.ckpt", nothing, {"epoch": 0}, named("exp", **{"training.epoch": (0, "checkpoint")})),
    ("exp/checkpoints/last_20251011_004442.ckpt", nothing, {}, named("exp")),
    (
        "exp/checkpoints/epoch-18_step-001957.ckpt",
        nothing,
        {},
        named("exp", **{"training.epoch": (18, "file_name"), "training.global_step": (1957, "file_name")}),
    ),
    (
        "exp/checkpoints/epoch=28-step=23722-val_loss=0.12.ckpt",
        nothing,
        lightning(28, 23722),
        named(
            "exp",
            **{
                "training.epoch": (28, "checkpoint"),
                "training.global_step": (23722, "checkpoint"),
                "metrics.validation_loss": (0.12, "file_name"),
            },
        ),
    ),
    (
        "exp/checkpoints/epoch-05_step-000205_hmean-0.8756.ckpt",
        nothing,
        {},
        named(
            "exp",
            **{
                "training.epoch": (5, "file_name"),
                "training.global_step": (205, "file_name"),
                "metrics.hmean": (0.8756, "file_name"),
            },
        ),
    ),
    (
        "exp/checkpoints/epoch=3-val/hmean=0.87.ckpt",
        nothing,
        {},
        named("exp", **{"training.epoch": (3, "file_name"), "metrics.hmean": (0.87, "file_name")}),
    ),
    ("2025-10-11/00-44-42/checkpoints/last.ckpt", nothing, {}, {"run_id": DATE}),
    (
        "2025-10-11/00-44-42/checkpoints/last.ckpt",
        with_hydra("2025-10-11/00-44-42"),
        {},
        HYDRA
        | {
            "run_id": DATE,
            "config": "2025-10-11/00-44-42/.hydra/config.yaml",
            "hydra_config_path": ("2025-10-11/00-44-42/.hydra/config.yaml", "layout"),
        },
    ),
    (
        # nobody named the experiment but on the command line; what chose a group is no value
        "2025-10-11/00-44-42/checkpoints/last.ckpt",
        with_hydra(
            "2025-10-11/00-44-42",
            config="lr: 0.1\n",
            overrides=["model=dbnet", "+exp_name=from_cli", "trainer.max_epochs=4", "callbacks/x=y", "~z"],
        ),
        {},
        {
            "exp_name": ("from_cli", "hydra"),
            "training.max_epochs": (4, "hydra"),
            "run_id": DATE,
            "config": "2025-10-11/00-44-42/.hydra/config.yaml",
            "hydra_config_path": ("2025-10-11/00-44-42/.hydra/config.yaml", "layout"),
        },
    ),
    (
        "multirun/2025-01-01/12-00-00/0/checkpoints/best.ckpt",
        with_hydra("multirun/2025-01-01/12-00-00/0", config="lr: 0.1\n", job={"name": "train", "num": 0}),
        {},
        {
            "run_id": ("2025-01-01/12-00-00/0", "layout"),
            "config": "multirun/2025-01-01/12-00-00/0/.hydra/config.yaml",
            "hydra_config_path": ("multirun/2025-01-01/12-00-00/0/.hydra/config.yaml", "layout"),
        },
    ),
    (
        # kept under a better name: Hydra's own settings still say which run it was
        "picked/checkpoints/best.ckpt",
        with_hydra("picked", config="lr: 0.1\n"),
        {},
        {
            "exp_name": ("picked", "layout"),
            "run_id": ("2025-10-11/00-44-42", "hydra"),
            "config": "picked/.hydra/config.yaml",
            "hydra_config_path": ("picked/.hydra/config.yaml", "layout"),
        },
    ),
    (
        "experiments/train/det/db_r18/20251011_004442/checkpoints/best.ckpt",
        nothing,
        {},
        named("db_r18", "20251011_004442"),
    ),
    ("outer/checkpoints/inner/checkpoints/best.ckpt", nothing, {}, named("inner")),
    (
        "lightning_logs/version_3/checkpoints/epoch=1-step=16.ckpt",
        with_csv("lightning_logs/version_3", "exp_name: from_hparams\n"),
        lightning(1, 16),
        END_OF_EPOCH_1
        | {
            "exp_name": ("from_hparams", "config"),
            "run_id": ("version_3", "layout"),
            "config": "lightning_logs/version_3/hparams.yaml",
        },
    ),
    (
        # the same step by the counter of manual optimization: two optimizers stepped for each batch
        "exp/version_0/checkpoints/last.ckpt",
        with_csv("exp/version_0"),
        lightning(
            1,
            32,
            loops={
                "fit_loop": {
                    "epoch_loop.batch_progress": {"total": {"ready": 16}},
                    "epoch_loop.manual_optimization.optim_step_progress": {"total": {"completed": 32}},
                }
            },
        ),
        END_OF_EPOCH_1
        | named("exp", "version_0", config="exp/version_0/hparams.yaml")
        | {"training.global_step": (32, "checkpoint")},
    ),
    (
        # saved by hand after the last epoch: the checkpoint counts one epoch more than its rows
        "exp/version_0/checkpoints/end.ckpt",
        with_csv("exp/version_0"),
        lightning(3, 24),
        named("exp", "version_0", config="exp/version_0/hparams.yaml")
        | {
            "training.epoch": (3, "checkpoint"),
            "training.global_step": (24, "checkpoint"),
            "metrics.validation_loss": (23.5, "metrics_csv"),
            "metrics.hmean": (0.023, "metrics_csv"),
            "metrics.additional_metrics.train_loss_step": (1 / 24, "metrics_csv"),
            "metrics.additional_metrics.train_loss_epoch": (4.0, "metrics_csv"),
        },
    ),
    (
        # checkpoints elsewhere than the logger; its only version is the run's
        "exp/checkpoints/last.ckpt",
        all_of(with_csv("exp/lightning_logs/version_0", "max_epochs: 5\n"), with_file("exp/config.yaml", "a: 1\n")),
        lightning(1, 16),
        END_OF_EPOCH_1 | named("exp", config="exp/config.yaml") | {"training.max_epochs": (5, "hparams")},
    ),
    (
        "exp/checkpoints/last.ckpt",
        all_of(with_csv("exp/lightning_logs/version_0"), with_csv("exp/lightning_logs/version_1")),
        lightning(1, 16),
        named("exp", **{"training.epoch": (1, "checkpoint"), "training.global_step": (16, "checkpoint")}),
    ),
    ("tb_logs/my_model/version_0/checkpoints/last.ckpt", nothing, {}, named("my_model", "version_0")),
    (
        "exp/checkpoints/best.ckpt",
        with_wandb("exp", "3kd8s0ab", _step=205, **{"val/hmean": 0.8}),
        {"epoch": 5, "global_step": 205},
        {
            "exp_name": ("exp_3kd8s0ab", "config"),
            "training.max_epochs": (7, "config"),
            "run_id": ("3kd8s0ab", "wandb"),
            "wandb_run_id": ("3kd8s0ab", "layout"),
            "training.epoch": (5, "checkpoint"),
            "training.global_step": (205, "checkpoint"),
            "metrics.hmean": (0.8, "wandb_summary"),
            "config": f"exp/{WANDB}",
        },
    ),
    (
        # of three runs the one that was under way; its last step is another one
        "exp/checkpoints/best.ckpt",
        with_wandb("exp", "3kd8s0ab", "9zz1x2y3", "5ab6c7d8", _step=999, **{"val/hmean": 0.8}),
        {"epoch": 5, "global_step": 205},
        {
            "exp_name": ("exp_3kd8s0ab", "config"),
            "training.max_epochs": (7, "config"),
            "run_id": ("3kd8s0ab", "wandb"),
            "wandb_run_id": ("3kd8s0ab", "layout"),
            "training.epoch": (5, "checkpoint"),
            "training.global_step": (205, "checkpoint"),
            "config": f"exp/{WANDB}",
        },
    ),
    (
        # WandbLogger: save_dir/project/run id/checkpoints, and the run's files beneath save_dir
        "project/3kd8s0ab/checkpoints/epoch=1-step=16.ckpt",
        with_wandb("", "9zz1x2y3", "3kd8s0ab", offline=True, epoch=1, **{"trainer/global_step": 15, "val_loss": 0.5}),
        lightning(1, 16),
        {
            "exp_name": ("exp_3kd8s0ab", "config"),
            "training.max_epochs": (7, "config"),
            "run_id": ("3kd8s0ab", "layout"),
            "wandb_run_id": ("3kd8s0ab", "layout"),
            "training.epoch": (1, "checkpoint"),
            "training.global_step": (16, "checkpoint"),
            "metrics.validation_loss": (0.5, "wandb_summary"),
            "config": "wandb/offline-run-20251011_024442-3kd8s0ab/files/config.yaml",
        },
    ),
    (
        "exp/wandb/run-20251011_004442-3kd8s0ab/files/best.ckpt",
        nothing,
        {},
        named("exp", "run-20251011_004442-3kd8s0ab", wandb_run_id=("3kd8s0ab", "layout")),
    ),
    (
        "mlruns/417/0123456789abcdef0123456789abcdef/artifacts/model/checkpoints/best.ckpt",
        with_file("mlruns/417/meta.yaml", "experiment_id: '417'\nname: text_detection\n"),
        {},
        {"exp_name": ("text_detection", "mlflow"), "run_id": ("0123456789abcdef0123456789abcdef", "layout")},
    ),
    (
        "mlruns/0/0123456789abcdef0123456789abcdef/artifacts/model/best.ckpt",
        with_file("mlruns/0/meta.yaml", "experiment_id: '0'\nname: Default\n"),
        {},
        {"run_id": ("0123456789abcdef0123456789abcdef", "layout")},
    ),
    (
        "ray_results/tune_db/train_fn_a1b2c_00003_3_lr=0.1_2025-01-01_12-00-00/checkpoint_000010/model.ckpt",
        with_file(
            "ray_results/tune_db/train_fn_a1b2c_00003_3_lr=0.1_2025-01-01_12-00-00/params.json", '{"max_epochs": 9}'
        ),
        {},
        named(
            "tune_db",
            "train_fn_a1b2c_00003_3_lr=0.1_2025-01-01_12-00-00",
            config="ray_results/tune_db/train_fn_a1b2c_00003_3_lr=0.1_2025-01-01_12-00-00/params.json",
        )
        | {"training.max_epochs": (9, "config")},
    ),
    (
        "output/train/20240101-120000-resnet50-224/checkpoint-9.pth.tar",
        with_file("output/train/20240101-120000-resnet50-224/args.yaml", "model: resnet50\n"),
        {"epoch": 9, "arch": "resnet50"},
        named("resnet50-224", "20240101-120000", config="output/train/20240101-120000-resnet50-224/args.yaml")
        | {"training.epoch": (9, "checkpoint"), "model.architecture": ("resnet50", "config")},
    ),
    (
        "work_dirs/dbnet_resnet18_fpnc/epoch_12.pth",
        nothing,
        {},
        named("dbnet_resnet18_fpnc", **{"training.epoch": (12, "file_name")}),
    ),
    (
        "work_dirs/dbnet_resnet18_fpnc/20240101_120000/epoch_12.pth",
        nothing,
        {},
        named("dbnet_resnet18_fpnc", "20240101_120000", **{"training.epoch": (12, "file_name")}),
    ),
    (
        "runs/detect/train3/weights/best.pt",
        with_file("runs/detect/train3/args.yaml", "task: detect\nmodel: yolov8n.pt\n"),
        {},
        named("detect", "train3", config="runs/detect/train3/args.yaml"),
    ),
]


@pytest.mark.parametrize(("path", "around", "contents", "expected"), LAYOUTS, ids=[row[0] for row in LAYOUTS])
def test_what_is_known_in_each_layout(
    tmp_path: Path,
    path: str,
    around: Callable[[Path], None],
    contents: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    """Every value that can be known is right and says where it is from; every other one is null."""
    root = tmp_path / "outputs"
    checkpoint = save(root / path, **contents)
    os.utime(checkpoint, ((T0 + HOUR / 2).timestamp(),) * 2)
    around(root)
    assert facts(described(checkpoint, root)) == expected


def test_a_link_to_storage_elsewhere_is_known_by_its_own_place(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    target = save(root / "storage/blob.ckpt")
    hydra(root / "exp", config="exp_name: linked\n")
    link = root / "exp/checkpoints/best.ckpt"
    link.parent.mkdir()
    link.symlink_to(target)
    assert facts(described(link, root))["exp_name"] == ("linked", "config")


def test_a_failed_run_says_so_and_a_successful_one_nothing(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "exp/checkpoints/best.ckpt")
    write(tmp_path / "exp/.SUCCESS", "")
    assert "run.failed" not in [found.code for found in described(checkpoint, tmp_path).findings]
    write(tmp_path / "exp/.FAILURE", "")
    assert "run.failed" in [found.code for found in described(checkpoint, tmp_path).findings]


def test_a_config_that_wandb_kept_is_shown_without_its_wrapping(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "exp/checkpoints/best.ckpt")
    wandb(tmp_path / "exp", "3kd8s0ab", begun=T0, ended=T0 + HOUR)
    description = described(checkpoint, tmp_path)
    assert description.config == {"exp_name": "exp_3kd8s0ab", "max_epochs": 7}
    assert "config.missing" not in [found.code for found in description.findings]


def test_what_wandb_recorded_of_the_command_line_fills_what_the_config_leaves_open(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "exp/checkpoints/best.ckpt")
    wandb(tmp_path / "exp", "3kd8s0ab", begun=T0, ended=T0 + HOUR)
    write(tmp_path / "exp/config.yaml", "lr: 0.1\n")
    known = facts(described(checkpoint, tmp_path))
    assert known["training.max_epochs"] == (7, "wandb")
    assert known["exp_name"] == ("exp_3kd8s0ab", "wandb")
    next((tmp_path / "exp/wandb").glob("*/files/config.yaml")).unlink()
    assert facts(described(checkpoint, tmp_path))["training.max_epochs"] == (8, "wandb")


@pytest.mark.parametrize("offset_h", [-1.0, 1.5, 99.0])
def test_of_several_wandb_runs_none_is_meant_that_was_not_under_way(tmp_path: Path, offset_h: float) -> None:
    checkpoint = save(tmp_path / "exp/checkpoints/best.ckpt")
    with_wandb("exp", "3kd8s0ab", "9zz1x2y3")(tmp_path)
    os.utime(checkpoint, ((T0 + offset_h * HOUR).timestamp(),) * 2)
    description = described(checkpoint, tmp_path)
    assert (description.metadata.wandb_run_id, description.config_path) == (None, None)


def test_times_that_a_copy_has_lost_decide_nothing(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "exp/checkpoints/best.ckpt")
    with_wandb("exp", "3kd8s0ab", "9zz1x2y3")(tmp_path)
    moment = (T0 + dt.timedelta(days=3, minutes=7)).timestamp()
    for file in [checkpoint, *tmp_path.glob("exp/wandb/*3kd8s0ab/**/*")]:
        os.utime(file, (moment, moment))
    assert described(checkpoint, tmp_path).metadata.wandb_run_id is None


def test_a_checkpoint_older_than_the_only_wandb_run_is_not_of_it(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "exp/checkpoints/best.ckpt")
    wandb(tmp_path / "exp", "3kd8s0ab", begun=T0, ended=T0 + HOUR)
    os.utime(checkpoint, ((T0 - HOUR).timestamp(),) * 2)
    assert described(checkpoint, tmp_path).metadata.wandb_run_id is None
    # A time that says nothing decides nothing.
    for file in (tmp_path / "exp/wandb").glob("*/files/*"):
        os.utime(file)
    assert described(checkpoint, tmp_path).metadata.wandb_run_id == "3kd8s0ab"


def test_a_persons_sidecar_wins_over_every_record(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "exp/version_0/checkpoints/last.ckpt", **lightning(1, 16))
    with_csv("exp/version_0")(tmp_path)
    write(checkpoint.with_name("last.ckpt.metadata.yaml"), yaml.safe_dump({"metrics": {"hmean": 0.99}}))
    known = facts(described(checkpoint, tmp_path))
    assert known["metrics.hmean"] == (0.99, "sidecar")
    assert known["metrics.validation_loss"] == (15.5, "metrics_csv")


def test_the_config_of_a_run_is_named_even_where_the_checkpoint_has_its_own(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "exp/checkpoints/best.ckpt")
    hydra(tmp_path / "exp", config=HYDRA_CONFIG)
    write(checkpoint.with_name("best.config.yaml"), "lr: 1\n")
    known = facts(described(checkpoint, tmp_path))
    assert known["config"] == "exp/checkpoints/best.config.yaml"
    assert known["hydra_config_path"] == ("exp/.hydra/config.yaml", "layout")
