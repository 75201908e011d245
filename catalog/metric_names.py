"""Names of metrics: which logged names are one of the schema's four, and finding a value under a monitored name.

| logged as | slot |
|---|---|
| `precision`, `val/precision`, `val_precision`, `valid/…`, `validation/…`, `eval/…` | `precision` |
| `recall`, the same prefixes | `recall` |
| `hmean`, the same prefixes | `hmean` |
| `validation_loss`, `val_loss`, `val/loss`, `valid/loss`, `validation/loss`, `eval_loss`, also with `_epoch` | `validation_loss` |

Anything else keeps its own name: `test/hmean` is not a validation score, and a bare `loss` may be the training's.
"""  # noqa: E501 - a table row

import re
from collections.abc import Mapping

SLOTS = ("precision", "recall", "hmean", "validation_loss")

_VALIDATION = r"(?:val|valid|validation|eval)[/_.]"
_SCORE = re.compile(rf"(?:{_VALIDATION})?(precision|recall|hmean)(?:_epoch)?\Z")
_LOSS = re.compile(rf"{_VALIDATION}loss(?:_epoch)?\Z")


def metric_key(name: str) -> str:
    """The schema's name of a logged metric, or the name itself where the schema has none."""
    lowered = name.lower()
    score = _SCORE.match(lowered)
    if score:
        return score.group(1)
    return "validation_loss" if _LOSS.match(lowered) else name


def value_of(metrics: Mapping[str, float], name: str | None) -> float | None:
    """The value under `name`, by that name or by its slot; None where it is not known."""
    if name is None:
        return None
    return metrics.get(name, metrics.get(metric_key(name)))
