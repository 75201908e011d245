"""Directories of torch.distributed.checkpoint, and what Lightning's FSDP strategy adds to them."""

import re

import msgspec

from ..assembly import describe_value
from ..checks import safety
from ..errors import Corrupt
from ..fingerprint import sampled_id
from ..formats import dcp
from ..formats.sharded import FSDP_META
from ..formats.torch_zip import Source
from ..inspection import Inspection, Level
from ..text import counted
from ..unpickle import load_inert, names_behind
from .extents import Items, read_items
from .members import Gathered, Members, archive_id, listed
from .shard_verifier import verify_items

_META = FSDP_META.decode()
_LIGHTNING_KEYS = re.compile(r"model|optimizer_\d+")
"""Top level of what lightning/pytorch/strategies/fsdp.py, `save_checkpoint`, saves."""


class Saved(msgspec.Struct, frozen=True):
    """A directory of shards that could be read."""

    contents: dcp.Contents
    items: Items


def inspect_dcp(members: Members, blank: Inspection, gathered: Gathered) -> Inspection:
    """Inspect a directory of this format."""
    saved = read_saved(members, gathered)
    if saved is None:
        _include_meta(members, blank, gathered)
        return blank
    identified = msgspec.structs.replace(blank, safety=gathered.safety)
    described = describe_value(dcp.nested(saved.contents, saved.items.leaves), saved.items.storages, identified)[0]
    verify_saved(saved, members, gathered, described)
    _expect_meta(members, saved.contents, blank.checkpoint_path, gathered)
    described = _include_meta(members, described, gathered)
    documents = [dcp.METADATA] if dcp.METADATA in members else dcp.rank_metadata(members.names())
    also = [_sample(members, saved.contents), gathered.archive_ids.get(members.prefix + _META)]
    return msgspec.structs.replace(described, archive_id=archive_id(members, documents, also=also))


def read_saved(members: Members, gathered: Gathered) -> Saved | None:
    """Read metadata and shards; None, with a finding, where there is no metadata to go by."""
    documents = _find_metadata(members, gathered)
    if not documents:
        return None
    try:
        contents = dcp.merge([_read_metadata(members, name, gathered) for name in documents])
    except Corrupt as error:
        gathered.add(error.code, error.message)
        return None
    _check_order(members, contents, documents, gathered)
    return Saved(contents, read_items(contents, members, gathered))


def verify_saved(saved: Saved, members: Members, gathered: Gathered, described: Inspection) -> None:
    """Read every byte, where more than the structure was asked for."""
    if members.level is not Level.STRUCTURE:
        roles = {tensor.name: tensor.role for tensor in described.tensors}
        verify_items(saved.contents, members, gathered, roles)


def _sample(members: Members, contents: dcp.Contents) -> str | None:
    """A sample of the first shard: before torch 2.4 the metadata of two epochs are equal."""
    shards = sorted({extent.shard for _, _, extent in contents.extents()})
    reader = members.readers.get(shards[0]) if shards else None
    return None if reader is None else sampled_id(Source(reader), 0)


def _find_metadata(members: Members, gathered: Gathered) -> list[str]:
    """The metadata's names: one for all ranks, or one of each where they were saved without collectives."""
    names = members.names()
    if any(name.endswith(dcp.UNFINISHED) for name in names):
        gathered.missing(f"{members.prefix}{dcp.UNFINISHED} is there: the metadata, which comes last, is being written")
    if dcp.METADATA in members:
        return [dcp.METADATA]
    ranks = dcp.rank_metadata(names)
    if not ranks:
        gathered.missing(f"{members.prefix}{dcp.METADATA} is not there: it is written when all shards are")
    absent = dcp.missing_ranks(ranks, names)
    if ranks and absent:
        gathered.missing(f"the metadata of {counted(len(absent), 'rank')} is not there: {listed(absent)}")
    return ranks


def _read_metadata(members: Members, name: str, gathered: Gathered) -> dcp.Contents:
    data = members.read(name, dcp.MAX_METADATA_BYTES)
    if data is None:
        raise Corrupt("pickle.limits", f"{name} was not opened, or has more than {dcp.MAX_METADATA_BYTES:,} bytes")
    inert = load_inert(data)
    proved = inert.failure is None and inert.consumed == len(data)
    # torch.distributed.checkpoint unpickles the metadata itself, with nothing refused.
    names = inert.globals if inert.failure is not None else (*inert.globals, *names_behind(data[inert.consumed :]))
    judgement = safety.judge([known for known in names if known not in dcp.OWN_NAMES], proved)
    gathered.judge(judgement.safety, judgement.unsafe_globals, safety.judge(names, proved).imports)
    gathered.findings += judgement.findings
    if inert.failure is None and not proved:
        gathered.add(
            "pickle.second_stream", f"{name}: the pickle is followed by {counted(len(data) - inert.consumed, 'byte')}"
        )
    try:
        return dcp.read_contents(inert)
    except Corrupt as error:
        raise Corrupt(error.code, f"{members.prefix}{name}: {error.message}") from error


def _check_order(members: Members, contents: dcp.Contents, documents: list[str], gathered: Gathered) -> None:
    """Metadata is written last; what is newer belongs to another save, or was copied in another order."""
    written_ns = min(members.parts[name].identity.mtime_ns for name in documents)
    shards = {extent.shard for _, _, extent in contents.extents()} & members.parts.keys()
    newer = sorted(shard for shard in shards if members.parts[shard].identity.mtime_ns > written_ns)
    if newer:
        gathered.unsettle()
        gathered.add("shards.order", f"newer than the metadata: {counted(len(newer), 'shard')}, {listed(newer)}")


def _expect_meta(members: Members, contents: dcp.Contents, checkpoint_path: str, gathered: Gathered) -> None:
    """Lightning writes `meta.pt` after everything else. Others may save under the same keys, but not `optimizer_0`."""
    keys = {str(contents.paths.get(name, (name,))[0]) for name in (*contents.tensors, *contents.values)}
    if _META in members or not all(map(_LIGHTNING_KEYS.fullmatch, keys)):
        return
    if any(key != "model" for key in keys):
        gathered.missing(f"{_META} is not there: Lightning's FSDP strategy writes it after the shards")
    elif checkpoint_path.endswith(".ckpt"):
        gathered.unsettle()


def _include_meta(members: Members, described: Inspection, gathered: Gathered) -> Inspection:
    """Lightning keeps beside the shards what is neither weights nor optimizer."""
    if _META not in members:
        return described
    meta = members.inspect(_META)
    gathered.include(members.prefix + _META, meta)
    if meta is None:
        return described
    return msgspec.structs.replace(
        described,
        epoch=meta.epoch,
        global_step=meta.global_step,
        logged_step=meta.logged_step,
        lightning_version=meta.lightning_version,
        hyper_parameters=meta.hyper_parameters,
        callbacks=meta.callbacks,
        metrics=meta.metrics,
    )
