"""Checkpoint directories for the tests, written by torch, Lightning and transformers; DeepSpeed's in its own layout.

deepspeed itself cannot be installed everywhere; its files are written by `torch.save` with the names and
keys of deepspeed/runtime/engine.py.
"""

import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.checkpoint.filesystem import SerializationFormat

from ckptd.validators import Format, Inspection, Level, inspect_checkpoint
from ckptd.validators.errors import Unreadable


def model() -> torch.nn.Module:
    """A small model with a buffer."""
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model that has taken one step, and its optimizer."""
    made = model()
    optimizer = torch.optim.Adam(made.parameters())
    made(torch.randn(8, 6)).square().sum().backward()
    optimizer.step()
    return made, optimizer


def training_state() -> dict[str, Any]:
    """What a plain training loop saves with torch.distributed.checkpoint."""
    made, optimizer = trained()
    return {"state_dict": made.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "global_step": 120}


def save_dcp(path: str, state: dict[str, Any] | None = None, **options: Any) -> None:
    """As `torch.distributed.checkpoint.save` writes in one process.

    Args:
        path: the directory.
        state: to save; by default `training_state`.
        options: of `FileSystemWriter`.
    """
    with warnings.catch_warnings():
        # It says that it was left to itself, and, second time, that it overwrites.
        warnings.simplefilter("ignore", UserWarning)
        writer = dcp.FileSystemWriter(path, **({"sync_files": False} | options))
        dcp.save(training_state() if state is None else state, storage_writer=writer, no_dist=True)


def save_dcp_as_safetensors(path: str) -> None:
    """With safetensors inside of the shards, in two of them."""
    save_dcp(path, dict(model().state_dict()), thread_count=2, serialization_format=SerializationFormat.SAFETENSORS)


def save_dcp_asynchronously(path: str) -> None:
    """As `async_save` writes, in a thread of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.async_save(training_state(), checkpoint_id=path, no_dist=True).result()


def save_fsdp(path: str) -> None:
    """As Lightning's FSDP strategy saves, with the rest of a checkpoint as its trainer puts it together."""
    made, optimizer = trained()
    checkpoint = {
        "epoch": 2,
        "global_step": 40,
        "pytorch-lightning_version": "2.6.1",
        "state_dict": dict(made.state_dict()),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "loops": {},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val/loss', 'mode': 'min'}": {
                "monitor": "val/loss",
                "best_model_score": torch.tensor(0.25),
                "best_model_path": "/run/checkpoints/epoch=2.ckpt",
            }
        },
        "hparams_name": "kwargs",
        "hyper_parameters": {"learning_rate": 0.001, "architecture": "tiny"},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        FSDPStrategy(state_dict_type="sharded").save_checkpoint(checkpoint, path)


def save_deepspeed(path: str, *, data_parallel: int = 2, stage: int = 2, model_parallel: int = 1) -> None:
    """The rank files of one tag, in the order in which one process after the other would write them."""
    os.makedirs(path)
    made, optimizer = trained()
    shapes = {name: parameter.shape for name, parameter in made.named_parameters()}
    config = {"train_batch_size": 8, "zero_optimization": {"stage": stage}, "bf16": {"enabled": True}}
    weights = made.state_dict()
    if stage == 3:
        weights = {name: torch.empty(0) if name in shapes else value for name, value in weights.items()}
    for mp in range(model_parallel):
        state = {
            "module": dict(weights),
            "buffer_names": ["1.running_mean"],
            "optimizer": None if stage else optimizer.state_dict(),
            "param_shapes": [dict(shapes)],
            "lr_scheduler": None,
            "skipped_steps": 0,
            "global_steps": 40,
            "global_samples": 320,
            "dp_world_size": data_parallel,
            "mp_world_size": model_parallel,
            "ds_config": config,
            "ds_version": "0.17.2",
            "epoch": 2,
        }
        if stage == 3:
            for dp in range(data_parallel):
                torch.save(state, os.path.join(path, f"zero_pp_rank_{dp}_mp_rank_{mp:02d}_model_states.pt"))
        else:
            torch.save(state, os.path.join(path, f"mp_rank_{mp:02d}_model_states.pt"))
        for dp in range(data_parallel if stage else 0):
            partition = {
                "optimizer_state_dict": {
                    "zero_stage": stage,
                    "partition_count": data_parallel,
                    "ds_version": "0.17.2",
                    "fp32_flat_groups": [torch.randn(20)],
                    "base_optimizer_state": {"state": {0: {"exp_avg": torch.randn(20), "exp_avg_sq": torch.rand(20)}}},
                },
                "ds_config": config,
                "ds_version": "0.17.2",
            }
            torch.save(partition, os.path.join(path, f"bf16_zero_pp_rank_{dp}_mp_rank_{mp:02d}_optim_states.pt"))


