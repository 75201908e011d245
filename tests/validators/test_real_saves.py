"""Checkpoints as trainings really save them: every tensor in the file, of whatever role, equals what torch loads."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import safetensors.torch
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from ckptd.validators import Format, Inspection, Level, Safety, inspect_checkpoint
from tests.validators.torch_facts import assert_agree, described_tensors

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(lightning.LightningModule):
    """Trains, validates, logs; with a buffer and mixed types."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 1)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int32))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.head(self.encoder(batch[0])).square().mean()

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val_loss", self.head(self.encoder(batch[0])).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01, amsgrad=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Lightning's Trainer, with optimizer and callbacks."""
    directory = tmp_path_factory.mktemp("trained")
    torch.manual_seed(3)
    loader = DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=4)
    trainer = lightning.Trainer(
        default_root_dir=directory,
        max_epochs=2,
        accelerator="cpu",
        callbacks=[ModelCheckpoint(directory / "kept", monitor="val_loss"), EarlyStopping("val_loss")],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), loader, loader)
    trainer.save_checkpoint(directory / "final.ckpt", weights_only=False)
    return directory / "final.ckpt"


def _tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors_in(child, f"{path}.{key}" if path else str(key))


def _compared(path: Path, level: Level = Level.STRUCTURE) -> Inspection:
    """Inspect, and compare every tensor of every role with what torch loads."""
    loaded = torch.load(path, weights_only=True)
    inspection = inspect_checkpoint(path, level)
    assert inspection.is_valid, inspection.findings
    assert inspection.safety is Safety.SAFE
    described: dict[str, Any] = {}
    for role in ("weights", "optimizer", "other"):
        described |= described_tensors(inspection, role)
    tensors = dict(_tensors_in(loaded))
    assert_agree({name: described[name] for name in tensors if name in described}, tensors)
    assert len(described) == len(tensors) == len(inspection.tensors)
    return inspection


@pytest.mark.parametrize("form", ["as saved", "no checksums", "legacy"])
def test_a_checkpoint_of_lightning_is_described_tensor_by_tensor(form: str, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    loaded = torch.load(trained, weights_only=True)
    if form == "as saved":
        path.write_bytes(trained.read_bytes())
    elif form == "legacy":
        torch.save(loaded, path, _use_new_zipfile_serialization=False)
    else:
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(loaded, path)
        finally:
            torch.serialization.set_crc32_options(True)
    inspection = _compared(path)
    weights = loaded["state_dict"]
    assert inspection.n_parameters == sum(tensor.numel() for tensor in weights.values())
    assert inspection.weights_bytes == sum(tensor.nbytes for tensor in weights.values())
    optimizer = dict(_tensors_in(loaded["optimizer_states"]))
    assert inspection.optimizer_bytes == sum(tensor.nbytes for tensor in optimizer.values())
    assert inspection.dtypes == ("float32", "int32", "int64")
    assert (inspection.epoch, inspection.global_step) == (loaded["epoch"], loaded["global_step"])
    assert inspection.hyper_parameters == {"width": 4}
    assert {callback.kind for callback in inspection.callbacks} == {"ModelCheckpoint", "EarlyStopping"}


@pytest.fixture(scope="module")
def bert() -> BertForSequenceClassification:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def test_a_model_of_transformers_is_described_as_its_library_loads_it(
    bert: BertForSequenceClassification, tmp_path: Path
) -> None:
    bert.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    inspection = inspect_checkpoint(path)
    assert inspection.is_valid, inspection.findings
    assert inspection.format is Format.SAFETENSORS
    loaded = safetensors.torch.load_file(path)
    assert_agree({name: described_tensors(inspection)[name] for name in loaded}, loaded)
    assert inspection.n_parameters == sum(tensor.numel() for tensor in loaded.values())


def _plain_loop(model: nn.Module, path: Path) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    schedule.step()
    checkpoint = {
        "epoch": 4,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": schedule.state_dict(),
        "best": torch.tensor(0.75),
        "rng": torch.get_rng_state(),
    }
    torch.save(checkpoint, path)


def test_a_plain_training_loop_is_described_tensor_by_tensor(
    bert: BertForSequenceClassification, tmp_path: Path
) -> None:
    path = tmp_path / "loop.pt"
    _plain_loop(bert, path)
    inspection = _compared(path, Level.CHECKSUM)
    assert inspection.level is Level.CHECKSUM
    assert inspection.n_parameters == sum(tensor.numel() for tensor in bert.state_dict().values())
    assert inspection.epoch == 4


PROGRAMS: dict[str, Callable[[nn.Module], Any]] = {
    "scripted": torch.jit.script,
    "traced": lambda model: torch.jit.trace(model, torch.ones(2, 3)),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_of_a_trained_model_is_described_tensor_by_tensor(kind: str, trained: Path, tmp_path: Path) -> None:
    net = Net.load_from_checkpoint(trained, map_location="cpu")
    model = nn.Sequential(net.encoder, net.head).eval()
    torch.jit.save(PROGRAMS[kind](model), tmp_path / "model.pt")
    inspection = inspect_checkpoint(tmp_path / "model.pt", Level.CHECKSUM)
    assert inspection.is_valid, inspection.findings
    loaded = torch.jit.load(tmp_path / "model.pt").state_dict(keep_vars=True)
    assert_agree(described_tensors(inspection), loaded)
    assert inspection.n_parameters == sum(tensor.numel() for tensor in loaded.values())
