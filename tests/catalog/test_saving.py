"""save_with_metadata and describe: any loop's checkpoints, whole, with their digest and their sidecar."""

import logging
import os
import pathlib
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
import yaml

from ckptd.catalog.callbacks import saving
from ckptd.catalog.callbacks.digesting import ALONGSIDE_BYTES, DigestingFile, written_whole
from ckptd.catalog.callbacks.facts import NotWritten
from ckptd.catalog.callbacks.saving import describe, save_with_metadata
from ckptd.catalog.describe import describe_checkpoint
from ckptd.catalog.description import SidecarStatus
from ckptd.catalog.sidecar import Author, author_of
from ckptd.validators import Level, inspect_checkpoint
from ckptd.validators.checks.checksum import digest_file
from ckptd.validators.formats.torch_zip import Source
from ckptd.validators.reader import FileReader
from tests.daemon.real_mounts import mount, tmpfs


@pytest.fixture(autouse=True)
def _nothing_was_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_warned", set())


def weights(elements: int = 64, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"state_dict": {"layer.weight": torch.randn(elements, elements, generator=generator)}}


def sidecar_of(path: pathlib.Path) -> dict[str, Any]:
    document = yaml.safe_load(path.with_name(path.name + ".metadata.yaml").read_text())
    assert isinstance(document, dict)
    return document