def save_lightning_deepspeed(path: str) -> None:
    """As Lightning's DeepSpeed strategy: the tag `checkpoint`, `latest` and the recovery script beside it."""
    save_deepspeed(os.path.join(path, "checkpoint"))
    put(path, "zero_to_fp32.py", b"# converts the partitions\n")
    put(path, "latest", b"checkpoint")


def put(directory: str, name: str, data: bytes) -> str:
    """Write a file, and return its path."""
    path = os.path.join(directory, name)
    with open(path, "wb") as file:
        file.write(data)
    return path


def files_in(directory: str) -> list[str]:
    """All files of a directory, relative to it, sorted."""
    found = (os.path.join(base, name) for base, _, names in os.walk(directory) for name in names)
    return sorted(os.path.relpath(path, directory) for path in found)


def in_order_of_writing(directory: str) -> list[str]:
    """The same, the oldest first; those written at one moment in the order of their names."""
    return sorted(files_in(directory), key=lambda name: (os.stat(os.path.join(directory, name)).st_mtime_ns, name))


def grow(source: str, target: str, seen: Callable[[int, int], None]) -> None:
    """Write the files of `source` into `target` one after the other, in the order in which they were written.

    Each appears empty, then half, then whole, and after each step `seen` is told how many steps were made, and of how
    many.
    """
    os.makedirs(target)
    names = in_order_of_writing(source)
    for position, name in enumerate(names):
        with open(os.path.join(source, name), "rb") as file:
            data = file.read()
        path = os.path.join(target, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        for step, part in enumerate((b"", data[: len(data) // 2], data)):
            with open(path, "wb") as file:
                file.write(part)
            seen(3 * position + step + 1, 3 * len(names))


def flip(path: str, position: int) -> None:
    """Flip one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def copy_of(source: str, target: str) -> str:
    """A copy with its times, links not followed."""
    shutil.copytree(source, target)
    return target


def inspect_if_claimed(path: str, level: Level = Level.STRUCTURE) -> Inspection | None:
    """The inspection of a directory; None where no format claims it."""
    try:
        return inspect_checkpoint(path, level)
    except Unreadable as error:
        if "none that holds a sharded checkpoint" not in error.message:
            raise
        return None


WRITERS: dict[str, tuple[str, Format, Callable[[str], None]]] = {
    "dcp": ("step-10", Format.DCP, save_dcp),
    "dcp_two_shards": ("step-20", Format.DCP, lambda path: save_dcp(path, thread_count=2)),
    "dcp_async": ("step-30", Format.DCP, save_dcp_asynchronously),
    "dcp_safetensors": ("step-40", Format.DCP, save_dcp_as_safetensors),
    "fsdp": ("epoch=2.ckpt", Format.FSDP, save_fsdp),
    "deepspeed": ("global_step40", Format.DEEPSPEED, save_deepspeed),
    "deepspeed_stage_3": ("global_step40", Format.DEEPSPEED, lambda path: save_deepspeed(path, stage=3)),
    "deepspeed_lightning": ("epoch=2.ckpt", Format.DEEPSPEED, save_lightning_deepspeed),
}
"""Name → name of the directory, its format, and what writes it. Those of transformers need a training run first."""
