"""Bytes → facts and findings. Pure and synchronous: no event loop, no catalog, no network."""

from .errors import Changed, Corrupt, Incomplete, Unreadable
from .findings import Finding, Severity
from .inspection import Format, Inspection, Level, Safety, Seal
from .inspector import inspect_checkpoint, inspect_opened

__all__ = [
    "Changed",
    "Corrupt",
    "Finding",
    "Format",
    "Incomplete",
    "Inspection",
    "Level",
    "Safety",
    "Seal",
    "Severity",
    "Unreadable",
    "inspect_checkpoint",
    "inspect_opened",
]
