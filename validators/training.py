"""What the unpickled value says of the training: progress, hyper-parameters, callbacks, scores."""

import itertools
import re
from typing import Any

from .inspection import CallbackState, Plain
from .plain import clip, key_text, to_plain
from .scalars import ScalarReader

_STEP_KEYS = ("global_step", "step", "iteration", "iterations")
_HYPER_PARAMETER_KEYS = ("hyper_parameters", "hparams", "config", "cfg", "args")


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


_METRIC_WORDS = _words(
    "metric metrics score scores result results eval evaluation val valid validation test loss losses performance"
)
_MAX_ITEMS = 200
_WORD_BREAK = re.compile(r"[\W_]+")
_MODE = re.compile(r"'mode': '(min|max)'")
_MONITOR = re.compile(r"'monitor': '([^']{1,200})'")
_INT64 = 2**63


def progress(top: dict[Any, Any], scalars: ScalarReader) -> tuple[int | None, int | None]:
    """Epoch and global step, as far as the checkpoint says; an epoch of 0 is an epoch."""
    steps = (_whole_number(top.get(key), scalars) for key in _STEP_KEYS)
    return _whole_number(top.get("epoch"), scalars), next((step for step in steps if step is not None), None)


def logged_step(top: dict[Any, Any], scalars: ScalarReader) -> int | None:
    """The step under which Lightning's loggers wrote at the time of the save; None for what others saved.

    They count the batches after which an optimizer stepped, from 0 (lightning/pytorch/loops/training_epoch_loop.py,
    `_batches_that_stepped`), the checkpoint counts the steps of all optimizers. With manual optimization a batch may
    have any number of those, and each batch counts.
    """
    if lightning_version(top) is None:
        return None
    loops = top.get("loops")
    fit = loops.get("fit_loop") if isinstance(loops, dict) else None
    if isinstance(fit, dict) and _total(fit, "manual_optimization.optim_step_progress", "completed", scalars):
        steps = _total(fit, "batch_progress", "ready", scalars)
    else:
        steps = progress(top, scalars)[1]
    return steps - 1 if steps is not None and steps > 0 else None


def _total(fit_loop: dict[Any, Any], name: str, count: str, scalars: ScalarReader) -> int | None:
    """One of the counters that a training loop keeps: lightning/pytorch/loops/progress.py."""
    state = fit_loop.get(f"epoch_loop.{name}")
    total = state.get("total") if isinstance(state, dict) else None
    return _whole_number(total.get(count), scalars) if isinstance(total, dict) else None


def lightning_version(top: dict[Any, Any]) -> str | None:
    """The version that wrote the file."""
    version = top.get("pytorch-lightning_version")
    return clip(version, 50) if isinstance(version, str) else None


def hyper_parameters(top: dict[Any, Any], scalars: ScalarReader) -> dict[str, Plain] | None:
    """The hyper-parameters under the first key that holds some."""
    for key in _HYPER_PARAMETER_KEYS:
        if key in top:
            plain = to_plain(top[key], read_tensor=scalars.describe)
            if isinstance(plain, dict) and plain:
                return plain
    return None


def callbacks(top: dict[Any, Any], scalars: ScalarReader) -> tuple[CallbackState, ...]:
    """The states of Lightning's callbacks."""
    states = top.get("callbacks")
    if not isinstance(states, dict):
        return ()
    first = itertools.islice(states.items(), _MAX_ITEMS)
    return tuple(_callback(key, state, scalars) for key, state in first if isinstance(state, dict))


def metrics(top: dict[Any, Any], scalars: ScalarReader) -> dict[str, float]:
    """Scores at the top level: dictionaries of numbers whose name says that they are scores."""
    found: dict[str, float] = {}
    for key, value in top.items():
        if not isinstance(key, str) or not isinstance(value, dict):
            continue
        if _METRIC_WORDS.isdisjoint(_WORD_BREAK.split(key[:200].lower())):
            continue
        for name, number in itertools.islice(value.items(), _MAX_ITEMS - len(found)):
            score = scalars.score(number)
            if score is not None:
                found[key_text(name)] = score
    return found


def _whole_number(value: Any, scalars: ScalarReader) -> int | None:
    number = scalars.number(value)
    return number if type(number) is int and -_INT64 <= number < _INT64 else None


def _callback(key: Any, state: dict[Any, Any], scalars: ScalarReader) -> CallbackState:
    name = key_text(key)
    arguments = name.partition("{")[2]
    monitor = _text(state.get("monitor")) or _found(_MONITOR, arguments)
    best = state.get("best_model_score", state.get("best_score"))
    best_k = state.get("best_k_models")
    plain = to_plain(state, read_tensor=scalars.describe)
    return CallbackState(
        key=name,
        kind=name.partition("{")[0].rpartition(".")[2],
        monitor=monitor,
        mode=_text(state.get("mode")) or _found(_MODE, arguments),
        best_model_path=_text(state.get("best_model_path")),
        best_model_score=scalars.score(best),
        current_score=scalars.score(state.get("current_score")),
        best_k_models=_scores(best_k, scalars),
        last_model_path=_text(state.get("last_model_path")),
        state=plain if isinstance(plain, dict) else {},
    )


def _scores(paths: Any, scalars: ScalarReader) -> dict[str, float | None]:
    if not isinstance(paths, dict):
        return {}
    return {key_text(path): scalars.score(score) for path, score in itertools.islice(paths.items(), _MAX_ITEMS)}


def _text(value: Any) -> str | None:
    return clip(value, 1000) if isinstance(value, str) and value else None


def _found(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return match.group(1) if match else None
