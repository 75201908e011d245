"""What a checkpoint says of itself is read as Lightning and training loops write it; nothing is invented."""

import argparse
import datetime as dt
import enum
import pathlib
import struct
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from ckptd.validators import Safety, inspect_checkpoint
from tests.validators.checkpoint_files import codes, inspect_bytes, saved, state_dict
from tests.validators.hostile import checkpoint_around, state_dict_of, tensor_opcodes


class Net(lightning.LightningModule):
    """The smallest module that trains, validates and logs."""

    def __init__(self, width: int = 4, name: str = "net") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = torch.nn.Linear(3, width)
        self.head = torch.nn.Linear(width, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.head(self.encoder(batch[0])).square().mean()

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val_loss", self.head(self.encoder(batch[0])).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelCheckpoint, EarlyStopping]:
    directory = tmp_path_factory.mktemp("trained")
    torch.manual_seed(3)
    loader = DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=4)
    keep = ModelCheckpoint(directory / "kept", monitor="val_loss", mode="min", save_top_k=2)
    stop = EarlyStopping("val_loss", patience=5)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[keep, stop],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), loader, loader)
    trainer.save_checkpoint(directory / "final.ckpt", weights_only=False)
    return directory / "final.ckpt", keep, stop


lightning_warnings = pytest.mark.filterwarnings("ignore")


@lightning_warnings
def test_a_lightning_checkpoint_is_described_whole(trained: tuple[Path, ModelCheckpoint, EarlyStopping]) -> None:
    path, _, _ = trained
    inspection = inspect_checkpoint(path)
    loaded = torch.load(path, weights_only=True)
    assert inspection.findings == ()
    assert inspection.safety is Safety.SAFE
    assert (inspection.epoch, inspection.global_step) == (loaded["epoch"], loaded["global_step"])
    assert inspection.lightning_version == loaded["pytorch-lightning_version"]
    assert inspection.hyper_parameters == {"width": 4, "name": "net"}
    assert inspection.parameters_by_part == {"encoder": 16, "head": 5}
    assert inspection.optimizer_bytes == 4 * (2 * 21 + 4)
    weights = [(info.name, info.shape) for info in inspection.tensors if info.role == "weights"]
    assert weights == [(f"state_dict.{name}", tuple(t.shape)) for name, t in loaded["state_dict"].items()]


@lightning_warnings
def test_the_scores_of_callbacks_are_the_values_of_their_tensors(
    trained: tuple[Path, ModelCheckpoint, EarlyStopping],
) -> None:
    path, keep, stop = trained
    by_kind = {callback.kind: callback for callback in inspect_checkpoint(path).callbacks}
    found = by_kind["ModelCheckpoint"]
    assert keep.best_model_score is not None
    assert keep.current_score is not None
    assert (found.monitor, found.mode) == ("val_loss", "min")
    assert found.best_model_path == keep.best_model_path
    assert found.best_model_score == keep.best_model_score.item()
    assert found.current_score == keep.current_score.item()
    assert found.best_k_models == {name: score.item() for name, score in keep.best_k_models.items()}
    assert by_kind["EarlyStopping"].best_model_score == stop.best_score.item()
    assert by_kind["EarlyStopping"].state["patience"] == 5


SCORES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]
SCORES += [torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int64, torch.int32, torch.uint8, torch.int8]


@pytest.mark.parametrize("dtype", SCORES, ids=str)
def test_a_score_of_any_dtype_has_the_value_that_torch_reads(dtype: torch.dtype, tmp_path: Path) -> None:
    values = [0.15625, 1.75, 3.0, 0.0, 20.0] + ([-0.5] if dtype is not torch.uint8 else [])
    scores = {str(i): torch.tensor(value).to(dtype) for i, value in enumerate(values)}
    inspection = inspect_bytes(tmp_path, saved({"state_dict": state_dict(), "metrics": scores}))
    assert inspection.metrics == {name: float(score) for name, score in scores.items()}


def test_a_score_inside_a_larger_storage_is_read_from_its_place(tmp_path: Path) -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    inspection = inspect_bytes(tmp_path, saved({"state_dict": state_dict(), "metrics": {"hmean": values[1]}}))
    assert inspection.metrics == {"hmean": 2.0}


def test_a_big_endian_checkpoint_gives_the_same_scores(tmp_path: Path) -> None:
    scalar = tensor_opcodes(numel=b"K\x01", shape=b")", stride=b")")
    pickle = state_dict_of(scalar).replace(b"state_dict", b"my_metrics")
    for order, layout in ((b"little", "<f"), (b"big", ">f")):
        data = checkpoint_around(pickle, {"data/0": struct.pack(layout, 0.75)}, byteorder=order)
        assert inspect_bytes(tmp_path, data).metrics == {"w": 0.75}, order


def test_numbers_are_read_only_where_a_name_says_that_they_are_scores(tmp_path: Path) -> None:
    value = {
        "state_dict": state_dict(),
        "cleval_metrics": {"hmean": 0.9, "precision": np.float32(0.5), "ok": True, "nan": float("nan")},
        "val": {"loss": 1},
        "scaler": {"scale": 65536.0},
    }
    assert inspect_bytes(tmp_path, saved(value)).metrics == {"hmean": 0.9, "precision": 0.5, "loss": 1.0}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (7, 7), (True, None), (1.5, None), ("3", None), (torch.tensor(4), 4), (np.int64(5), 5), (2**70, None)],
)
def test_an_epoch_is_an_integer_or_unknown(value: Any, expected: int | None, tmp_path: Path) -> None:
    assert inspect_bytes(tmp_path, saved({"state_dict": state_dict(), "epoch": value})).epoch == expected


