"""DeepSpeed's rank files: which of them a checkpoint must have, by what their names and the first of them say.

Format: deepspeed/runtime/engine.py, `_get_ckpt_name`, `_get_zero_ckpt_name`, `_save_checkpoint`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ..standins import Opaque

_MODEL = re.compile(r"(?:zero_pp_rank_(\d{1,9})_)?mp_rank_(\d{1,9})_model_states\.pt")
_OPTIMIZER = re.compile(r"((?:bf16_|fp16_)?)zero_pp_rank_(\d{1,9})_mp_rank_(\d{1,9})_optim_states\.pt")
_LAYER = re.compile(r"layer_(\d{1,9})(?:-[a-z]+_\d+)*-model_states\.pt")

MAX_RANKS = 100_000
"""Of one kind; larger numbers in a file or a name are not believed."""


class RankFiles(msgspec.Struct, frozen=True):
    """The rank files of one tag, by kind, in the order of their ranks."""

    model: tuple[str, ...]
    optimizer: tuple[str, ...]
    layers: tuple[str, ...]
    """Of a pipeline: one file for each layer (deepspeed/runtime/pipe/module.py, `ckpt_layer_path`)."""


class World(msgspec.Struct, frozen=True):
    """How the first model file says that the training was spread; None where it does not say."""

    data_parallel: int | None = None
    model_parallel: int | None = None
    zero_stage: int | None = None


def find_rank_files(names: Iterable[str]) -> RankFiles:
    """Sort out which of `names` are rank files."""
    known = sorted(names)
    return RankFiles(
        model=tuple(sorted((name for name in known if _MODEL.fullmatch(name)), key=_ranks)),
        optimizer=tuple(sorted((name for name in known if _OPTIMIZER.fullmatch(name)), key=_ranks)),
        layers=tuple(name for name in known if _LAYER.fullmatch(name)),
    )


def read_world(top: dict[Any, Any]) -> World:
    """What the top level of a model file says (engine.py, `_save_checkpoint`)."""
    config = top.get("ds_config")
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    stage = _count(zero.get("stage", 0)) if isinstance(zero, dict) else (0 if isinstance(config, dict) else None)
    return World(_count(top.get("dp_world_size")), _count(top.get("mp_world_size")), stage)


def missing_files(files: RankFiles, world: World) -> list[str]:
    """Names of files that the set must have and does not.

    Where the model file does not say how many ranks there were, gaps in the numbers still show.
    """
    model_ranks = [_model_ranks(name) for name in files.model]
    optimizer_ranks = [_optimizer_ranks(name) for name in files.optimizer]
    seen = [mp for _, mp in (*model_ranks, *optimizer_ranks)]
    n_model = _size(world.model_parallel, seen)
    partitions = [dp for dp, _ in (*model_ranks, *optimizer_ranks) if dp is not None]
    n_data = _size(world.data_parallel, partitions)
    is_partitioned = world.zero_stage == 3 or any(dp is not None for dp, _ in model_ranks)
    wanted: list[str] = []
    for mp in range(n_model):
        if is_partitioned:
            wanted += [f"zero_pp_rank_{dp}_mp_rank_{mp:02d}_model_states.pt" for dp in range(n_data)]
        else:
            wanted.append(f"mp_rank_{mp:02d}_model_states.pt")
        if files.optimizer or world.zero_stage:
            prefix = _prefix(files.optimizer)
            wanted += [f"{prefix}zero_pp_rank_{dp}_mp_rank_{mp:02d}_optim_states.pt" for dp in range(n_data)]
        if len(wanted) > MAX_RANKS:
            break
    present = {*files.model, *files.optimizer}
    return [*(name for name in wanted if name not in present), *_missing_layers(files.layers)]


def parameter_shapes(top: dict[Any, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters, as they were before they were partitioned."""
    groups = top.get("param_shapes")
    shapes: dict[str, tuple[int, ...]] = {}
    for group in groups if isinstance(groups, list) else [groups]:
        items = group.items() if isinstance(group, dict) else ()
        shapes |= {name: shape for name, shape in items if type(name) is str and _is_shape(shape)}
    return shapes


def is_first_partition(name: str) -> bool:
    """Whether a model file is the first of those that hold the same (ZeRO stage 3: one for each data parallel rank)."""
    match = _MODEL.fullmatch(name)
    return match is not None and int(match[1] or 0) == 0


def label(name: str) -> str:
    """What is put before the names of tensors of one of several rank files: its name without the kind."""
    return re.sub(r"_?-?(?:model|optim)_states\.pt$", "", name)


def _is_shape(shape: Any) -> bool:
    return type(shape) is tuple and all(type(side) is int and 0 <= side < 2**48 for side in shape) and len(shape) <= 64


def _count(value: Any) -> int | None:
    if isinstance(value, Opaque) and len(value.args) == 1:  # an enum: ZeroStageEnum
        value = value.args[0]
    return value if type(value) is int and 0 <= value <= MAX_RANKS else None


def _size(stated: int | None, seen: Sequence[int]) -> int:
    """As many ranks as the file says; where it says nothing, as many as the highest number shows."""
    return stated if stated else max((rank for rank in seen if rank < MAX_RANKS), default=0) + 1


def _prefix(names: Sequence[str]) -> str:
    match = _OPTIMIZER.fullmatch(names[0]) if names else None
    return match[1] if match else ""


def _missing_layers(layers: Sequence[str]) -> list[str]:
    """Layers without parameters have no file, so gaps mean nothing; each slice must have the same layers."""
    by_slice: dict[str, set[str]] = {}
    for name in layers:
        layer, _, rest = name.partition("-")
        by_slice.setdefault(rest, set()).add(layer)
    everywhere = set().union(*by_slice.values())
    return [f"{layer}-{rest}" for rest, found in sorted(by_slice.items()) for layer in sorted(everywhere - found)]


def _ranks(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"rank_(\d{1,9})", name)))


def _model_ranks(name: str) -> tuple[int | None, int]:
    match = _MODEL.fullmatch(name)
    assert match is not None
    return (None if match[1] is None else int(match[1])), int(match[2])


def _optimizer_ranks(name: str) -> tuple[int | None, int]:
    match = _OPTIMIZER.fullmatch(name)
    assert match is not None
    return int(match[2]), int(match[3])
