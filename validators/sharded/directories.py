"""Checkpoints that are directories: every file by its own format, and all together as one checkpoint."""

from collections.abc import Callable, Sequence

import msgspec

from ..formats.sharded import Part, claim, directory_identity
from ..inspection import FileIdentity, Format, Inspection, Level
from ..reader import FileReader
from .members import Gathered, InspectFile, Members
from .rank_files import inspect_deepspeed
from .shard_files import inspect_dcp
from .trainer_files import inspect_transformers

_INSPECT: dict[Format, Callable[[Members, Inspection, Gathered], Inspection]] = {
    Format.DCP: inspect_dcp,
    Format.FSDP: inspect_dcp,
    Format.DEEPSPEED: inspect_deepspeed,
    Format.TRANSFORMERS: inspect_transformers,
}


def format_of(checkpoint_path: str, parts: Sequence[Part]) -> Format | None:
    """Which sharded format claims the directory at `checkpoint_path` that holds `parts`; see `sharded.claim`."""
    name = checkpoint_path.rstrip("/").rpartition("/")[2]
    names = {part.name.partition("/")[0].encode("utf-8", "surrogateescape") for part in parts}
    # Whoever asks has looked beside the directory, or means it anyway.
    return claim(name.encode("utf-8", "surrogateescape"), names, parent_has_latest=True)


def inspect_members(
    parts: Sequence[Part],
    readers: dict[str, FileReader],
    directory: FileIdentity,
    checkpoint_path: str,
    level: Level,
    inspect: InspectFile,
) -> Inspection:
    """Inspect a directory whose files have been opened; see `inspector.inspect_directory`.

    Raises:
        Changed: a file has become shorter.
        Unreadable: the system refused a read.
    """
    members = Members({part.name: part for part in parts}, readers, level, inspect)
    blank = Inspection(checkpoint_path=checkpoint_path, identity=directory_identity(directory, parts))
    gathered = Gathered()
    kind = format_of(checkpoint_path, parts)
    if kind is None:
        gathered.missing("the directory holds none of the files that make a checkpoint of it")
        return gathered.conclude(blank, members)
    described = _INSPECT[kind](members, msgspec.structs.replace(blank, format=kind), gathered)
    return gathered.conclude(described, members)