class Mode(enum.Enum):
    """An enumeration as people put into their hyper-parameters."""

    FAST = "fast"


class Custom:
    """A class that nobody else has."""

    def __init__(self) -> None:
        self.size = 3
        self.inner = [1, (2, {"x"})]


def test_hyper_parameters_become_readable_plain_data(tmp_path: Path) -> None:
    parameters = {
        "lr": 1e-3,
        "nan": float("nan"),
        "inf": [float("inf"), float("-inf")],
        "mode": Mode.FAST,
        "path": pathlib.PurePosixPath("/data/train"),
        "space": argparse.Namespace(a=1, b=argparse.Namespace(c=2)),
        "when": dt.datetime(2024, 5, 6, 7, 8, 9, tzinfo=None),  # noqa: DTZ001
        "set": {1},
        "none": None,
        "bytes": b"abc",
        "huge": 2**100,
        "dtype": torch.float16,
        "device": torch.device("cuda", 1),
        "custom": Custom(),
        "cls": Custom,
        "scalar": torch.tensor(0.5),
        "tensor": torch.ones(2, 3),
        "large tensor": torch.ones(5, 7),
        "np": np.float64(2.5),
        "array": np.ones((2, 2)),
        "large array": np.ones((5, 7)),
        "size": torch.Size([1, 2]),
        3: "integer key",
        ("a", 1): "tuple key",
    }
    inspection = inspect_bytes(tmp_path, saved({"state_dict": state_dict(), "hyper_parameters": parameters}))
    custom = f"{Custom.__module__}.Custom"
    assert inspection.hyper_parameters == {
        "lr": 1e-3,
        "nan": "nan",
        "inf": ["inf", "-inf"],
        "mode": "fast",
        "path": "/data/train",
        "space": {"a": 1, "b": {"c": 2}},
        "when": "2024-05-06T07:08:09",
        "set": [1],
        "none": None,
        "bytes": "<3 bytes>",
        "huge": "<integer of 101 bits>",
        "dtype": "torch.float16",
        "device": "cuda:1",
        "custom": {"__class__": custom, "size": 3, "inner": [1, [2, ["x"]]]},
        "cls": custom,
        "scalar": 0.5,
        "tensor": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
        "large tensor": "<tensor float32 [5, 7]>",
        "np": 2.5,
        "array": [[1.0, 1.0], [1.0, 1.0]],
        "large array": "<array float64 [5, 7]>",
        "size": [1, 2],
        "3": "integer key",
        "a, 1": "tuple key",
    }
    assert inspection.safety is Safety.UNKNOWN
    assert codes(inspection) == {"pickle.unknown_name"}


def test_an_instantiator_is_dangerous_whatever_the_pickle_names(tmp_path: Path) -> None:
    parameters = {"_instantiator": "os.system"}
    inspection = inspect_bytes(tmp_path, saved({"state_dict": state_dict(), "hyper_parameters": parameters}))
    assert inspection.safety is Safety.UNSAFE
    assert codes(inspection) == {"pickle.dangerous_name"}
    assert inspection.is_valid


def test_the_same_weights_have_the_same_content_id_however_they_are_wrapped(tmp_path: Path) -> None:
    weights = state_dict()
    shuffled = dict(reversed(weights.items()))
    files = [weights, {"state_dict": weights}, {"epoch": 9, "model_state_dict": shuffled, "extra": torch.ones(3)}]
    inspections = [inspect_bytes(tmp_path, saved(value)) for value in files]
    assert len({inspection.content_id for inspection in inspections}) == 1
    assert len({inspection.archive_id for inspection in inspections}) == 3


@pytest.mark.parametrize("change", ["value", "name", "dtype", "shape"])
def test_any_difference_in_the_weights_changes_the_content_id(change: str, tmp_path: Path) -> None:
    weights = {"a": torch.zeros(4), "b": torch.ones(4)}
    other = {
        "value": {"a": torch.zeros(4), "b": torch.full((4,), 1.0000001)},
        "name": {"b": torch.zeros(4), "a": torch.ones(4)},
        "dtype": {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(4)},
        "shape": {"a": torch.zeros(2, 2), "b": torch.ones(4)},
    }[change]
    first = inspect_bytes(tmp_path, saved({"state_dict": weights}))
    second = inspect_bytes(tmp_path, saved({"state_dict": other}))
    assert first.content_id is not None
    assert second.content_id is not None
    assert first.content_id != second.content_id


def test_keys_that_read_alike_do_not_hide_each_other(tmp_path: Path) -> None:
    """The integer key 1 and the text "1": both tensors are in the table, and both are checked."""
    value = {1: {"w": torch.ones(2)}, "1": {"w": torch.ones(3)}}
    inspection = inspect_bytes(tmp_path, saved(value))
    assert sorted(info.shape for info in inspection.tensors) == [(2,), (3,)]
