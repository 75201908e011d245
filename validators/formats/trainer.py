"""What the transformers Trainer writes beside the weights: the index of shards, its state, the configuration."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from ..inspection import CallbackState, Plain
from ..plain import clip, to_plain
from ..standins import Opaque

# transformers/trainer_callback.py, `TrainerState.save_to_json`; transformers/trainer.py, `TRAINER_STATE_NAME`
STATE = "trainer_state.json"
CONFIGS = ("config.json", "adapter_config.json")
ARGUMENTS = "training_args.bin"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
"""The whole weights in one file; each the alternative to the index of the same place in `INDEXES`."""
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_model_fsdp.bin")

_SHARD = re.compile(r"((?:model|pytorch_model)-)(\d{1,9})(-of-)(\d{1,9})(\.safetensors|\.bin)")
_OPTIMIZER = re.compile(r"optimizer(?:_\d+)?\.(?:pt|bin)")
_OTHER_PICKLE = re.compile(r"(?:scheduler|scaler)(?:_\d+)?\.(?:pt|bin)|rng_state(?:_\d+)?\.pth|training_args\.bin")
# accelerate/utils/constants.py: what `Accelerator.save_state` writes into such directories, without a trainer's state
_ACCELERATE = re.compile(r"random_states_\d+\.pkl|(?:optimizer|scheduler|sampler)(?:_\d+)?\.bin")
_NO_SCORES = re.compile(r"step|epoch|total_flos|learning_rate|grad_norm|.*_(?:runtime|per_second|jit_compilation_time)")

_MAX_METRICS = 200
_MAX_SHARDS = 100_000
_INT64 = 2**63


class State(msgspec.Struct, frozen=True):
    """What `trainer_state.json` says."""

    epoch: int | None
    """Whole epochs: the Trainer counts in fractions."""
    global_step: int | None
    metrics: dict[str, float]
    """Logged at that very step."""
    best_checkpoint: str | None
    best_metric: float | None
    plain: dict[str, Plain]
    """Everything but the history of the log."""


def read_json(data: bytes | None) -> dict[str, Any] | None:
    """The object in a JSON text; None where there is none, as in a file that is half written."""
    if data is None:
        return None
    try:
        # Of bytes, json guesses the encoding, and imports UTF-16's codec for it: behind the sandbox nothing can be had.
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_state(value: dict[str, Any]) -> State:
    """Read a trainer's state."""
    step, epoch = value.get("global_step"), value.get("epoch")
    history = value.get("log_history")
    entries = history if isinstance(history, list) else []
    metrics: dict[str, float] = {}
    for entry in entries:
        if isinstance(entry, dict) and step is not None and entry.get("step") == step:
            metrics |= {name: score for name, score in map(_score, entry.items()) if name and score is not None}
    best = value.get("best_model_checkpoint")
    plain = to_plain({name: part for name, part in value.items() if name != "log_history"})
    epochs = _number(epoch)
    return State(
        epoch=math.floor(epochs) if epochs is not None and 0 <= epochs < _INT64 else None,
        global_step=step if type(step) is int and 0 <= step < _INT64 else None,
        metrics=dict(list(metrics.items())[:_MAX_METRICS]),
        best_checkpoint=clip(best, 1000) if isinstance(best, str) and best else None,
        best_metric=_number(value.get("best_metric")),
        plain=plain if isinstance(plain, dict) else {},
    )


def keeper(state: State, arguments: Any) -> CallbackState | None:
    """How the Trainer keeps its best checkpoint, as the state of a callback; `arguments` is the inert training_args."""
    fields = arguments.state if isinstance(arguments, Opaque) and isinstance(arguments.state, dict) else {}
    monitor = fields.get("metric_for_best_model")
    if state.best_checkpoint is None and not isinstance(monitor, str):
        return None
    greater = fields.get("greater_is_better")
    if isinstance(monitor, str) and not monitor.startswith("eval_"):
        monitor = f"eval_{monitor}"  # transformers/trainer.py, `_determine_best_metric`
    return CallbackState(
        key=STATE,
        # What the catalog knows as whoever keeps the best: Lightning's callback does the same job.
        kind="TrainerModelCheckpoint",
        monitor=clip(monitor, 1000) if isinstance(monitor, str) else None,
        mode={True: "max", False: "min"}.get(greater) if isinstance(greater, bool) else None,
        best_model_path=state.best_checkpoint,
        best_model_score=state.best_metric,
        state=state.plain,
    )


def weight_map(index: dict[str, Any]) -> dict[str, list[str]] | None:
    """Shard → names of its tensors, as an index says; None where it is no index."""
    mapped = index.get("weight_map")
    if not isinstance(mapped, dict):
        return None
    shards: dict[str, list[str]] = {}
    for name, shard in mapped.items():
        if not isinstance(shard, str):
            return None
        shards.setdefault(shard, []).append(name)
    return shards


def numbered_shards(names: Iterable[str]) -> dict[str, None]:
    """All shards of which one is there: their names say how many there are."""
    wanted: dict[str, None] = {}
    for name in sorted(names):
        match = _SHARD.fullmatch(name)
        if match and 0 < int(match[4]) <= _MAX_SHARDS and name not in wanted:
            width = len(match[2])
            numbers = range(1, int(match[4]) + 1)
            wanted |= {f"{match[1]}{number:0{width}d}{match[3]}{match[4]}{match[5]}": None for number in numbers}
    return wanted


def is_optimizer(name: str) -> bool:
    """Whether a file of this name holds the state of an optimizer."""
    return _OPTIMIZER.fullmatch(name) is not None


def is_pickle(name: str) -> bool:
    """Whether a file of this name is one of the Trainer's own pickles, other than weights and optimizer."""
    return _OTHER_PICKLE.fullmatch(name) is not None


def is_accelerates(names: Iterable[str]) -> bool:
    """Whether accelerate wrote the directory, which leaves no trainer's state in it."""
    return any(map(_ACCELERATE.fullmatch, names))


def _score(item: tuple[str, Any]) -> tuple[str, float | None]:
    name, value = item
    return ("", None) if _NO_SCORES.fullmatch(name) else (clip(name), _number(value))


def _number(value: Any) -> float | None:
    if type(value) not in (int, float) or not -1e308 <= value <= 1e308:
        return None
    return float(value)
