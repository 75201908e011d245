"""A training with the callback beside a running daemon: the training's metadata wins, whoever writes first."""

import pathlib
from typing import Any

import pytest
import torch

from ckptd.catalog.callbacks import SidecarWriter, TrainingFacts
from ckptd.catalog.callbacks.facts import Style
from ckptd.catalog.sidecar import Author, author_of
from tests.catalog.metadata_files import save
from tests.service.daemons import Daemon, eventually

STYLE = Style(callback="tests.Callback")


@pytest.fixture
def checkpoint(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "outputs/exp/checkpoints/best.ckpt"
    path.parent.mkdir(parents=True)
    return path


def facts(**metrics: float) -> TrainingFacts:
    return TrainingFacts(metrics=metrics)


def sidecar_of(checkpoint: pathlib.Path) -> pathlib.Path:
    return checkpoint.with_name(checkpoint.name + ".metadata.yaml")


def become(daemon: Daemon, **expected: Any) -> None:
    """Wait until the entry says so."""

    def shown() -> dict[str, Any]:
        entry = daemon.entries().get("exp/checkpoints/best.ckpt", {})
        return {name: entry.get(name) for name in expected}

    eventually(lambda: shown() == expected, f"{expected}, last: {shown()}")


def write(path: pathlib.Path, known: TrainingFacts) -> None:
    writer = SidecarWriter(STYLE)
    writer.submit(str(path), known)
    assert writer.close(60)


def test_the_trainings_metadata_replaces_what_the_daemon_wrote_before(
    tmp_path: pathlib.Path, checkpoint: pathlib.Path
) -> None:
    with Daemon(tmp_path / "outputs", tmp_path / "state", sidecar_delay_s=0) as daemon:
        save(checkpoint, epoch=3)
        become(daemon, metadata_source="daemon", metrics={})
        assert author_of(sidecar_of(checkpoint).read_bytes()) is Author.CKPTD
        write(checkpoint, facts(hmean=0.5))
        become(daemon, metadata_source="sidecar", metrics={"hmean": 0.5}, epoch=3)
    assert author_of(sidecar_of(checkpoint).read_bytes()) is Author.TRAINING


@pytest.mark.slow
def test_the_daemon_leaves_alone_what_the_training_wrote_before(
    tmp_path: pathlib.Path, checkpoint: pathlib.Path
) -> None:
    write(save(checkpoint, epoch=3), facts(hmean=0.5))
    written = sidecar_of(checkpoint).read_bytes()
    with Daemon(tmp_path / "outputs", tmp_path / "state", sidecar_delay_s=0) as daemon:
        become(daemon, metadata_source="sidecar", metrics={"hmean": 0.5})
        other = save(checkpoint.with_name("other.ckpt"), epoch=4)
        eventually(sidecar_of(other).exists, "the daemon writes what is missing")
        daemon.rebuild("full")
        daemon.wait_complete()
        become(daemon, metadata_source="sidecar", metrics={"hmean": 0.5})
        assert sidecar_of(checkpoint).read_bytes() == written
        assert daemon.stop() == 0
    with daemon.start():
        become(daemon, metadata_source="sidecar", metrics={"hmean": 0.5})
        assert sidecar_of(checkpoint).read_bytes() == written


@pytest.mark.slow
def test_each_overwriting_shows_the_metrics_of_its_own_step_in_the_end(
    tmp_path: pathlib.Path, checkpoint: pathlib.Path
) -> None:
    with Daemon(tmp_path / "outputs", tmp_path / "state", sidecar_delay_s=0) as daemon:
        writer = SidecarWriter(STYLE)
        for epoch in range(20):
            unfinished = checkpoint.with_name("unfinished")
            torch.save({"state_dict": {"w": torch.full((3,), float(epoch))}, "epoch": epoch}, unfinished)
            unfinished.replace(checkpoint)
            writer.submit(str(checkpoint), TrainingFacts(known={"training.epoch": epoch}, metrics={"hmean": epoch}))
        assert writer.close(60)
        become(daemon, metadata_source="sidecar", metrics={"hmean": 19.0}, epoch=19, findings=WITHOUT_CONFIG)
        checkpoint.unlink()
        writer.forget(str(checkpoint))
        assert writer.close(60)
        eventually(lambda: not daemon.entries(), "the entry is gone")
    assert list(checkpoint.parent.iterdir()) == []


WITHOUT_CONFIG = [{"code": "config.missing", "severity": "warning"}]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore")
def test_of_a_real_training_beside_a_daemon_every_file_is_shown_with_its_metrics(
    tmp_path: pathlib.Path, checkpoint: pathlib.Path
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from ckptd.catalog.callbacks.lightning import MetadataCallback
    from tests.catalog.callbacks.trainings import assert_all_described, fit, flat, sidecar

    run = checkpoint.parent
    saver = ModelCheckpoint(
        run, monitor="val/hmean", mode="max", save_top_k=3, save_last=True, filename="{epoch}-{step}"
    )
    with Daemon(tmp_path / "outputs", tmp_path / "state", sidecar_delay_s=0) as daemon:
        fit(run, saver, MetadataCallback(), max_epochs=12)
        names = assert_all_described(run)
        expected = {f"exp/checkpoints/{name}": flat(sidecar(run / name)["metrics"]) for name in names}

        def shown() -> dict[str, dict[str, float]]:
            return {path: entry["metrics"] for path, entry in daemon.entries().items()}

        eventually(lambda: shown() == expected, f"{expected}; last: {shown()}")
        assert {entry["metadata_source"] for entry in daemon.entries().values()} == {"sidecar"}
        assert {entry["monitor"] for entry in daemon.entries().values()} == {"val/hmean"}
    assert len(assert_all_described(run)) == 4
