"""The writer's thread: each save is described once and rightly, or there is one warning; nothing reaches the caller."""

import contextlib
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ckptd.catalog import sidecar as sidecar_module
from ckptd.catalog.callbacks.facts import NotYet, Style, TrainingFacts, write_facts
from ckptd.catalog.callbacks.helper_process import Helper
from ckptd.catalog.callbacks.writer import MAX_PENDING, SidecarWriter
from ckptd.catalog.description import CheckpointMetadata
from ckptd.catalog.sidecar import Author, author_of, clean_leftovers, render
from ckptd.catalog.temporary import is_temporary_name
from ckptd.validators.reader import identity_of
from tests.catalog.metadata_files import opened, ours, save, write
from tests.daemon.real_mounts import mount, tmpfs

STYLE = Style(callback="tests.Callback")
LONG_S = 60.0


@pytest.fixture
def writer() -> Iterator[SidecarWriter]:
    made = SidecarWriter(STYLE)
    yield made
    assert made.close(LONG_S)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved(tmp_path / "exp/checkpoints/best.ckpt", 3)


class Held:
    """A metric on a device that has not computed it yet."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.ready = threading.Event()

    def item(self) -> float:
        self.asked.set()
        assert self.ready.wait(LONG_S)
        return 1.0


def saved(path: Path, epoch: int) -> Path:
    return save(path, epoch=epoch, global_step=10 * epoch)


def facts(epoch: int, **metrics: Any) -> TrainingFacts:
    return TrainingFacts(known={"training.epoch": epoch, "training.global_step": 10 * epoch}, metrics=metrics)


def sidecar_of(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + ".metadata.yaml")


def read(checkpoint: Path) -> Any:
    return yaml.safe_load(sidecar_of(checkpoint).read_bytes())


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- what is written -------------------------------------------------------------------------------------------


def test_metrics_are_sorted_into_the_schema_and_what_is_no_number_is_left_out(
    writer: SidecarWriter, checkpoint: Path
) -> None:
    logged = {"val/hmean": 0.5, "val_loss": 2, "val/cer": 0.25, "nan": float("nan"), "text": "?", "none": None}
    writer.submit(str(checkpoint), TrainingFacts(metrics=logged, digest="blake3:00"))
    assert writer.flush(LONG_S)
    written = read(checkpoint)
    assert written["metrics"] == {
        "precision": None,
        "recall": None,
        "hmean": 0.5,
        "validation_loss": 2.0,
        "additional_metrics": {"val/cer": 0.25},
    }
    assert written["training"]["epoch"] == 3  # the checkpoint itself says so
    assert written["source"]["digest"] == "blake3:00"


def test_what_the_training_knows_wins_and_what_it_offers_only_fills_gaps(
    writer: SidecarWriter, checkpoint: Path
) -> None:
    write(checkpoint.parents[1] / "config.yaml", "exp_name: configured\nmodel: {decoder: {name: unet}}\n")
    known = {"exp_name": "known", "checkpointing.monitor": None}
    otherwise = {"model.decoder.name": "ClassOfDecoder", "model.head.name": "ClassOfHead"}
    writer.submit(str(checkpoint), TrainingFacts(known=known, otherwise=otherwise))
    assert writer.flush(LONG_S)
    written = read(checkpoint)
    assert written["exp_name"] == "known"
    assert written["model"]["decoder"]["name"] == "unet"
    assert written["model"]["head"]["name"] == "ClassOfHead"


def test_a_secret_of_a_closed_config_or_of_the_training_itself_is_not_copied_into_the_sidecar(
    writer: SidecarWriter, checkpoint: Path
) -> None:
    """The config is its owner's alone (0600); the sidecar is for everybody who may read the checkpoint (0644)."""
    password, token, name = "hunter2-of-alice", "hf_" + "Ab3" * 10, "https://me:p4ssw0rd-of-mine@hub.example/resnet18"
    head = f"{{name: db_head, params: {{hub_token: {token}, db: {{password: {password}}}, k: 50}}}}"
    config = write(checkpoint.parents[1] / ".hydra/config.yaml", f"exp_name: exp\nmodel: {{head: {head}}}\n")
    config.chmod(0o600)
    checkpoint.chmod(0o644)
    known = {"model.encoder.model_name": name, "model.loss.params": {"api_key": password, "alpha": 1}}
    otherwise = {"model.decoder.params": {"note": [token]}}
    writer.submit(str(checkpoint), TrainingFacts(known=known, otherwise=otherwise))
    assert writer.flush(LONG_S)
    text = sidecar_of(checkpoint).read_text()
    assert [secret for secret in (password, token, "p4ssw0rd") if secret in text] == []
    model = read(checkpoint)["model"]
    assert model["head"]["params"] == {"hub_token": "[redacted]", "db": {"password": "[redacted]"}, "k": 50}
    assert model["loss"]["params"] == {"api_key": "[redacted]", "alpha": 1}
    assert model["decoder"]["params"] == {"note": ["[redacted]"]}
    assert model["encoder"]["model_name"] == "https://[redacted]@hub.example/resnet18"


