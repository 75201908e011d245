"""Checkpoint directories for tests of the catalog and the service: written once, then put where they are wanted.

`torch.distributed.checkpoint` and safetensors write them; those of DeepSpeed and of the transformers Trainer have the
real names and contents, without the packages, whose import takes seconds (`tests.validators.directory_files` has
them).
"""

import functools
import io
import json
import os
import pathlib
import tempfile
import warnings
from collections.abc import Mapping

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save

Files = Mapping[str, bytes]
"""Name relative to the directory → contents, in the order of writing."""


@functools.cache
def dcp_files(seed: int = 0, *, shards: int = 3) -> Files:
    """What `torch.distributed.checkpoint.save` writes in one process; `.metadata` comes last."""
    generator = torch.Generator().manual_seed(seed)
    state = {f"layer{n}": torch.randn(16, 8 + seed, generator=generator) for n in range(2 * shards)}
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that it was left to itself
        writer = dcp.FileSystemWriter(directory, thread_count=shards)
        dcp.save({"state_dict": state, "epoch": seed, "global_step": 10 * seed}, storage_writer=writer, no_dist=True)
        names = sorted(os.listdir(directory), key=lambda name: (name == ".metadata", name))
        return {name: pathlib.Path(directory, name).read_bytes() for name in names}


@functools.cache
def trainer_files(step: int = 500) -> Files:
    """A `checkpoint-N` of the transformers Trainer, as it saves by default; `trainer_state.json` comes late."""
    generator = torch.Generator().manual_seed(step)
    weights = {f"model.layers.{n}.weight": torch.randn(8, 8, generator=generator) for n in range(4)}
    state = {"epoch": 2.0, "global_step": step, "log_history": [{"epoch": 2.0, "step": step, "eval_loss": 0.5}]}
    return {
        "config.json": json.dumps({"architectures": ["TinyForTests"], "model_type": "tiny"}).encode(),
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "optimizer.pt": _saved({"state": {0: {"exp_avg": torch.zeros(8, 8)}}, "param_groups": []}),
        "scheduler.pt": _saved({"last_epoch": step}),
        "rng_state.pth": _saved({"cpu": torch.zeros(8, dtype=torch.uint8)}),
        "trainer_state.json": json.dumps(state).encode(),
    }


@functools.cache
def deepspeed_files() -> Files:
    """A checkpoint of Lightning's DeepSpeed strategy: rank files one directory down, `latest` beside that."""
    weights = {"weight": torch.ones(4, 4)}
    config = {"zero_optimization": {"stage": 2}}
    common = {"ds_config": config, "ds_version": "0.17.2"}
    model = {"module": weights, "param_shapes": [{"weight": torch.Size((4, 4))}], "dp_world_size": 1}
    partition = {"zero_stage": 2, "partition_count": 1, "fp32_flat_groups": [torch.ones(16)]}
    return {
        "checkpoint/mp_rank_00_model_states.pt": _saved(model | common | {"mp_world_size": 1, "global_steps": 7}),
        "checkpoint/zero_pp_rank_0_mp_rank_00_optim_states.pt": _saved({"optimizer_state_dict": partition} | common),
        "latest": b"checkpoint",
        "zero_to_fp32.py": b"# converts the partitions\n",
    }


def put(directory: pathlib.Path, files: Files) -> pathlib.Path:
    """Write files into a directory, which is made; returns it."""
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def size_of(files: Files) -> int:
    """Of all files together, in bytes."""
    return sum(map(len, files.values()))


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
