"""Callbacks: checkpoints described by the training that writes them. Frameworks are imported on first use."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .facts import TrainingFacts
    from .writer import SidecarWriter

__all__ = ["SidecarWriter", "TrainingFacts"]

_HOMES = {"SidecarWriter": "writer", "TrainingFacts": "facts"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