def digest_of(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return digest_file(Source(FileReader(file.fileno())))


def names(directory: pathlib.Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# ---- saving ----------------------------------------------------------------------------------------------------


def test_every_value_that_the_loop_knows_is_in_the_sidecar_and_the_file_loads(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "outputs" / "words" / "checkpoints" / "best.ckpt"
    saved = save_with_metadata(
        weights(),
        path,
        metrics={"val/hmean": torch.tensor(0.5), "val/loss": 2, "lr": float("nan"), "fps": 31.5},
        epoch=0,
        global_step=120,
        max_epochs=10,
        training_phase="finetuning",
        monitor="val/hmean",
        mode="max",
        architecture="dbnet",
        hydra_config_path=".hydra/config.yaml",
        wandb_run_id="3kd8s0ab",
        fields={"model.encoder.model_name": "resnet18", "model.decoder.in_channels": [64, 128]},
    )
    torch.testing.assert_close(torch.load(path), weights())
    written = sidecar_of(path)
    assert written["exp_name"] == "words"
    assert written["training"] == {
        "epoch": 0,
        "global_step": 120,
        "training_phase": "finetuning",
        "max_epochs": 10,
    }
    assert written["metrics"] == {
        "precision": None,
        "recall": None,
        "hmean": 0.5,
        "validation_loss": 2.0,
        "additional_metrics": {"fps": 31.5},
    }
    assert written["checkpointing"] == {"monitor": "val/hmean", "mode": "max", "save_top_k": None, "save_last": None}
    assert written["model"]["architecture"] == "dbnet"
    assert written["model"]["encoder"]["model_name"] == "resnet18"
    assert written["model"]["decoder"]["in_channels"] == [64, 128]
    assert (written["hydra_config_path"], written["wandb_run_id"]) == (".hydra/config.yaml", "3kd8s0ab")
    assert written["source"]["digest"] == saved.digest == inspect_checkpoint(path, Level.CHECKSUM).digest
    assert written["source"]["size_bytes"] == saved.size_bytes == path.stat().st_size
    assert describe_checkpoint(str(path)).sidecar is SidecarStatus.FOREIGN


def test_what_the_loop_does_not_know_is_taken_from_the_checkpoint_or_stays_null(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.ckpt"
    save_with_metadata(weights() | {"epoch": 7, "global_step": 40}, path)
    written = sidecar_of(path)
    assert (written["training"]["epoch"], written["training"]["global_step"]) == (7, 40)
    assert written["checkpointing"]["monitor"] is None
    assert written["metrics"]["hmean"] is None


def test_the_loops_word_counts_where_the_checkpoint_counts_otherwise(tmp_path: pathlib.Path) -> None:
    """Loops that resume write the epoch to come into the file."""
    path = tmp_path / "a.ckpt"
    save_with_metadata(weights() | {"epoch": 8}, path, epoch=7)
    assert sidecar_of(path)["training"]["epoch"] == 7


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("elements", [1, 64, 700, 1500])
def test_the_digest_taken_while_saving_is_that_of_the_file(
    tmp_path: pathlib.Path, elements: int, checksums: bool
) -> None:
    path = tmp_path / "a.ckpt"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(checksums)
    try:
        saved = save_with_metadata(weights(elements), path, durable=False)
    finally:
        torch.serialization.set_crc32_options(before)
    assert saved.digest == digest_of(path)


def test_the_format_before_1_6_is_digested_as_well(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.ckpt"

    def save(obj: object, file: Any) -> None:
        torch.save(obj, file, _use_new_zipfile_serialization=False)

    saved = save_with_metadata(weights(700), path, save=save)
    assert saved.digest == digest_of(path)
    torch.testing.assert_close(torch.load(path), weights(700))


def test_a_save_that_seeks_is_digested_when_it_is_over(tmp_path: pathlib.Path) -> None:
    """torch's skip_data leaves room for tensors that are filled in later."""
    path = tmp_path / "a.ckpt"
    seeks: list[int] = []

    def save(obj: object, file: Any) -> None:
        go = file.seek
        file.seek = lambda *where: seeks.append(1) or go(*where)
        torch.save(obj, file)

    with torch.serialization.skip_data():
        saved = save_with_metadata(weights(700), path, save=save)
    assert seeks, "torch seeks here"
    assert saved.digest == digest_of(path)


def test_another_format_is_saved_by_whoever_can(tmp_path: pathlib.Path) -> None:
    import safetensors.torch

    path = tmp_path / "a.safetensors"
    tensors = weights(8)["state_dict"]
    saved = save_with_metadata(tensors, path, save=lambda obj, file: file.write(safetensors.torch.save(obj)), epoch=3)
    assert saved.digest == digest_of(path)
    assert sidecar_of(path)["training"]["epoch"] == 3


def test_an_overwrite_is_described_anew(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "last.ckpt"
    save_with_metadata(weights(seed=1), path, metrics={"hmean": 0.1, "fps": 9}, epoch=1)
    os.chmod(path, 0o640)
    save_with_metadata(weights(seed=2), path, metrics={"hmean": 0.2}, epoch=2)
    written = sidecar_of(path)
    assert written["metrics"]["hmean"] == 0.2
    assert written["metrics"]["additional_metrics"] == {}
    assert written["training"]["epoch"] == 2
    assert written["source"]["digest"] == digest_of(path)
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["last.ckpt", "last.ckpt.metadata.yaml"]


def test_a_name_that_is_not_ascii_or_not_utf_8_is_saved(tmp_path: pathlib.Path) -> None:
    for name in ("größte.ckpt", os.fsdecode(b"\xff.ckpt")):
        path = tmp_path / name
        save_with_metadata(weights(), path, epoch=1)
        assert path.exists()
    assert sidecar_of(tmp_path / "größte.ckpt")["training"]["epoch"] == 1


class Unpicklable:
    def __reduce__(self) -> str:
        raise RuntimeError("not to be pickled")


def test_a_save_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "last.ckpt"
    save_with_metadata(weights(), path, epoch=1)
    before = path.read_bytes(), sidecar_of(path)
    with pytest.raises(RuntimeError, match="not to be pickled"):
        save_with_metadata(weights() | {"x": Unpicklable()}, path, epoch=2)
    assert (path.read_bytes(), sidecar_of(path)) == before
    assert names(tmp_path) == ["last.ckpt", "last.ckpt.metadata.yaml"]


@pytest.mark.root
def test_a_full_disk_fails_the_save_and_leaves_what_was_there(tmp_path: pathlib.Path) -> None:
    with tmpfs(tmp_path):
        mount("-o", "remount,size=2m", str(tmp_path))
        path = tmp_path / "last.ckpt"
        save_with_metadata(weights(), path)
        before = path.read_bytes()
        with pytest.raises(OSError, match=r"No space left on device: .*/last\.ckpt"):
            save_with_metadata(weights(1500), path)
        assert path.read_bytes() == before
        assert names(tmp_path) == ["last.ckpt", "last.ckpt.metadata.yaml"]


@pytest.mark.root
def test_a_disk_that_has_room_for_the_checkpoint_alone_keeps_it(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tmpfs(tmp_path):
        mount("-o", "remount,nr_inodes=2", str(tmp_path))  # the directory's own, and one
        for name in ("a.ckpt", "b.ckpt"):
            assert save_with_metadata(weights(), tmp_path / name).metadata is None
            assert names(tmp_path) == [name]
            (tmp_path / name).unlink()
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def test_a_persons_metadata_is_left_alone_with_one_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.ckpt"
    path.with_name("a.ckpt.metadata.yaml").write_text("exp_name: mine\n")
    with caplog.at_level(logging.WARNING):
        first = save_with_metadata(weights(), path, epoch=1)
        save_with_metadata(weights(seed=1), path, epoch=2)
    assert first.metadata is None
    assert path.with_name("a.ckpt.metadata.yaml").read_text() == "exp_name: mine\n"
    assert len(caplog.records) == 1
    assert "left alone" in caplog.text
    torch.testing.assert_close(torch.load(path), weights(seed=1))


def test_something_else_under_the_sidecars_name_is_one_warning_and_the_checkpoint_is_saved(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.ckpt"
    path.with_name("a.ckpt.metadata.yaml").mkdir()
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            assert save_with_metadata(weights(seed=seed), path).metadata is None
    assert len(caplog.records) == 1
    torch.testing.assert_close(torch.load(path), weights(seed=2))
    assert names(tmp_path) == ["a.ckpt", "a.ckpt.metadata.yaml"]


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"mode": "maximum"}, "'min' or 'max'"),
        ({"fields": {"model.encodr.name": "x"}}, "no field 'model.encodr.name'"),
        ({"fields": {"source.digest": "x"}}, "no field 'source.digest'"),
        ({"epoch": "seven"}, "training.epoch cannot be 'seven'"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused_before_anything_is_saved(
    tmp_path: pathlib.Path, known: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        save_with_metadata(weights(), tmp_path / "a.ckpt", **known)
    assert names(tmp_path) == []


def test_a_misspelt_parameter_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TypeError, match="metric"):
        save_with_metadata(weights(), tmp_path / "a.ckpt", metric={"a": 1})  # type: ignore[call-arg]
    assert names(tmp_path) == []


def test_a_remote_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"s3://bucket/a\.ckpt is not a path"):
        save_with_metadata(weights(), "s3://bucket/a.ckpt")


def test_a_killed_save_leaves_the_old_file_and_only_what_the_daemon_cleans_up(tmp_path: pathlib.Path) -> None:
    from ckptd.catalog.sidecar import clean_leftovers

    path = tmp_path / "last.ckpt"
    save_with_metadata(weights(), path, epoch=1)
    before = path.read_bytes()
    script = """
        import os, signal, sys
        from ckptd.catalog.callbacks.saving import save_with_metadata
        def save(obj, file):
            file.write(bytes(3_000_000))
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save_with_metadata({}, sys.argv[1], save=save)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=False)
    assert killed.returncode == -9
    assert path.read_bytes() == before
    assert len(names(tmp_path)) == 3
    root_fd = os.open(tmp_path, os.O_PATH)
    try:
        assert clean_leftovers(root_fd, b"") == 1
    finally:
        os.close(root_fd)
    assert names(tmp_path) == ["last.ckpt", "last.ckpt.metadata.yaml"]


def test_importing_the_callbacks_imports_no_framework() -> None:
    script = (
        "import sys, ckptd.catalog.callbacks, ckptd.catalog.callbacks.saving; "
        "print([name for name in ('torch', 'lightning', 'transformers', 'numpy') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]"


# ---- describing ------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_somebody_else_saved_is_described(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(weights(), path)
    describe(path, metrics={"test/hmean": 0.25}, exp_name="words")
    written = sidecar_of(path)
    assert written["exp_name"] == "words"
    assert written["metrics"]["additional_metrics"] == {"test/hmean": 0.25}
    assert written["source"]["digest"] is None
    assert describe_checkpoint(str(path)).sidecar is SidecarStatus.FOREIGN


def test_scores_of_an_evaluation_join_those_of_the_training(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.ckpt"
    saved = save_with_metadata(weights(), path, metrics={"val/hmean": 0.5, "fps": 30}, epoch=3, monitor="val/hmean")
    described = describe(path, metrics={"test/hmean": 0.25, "fps": 31}, wandb_run_id="3kd8s0ab")
    written = sidecar_of(path)
    assert written["metrics"]["hmean"] == 0.5
    assert written["metrics"]["additional_metrics"] == {"fps": 31.0, "test/hmean": 0.25}
    assert (written["training"]["epoch"], written["checkpointing"]["monitor"]) == (3, "val/hmean")
    assert written["wandb_run_id"] == "3kd8s0ab"
    assert written["source"]["digest"] == described.source.digest == saved.digest


def test_what_was_said_of_an_earlier_save_is_not_said_of_this_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.ckpt"
    save_with_metadata(weights(seed=1), path, metrics={"hmean": 0.5}, epoch=3)
    torch.save(weights(seed=2), path)
    describe(path, epoch=4)
    written = sidecar_of(path)
    assert written["metrics"]["hmean"] is None
    assert written["training"]["epoch"] == 4
    assert written["source"]["digest"] is None


def test_a_digest_is_not_carried_over_to_a_file_that_was_touched_since(tmp_path: pathlib.Path) -> None:
    """The new sidecar names the file's present time: with the old digest it would vouch for bytes nobody looked at."""
    path = tmp_path / "a.ckpt"
    save_with_metadata(weights(), path, epoch=3)
    os.utime(path, (1.7e9, 1.7e9))
    describe(path, exp_name="words")
    written = sidecar_of(path)
    assert written["source"]["digest"] is None
    assert written["training"]["epoch"] == 3


def test_a_digest_is_taken_where_it_is_asked_for(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(weights(), path)
    describe(path, digest=True)
    assert sidecar_of(path)["source"]["digest"] == digest_of(path)


def test_a_persons_metadata_is_an_error_for_who_asks_to_describe(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(weights(), path)
    sidecar = path.with_name("a.ckpt.metadata.yaml")
    sidecar.write_text("exp_name: mine\n")
    with pytest.raises(NotWritten, match="left alone"):
        describe(path, epoch=1)
    assert sidecar.read_text() == "exp_name: mine\n"


def test_what_is_not_there_or_no_checkpoint_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        describe(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("<html>")
    with pytest.raises(NotWritten, match=r"text\.ckpt"):
        describe(tmp_path / "text.ckpt")
    assert names(tmp_path) == ["text.ckpt"]


def test_a_link_is_described_at_its_target(tmp_path: pathlib.Path) -> None:
    torch.save(weights(), tmp_path / "best.ckpt")
    (tmp_path / "last.ckpt").symlink_to("best.ckpt")
    describe(tmp_path / "last.ckpt", epoch=1)
    assert names(tmp_path) == ["best.ckpt", "best.ckpt.metadata.yaml", "last.ckpt"]


def test_the_daemons_sidecar_gives_way(tmp_path: pathlib.Path) -> None:
    from ckptd.catalog.describe import sidecar_for
    from ckptd.catalog.sidecar import render

    path = tmp_path / "a.ckpt"
    torch.save(weights(), path)
    sidecar = path.with_name("a.ckpt.metadata.yaml")
    sidecar.write_bytes(render(sidecar_for(describe_checkpoint(str(path)))))
    describe(path, epoch=9)
    assert author_of(sidecar.read_bytes()) is Author.TRAINING
    assert sidecar_of(path)["training"]["epoch"] == 9


# ---- digesting -------------------------------------------------------------------------------------------------


def test_pieces_of_every_size_are_digested_in_their_order(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.bin"
    sizes = [1, 0, ALONGSIDE_BYTES - 1, 1, ALONGSIDE_BYTES, 5, 3 * ALONGSIDE_BYTES + 7, 2]
    with written_whole(str(path), durable=False) as (file, written):
        for number, size in enumerate(sizes):
            assert file.tell() == sum(sizes[:number])
            assert file.write(memoryview(bytes([number]) * size)) == size
    assert path.read_bytes() == b"".join(bytes([number]) * size for number, size in enumerate(sizes))
    assert written[0].digest == digest_of(path)


def test_a_piece_may_be_reused_as_soon_as_it_is_written(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.bin"
    piece = bytearray(4 * ALONGSIDE_BYTES)
    with written_whole(str(path), durable=False) as (file, written):
        for value in range(5):
            piece[:] = bytes([value]) * len(piece)
            file.write(piece)
    assert written[0].digest == digest_of(path)


def test_a_writer_that_goes_back_is_digested_as_it_ended(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.bin"
    with written_whole(str(path), durable=False) as (file, written):
        file.write(b"0123456789")
        file.seek(2)
        file.write(b"xy")
        file.seek(0, os.SEEK_END)
        file.write(b"end")
    assert path.read_bytes() == b"01xy456789end"
    assert written[0].digest == digest_of(path)


def test_it_offers_no_descriptor_that_bytes_could_bypass_it_by(tmp_path: pathlib.Path) -> None:
    with open(tmp_path / "a.bin", "w+b") as file, pytest.raises(OSError, match="fileno"):
        DigestingFile(file.fileno()).fileno()
