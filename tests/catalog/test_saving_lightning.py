"""DigestingCheckpointIO in real Trainers: the digest in the metadata is that of the file, whoever writes it."""

import pathlib
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
import yaml

from ckptd.validators import Level, inspect_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # of lightning about its surroundings


def fit(run: pathlib.Path, *, within_async: bool = False) -> Any:
    """Two epochs, both kept, and the last one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch as pl
        from lightning.pytorch.callbacks import ModelCheckpoint
        from lightning.pytorch.demos.boring_classes import BoringModel
        from lightning.pytorch.plugins.io import AsyncCheckpointIO

        from ckptd.catalog.callbacks.checkpoint_io import DigestingCheckpointIO
        from ckptd.catalog.callbacks.lightning import MetadataCallback

    io = DigestingCheckpointIO()
    trainer = pl.Trainer(
        max_epochs=2,
        limit_train_batches=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AsyncCheckpointIO(io) if within_async else io],
        callbacks=[ModelCheckpoint(run, save_top_k=-1, save_last=True), MetadataCallback(flush_timeout_s=60)],
    )
    trainer.fit(BoringModel())
    return trainer


@pytest.mark.parametrize("within_async", [False, True])
def test_every_checkpoint_of_a_training_carries_the_digest_of_its_bytes(
    tmp_path: pathlib.Path, within_async: bool
) -> None:
    run = tmp_path / "words" / "checkpoints"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        fit(run, within_async=within_async)
    finally:
        torch.serialization.set_crc32_options(before)
    paths = sorted(run.glob("*.ckpt"))
    assert [path.name for path in paths] == ["epoch=0-step=1.ckpt", "epoch=1-step=2.ckpt", "last.ckpt"]
    for path in paths:
        source = yaml.safe_load(path.with_name(path.name + ".metadata.yaml").read_text())["source"]
        assert source["digest"] == inspect_checkpoint(path, Level.CHECKSUM).digest
        assert torch.load(path, weights_only=True)["pytorch-lightning_version"]
    assert not list(run.glob(".*"))


def test_what_it_does_not_write_itself_it_leaves_to_lightning(tmp_path: pathlib.Path) -> None:
    from ckptd.catalog.callbacks.checkpoint_io import DigestingCheckpointIO

    io = DigestingCheckpointIO()
    io.save_checkpoint({"a": 1}, "memory://bucket/a.ckpt")
    assert io.load_checkpoint("memory://bucket/a.ckpt") == {"a": 1}
    with pytest.raises(TypeError, match="storage_options"):
        io.save_checkpoint({"a": 1}, tmp_path / "a.ckpt", storage_options={})


@pytest.mark.slow
@pytest.mark.parametrize("library", ["lightning.pytorch", "pytorch_lightning"])
def test_both_libraries_take_it_for_theirs(tmp_path: pathlib.Path, library: str) -> None:
    script = f"""
import {library} as pl
from ckptd.catalog.callbacks.checkpoint_io import DigestingCheckpointIO
io = DigestingCheckpointIO()
trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, plugins=[io])
assert trainer.strategy.checkpoint_io is io
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
