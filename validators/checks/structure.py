"""Is every tensor's data there: each storage a record of the right size, each view inside its storage."""

from collections.abc import Iterable, Sequence

from ..findings import Finding, finding
from ..plain import clip
from ..storages import Storages
from ..tensors import TensorTable

MAX_FINDINGS = 10
"""Of one code for one file; a file that lost its data has as many problems as tensors."""


def check_structure(table: TensorTable, storages: Storages) -> list[Finding]:
    """Compare what the file says of each tensor with what it holds. No byte of a tensor is read."""
    return limited(
        [
            *(("tensor.missing_storage", message) for message in _storage_problems(table, storages)),
            *(("tensor.out_of_bounds", message) for message in _view_problems(table)),
        ]
    )


def limited(problems: Iterable[tuple[str, str]]) -> list[Finding]:
    """At most `MAX_FINDINGS` findings of each code, the last of which says how many more there are."""
    by_code: dict[str, list[str]] = {}
    for code, message in problems:
        by_code.setdefault(code, []).append(message)
    findings: list[Finding] = []
    for code, messages in by_code.items():
        shown: Sequence[str] = messages
        if len(messages) > MAX_FINDINGS:
            shown = [*messages[: MAX_FINDINGS - 1], f"and {len(messages) - MAX_FINDINGS + 1:,} more like these"]
        findings += [finding(code, message) for message in shown]
    return findings


def _storage_problems(table: TensorTable, storages: Storages) -> Iterable[str]:
    found = storages.sizes(table.keys)
    if found == table.storage_bytes:
        return
    reported: set[str] = set()
    for name, key, size, expected in zip(table.names, table.keys, found, table.storage_bytes, strict=True):
        if size == expected or not key or (key in reported and size < 0):
            continue
        reported.add(key)
        if size < 0:
            yield f"{storages.label(key)}, the data of tensor {clip(name)}, is not in the file"
        else:
            yield f"{storages.label(key)} has {size:,} bytes, but tensor {clip(name)} needs {expected:,} there"


def _view_problems(table: TensorTable) -> Iterable[str]:
    columns = zip(table.offsets, table.extents, table.dtypes, table.storage_bytes, strict=True)
    outside = [
        i for i, (at, reach, dtype, size) in enumerate(columns) if reach and (at + reach) * dtype.itemsize > size
    ]
    for i in outside:
        if table.keys[i]:
            end = (table.offsets[i] + table.extents[i]) * table.dtypes[i].itemsize
            size = table.storage_bytes[i]
            yield f"tensor {clip(table.names[i])} reaches to byte {end:,} of a storage of {size:,} bytes"
