"""Subjects of the fault campaign: one intact checkpoint of every format, written by the libraries that people use."""

import contextlib
import io
import json
import pathlib
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import safetensors.torch
import torch

FILE = ""
"""Name of the only member of a checkpoint that is one file."""
PAGE_BYTES = 4096
_WIDE = 8 * PAGE_BYTES // 4
"""float32 elements of a tensor of eight pages."""


class Subject(NamedTuple):
    """One intact checkpoint."""

    name: str
    loader: str
    """How it is loaded: `torch`, `torch_unsafe` (`weights_only=False`), `jit`, `safetensors`, `dcp` or `parts`."""
    members: Mapping[str, bytes]
    """Name → contents, in the order in which they were written; a file has one member, `FILE`."""
    checksummed: frozenset[str]
    """Members all of whose contents are covered by recorded checksums."""
    suffix: str = ".ckpt"
    directory: str = ""
    """Where in a checkpoint's own directory the checkpoint is, if it is one."""
    optional: frozenset[str] = frozenset()
    """Members without which it would be an intact checkpoint of another kind: saved without the optimizer, say."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return FILE not in self.members


def subjects() -> Iterator[Subject]:
    """All of them. The same in each run: the campaign's faults are positions in them."""
    yield file_subject("torch zip, Lightning", "torch", saved_bytes(_lightning()), checksums=True)
    yield file_subject("torch zip, large tensors", "torch", saved_bytes(_wide()), checksums=True)
    yield file_subject("torch zip, whole module", "torch_unsafe", saved_bytes(_module()), checksums=True)
    yield file_subject("TorchScript", "jit", script_bytes(_traced()), checksums=True, suffix=".pt")
    yield file_subject(
        "torch zip without checksums", "torch", without_checksums(lambda: saved_bytes(_wide())), checksums=False
    )
    yield file_subject("torch legacy, Lightning", "torch", legacy_bytes(_lightning()), checksums=False)
    yield file_subject("torch legacy, large tensors", "torch", legacy_bytes(_wide()), checksums=False)
    yield file_subject("safetensors", "safetensors", _safetensors(), checksums=False, suffix=".safetensors")
    weights = {"state_dict": {**_weights(), **_wide()["state_dict"]}}
    yield dcp_directory("DCP directory", weights, {})
    yield dcp_directory(
        "FSDP directory",
        weights,
        {"meta.pt": saved_bytes({"epoch": 2, "global_step": 40, "pytorch-lightning_version": "2.6"})},
    )
    yield _deepspeed()
    yield _transformers()


def without_checksums(make: Callable[[], bytes]) -> bytes:
    """What `make` returns while torch.save leaves checksums out."""
    torch.serialization.set_crc32_options(False)
    try:
        return make()
    finally:
        torch.serialization.set_crc32_options(True)


# ---- contents --------------------------------------------------------------------------------------------------------


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _weights(seed: int = 1) -> dict[str, torch.Tensor]:
    generator = _generator(seed)
    return {
        "model.encoder.weight": torch.randn(24, 16, generator=generator),
        "model.encoder.bias": torch.randn(24, generator=generator),
        "model.norm.num_batches_tracked": torch.tensor(1200),
        "model.head.weight": torch.randn(4, 24, generator=generator).to(torch.bfloat16),
        "model.head.mask": torch.tensor([True, False, True, True]),
        "model.fresh.bias": torch.zeros(12),
    }


def _lightning() -> dict[str, Any]:
    """As Lightning's `Trainer.save_checkpoint` writes them."""
    weights = _weights()
    moments = {i: {"step": torch.tensor(120.0), "exp_avg": torch.ones(24, 16) * i} for i in range(2)}
    best = "outputs/a/checkpoints/epoch=3.ckpt"
    callback = "ModelCheckpoint{'monitor': 'val/hmean', 'mode': 'max', 'every_n_train_steps': 0}"
    return {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": weights,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4, "completed": 3}}}},
        "callbacks": {
            callback: {"monitor": "val/hmean", "best_model_score": torch.tensor(0.875), "best_model_path": best}
        },
        "optimizer_states": [
            {"state": moments, "param_groups": [{"lr": 0.001, "betas": (0.9, 0.999), "params": [0, 1]}]}
        ],
        "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.001]}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.001, "name": "größe", "layers": [1, 2, 3], "dropout": None},
    }


