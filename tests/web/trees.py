"""A tree of real checkpoints that has one of everything the page shows."""

import io
import pathlib
from typing import Any

import torch

HOSTILE = (
    "<img src=x onerror=alert(1)>.ckpt",
    '"><script>alert(1)<\\script>.ckpt',
    "evil\u202egnp.ckpt",
    "tab\tand\nnewline.ckpt",
    "a" * 200 + ".ckpt",
)
"""Names that are markup, or would mislead whoever reads them."""


def checkpoint(
    epoch: int, *, hmean: float, val_loss: float, seed: int = 0, width: int = 16, layers: int = 2, **parameters: object
) -> bytes:
    """As Lightning writes it: weights, an optimizer, hyper-parameters, the state of a ModelCheckpoint."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        f"model.{part}.{layer}.{kind}": torch.randn(*shape, generator=generator)
        for part in ("encoder", "decoder")
        for layer in range(layers)
        for kind, shape in (("weight", (width, width)), ("bias", (width,)))
    }
    buffer = io.BytesIO()
    torch.save(
        {
            "epoch": epoch,
            "global_step": 100 * (epoch + 1),
            "pytorch-lightning_version": "2.6.6",
            "state_dict": state,
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(width, width)}}, "param_groups": []}],
            "hyper_parameters": {"lr": 1e-3, "seed": seed, **parameters},
            "cleval_metrics": {"precision": hmean, "recall": hmean, "hmean": hmean},
            "callbacks": {"ModelCheckpoint": _model_checkpoint(val_loss)},
        },
        buffer,
    )
    return buffer.getvalue()


def _model_checkpoint(val_loss: float) -> dict[str, Any]:
    return {"monitor": "val_loss", "best_model_score": torch.tensor(val_loss), "current_score": torch.tensor(val_loss)}


def save(path: pathlib.Path, data: bytes) -> pathlib.Path:
    """Write it as a training does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def runs(root: pathlib.Path, experiments: int = 3, epochs: int = 4) -> list[pathlib.Path]:
    """Trainings whose loss falls and whose hmean rises, epoch by epoch."""
    made = []
    for experiment in range(experiments):
        for epoch in range(epochs):
            hmean, val_loss = 0.5 + 0.1 * epoch + 0.01 * experiment, 1.0 / (epoch + 1) + 0.01 * experiment
            name = f"epoch={epoch}-step={100 * (epoch + 1)}-val_loss={val_loss:.4f}.ckpt"
            data = checkpoint(epoch, hmean=hmean, val_loss=val_loss, seed=10 * experiment + epoch, lr=10.0**-experiment)
            made.append(save(root / f"exp_{experiment}" / "checkpoints" / name, data))
    return made


class Touch:
    """Pickled, it names a function that a program must not call for a stranger."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("true",)


def unsafe(path: pathlib.Path) -> pathlib.Path:
    """A checkpoint whose pickle would run something."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"w": torch.zeros(2)}, "surprise": Touch()}, path)
    return path


def cut_off(path: pathlib.Path) -> pathlib.Path:
    """A checkpoint whose second half is missing, long ago."""
    data = checkpoint(0, hmean=0.1, val_loss=1.0)
    return save(path, data[: len(data) // 2])
