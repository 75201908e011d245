"""Identity of an archive and of its contents, from what the file already carries instead of reading it all."""

import hashlib
import itertools
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import msgspec

from .formats.torch_zip import Archive, Source
from .storages import Storages
from .tensors import TensorTable

_DIGEST_BYTES = 16
_SAMPLES = 16
_SAMPLE_BYTES = 64


def archive_id(archive: Archive, pickle: bytes) -> str:
    """Digest of the central directory and `data.pkl`: changes with whatever changes in the archive.

    Not with the bytes of a tensor alone, if they were altered without rewriting their checksum.
    """
    digest = hashlib.blake2b(archive.directory, digest_size=_DIGEST_BYTES)
    digest.update(pickle)
    return f"blake2b:{digest.hexdigest()}"


def sampled_id(source: Source, head_bytes: int) -> str:
    """The same for a format without checksums: digest of its first `head_bytes` bytes and of samples of the rest.

    Two epochs of one model have the same header there. A training step changes next to every weight, so samples tell
    the epochs apart; a change of a few bytes elsewhere goes unseen.
    """
    digest = hashlib.blake2b(source.read(0, head_bytes), digest_size=_DIGEST_BYTES)
    rest = source.size - head_bytes
    size = min(_SAMPLE_BYTES, rest)
    for step in range(_SAMPLES if rest else 0):
        digest.update(source.read(head_bytes + (rest - size) * step // (_SAMPLES - 1), size))
    return f"blake2b:{digest.hexdigest()}"


def content_id(storages: Storages, weights: list[tuple[TensorTable, list[str]]]) -> str | None:
    """Digest of the weights: equal for equal names, types, shapes and checksums, wherever and whenever saved.

    Tensors are told apart by name, never by storage key: keys shift when a tensor is inserted. As good as CRC-32
    is: made against accident and for recognition, not against an adversary.

    Args:
        storages: whose checksums are used; all storages of `weights` are in it.
        weights: tables, each with the tensors' names relative to the state dict, so that a bare state dict and a
            wrapped one agree.

    Returns:
        None where there are no weights with data, or the file carries no checksums.
    """
    if storages.checksums(()) is None or not any(any(table.keys) for table, _ in weights):
        return None
    rows = list(itertools.chain.from_iterable(_rows(storages, table, names) for table, names in weights))
    rows.sort(key=itemgetter(0))
    return f"blake2b:{hashlib.blake2b(msgspec.msgpack.encode(rows), digest_size=_DIGEST_BYTES).hexdigest()}"


def _rows(storages: Storages, table: TensorTable, names: list[str]) -> Iterator[tuple[Any, ...]]:
    checksums = storages.checksums(table.keys) or []
    sizes = [max(0, size) for size in storages.sizes(table.keys)]
    dtypes = [dtype.name for dtype in table.dtypes]
    return zip(names, dtypes, table.shapes, table.strides, table.offsets, checksums, sizes, strict=True)
