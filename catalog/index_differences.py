"""Where an index and the one that the tree would get now disagree: missing, extra and changed entries."""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from .index import Index

_SAME_S = 0.002
"""The index keeps milliseconds."""


class IndexDifference(NamedTuple):
    """One thing that is not as it should be."""

    kind: str
    """`missing` from the index, `extra` in it, or `changed`."""
    path: str
    """Of the checkpoint or metadata file, relative to the root."""
    detail: str


def compare_indexes(there: Index, right: Index) -> Iterator[IndexDifference]:
    """Compare an index with the right one, path by path.

    Args:
        there: the one that was read.
        right: the one that the tree would get.
    """
    listed, actual = _experiments(there), _experiments(right)
    for path in sorted(actual.keys() - listed.keys()):
        yield IndexDifference("missing", path, "in the tree, not in the index")
    for path in sorted(listed.keys() - actual.keys()):
        yield IndexDifference("extra", path, "in the index, not in the tree")
    for path in sorted(listed.keys() & actual.keys()):
        if set(listed[path]) != set(actual[path]):
            detail = f"of experiment {_named(actual[path])}, the index says {_named(listed[path])}"
            yield IndexDifference("changed", path, detail)
        elif len(listed[path]) > 1:
            yield IndexDifference("extra", path, f"the index names it {len(listed[path])} times")
    yield from _sidecars(there, right)
    for name, experiment in right.checkpoints.items():
        said = there.checkpoints.get(name)
        if said is None or not set(said.checkpoints) & set(experiment.checkpoints):
            continue  # said above, file by file
        if not _same_time(said.last_modified, experiment.last_modified):
            detail = (
                f"experiment {name!r} was modified at {experiment.last_modified}, the index says {said.last_modified}"
            )
            yield IndexDifference("changed", experiment.checkpoints[0], detail)


def _experiments(index: Index) -> dict[str, list[str]]:
    """Checkpoint → names of the experiments that list it."""
    experiments: dict[str, list[str]] = {}
    for name, experiment in index.checkpoints.items():
        for path in experiment.checkpoints:
            experiments.setdefault(path, []).append(name)
    return experiments


def _named(names: list[str]) -> str:
    return " and ".join(repr(name) for name in names)


def _sidecars(there: Index, right: Index) -> Iterator[IndexDifference]:
    listed, actual = (
        {path for experiment in index.checkpoints.values() for path in experiment.metadata_files}
        for index in (there, right)
    )
    for path in sorted(actual - listed):
        yield IndexDifference("missing", path, "metadata in the tree, not in the index")
    for path in sorted(listed - actual):
        yield IndexDifference("extra", path, "metadata in the index, not in the tree")


def _same_time(said: str | float | None, right: str | float | None) -> bool:
    first, second = _seconds(said), _seconds(right)
    return first is not None and second is not None and abs(first - second) < _SAME_S


def _seconds(said: str | float | None) -> float | None:
    """Epoch seconds; older writers put those themselves."""
    if not isinstance(said, str):
        return said
    try:
        return datetime.fromisoformat(said).timestamp()
    except ValueError:
        return None
