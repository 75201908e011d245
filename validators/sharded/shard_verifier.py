"""Every byte of a shard: its items against their checksums, their values, and a digest of the whole."""

from collections.abc import Sequence
from typing import Any

import blake3
import msgspec

from ..checks.checksum import digest_file
from ..errors import Corrupt, Incomplete
from ..formats import dcp, safetensors, torch_zip
from ..inspection import Inspection, Level, TensorInfo
from ..levels import Located, verify_archive_contents, verify_plain
from ..plain import clip
from ..reader import FileReader
from ..storages import ArchiveStorages, RangeStorages
from ..tensors import TensorTable, make_table
from .extents import Item, by_shard
from .items import is_text, load_tensor, load_value, open_archive, read_pickle, text_source
from .members import Gathered, Members
from .ranges import RangeReader


def verify_items(contents: dcp.Contents, members: Members, gathered: Gathered, roles: dict[str, str]) -> None:
    """Read every byte of every shard: items against their checksums, at level `weights` also every value.

    Args:
        contents: of the metadata.
        members: the files.
        gathered: takes the findings, and for each shard the digest of what was read.
        roles: fully qualified name → part of the checkpoint, where the tensors have been described.
    """
    for shard, items in by_shard(contents).items():
        reader = members.readers.get(shard)
        if reader is not None:
            verifier = _ShardVerifier(reader, members.prefix + shard, members.level, gathered, roles)
            gathered.digests[members.prefix + shard] = verifier.verify(items)


class _ShardVerifier:
    """Reads one shard from front to back: extent by extent, and what lies between them."""

    def __init__(self, reader: FileReader, shown: str, level: Level, gathered: Gathered, roles: dict[str, str]) -> None:
        self._reader = reader
        self._shown = shown
        self._level = level
        self._gathered = gathered
        self._roles = roles
        self._digest = blake3.blake3()
        self._position = 0

    def verify(self, items: list[Item]) -> str:
        """Verify items that are sorted by their place; return a digest of the whole shard.

        It is that of its pieces' digests, which are taken while their checksums are compared.
        """
        for name, chunk, extent in items:
            end = extent.offset + extent.length
            if extent.offset < self._position or end > self._reader.size or extent.transformed:
                continue
            try:
                verified, end = self._verified(name, chunk, extent)
            except (Corrupt, Incomplete):  # a finding says so already
                continue
            self._take(verified, name)
            self._position = end
        self._skip_to(self._reader.size)
        return f"blake3:{self._digest.hexdigest()}"

    def _verified(self, name: str, chunk: dcp.Chunk | None, extent: dcp.Extent) -> tuple[Inspection, int]:
        """What reading an extent through showed, and where it ends.

        Raises:
            Corrupt: what is in it cannot be parsed.
            Incomplete: the same, its end is missing.
        """
        if chunk is not None and is_text(self._reader, extent):
            source = text_source(self._reader, extent)
            contents = safetensors.read_contents(source)
            located = Located(_table(contents.names, contents.tensors), RangeStorages(source, contents.ranges))
            self._skip_to(extent.offset)
            return verify_plain(source, self._blank(contents.names), located, self._level), self._reader.size
        archive = open_archive(self._reader, extent)
        pickle = read_pickle(archive)
        loaded = load_value(pickle, "", []) if chunk is None else load_tensor(pickle)
        if loaded.failure is not None:
            raise loaded.failure
        table = _table([], []) if chunk is None else _table([name], [loaded.value])
        self._skip_to(extent.offset)
        located = Located(table, ArchiveStorages(archive))
        verified = verify_archive_contents(archive, self._blank([name]), located, self._level)
        return verified, extent.offset + extent.length

    def _blank(self, names: Sequence[str]) -> Inspection:
        """An inspection that says which part of the checkpoint the tensors belong to, and no more."""
        roles = ((name, self._roles.get(name, "other")) for name in names)
        tensors = tuple(TensorInfo(name, "", (), (), "", 0, 0, role) for name, role in roles)
        return Inspection(checkpoint_path="", identity=self._reader.identity, tensors=tensors)

    def _take(self, verified: Inspection, name: str) -> None:
        self._gathered.reach(verified.level)
        for found in verified.findings:
            if found.code == "archive.unverifiable":  # said once of the whole shard
                continue
            message = f"{self._shown}: {clip(name)}: {found.message}"
            self._gathered.findings.append(msgspec.structs.replace(found, message=message))
        self._digest.update((verified.digest or "").encode())

    def _skip_to(self, position: int) -> None:
        """Digest what no item was verified in, up to `position`."""
        if position > self._position:
            between = torch_zip.Source(RangeReader(self._reader, self._position, position - self._position))
            self._digest.update(f"{self._position} {digest_file(between)}".encode())
            self._position = position


def _table(names: list[str], tensors: list[Any]) -> TensorTable:
    table, problems = make_table(names, tensors)
    if problems:
        raise problems[0]
    return table
