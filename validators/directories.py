"""Checkpoints that are directories: every file by its own format, and all together as one checkpoint."""

from collections.abc import Sequence

import msgspec

from .assembly import describe_value
from .checks import safety
from .errors import Corrupt
from .extents import read_items
from .formats import dcp
from .formats.sharded import FSDP_META, Part, claim, directory_identity
from .inspection import FileIdentity, Format, Inspection, Level
from .members import Gathered, InspectFile, Members, archive_id, listed
from .reader import FileReader
from .unpickle import load_inert

_META = FSDP_META.decode()


def format_of(checkpoint_path: str, parts: Sequence[Part]) -> Format | None:
    """Which sharded format claims the directory at `checkpoint_path` that holds `parts`; see `sharded.claim`."""
    name = checkpoint_path.rstrip("/").rpartition("/")[2]
    names = {part.name.partition("/")[0].encode("utf-8", "surrogateescape") for part in parts}
    return claim(name.encode("utf-8", "surrogateescape"), names)


def inspect_members(
    parts: Sequence[Part],
    readers: dict[str, FileReader],
    directory: FileIdentity,
    checkpoint_path: str,
    level: Level,
    inspect: InspectFile,
) -> Inspection:
    """Inspect a directory whose files have been opened; see `inspector.inspect_directory`."""
    kind = format_of(checkpoint_path, parts)
    members = Members({part.name: part for part in parts}, readers, level, inspect)
    blank = Inspection(
        checkpoint_path=checkpoint_path,
        format=Format.UNKNOWN if kind is None else kind,
        identity=directory_identity(directory, parts),
    )
    gathered = Gathered()
    if kind in (Format.DCP, Format.FSDP):
        described = _inspect_dcp(members, blank, gathered)
    else:
        gathered.add("format.unknown", "the directory holds no checkpoint of a format that ckptd knows")
        described = blank
    return gathered.conclude(described, members)


def _inspect_dcp(members: Members, blank: Inspection, gathered: Gathered) -> Inspection:
    documents = _dcp_metadata(members, gathered)
    if not documents:
        return blank
    try:
        contents = dcp.merge([_read_metadata(members, name, gathered) for name in documents])
    except Corrupt as error:
        gathered.add(error.code, error.message)
        return blank
    _check_order(members, contents, documents, gathered)
    items = read_items(contents, members, gathered)
    described = describe_value(
        dcp.nested(contents, items.leaves),
        items.storages,
        msgspec.structs.replace(blank, safety=gathered.safety, archive_id=archive_id(members, documents)),
    )[0]
    return _with_meta(members, contents, described, gathered)


def _dcp_metadata(members: Members, gathered: Gathered) -> list[str]:
    """The metadata's names: one for all ranks, or one of each where they were saved without collectives."""
    if any(name.endswith(dcp.UNFINISHED) for name in members.names()):
        gathered.missing(f"{dcp.UNFINISHED} is there: the metadata is being written, which is the last step of a save")
    if dcp.METADATA in members:
        return [dcp.METADATA]
    ranks = dcp.rank_metadata(members.names())
    if not ranks:
        gathered.missing(f"{dcp.METADATA} is not there: it is written when all shards are")
    return ranks


def _read_metadata(members: Members, name: str, gathered: Gathered) -> dcp.Contents:
    data = members.read(name, dcp.MAX_METADATA_BYTES)
    if data is None:
        raise Corrupt("pickle.limits", f"{name} was not opened, or has more than {dcp.MAX_METADATA_BYTES:,} bytes")
    inert = load_inert(data)
    proved = inert.failure is None and inert.consumed == len(data)
    judgement = safety.judge([known for known in inert.globals if known not in dcp.OWN_NAMES], proved)
    gathered.judge(judgement.safety, judgement.unsafe_globals, inert.globals)
    gathered.findings += judgement.findings
    if inert.failure is None and not proved:
        gathered.add(
            "pickle.second_stream", f"{name}: {len(data) - inert.consumed:,} bytes follow the end of the pickle"
        )
    try:
        return dcp.read_contents(inert)
    except Corrupt as error:
        raise Corrupt(error.code, f"{name}: {error.message}") from error


def _check_order(members: Members, contents: dcp.Contents, documents: list[str], gathered: Gathered) -> None:
    """Metadata is written last; what is newer belongs to another save, or was copied in another order."""
    written_ns = min(members.parts[name].identity.mtime_ns for name in documents)
    shards = {extent.shard for _, _, extent in contents.extents()} & members.parts.keys()
    newer = sorted(shard for shard in shards if members.parts[shard].identity.mtime_ns > written_ns)
    if newer:
        gathered.unsettle()
        gathered.add("shards.order", f"{len(newer):,} shards are newer than the metadata: {listed(newer)}")


def _with_meta(members: Members, contents: dcp.Contents, described: Inspection, gathered: Gathered) -> Inspection:
    """Lightning keeps beside the shards what is neither weights nor optimizer (fsdp.py, `save_checkpoint`)."""
    if _META not in members:
        return described
    meta = members.inspect(_META)
    gathered.include(_META, meta)
    if meta is None:
        return described
    return msgspec.structs.replace(
        described,
        epoch=meta.epoch,
        global_step=meta.global_step,
        lightning_version=meta.lightning_version,
        hyper_parameters=meta.hyper_parameters,
        callbacks=meta.callbacks,
        metrics=meta.metrics,
    )
