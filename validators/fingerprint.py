"""Content identity, from the checksums that the file already carries: no byte of a tensor is read."""

import hashlib
import itertools
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import msgspec

from .formats.torch_zip import Archive
from .tensors import TensorTable

_DIGEST_BYTES = 16


def archive_id(archive: Archive, pickle: bytes) -> str:
    """Digest of the central directory and `data.pkl`: changes with whatever changes in the archive.

    Not with the bytes of a tensor alone, if they were altered without rewriting their checksum.
    """
    digest = hashlib.blake2b(archive.directory, digest_size=_DIGEST_BYTES)
    digest.update(pickle)
    return f"blake2b:{digest.hexdigest()}"


def content_id(archive: Archive, weights: list[tuple[TensorTable, list[str]]]) -> str | None:
    """Digest of the weights: equal for equal names, types, shapes and checksums, wherever and whenever saved.

    Tensors are told apart by name, never by storage key: keys shift when a tensor is inserted. As good as CRC-32
    is: made against accident and for recognition, not against an adversary.

    Args:
        archive: whose checksums are used; all storages of `weights` are in it.
        weights: tables, each with the tensors' names relative to the state dict, so that a bare state dict and a
            wrapped one agree.

    Returns:
        None where there are no weights with data, or the archive carries no checksums.
    """
    if not archive.has_checksums or not any(any(table.keys) for table, _ in weights):
        return None
    rows = list(itertools.chain.from_iterable(_rows(archive, table, names) for table, names in weights))
    rows.sort(key=itemgetter(0))
    return f"blake2b:{hashlib.blake2b(msgspec.msgpack.encode(rows), digest_size=_DIGEST_BYTES).hexdigest()}"


def _rows(archive: Archive, table: TensorTable, names: list[str]) -> Iterator[tuple[Any, ...]]:
    prefix = f"{archive.stem}/data/"
    indices = list(map(archive.positions.get, [prefix + key for key in table.keys]))
    checksums = [0 if index is None else archive.checksums[index] for index in indices]
    sizes = [0 if index is None else archive.sizes[index] for index in indices]
    dtypes = [dtype.name for dtype in table.dtypes]
    return zip(names, dtypes, table.shapes, table.strides, table.offsets, checksums, sizes, strict=True)
