"""Companions, experiment names and run ids in the layouts that real trees have."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from ckptd.catalog.experiment import (
    Companions,
    DirectFiles,
    checkpoints_of_config,
    checkpoints_of_sidecar,
    experiment_name,
    find_companions,
    is_companion_name,
    is_config_name,
    run_directory,
    run_id,
    scope_of,
    shared_files,
    sidecar_names,
)
from tests.catalog.metadata_files import opened, write


def companions(root: Path, path: str) -> Companions:
    with opened(root) as root_fd:
        return find_companions(DirectFiles(root_fd), path.encode())


@pytest.mark.parametrize(
    ("path", "name", "run"),
    [
        ("exp/checkpoints/best.ckpt", "exp", None),
        ("exp/best.ckpt", "exp", None),
        ("2025-10-11/00-44-42/checkpoints/best.ckpt", None, "2025-10-11/00-44-42"),
        ("outputs/2025-10-11/00-44-42/checkpoints/best.ckpt", None, "2025-10-11/00-44-42"),
        ("experiments/train/det/db_r18/20251011_004442/checkpoints/best.ckpt", "db_r18", "20251011_004442"),
        ("experiments/train/det/db_r18/3kd8s0ab/checkpoints/best.ckpt", "db_r18", "3kd8s0ab"),
        ("db_r18/20251011_004442-3f2a9c1b/checkpoints/best.ckpt", "db_r18", "20251011_004442-3f2a9c1b"),
        ("exp/lightning_logs/version_0/checkpoints/epoch=0-step=1.ckpt", "exp", "version_0"),
        ("outer/checkpoints/inner/checkpoints/best.ckpt", "inner", None),
        ("multirun/2025-01-01/12-00-00/0/checkpoints/best.ckpt", None, "2025-01-01/12-00-00/0"),
        ("exp/lr=0.1,model=b/checkpoints/best.ckpt", "exp", "lr=0.1,model=b"),
        ("exp/wandb/run-20251011_004442-3kd8s0ab/files/best.ckpt", "exp", "run-20251011_004442-3kd8s0ab"),
        ("exp/checkpoints/epoch=3-val/hmean=0.8.ckpt", "exp", None),
        ("exp/checkpoints/val/hmean=0.8.ckpt", "exp", None),
        ("exp/epoch=3-val/hmean=0.8.ckpt", "exp", None),
        ("exp/checkpoints/fold_1/best.ckpt", "exp", "fold_1"),
        ("checkpoints/exp/best.ckpt", "exp", None),
        ("resnet50/best.ckpt", "resnet50", None),
        ("exp1/best.ckpt", "exp1", None),
        ("face2face/best.ckpt", "face2face", None),
        ("best.ckpt", None, None),
    ],
)
def test_the_experiment_is_the_nearest_meaningful_directory(path: str, name: str | None, run: str | None) -> None:
    assert experiment_name(path.encode(), b"outputs") == name
    assert run_id(path.encode()) == run


def test_the_roots_own_name_stands_in_only_if_it_means_something() -> None:
    assert experiment_name(b"checkpoints/best.ckpt", b"my_exp") == "my_exp"
    assert experiment_name(b"checkpoints/best.ckpt", b"2025-10-11") is None


def test_sidecars_are_consulted_long_name_first_then_short_then_json(tmp_path: Path) -> None:
    names = ["best.metadata.json", "best.ckpt.metadata.yaml", "best.metadata.yaml", "other.metadata.yaml"]
    for name in names:
        write(tmp_path / "exp" / name, "a: 1")
    assert companions(tmp_path, "exp/best.ckpt").sidecars == (
        b"exp/best.ckpt.metadata.yaml",
        b"exp/best.metadata.yaml",
        b"exp/best.metadata.json",
    )


CONFIG_ORDER = [
    "run/checkpoints/best.config.json",
    "run/checkpoints/best.config.yaml",
    "run/checkpoints/best.config.yml",
    "run/checkpoints/best.resolved.config.json",
    "run/.hydra/config.yaml",
    ".hydra/config.yaml",
    "run/checkpoints/config.yaml",
    "run/checkpoints/hparams.yaml",
    "run/config.yaml",
    "run/hparams.yaml",
    "run/wandb/run-20251011_004442-3kd8s0ab/files/config.yaml",
]


def test_configs_are_looked_for_in_the_documented_order(tmp_path: Path) -> None:
    for path in CONFIG_ORDER:
        write(tmp_path / path, "a: 1")
    for path in CONFIG_ORDER:
        assert companions(tmp_path, "run/checkpoints/best.ckpt").config == path.encode()
        (tmp_path / path).unlink()
    assert companions(tmp_path, "run/checkpoints/best.ckpt").config is None


def test_a_directory_named_like_a_config_is_none(tmp_path: Path) -> None:
    (tmp_path / "run" / "config.yaml").mkdir(parents=True)
    assert companions(tmp_path, "run/best.ckpt").config is None


def test_the_config_of_a_run_serves_checkpoints_below_its_checkpoint_directory(tmp_path: Path) -> None:
    write(tmp_path / "exp/.hydra/config.yaml", "a: 1")
    for path in ("exp/checkpoints/val/hmean=1.ckpt", "exp/checkpoints/stage1/best.ckpt", "exp/checkpoints/best.ckpt"):
        assert companions(tmp_path, path).config == b"exp/.hydra/config.yaml"


def test_a_failure_sentinel_counts_beside_the_checkpoint_and_in_its_run_directory(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    assert not companions(tmp_path, "run/checkpoints/best.ckpt").run_failed
    sentinel = write(tmp_path / "run/checkpoints/.FAILURE", "")
    assert companions(tmp_path, "run/checkpoints/best.ckpt").run_failed
    sentinel.rename(tmp_path / "run/.FAILURE")
    assert companions(tmp_path, "run/checkpoints/best.ckpt").run_failed
    assert not companions(tmp_path, "other/best.ckpt").run_failed


def test_links_count_only_where_they_stay_beneath_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    outside = write(tmp_path / "outside.yaml", "a: 1")
    write(root / "shared.yaml", "a: 1")
    (root / "run").mkdir()
    (root / "run" / "config.yaml").symlink_to(outside)
    assert companions(root, "run/best.ckpt").config is None
    (root / "run" / "config.yaml").unlink()
    (root / "run" / "config.yaml").symlink_to("../shared.yaml")
    assert companions(root, "run/best.ckpt").config == b"run/config.yaml"
    (root / "run" / "best.metadata.yaml").symlink_to("nowhere")
    assert companions(root, "run/best.ckpt").sidecars == ()


def test_a_failing_disk_is_not_an_absence() -> None:
    class Failing:
        def status(self, relative_path: bytes) -> os.stat_result | None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def names(self, relative_directory: bytes) -> Sequence[bytes]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output"):
        find_companions(Failing(), b"run/best.ckpt")


def test_names_at_the_limit_of_the_filesystem_have_no_companions_rather_than_an_error(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 250 + ".ckpt"), "")
    assert companions(tmp_path, "x" * 250 + ".ckpt").sidecars == ()


def test_a_directorys_config_costs_a_bounded_number_of_looks(tmp_path: Path) -> None:
    class Counting(DirectFiles):
        looks = 0

        def status(self, relative_path: bytes) -> os.stat_result | None:
            self.looks += 1
            return super().status(relative_path)

    (tmp_path / "exp/checkpoints").mkdir(parents=True)
    with opened(tmp_path) as root_fd:
        view = Counting(root_fd)
        shared_files(view, b"exp/checkpoints")
        assert view.looks <= 20
        view.looks = 0
        find_companions(view, b"exp/checkpoints/best.ckpt")
        assert view.looks <= 30


def test_a_companions_name_leads_back_to_its_checkpoints() -> None:
    for path in (b"best.ckpt", b"epoch=1-val_loss=0.12.ckpt"):
        for name in sidecar_names(path):
            assert path in checkpoints_of_sidecar(name)
    assert b"a.pt" in checkpoints_of_sidecar(b"a.metadata.yaml", (".ckpt", ".pt"))
    assert b"best.ckpt" in checkpoints_of_config(b"best.config.yaml")
    assert b"best.ckpt" in checkpoints_of_config(b"best.resolved.config.json")
    assert checkpoints_of_sidecar(b"notes.yaml") == ()
    assert checkpoints_of_config(b"config.yaml") == ()


def test_names_of_companions_are_known_and_temporary_files_are_none() -> None:
    for name in (b"best.ckpt.metadata.yaml", b"best.metadata.json", b"config.yaml", b"hparams.yaml", b".FAILURE"):
        assert is_companion_name(name)
    assert is_config_name(b"best.config.yml")
    for name in (b"best.ckpt", b".best.ckpt.metadata.yaml.ckptd-1.tmp", b".x.metadata.yaml", b"notes.yaml"):
        assert not is_companion_name(name)


@pytest.mark.parametrize("path", [*CONFIG_ORDER[4:], "run/.FAILURE", "run/checkpoints/.FAILURE"])
def test_a_shared_configs_scope_holds_every_checkpoint_that_may_use_it(path: str) -> None:
    scope = scope_of(path.encode())
    assert scope is not None
    assert b"run/checkpoints/best.ckpt".startswith(scope)
    assert scope_of(b"run/best.config.yaml") is None


def test_the_run_directory_is_above_checkpoints() -> None:
    assert run_directory(b"exp/checkpoints") == b"exp"
    assert run_directory(b"checkpoints") == b""
    assert run_directory(b"") == b""
    assert run_directory(b"exp/val") == b"exp/val"