def test_what_an_earlier_save_logged_is_not_carried_on(writer: SidecarWriter, checkpoint: Path) -> None:
    writer.submit(str(checkpoint), facts(3, early=1.0))
    assert writer.flush(LONG_S)
    writer.submit(str(checkpoint), facts(3, late=2.0))
    assert writer.flush(LONG_S)
    assert read(checkpoint)["metrics"]["additional_metrics"] == {"late": 2.0}


def test_hydras_config_is_named_by_its_full_path(writer: SidecarWriter, checkpoint: Path) -> None:
    config = write(checkpoint.parents[1] / ".hydra/config.yaml", "exp_name: composed\n")
    writer.submit(str(checkpoint), facts(3))
    assert writer.flush(LONG_S)
    assert (read(checkpoint)["exp_name"], read(checkpoint)["hydra_config_path"]) == ("composed", str(config))


def test_names_are_looked_for_beneath_the_outputs_only(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "not a name/checkpoints/best.ckpt", 3)
    writer = SidecarWriter(Style(callback="tests.Callback", outputs_dir=str(tmp_path / "not a name/checkpoints")))
    writer.submit(str(checkpoint), facts(3))
    assert writer.close(LONG_S)
    assert read(checkpoint)["exp_name"] is None


def test_through_a_link_the_file_that_was_saved_is_described(writer: SidecarWriter, checkpoint: Path) -> None:
    link = checkpoint.with_name("link.ckpt")
    link.symlink_to(checkpoint.name)
    writer.submit(str(link), facts(3))
    assert writer.flush(LONG_S)
    assert read(checkpoint)["training"]["epoch"] == 3
    assert not sidecar_of(link).exists()


# ---- whose file it is ------------------------------------------------------------------------------------------


def test_what_ckptd_wrote_is_replaced(writer: SidecarWriter, checkpoint: Path, tmp_path: Path) -> None:
    write(sidecar_of(checkpoint), ours(checkpoint, tmp_path))
    writer.submit(str(checkpoint), facts(3, cer=0.5))
    assert writer.flush(LONG_S)
    assert author_of(sidecar_of(checkpoint).read_bytes()) is Author.TRAINING


