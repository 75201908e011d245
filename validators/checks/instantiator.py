"""Lightning's `_instantiator`: hyper-parameters that name a function which loading imports and calls.

`load_from_checkpoint` does so after the pickle has been read, whatever `weights_only` says, so that no allowlist of
names in the pickle sees it: lightning/pytorch/core/saving.py, `_load_state`. Lightning 2.6.6 calls two functions of its
own only, which build the classes that `_class_path` and `class_path` name; releases before that change (its issue
21822) call anything.
"""

from collections.abc import Iterator
from typing import Any

from ..findings import Finding, finding
from ..inspection import Plain
from ..plain import clip, to_plain
from ..standins import InertDict

KEY = "_instantiator"
HYPER_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters", "hparams", "module_arguments")
"""Where `load_from_checkpoint` looks, of modules, of data modules, and of files of 0.7 and before:
`CHECKPOINT_HYPER_PARAMS_KEY` in core/mixins/hparams_mixin.py and core/datamodule.py, `CHECKPOINT_PAST_HPARAMS_KEYS`."""

_CLASS_PATHS = frozenset(("_class_path", "class_path"))
_MAX_NAMED = 5
_BUDGET = 10_000


def find_instantiators(top: dict[Any, Any]) -> list[Finding]:
    """A finding for each set of hyper-parameters in a checkpoint's top level that names a function to call."""
    return [
        finding("pickle.dangerous_name", f"{key} hold {KEY}: load_from_checkpoint would import and call {what}")
        for key in HYPER_PARAMETERS
        if key in top and (what := _called(top[key])) is not None
    ]


def _called(parameters: Any) -> str | None:
    """What would be called, for people; None where nothing is."""
    if type(parameters) in (dict, InertDict) and KEY not in parameters:
        return None
    # Everything else that a dict can be updated from: OmegaConf, AttributeDict, a namespace, pairs.
    plain = to_plain(parameters, budget=_BUDGET)
    named = plain.get(KEY) if isinstance(plain, dict) else _of_pairs(plain)
    if named is None:
        return None
    what = clip(named) if isinstance(named, str) else "something"
    classes = sorted(set(_class_paths(plain)))
    if not classes:
        return what
    more = f" and {len(classes) - _MAX_NAMED} more" if len(classes) > _MAX_NAMED else ""
    return f"{what}, with {', '.join(clip(name, 80) for name in classes[:_MAX_NAMED])}{more}"


def _of_pairs(plain: Plain) -> Plain:
    """`dict.update` takes a sequence of pairs as well."""
    pairs = (pair for pair in plain if isinstance(pair, list) and len(pair) == 2) if isinstance(plain, list) else ()
    return next((value for key, value in pairs if key == KEY), None)


def _class_paths(plain: Plain) -> Iterator[str]:
    """Every class that a configuration names, at any depth. `to_plain` has bounded size and depth."""
    stack = [plain]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield from (named for key, named in value.items() if key in _CLASS_PATHS and isinstance(named, str))
            stack += value.values()
        elif isinstance(value, list):
            stack += value
