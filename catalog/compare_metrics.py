"""Which of several metric values is the best: by the mode that a training declared, else by the metric's name."""

import enum
import math
import re
from collections.abc import Sequence

from .entry import CheckpointEntry
from .metric_names import metric_key


class Direction(enum.StrEnum):
    """Which way a metric improves."""

    MIN = "min"
    MAX = "max"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SMALLER = _words(
    "loss losses error errors err mse rmse mae mape nll ppl perplexity wer cer ter fid kid lpips bpb bpc kl brier ece "
    "distance"
)
_LARGER = _words(
    "acc accuracy precision recall hmean f1 fscore fbeta iou miou map map50 ap ap50 ar auc auroc roc auprc bleu rouge "
    "rougel meteor cider score psnr ssim dice jaccard r2 kappa mcc ndcg mrr correlation pearson spearman reward"
)
_WORD = re.compile(r"[a-z]+[0-9]*")


def direction_of(name: str, entries: Sequence[CheckpointEntry]) -> Direction | None:
    """Which way the metric `name` improves.

    The mode of a checkpoint that monitors it decides; where modes contradict each other, nothing does. Else the last
    word of the name that tells: `val/loss` is to be small, `val_accuracy` large. None where none tells.
    """
    key = metric_key(name)
    modes = {entry.monitor_mode for entry in entries if entry.monitor and metric_key(entry.monitor) == key}
    declared = [direction for direction in Direction if direction in modes]
    if declared:
        return declared[0] if len(declared) == 1 else None
    for word in reversed(_WORD.findall(name.lower())):
        if word in _SMALLER or word.endswith("loss"):
            return Direction.MIN
        if word in _LARGER:
            return Direction.MAX
    return None


def best_of(values: Sequence[float | None], direction: Direction | None) -> tuple[int, ...]:
    """Positions of the best value; none where the direction is not known, or there is nothing to choose from."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if direction is None or len(known) < 2 or min(known) == max(known):
        return ()
    best = min(known) if direction is Direction.MIN else max(known)
    return tuple(position for position, value in enumerate(values) if value == best)
