"""What is known about checkpoints. No sockets, no watching, no event loop."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .builder import CatalogOptions, CatalogResult, build_catalog
    from .describe import describe_checkpoint
    from .description import CheckpointMetadata, Description
    from .entry import CheckpointEntry

__all__ = [
    "CatalogOptions",
    "CatalogResult",
    "CheckpointEntry",
    "CheckpointMetadata",
    "Description",
    "build_catalog",
    "describe_checkpoint",
]

_HOMES = {
    "CatalogOptions": "builder",
    "CatalogResult": "builder",
    "build_catalog": "builder",
    "describe_checkpoint": "describe",
    "CheckpointMetadata": "description",
    "Description": "description",
    "CheckpointEntry": "entry",
}


def __getattr__(name: str) -> object:
    # On first use (PEP 562): the workers' zygote imports this package, and every fork copies what it has imported.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