def test_what_ckptd_writes_just_then_is_replaced_at_the_next_attempt(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's appears after the training saw that none was there."""
    daemons = ours(checkpoint, tmp_path)
    rename = sidecar_module.rename_no_replace

    def overtaken(directory_fd: int, source: bytes, target: bytes) -> None:
        if target == b"best.ckpt.metadata.yaml" and not sidecar_of(checkpoint).exists():
            write(sidecar_of(checkpoint), daemons)
        rename(directory_fd, source, target)

    monkeypatch.setattr(sidecar_module, "rename_no_replace", overtaken)
    with pytest.raises(NotYet):
        write_facts(str(checkpoint), facts(3), STYLE)
    write_facts(str(checkpoint), facts(3), STYLE)
    assert author_of(sidecar_of(checkpoint).read_bytes()) is Author.TRAINING


@pytest.mark.parametrize("name", ["best.ckpt.metadata.yaml", "best.metadata.yaml"])
def test_a_persons_sidecar_is_left_alone_with_one_warning(
    writer: SidecarWriter, checkpoint: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    theirs = write(checkpoint.with_name(name), "exp_name: mine\n")
    for _ in range(3):
        writer.submit(str(checkpoint), facts(3))
        assert writer.flush(LONG_S)
    writer.forget(str(checkpoint))
    assert writer.flush(LONG_S)
    assert theirs.read_text() == "exp_name: mine\n"
    assert sorted(os.listdir(checkpoint.parent)) == ["best.ckpt", name]
    (told,) = warnings_of(caplog)
    assert "left alone" in told
    assert "best" in told


def test_a_deleted_checkpoint_takes_its_sidecar_along_unless_a_person_edited_it(
    writer: SidecarWriter, checkpoint: Path
) -> None:
    other = saved(checkpoint.with_name("other.ckpt"), 3)
    for path in (checkpoint, other):
        writer.submit(str(path), facts(3))
    assert writer.flush(LONG_S)
    write(sidecar_of(other), sidecar_of(other).read_bytes() + b"# the good one\n")
    for path in (checkpoint, other):
        path.unlink()
        writer.forget(str(path))
    assert writer.flush(LONG_S)
    assert os.listdir(checkpoint.parent) == ["other.ckpt.metadata.yaml"]


def test_a_sidecar_stays_while_its_checkpoint_is_there(writer: SidecarWriter, checkpoint: Path) -> None:
    writer.submit(str(checkpoint), facts(3))
    assert writer.flush(LONG_S)
    writer.forget(str(checkpoint))
    assert writer.flush(LONG_S)
    assert sidecar_of(checkpoint).exists()


# ---- when ------------------------------------------------------------------------------------------------------


def test_of_many_saves_of_one_path_the_last_is_described(writer: SidecarWriter, checkpoint: Path) -> None:
    held = Held()
    writer.submit(str(saved(checkpoint.with_name("first.ckpt"), 1)), facts(1, slow=held))
    assert held.asked.wait(LONG_S)
    for epoch in range(4, 8):
        writer.submit(str(saved(checkpoint, epoch)), facts(epoch, cer=epoch))
    assert writer.pending == 2
    held.ready.set()
    assert writer.flush(LONG_S)
    assert read(checkpoint)["metrics"]["additional_metrics"] == {"cer": 7.0}


def test_a_checkpoint_that_is_deleted_before_its_turn_leaves_nothing(
    writer: SidecarWriter, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    writer.submit(str(checkpoint), facts(3, slow=held))
    assert held.asked.wait(LONG_S)  # already described, not written yet
    checkpoint.unlink()
    writer.forget(str(checkpoint))
    held.ready.set()
    assert writer.flush(LONG_S)
    assert os.listdir(checkpoint.parent) == []
    assert warnings_of(caplog) == []


def test_a_file_that_is_still_being_written_is_waited_for(writer: SidecarWriter, tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", 3).read_bytes()
    path = tmp_path / "late.ckpt"
    writer.submit(str(path), facts(3))
    with open(path, "wb") as file:
        file.write(whole[: len(whole) // 2])
        file.flush()
        assert not writer.flush(0.1)
        file.write(whole[len(whole) // 2 :])
    assert writer.flush(LONG_S)
    assert read(path)["training"]["epoch"] == 3


def test_the_file_from_before_the_save_is_not_taken_for_the_new_one(writer: SidecarWriter, checkpoint: Path) -> None:
    weights = save(checkpoint.with_name("weights.ckpt"))  # says nothing of its step
    writer.submit(str(weights), facts(4), previous=identity_of(weights.stat()))
    assert not writer.flush(0.1)
    assert not sidecar_of(weights).exists()
    new = save(checkpoint.with_name("new"))
    new.replace(weights)
    assert writer.flush(LONG_S)
    assert read(weights)["training"]["epoch"] == 4


def test_facts_of_another_step_are_never_written_beside_a_file(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = SidecarWriter(STYLE, patience_s=0.1)
    writer.submit(str(checkpoint), facts(4))
    assert writer.close(LONG_S)
    assert not sidecar_of(checkpoint).exists()
    (told,) = warnings_of(caplog)
    assert "training.epoch 3, this save was of 4" in told


def test_a_flush_that_takes_too_long_says_so_and_the_work_goes_on(
    writer: SidecarWriter, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    writer.submit(str(checkpoint), facts(3, slow=held))
    assert not writer.flush(0.05)
    assert not writer.flush(0.05)
    (told,) = warnings_of(caplog)
    assert str(checkpoint) in told
    held.ready.set()
    assert writer.flush(LONG_S)
    assert read(checkpoint)["metrics"]["additional_metrics"] == {"slow": 1.0}


def test_a_hung_disk_does_not_collect_work_without_end(
    writer: SidecarWriter, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    writer.submit(str(checkpoint), facts(3, slow=held))
    assert held.asked.wait(LONG_S)
    taken = [writer.forget(f"{checkpoint.parent}/{number}.ckpt") for number in range(MAX_PENDING + 5)]
    assert (taken.count(True), taken.count(False)) == (MAX_PENDING, 5)
    held.ready.set()
    assert len(warnings_of(caplog)) == 1


def test_a_closed_writer_has_no_thread_and_begins_anew_when_something_is_saved(checkpoint: Path) -> None:
    writer = SidecarWriter(STYLE)
    before = set(threading.enumerate())
    for epoch in (4, 5):
        writer.submit(str(saved(checkpoint, epoch)), facts(epoch))
        assert writer.close(LONG_S)
        assert read(checkpoint)["training"]["epoch"] == epoch
        assert set(threading.enumerate()) <= before


# ---- other processes -------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys
from ckptd.catalog.callbacks import SidecarWriter, TrainingFacts
from ckptd.catalog.callbacks.facts import Style
assert not {"torch", "lightning", "transformers", "numpy"} & set(sys.modules)
writer = SidecarWriter(Style(callback="tests.Callback"))
path = sys.argv[1]
facts = TrainingFacts(known={"training.epoch": 3})
"""


def script(checkpoint: Path, text: str, *before: str) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-c", SCRIPT + text, str(checkpoint)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_what_was_saved_right_before_the_process_ends_is_described(checkpoint: Path) -> None:
    done = script(checkpoint, "writer.submit(path, facts)")
    assert (done.returncode, done.stderr) == (0, "")
    assert read(checkpoint)["training"]["epoch"] == 3


@pytest.mark.slow
def test_a_forked_child_neither_waits_for_nor_repeats_its_parents_work(checkpoint: Path) -> None:
    forked = """
import threading
asked, ready = threading.Event(), threading.Event()
class Held:
    def item(self):
        asked.set()
        ready.wait()
        return 1.0
writer.submit(path, TrainingFacts(known={"training.epoch": 3}, metrics={"x": Held()}))
asked.wait()
child = os.fork()
if not child:
    assert writer.pending == 0 and writer.flush(60)
    writer.forget("/nowhere.ckpt")
    os._exit(0 if writer.flush(60) else 1)
assert os.waitpid(child, 0)[1] == 0
ready.set()
"""
    done = script(checkpoint, forked)
    assert (done.returncode, done.stderr) == (0, "")
    assert read(checkpoint)["metrics"]["additional_metrics"] == {"x": 1.0}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_killed_while_it_writes_it_leaves_nothing_that_is_not_cleaned_up(checkpoint: Path, tmp_path: Path) -> None:
    before = render(CheckpointMetadata(exp_name="earlier"), author=Author.TRAINING)
    strace = ["strace", "-f", "-qq", "-o", str(tmp_path / "log"), "-e", "trace=fsync,renameat2"]
    for call in ("fsync:signal=KILL:when=1", "renameat2:signal=KILL:when=1", "renameat2:signal=KILL:when=2"):
        write(sidecar_of(checkpoint), before)
        done = script(checkpoint, "writer.submit(path, facts)", *strace, "-e", f"inject={call}")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("was killed by signal 9") == 1
        left = [name for name in os.listdir(checkpoint.parent) if is_temporary_name(os.fsencode(name))]
        assert len(left) == 1, call
        assert author_of(sidecar_of(checkpoint).read_bytes()) is Author.TRAINING
        with opened(tmp_path) as root_fd:
            assert clean_leftovers(root_fd, b"exp/checkpoints") == 1
        assert sorted(os.listdir(checkpoint.parent)) == ["best.ckpt", "best.ckpt.metadata.yaml"]


def test_a_describing_process_that_dies_is_one_warning_and_the_next_save_gets_another(
    writer: SidecarWriter, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer.submit(str(checkpoint), facts(3))
    assert writer.flush(LONG_S)
    helper = writer._helper._process
    assert helper is not None
    helper.kill()
    helper.wait()
    other = saved(checkpoint.with_name("other.ckpt"), 4)
    writer.submit(str(other), facts(4))
    assert writer.flush(LONG_S)
    assert ["was killed by signal 9" in told for told in warnings_of(caplog)] == [True]
    writer.submit(str(other), facts(4))
    assert writer.flush(LONG_S)
    assert read(other)["training"]["epoch"] == 4


@pytest.mark.parametrize("command", [["/nowhere/python"], ["true"], ["head", "-c", "100", "/dev/zero"]])
def test_where_no_describing_process_can_be_started_the_thread_describes(
    writer: SidecarWriter, checkpoint: Path, caplog: pytest.LogCaptureFixture, command: list[str]
) -> None:
    writer._helper = Helper(command)
    writer.submit(str(checkpoint), facts(3))
    assert writer.flush(LONG_S)
    assert read(checkpoint)["training"]["epoch"] == 3
    assert warnings_of(caplog) == []


# ---- disks and values that refuse ------------------------------------------------------------------------------


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(512))


@pytest.mark.root
@pytest.mark.parametrize("refusal", ["read only", "full"])
def test_a_disk_that_refuses_is_one_warning_for_many_saves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, refusal: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with tmpfs(disk):
        mount("-o", "remount,size=64k", str(disk))
        paths = [saved(disk / f"{number}.ckpt", 3) for number in range(3)]
        if refusal == "full":
            fill(disk)
        else:
            mount("-o", "remount,ro", str(disk))
        before = sorted(os.listdir(disk))
        writer = SidecarWriter(STYLE)
        for path in paths:
            writer.submit(str(path), facts(3))
        assert writer.close(LONG_S)
        assert sorted(os.listdir(disk)) == before
    (told,) = warnings_of(caplog)
    assert re.search(r"disk/0\.ckpt: (Read-only file system|No space left)", told), told


def test_a_name_that_is_too_long_for_a_sidecar_is_one_warning(
    writer: SidecarWriter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer.submit(str(saved(tmp_path / ("n" * 245 + ".ckpt"), 3)), facts(3))
    assert writer.flush(LONG_S)
    (told,) = warnings_of(caplog)
    assert "shorten the checkpoint's name" in told


def test_a_file_that_is_no_checkpoint_gets_no_sidecar(
    writer: SidecarWriter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = write(tmp_path / "page.ckpt", "<!DOCTYPE html><html><body>404</body></html>")
    writer.submit(str(page), facts(3))
    assert writer.flush(LONG_S)
    assert os.listdir(tmp_path) == ["page.ckpt"]
    (told,) = warnings_of(caplog)
    assert str(page) in told


@pytest.mark.parametrize("validate", [True, False])
def test_what_would_not_read_back_is_written_only_where_nobody_asks(
    checkpoint: Path, caplog: pytest.LogCaptureFixture, validate: bool
) -> None:
    writer = SidecarWriter(Style(callback="tests.Callback", validate_schema=validate))
    writer.submit(str(checkpoint), TrainingFacts(known={"exp_name": "${oc.env:NAME}"}))
    assert writer.close(LONG_S)
    assert sidecar_of(checkpoint).exists() is not validate
    assert [str(checkpoint) in told and "exp_name" in told for told in warnings_of(caplog)] == [True] * validate


def test_a_value_of_the_wrong_kind_is_one_warning(
    writer: SidecarWriter, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for known in ({"training.max_epochs": "many"}, {"no.such.field": 1}, {"model.encoder": "tiny"}):
        writer.submit(str(checkpoint), TrainingFacts(known=known))
        assert writer.flush(LONG_S)
    assert not sidecar_of(checkpoint).exists()
    assert len(warnings_of(caplog)) == 1
