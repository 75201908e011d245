"""Are the keys there that a user demands of every state dict."""

import re
from collections.abc import Sequence

from ..facts import WEIGHT_KEYS
from ..findings import Finding, finding
from ..plain import clip

_STRIPPED = re.compile(r"(?<=[\n.])(?:(?:module|_orig_mod)\.)+")
"""What DataParallel and torch.compile put before names, wherever they wrapped."""


def missing_keys(names: Sequence[str], required: Sequence[str]) -> list[str]:
    """The required keys that are not there.

    `model.encoder` is there if a key equals it or lies below it. `module.` and `_orig_mod.` (DataParallel,
    torch.compile) are left out of the checkpoint's names where they stand, also in the middle.

    Args:
        names: of the tensors in the checkpoint: keys of a state dict, with or without that of the state dict itself.
        required: in the words of the state dict.
    """
    text = "\n".join(("", *names, ""))
    # A bare state dict whose one module is called `model` looks like a checkpoint's `model`: its keys count both ways.
    holders = [f"{holder}." for holder in dict.fromkeys(name.partition(".")[0] for name in (*names[:1], *names[-1:]))]
    holders = ["", *(holder for holder in holders if holder[:-1] in WEIGHT_KEYS or "state_dict" in holder)]
    missing = [key for key in required if not _is_in(text, key, holders)]
    if missing and ("module." in text or "_orig_mod." in text):
        text = _STRIPPED.sub("", text)
        missing = [key for key in missing if not _is_in(text, key, holders)]
    return missing


def judge_required(names: Sequence[str], required: Sequence[str]) -> tuple[bool | None, list[Finding]]:
    """Whether all required keys are there (None where none are required), and the finding that names the others."""
    if not required:
        return None, []
    missing = missing_keys(names, required)
    if not missing:
        return True, []
    shown = ", ".join(clip(key, 100) for key in missing[:10])
    more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
    return False, [finding("state_dict.required_keys", f"the state dict has nothing at {shown}{more}")]


def _is_in(text: str, key: str, holders: list[str]) -> bool:
    key = key.strip(".")
    return any(f"\n{holder}{key}." in text or f"\n{holder}{key}\n" in text for holder in holders)
