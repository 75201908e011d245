"""Directories of the transformers Trainer: weights, in one file or in shards, and the state of the training."""

import msgspec

from .. import facts
from ..assembly import describe_tensors
from ..errors import Corrupt
from ..formats import dcp, trainer
from ..formats.sharded import TAG
from ..inspection import CallbackState, Format, Inspection
from ..plain import clip, to_plain
from .members import Gathered, Members, archive_id, is_sound, listed
from .rank_files import add_rank_files
from .shard_files import Saved, read_saved, verify_saved
from .union import Loaded, Union, load_file

_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


def inspect_transformers(members: Members, blank: Inspection, gathered: Gathered) -> Inspection:
    """Inspect a directory `checkpoint-N`."""
    union = Union()
    seen = _add_weights(members, union, gathered)
    saved = _add_directories(members, union, gathered)
    _add_others(members, seen, union, gathered)
    documents = [name for name in (*trainer.INDEXES, *trainer.CONFIGS, trainer.STATE) if name in members]
    identified = msgspec.structs.replace(blank, safety=gathered.safety, archive_id=archive_id(members, documents))
    described = describe_tensors(union.tensors(), {}, union.storages(), identified)
    for directory, each in saved.items():
        verify_saved(each, members.inside(directory), gathered, described)
    described = msgspec.structs.replace(described, hyper_parameters=_configuration(members, gathered))
    return with_trainer_state(members, described, gathered)


def with_trainer_state(members: Members, described: Inspection, gathered: Gathered) -> Inspection:
    """Add what `trainer_state.json` says. It is written last: without it the save has not ended."""
    if trainer.STATE not in members:
        if trainer.is_accelerates(members.names()):
            gathered.unsettle()
        else:
            gathered.missing(f"{trainer.STATE} is not there: the Trainer writes it after everything else")
        return described
    value = trainer.read_json(members.read(trainer.STATE))
    if value is None:
        gathered.missing(f"{trainer.STATE} is no JSON: it is being written, or was cut short")
        return described
    written_ns = members.parts[trainer.STATE].identity.mtime_ns
    if any(part.identity.mtime_ns > written_ns for part in members.parts.values()):
        gathered.unsettle()  # a copy in another order, or another save under way
    state = trainer.read_state(value)
    return msgspec.structs.replace(
        described,
        epoch=state.epoch,
        global_step=state.global_step,
        metrics=state.metrics,
        callbacks=_callbacks(members, state),
    )


def _callbacks(members: Members, state: trainer.State) -> tuple[CallbackState, ...]:
    reader = members.readers.get(trainer.ARGUMENTS)
    loaded = None if reader is None else load_file(reader)
    keeper = trainer.keeper(state, None if loaded is None else loaded.value)
    return () if keeper is None else (keeper,)


def _configuration(members: Members, gathered: Gathered) -> dict[str, object] | None:
    """The model's configuration, which names its architecture, as hyper-parameters."""
    for name in trainer.CONFIGS:
        if name in members.readers:
            value = trainer.read_json(members.read(name))
            if value is None:
                gathered.add("archive.malformed", f"{name} is no JSON object")
                continue
            plain = to_plain(value)
            return plain if isinstance(plain, dict) else None
    return None


def _add_weights(members: Members, union: Union, gathered: Gathered) -> set[str]:
    """Inspect the files of the weights and take their tensors; return their names."""
    promised = _weight_files(members, gathered)
    absent = [name for name in promised if name not in members]
    if absent:
        gathered.missing(f"{len(absent):,} of {len(promised):,} files of weights are not there: {listed(absent)}")
    for name, tensors in promised.items():
        if name not in members:
            continue
        inspection = members.inspect(name)
        gathered.include(name, inspection, is_weights=True)
        loaded = load_file(members.readers[name]) if inspection is not None and is_sound(inspection) else None
        if loaded is None:
            continue
        union.add(loaded, role="weights", key="")
        lacking = sorted(set(tensors or ()) - set(loaded.tensors.table.names))
        if lacking:
            gathered.add(
                "tensor.missing_storage",
                f"{name}: {len(lacking):,} of the {len(tensors or ()):,} tensors that the index says it holds are not "
                f"in it: {listed(lacking)}",
            )
    return set(promised)


def _weight_files(members: Members, gathered: Gathered) -> dict[str, list[str] | None]:
    """File → the tensors that an index says it holds, in the order in which `from_pretrained` looks for them."""
    found: dict[str, list[str] | None] = {name: None for name in trainer.ADAPTERS if name in members}
    for single, index in zip(trainer.SINGLE, trainer.INDEXES, strict=True):
        if single in members:
            return {single: None} | found
        if index in members:
            mapped = trainer.weight_map(trainer.read_json(members.read(index)) or {})
            if mapped is not None:
                return {shard: mapped[shard] for shard in sorted(mapped)} | found
            gathered.missing(f"{index} is no index of shards: it is being written, or was cut short")
            break
    numbered = trainer.numbered_shards(members.names())
    if numbered and not any(index in members for index in trainer.INDEXES):
        gathered.missing("the index of the shards is not there: it is written after them")
    return dict.fromkeys(numbered) | found


def _add_directories(members: Members, union: Union, gathered: Gathered) -> dict[str, Saved]:
    """Take what FSDP and DeepSpeed keep in directories of their own; return what has been read of the former."""
    saved: dict[str, Saved] = {}
    for directory in members.directories():
        inside = members.inside(directory)
        names = inside.names()
        if dcp.METADATA in names or any(name.endswith(".distcp") for name in names):
            found = read_saved(inside, gathered)
            if found is not None:
                saved[directory] = found
                _add_saved(directory, found, union, gathered)
        elif TAG.fullmatch(directory.encode("utf-8", "surrogateescape")):
            # Weights that were gathered into files of their own are in the rank files once more.
            add_rank_files(inside, union, gathered, with_weights=not union)
    return saved


def _add_saved(directory: str, saved: Saved, union: Union, gathered: Gathered) -> None:
    value = dcp.nested(saved.contents, saved.items.leaves)
    try:
        tensors = facts.find_tensors(value)
    except Corrupt as error:
        gathered.add(error.code, f"{directory}: {error.message}")
        return
    role = "optimizer" if directory.startswith("optimizer") else None
    union.add(Loaded(tensors, saved.items.storages, value), role=role)


def _add_others(members: Members, seen: set[str], union: Union, gathered: Gathered) -> None:
    """Everything else that is a pickle: what loading it would do counts, and the optimizer's tensors are listed."""
    for name in members.names():
        if name in seen or not name.endswith(_PICKLE_SUFFIXES):
            continue
        inspection = members.inspect(name)
        is_known = trainer.is_optimizer(name) or trainer.is_pickle(name)
        if not is_known and (inspection is None or inspection.format is Format.UNKNOWN):
            continue  # somebody's own file: nothing loads it as a checkpoint
        gathered.include(name, inspection)
        if inspection is not None and trainer.is_optimizer(name) and is_sound(inspection):
            loaded = load_file(members.readers[name])
            if loaded is not None:
                union.add(loaded, role="optimizer", prefix="optimizer.", key=clip(name))
