"""What single records say, and which of their changes are news."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ckptd.catalog.derive import Surroundings, derive_metadata
from ckptd.catalog.entry import SETTLED, Identities
from ckptd.catalog.experiment import Companions
from ckptd.catalog.opening import open_checkpoint
from ckptd.catalog.record_identities import record_identities
from ckptd.catalog.run_facts import Run, read_overrides, read_run, unwrapped
from ckptd.validators.inspection import FileIdentity, Inspection
from tests.catalog.metadata_files import described, opened, save, write
from tests.catalog.run_trees import csv_log, lightning, lightning_rows

FILE = FileIdentity(1, 10, 1_760_143_482_123_456_789, 0)


def run_of(tmp_path: Path, records: dict[str, Any], **facts: Any) -> Run:
    descriptors = []
    for name, value in records.items():
        text = value if isinstance(value, str | bytes) else json.dumps(value)
        descriptors.append(os.open(write(tmp_path / name, text), os.O_RDONLY))
    inspection = msgspec.structs.replace(Inspection(checkpoint_path="/x/last.ckpt", identity=FILE), **facts)
    try:
        return read_run([name.encode() for name in records], descriptors, inspection, b"x/last.ckpt")
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


SUMMARY = "exp/wandb/run-20251011_004442-3kd8s0ab/files/wandb-summary.json"
LIGHTNING = {"global_step": 16, "logged_step": 15, "epoch": 1, "lightning_version": "2.6.0"}


@pytest.mark.parametrize(
    ("summary", "facts", "metrics", "is_final"),
    [
        ({"trainer/global_step": 15, "epoch": 1, "val_loss": 0.5}, LIGHTNING, {"val_loss": 0.5}, False),
        ({"trainer/global_step": 16, "epoch": 1, "val_loss": 0.5}, LIGHTNING, {"val_loss": 0.5}, False),
        ({"trainer/global_step": 14, "epoch": 1, "val_loss": 0.5}, LIGHTNING, {}, False),
        ({"trainer/global_step": 23, "epoch": 2, "val_loss": 0.5}, LIGHTNING, {}, True),
        ({"trainer/global_step": 15, "epoch": 7, "val_loss": 0.5}, LIGHTNING, {}, False),
        ({"trainer/global_step": 14, "_step": 16, "val_loss": 0.5}, LIGHTNING, {}, False),
        ({"train/global_step": 16, "eval/loss": 0.5, "_step": 3}, {"global_step": 16}, {"eval/loss": 0.5}, False),
        ({"_step": 16, "a": 1, "b": "text", "c": {"min": 1}, "d": True}, {"global_step": 16}, {"a": 1.0}, False),
        ({"_step": 16, "test_acc": 1.0}, {"global_step": 16}, {}, False),
        ({"val_loss": 0.5}, {"global_step": 16}, {}, True),
        ({"_step": 16, "val_loss": 0.5}, {}, {}, True),
        ([], {"global_step": 16}, {}, True),
        ("{", {"global_step": 16}, {}, False),
    ],
)
def test_a_wandb_summary_counts_only_at_the_checkpoints_step(
    tmp_path: Path, summary: Any, facts: dict[str, Any], metrics: dict[str, float], is_final: bool
) -> None:
    run = run_of(tmp_path, {SUMMARY: summary}, **facts)
    late = (tmp_path / SUMMARY).stat().st_mtime_ns - FILE.mtime_ns > 24 * 3600 * 10**9
    assert run.summary == metrics
    assert late, "the checkpoint is from long ago: a log that was written so late is never waited for"
    assert run.settled_logs == (True,)
    os.utime(tmp_path / SUMMARY, ns=(FILE.mtime_ns, FILE.mtime_ns))
    descriptor = os.open(tmp_path / SUMMARY, os.O_RDONLY)
    inspection = msgspec.structs.replace(Inspection(checkpoint_path="/x/last.ckpt", identity=FILE), **facts)
    assert read_run([SUMMARY.encode()], [descriptor], inspection, b"x/last.ckpt").settled_logs == (is_final,)
    os.close(descriptor)


def test_overrides_are_values_and_never_choices_among_groups() -> None:
    given = ["model=dbnet", "trainer.max_epochs=3", "++exp_name=a b", "db@x=y", "~z", "a/b=c", "lr=0.1", 5, "x.y=${z}"]
    assert read_overrides(given) == {"trainer": {"max_epochs": 3}, "exp_name": "a b", "x": {"y": "${z}"}}
    assert read_overrides("text") == {}
    assert read_overrides([f"a{n}.b=1" for n in range(10_000)] + ["x" * 10_000_000]).keys() <= {
        f"a{n}" for n in range(500)
    }


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"runtime": {"choices": {"experiment": "big"}}}, "big"),
        ({"job": {"name": "train"}}, None),
        ({"job": {"name": "mine"}, "overrides": {"hydra": ["hydra.job.name=mine"]}}, "mine"),
        ({"runtime": {"choices": []}, "overrides": 5}, None),
    ],
)
def test_an_experiment_is_named_by_a_choice_or_a_name_that_was_given(
    tmp_path: Path, settings: dict[str, Any], name: str | None
) -> None:
    run = run_of(tmp_path, {"exp/.hydra/hydra.yaml": {"hydra": settings}})
    assert run.experiment == name


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"_wandb": {"value": {}}, "a": {"desc": None, "value": 1}}, {"a": 1}),
        ({"a": {"value": {"b": 2}}}, {"a": {"b": 2}}),
        ({"wandb_version": 1, "a": {"value": 1}}, {"a": 1}),
        ({"a": {"value": 1, "unit": "s"}}, {"a": {"value": 1, "unit": "s"}}),
        ({"a": 1}, {"a": 1}),
        ({}, {}),
        (None, None),
    ],
)
def test_only_what_wandb_wrapped_is_unwrapped(config: Any, expected: Any) -> None:
    assert unwrapped(config) == expected


def test_a_settled_log_may_grow_and_nothing_else_may_change() -> None:
    now, later = FileIdentity(2, 10, 5, 5), FileIdentity(2, 20, 6, 6)
    known = Identities(FILE, records="a", logs=(now, now)).settled([True, False])
    assert known.logs == (SETTLED, now)
    assert known.are_still(Identities(FILE, records="a", logs=(later, now)))
    assert not known.are_still(Identities(FILE, records="a", logs=(later, later)))
    assert not known.are_still(Identities(FILE, records="b", logs=(later, now)))
    assert not known.are_still(Identities(later, records="a", logs=(later, now)))
    assert not known.are_still(Identities(FILE, records="a", logs=(later,)))
    assert not Identities(FILE, logs=(now,)).are_still(Identities(FILE, logs=(later,)))
    assert Identities(FILE, logs=(now,)).settled([]).logs == (now,), "a file that was not described says nothing"


def test_hyper_parameters_that_a_logger_writes_anew_with_its_log_are_the_same_until_somebody_edits_them() -> None:
    def digest(hparams_s: int, log_s: int, size: int = 10) -> str | None:
        hparams = FileIdentity(1, size, hparams_s * 10**9, hparams_s * 10**9)
        log = FileIdentity(2, 99, log_s * 10**9, log_s * 10**9)
        return record_identities([(b"v/hparams.yaml", hparams), (b"v/metrics.csv", log)])[0]

    assert digest(100, 100) == digest(200, 201)
    assert digest(100, 100) != digest(200, 100)
    assert digest(100, 100) != digest(200, 200, size=11)


def test_a_record_that_is_no_file_to_open_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    save(tmp_path / "exp/last.ckpt")
    os.mkfifo(tmp_path / "exp/metrics.csv")
    (tmp_path / "exp/hparams.yaml").symlink_to("/etc/passwd")
    with opened(tmp_path) as root_fd:
        records = (b"exp/metrics.csv", b"exp/hparams.yaml", b"exp/gone.yaml")
        request, files, identities = open_checkpoint(root_fd, b"exp/last.ckpt", Companions(records=records))
        os.close(files.checkpoint)
    assert (request.record_names, files.records, identities.records, identities.logs) == ((), (), None, ())
    assert described(tmp_path / "exp/last.ckpt", tmp_path).metadata.exp_name == "exp"


def test_a_checkpoint_knows_whether_its_logs_have_passed_it(tmp_path: Path) -> None:
    last = save(tmp_path / "exp/version_0/checkpoints/last.ckpt", **lightning(2, 24))
    first = save(tmp_path / "exp/version_0/checkpoints/first.ckpt", **lightning(0, 8))
    csv_log(tmp_path / "exp/version_0", lightning_rows(24, per_epoch=8))
    assert described(last, tmp_path).settled_logs == (False,)
    assert described(first, tmp_path).settled_logs == (True,)


def test_the_architecture_of_a_transformers_directory_is_the_class_in_its_configuration() -> None:
    found = Inspection(
        checkpoint_path="/x/checkpoint-5",
        identity=FILE,
        hyper_parameters={"architectures": ["BertForMaskedLM"], "model_type": "bert"},
    )
    derived = derive_metadata(found, Surroundings(checkpoint_path="/x/checkpoint-5", relative_path=b"x/checkpoint-5"))
    assert derived.metadata.model.architecture == "BertForMaskedLM"
    assert derived.provenance["model.architecture"] == "checkpoint"