def _wide() -> dict[str, Any]:
    """Tensors of many pages: random, equal in all pages, and zero."""
    generator = _generator(2)
    return {
        "state_dict": {
            "encoder.weight": torch.randn(_WIDE, generator=generator),
            "encoder.ones": torch.ones(_WIDE),
            "encoder.zeros": torch.zeros(_WIDE),
            "head.weight": torch.randn(_WIDE // 2, generator=generator),
        },
        "epoch": 1,
    }


def _module() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(16, 24), torch.nn.BatchNorm1d(24), torch.nn.ReLU(), torch.nn.Linear(24, 4)
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def file_subject(name: str, loader: str, data: bytes, *, checksums: bool, suffix: str = ".ckpt") -> Subject:
    """A checkpoint that is one file."""
    return Subject(name, loader, {FILE: data}, frozenset({FILE} if checksums else ()), suffix)


def saved_bytes(value: Any) -> bytes:
    """The bytes that `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def legacy_bytes(value: Any) -> bytes:
    """The bytes that `torch.save` wrote before version 1.6, the same in each run.

    torch names storages by their addresses, and writes them in the order of these names.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    stream = io.BytesIO(data)
    for _ in range(3):
        pickle.load(stream)
    begin = stream.tell()
    sizes = _storage_sizes(stream)
    end = stream.tell()
    keys = pickle.load(stream)
    storages: dict[str, bytes] = {}
    for key in keys:
        storages[key] = stream.read(8 + sizes[key])
    names = {key: f"{number:06}" for number, key in enumerate(sizes)}
    contents = re.sub(
        rb"X[\x0a-\x14]\0\0\0([0-9]{10,20})",  # BINUNICODE
        lambda found: b"X\6\0\0\0" + names[found[1].decode()].encode(),
        data[begin:end],
    )
    listed = pickle.dumps(list(names.values()), protocol=2)
    return data[:begin] + contents + listed + b"".join(storages[key] for key in names)


def _storage_sizes(stream: io.BytesIO) -> dict[str, int]:
    """Key → bytes of each storage that the next pickle refers to, in the order of appearance."""
    sizes: dict[str, int] = {}

    class References(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            if pid[0] == "storage":
                _, kind, key, _, count, *_ = pid
                sizes[key] = count * kind.dtype.itemsize
                return torch.storage.TypedStorage(wrap_storage=torch.UntypedStorage(sizes[key]), dtype=kind.dtype)
            return pid[1]  # a module's class, with its source

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TypedStorage is deprecated; the format knows no other
        References(stream).load()
    return sizes


def script_bytes(module: torch.jit.ScriptModule) -> bytes:
    """The bytes that `torch.jit.save` writes."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


class _Shifted(torch.nn.Module):
    """Its program holds a tensor as a constant, which is a record of its own kind in the archive."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _module().eval()
        self.shift = torch.tensor([[0.5, 1.5, 2.5, 3.5]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.shift


def _traced() -> torch.jit.ScriptModule:
    return torch.jit.trace(_Shifted(), torch.ones(2, 16))


def _safetensors() -> bytes:
    weights = {**_weights(), **_wide()["state_dict"]}
    return safetensors.torch.save(weights, metadata={"note": "größe"})  # of several keys, the order is not given


# ---- directories -----------------------------------------------------------------------------------------------------


def dcp_directory(name: str, value: dict[str, Any], more: Mapping[str, bytes]) -> Subject:
    """As `torch.distributed.checkpoint.save` writes in one process; `.metadata` is a plain pickle, without checksum."""
    import torch.distributed.checkpoint as dcp

    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.chdir(directory),  # the path stands in the metadata, as does the name of the save
        mock.patch("torch.distributed.checkpoint.filesystem._generate_uuid", return_value="0" * 36),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # that there is no process group is what we want
        dcp.save(value, checkpoint_id=".", no_dist=True)
        written = {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}
    shards = {name: written[name] for name in sorted(written) if name != ".metadata"}
    members = {**shards, ".metadata": written[".metadata"], **more}
    return Subject(name, "dcp", members, frozenset(members) - {".metadata"}, suffix="", optional=frozenset(more))


def _deepspeed() -> Subject:
    """The layout of DeepSpeed 0.14 (runtime/engine.py, `_get_ckpt_name`, `_get_zero_ckpt_name`), two ranks, ZeRO 2."""
    model = {
        "module": _weights(),
        "param_shapes": [{"model.encoder.weight": torch.Size([24, 16])}],
        "dp_world_size": 2,
        "mp_world_size": 1,
        "global_steps": 40,
        "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.14.4",
    }
    ranks = {
        f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt": saved_bytes(
            {
                "optimizer_state_dict": {
                    "partition_count": 2,
                    "single_partition_of_fp32_groups": [torch.randn(700, generator=_generator(10 + rank))],
                },
                "ds_config": {"zero_optimization": {"stage": 2}},
                "ds_version": "0.14.4",
            }
        )
        for rank in range(2)
    }
    members = {"mp_rank_00_model_states.pt": saved_bytes(model), **ranks}
    return Subject("DeepSpeed directory", "parts", members, frozenset(members), suffix="", directory="global_step40")


def _transformers() -> Subject:
    """The layout of the transformers Trainer's `checkpoint-N`, weights in two shards."""
    generator = _generator(4)
    one = {"model.embed.weight": torch.randn(300, 16, generator=generator), "model.norm.bias": torch.zeros(16)}
    two = {"lm_head.weight": torch.randn(200, 16, generator=generator)}
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    weight_map = {key: name for name, part in zip(names, (one, two), strict=True) for key in part}
    total = sum(tensor.nbytes for part in (one, two) for tensor in part.values())
    history = [{"epoch": 1.0, "step": 10, "loss": 0.5}, {"epoch": 1.0, "step": 10, "eval_loss": 0.4}]
    state = {"epoch": 1.0, "global_step": 10, "best_metric": 0.4, "log_history": history}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16}
    optimizer = {"state": {0: {"exp_avg": torch.ones(300, 16)}}, "param_groups": [{"lr": 0.001, "params": [0]}]}
    members = {
        "config.json": _json(config),
        names[0]: safetensors.torch.save(one, metadata={"format": "pt"}),
        names[1]: safetensors.torch.save(two, metadata={"format": "pt"}),
        "model.safetensors.index.json": _json({"metadata": {"total_size": total}, "weight_map": weight_map}),
        "optimizer.pt": saved_bytes(optimizer),
        "scheduler.pt": saved_bytes({"last_epoch": 10, "_last_lr": [0.001]}),
        "rng_state.pth": saved_bytes({"cpu": torch.arange(64, dtype=torch.uint8)}),
        "trainer_state.json": _json(state),
    }
    torch_files = frozenset(name for name in members if name.endswith((".pt", ".pth")))
    return Subject(
        "transformers directory",
        "parts",
        members,
        torch_files,
        suffix="",
        directory="checkpoint-10",
        # Without the optimizer (`save_only_model=True`), or of a model that has no config of transformers.
        optional=torch_files | {"config.json"},
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode()
