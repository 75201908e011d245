"""A backend whose checkpoints are real files, described."""

from pathlib import Path
from typing import Any

import torch

from ckptd.catalog.describe import describe_checkpoint
from ckptd.catalog.entry import CheckpointId
from tests.daemon.fakes import FakeBackend


def put_file(backend: FakeBackend, root: Path, name: str, checkpoint: Any, **fields: Any) -> CheckpointId:
    """Save a checkpoint by torch, describe it and publish it; returns its id."""
    torch.save(checkpoint, root / name)
    checkpoint_id = backend.put(name, **fields)
    backend.descriptions[checkpoint_id] = describe_checkpoint(str(root / name), root=str(root))
    return checkpoint_id


def put_models(backend: FakeBackend, root: Path, count: int = 2) -> list[CheckpointId]:
    """So many checkpoints of one model, whose heads differ."""
    return [
        put_file(
            backend,
            root,
            f"{number}.ckpt",
            {
                "state_dict": {"body.weight": torch.ones(64, 3), "head.weight": torch.full((2,), float(number))},
                "hyper_parameters": {"lr": 0.1, "seed": number},
            },
            metrics={"hmean": 0.5 + number / 10},
            epoch=number,
        )
        for number in range(count)
    ]
