"""Directories of DeepSpeed: the rank files of one tag, and `latest`, which names it."""

import itertools
from typing import Any

import msgspec

from .. import facts
from ..assembly import describe_tensors
from ..dtypes import DTYPES
from ..formats import deepspeed, trainer
from ..formats.sharded import LATEST
from ..inspection import Inspection
from ..plain import clip
from ..standins import MetaTensor
from ..tensors import TensorTable, contiguous_stride, make_table
from ..text import counted
from .members import Gathered, Members, archive_id, is_sound, listed
from .union import Loaded, Nothing, Union, load_file

_LATEST = LATEST.decode()
_MAX_TAG_BYTES = 4096


def inspect_deepspeed(members: Members, blank: Inspection, gathered: Gathered) -> Inspection:
    """Inspect a directory of rank files, or one that holds `latest` and the directory that it names."""
    directory = _tagged(members, gathered)
    if directory is None:
        return blank
    union = Union()
    top = add_rank_files(directory, union, gathered, with_weights=True)
    documents = [name for name in (_LATEST, trainer.STATE) if name in members]
    # Sizes are the same in each epoch; the first model file's directory holds the checksums of its records.
    models = deepspeed.find_rank_files(directory.names()).model[:1]
    first = [gathered.archive_ids.get(directory.prefix + name) for name in models]
    identity = archive_id(members, documents, also=first)
    identified = msgspec.structs.replace(blank, safety=gathered.safety, archive_id=identity)
    return describe_tensors(union.tensors(), _facts(top), union.storages(), identified)


def add_rank_files(members: Members, union: Union, gathered: Gathered, *, with_weights: bool) -> dict[Any, Any]:
    """Inspect the rank files of one tag and add what they hold.

    Args:
        members: the directory of the tag.
        union: takes the tensors.
        gathered: takes the findings.
        with_weights: take the weights as well, not only the optimizer's tensors.

    Returns:
        The top level of the first model file; empty where there is none that can be read.
    """
    files = deepspeed.find_rank_files(members.names())
    loaded: dict[str, Loaded] = {}
    for name in (*files.model, *files.layers, *files.optimizer):
        inspection = members.inspect(name)
        gathered.include(members.prefix + name, inspection)
        if inspection is not None and is_sound(inspection):
            contents = load_file(members.readers[name])
            if contents is not None:
                loaded[name] = contents
    top = next((loaded[name].top for name in files.model if name in loaded), {})
    absent = deepspeed.missing_files(files, deepspeed.read_world(top))
    if absent:
        gathered.missing(
            f"{counted(len(absent), 'rank file')} not there: {listed([members.prefix + name for name in absent])}"
        )
    if with_weights:
        _add_weights(files, loaded, top, union)
    _add_optimizer(files, loaded, union)
    return top


def _tagged(members: Members, gathered: Gathered) -> Members | None:
    """The directory that holds the rank files."""
    files = deepspeed.find_rank_files(members.names())
    if files.model or files.optimizer or files.layers:
        return members
    data = members.read(_LATEST, _MAX_TAG_BYTES)
    if data is None:
        gathered.missing(f"{_LATEST} is not there: it names the directory of the rank files, and is written after them")
        return None
    tag = data.decode("utf-8", "backslashreplace").strip()
    if tag not in members.directories():
        gathered.missing(f"{_LATEST} names {clip(tag)}, which is not there or holds nothing")
        return None
    return members.inside(tag)


def _add_weights(files: deepspeed.RankFiles, loaded: dict[str, Loaded], top: dict[Any, Any], union: Union) -> None:
    shapes = deepspeed.parameter_shapes(top)
    models = [name for name in files.model if name in loaded and deepspeed.is_first_partition(name)]
    for position, name in enumerate(models):
        if not position:
            union.speaks(loaded[name])
        prefix = f"{deepspeed.label(name)}." if len(models) > 1 else ""
        partitioned = _partitioned(loaded[name], shapes)
        if partitioned:
            union.add(_whole_parameters(partitioned), prefix=prefix)
        union.add(_without(loaded[name], partitioned), prefix=prefix)
    for name in files.layers:
        if name in loaded:
            union.add(loaded[name], prefix=f"{deepspeed.label(name)}.", role="weights")


def _add_optimizer(files: deepspeed.RankFiles, loaded: dict[str, Loaded], union: Union) -> None:
    optimizers = [name for name in files.optimizer if name in loaded]
    for name in optimizers:
        prefix = f"{deepspeed.label(name)}." if len(optimizers) > 1 else ""
        union.add(loaded[name], prefix=prefix, role="optimizer", key="optimizer")


def _partitioned(model: Loaded, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Parameters of which the module holds nothing: in ZeRO stage 3 their values are in the optimizer's partitions."""
    empty = {
        name
        for segment in model.tensors.of("weights")
        for name, numel in zip(segment.relative_names, segment.table.numels, strict=True)
        if not numel
    }
    return {name: shape for name, shape in shapes.items() if name in empty and 0 not in shape}


def _without(model: Loaded, partitioned: dict[str, tuple[int, ...]]) -> Loaded:
    """The same file without the empty tensors that stand for these parameters."""
    if not partitioned:
        return model
    segments: list[facts.Segment] = []
    for segment in model.tensors.segments:
        kept = [name not in partitioned or segment.role != "weights" for name in segment.relative_names]
        columns = (list(itertools.compress(column, kept)) for column in msgspec.structs.astuple(segment.table))
        names = list(itertools.compress(segment.relative_names, kept))
        segments.append(facts.Segment(segment.key, segment.role, TensorTable(*columns), names))
    return Loaded(msgspec.structs.replace(model.tensors, segments=tuple(segments)), model.storages, model.value)


def _whole_parameters(shapes: dict[str, tuple[int, ...]]) -> Loaded:
    """Parameters by their shapes. Their values are kept as `fp32_flat_groups` (deepspeed/utils/zero_to_fp32.py)."""
    names = [f"module.{name}" for name in shapes]
    made = [
        MetaTensor(DTYPES["float32"], shape, contiguous_stride(shape), requires_grad=True) for shape in shapes.values()
    ]
    table, problems = make_table(names, made)
    segment = facts.Segment("module", "weights", table, list(shapes))
    return Loaded(facts.Tensors(table, (segment,), problems), Nothing())


def _facts(top: dict[Any, Any]) -> dict[Any, Any]:
    """What stands beside the tensors, under the names that other trainers use."""
    known = {key: value for key, value in top.items() if key not in ("module", "optimizer")}
    if "global_step" not in known:
        known["global_step"] = top.get("global_steps")
    if "hyper_parameters" not in known and "ds_config" in known:
        known["hyper_parameters"] = {"ds_config": known["ds_config"]}
    return known
