"""Checkpoints that are directories: which directories are one, by names alone, and what identifies their state.

A walk asks `claim` of every directory that it lists, so it opens nothing. What the files hold is read later, by
`inspector.inspect_directory`.
"""

import functools
import hashlib
import os
import re
from collections.abc import Collection, Sequence

import msgspec

from ..inspection import FileIdentity, Format

DEPTH = 2
"""Files are collected so deep beneath a claimed directory: `optimizer.pt`, `checkpoint/mp_rank_00_model_states.pt`."""

CHECKPOINT_SUFFIXES = (b".ckpt", b".pt", b".pth")
"""How trainers name a checkpoint that may turn out to be a directory."""

_DIGEST_BYTES = 16


class Part(msgspec.Struct, frozen=True):
    """One file of a checkpoint that is a directory, opened by whoever asks for an inspection."""

    name: str
    """Relative to the directory, as shown to people (bytes that are not UTF-8 are escaped)."""
    identity: FileIdentity
    fd: int | None
    """None where it was not opened: judged by presence and size."""


def _pattern(*alternatives: bytes) -> re.Pattern[bytes]:
    return re.compile(b"|".join(b"(?:%s)" % alternative for alternative in alternatives))


# torch/distributed/checkpoint/filesystem.py: `_metadata_fn`, `finish`, `_get_metadata_path`, `DEFAULT_SUFFIX`
_DCP_SHARD = _pattern(rb"[^/\0]+\.distcp")
_DCP_METADATA = _pattern(rb"(?:__\d+)?\.metadata(?:\.tmp)?")
# lightning/fabric/strategies/fsdp.py, `_METADATA_FILENAME`
FSDP_META = b"meta.pt"
# deepspeed/runtime/engine.py, `_get_ckpt_name`, `_get_zero_ckpt_name`, `_get_expert_ckpt_name`;
# deepspeed/runtime/pipe/module.py, `ckpt_layer_path`
_RANK_FILE = _pattern(
    rb"(?:zero_pp_rank_\d+_)?mp_rank_\d+_model_states\.pt",
    rb"(?:bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt",
    rb"(?:expp_rank_\d+_)?mp_rank_\d+_optim_states\.pt",
    rb"layer_\d+(?:-[a-z]+_\d+)*-model_states\.pt",
    rb"layer_(?:\d+_)?expert_\d+_mp_rank_\d+_model_states\.pt",
)
LATEST = b"latest"
# deepspeed/runtime/engine.py, `_copy_recovery_script`
ZERO_SCRIPT = b"zero_to_fp32.py"
TAG = _pattern(rb"global_step\d+", rb"checkpoint")
"""Tags of DeepSpeed: its own and Lightning's (lightning/pytorch/strategies/deepspeed.py, `save_checkpoint`)."""
# transformers/trainer_utils.py, `PREFIX_CHECKPOINT_DIR`
_TRAINER_DIRECTORY = _pattern(rb"checkpoint-\d+")
# transformers/utils/__init__.py, `WEIGHTS_NAME` and its neighbours; accelerate/utils/constants.py
_MODEL_FILE = _pattern(
    rb"model(?:-\d+-of-\d+)?\.safetensors",
    rb"pytorch_model(?:-\d+-of-\d+)?\.bin",
    rb"(?:model\.safetensors|pytorch_model\.bin)\.index\.json",
    rb"adapter_model\.(?:safetensors|bin)",
    rb"pytorch_model_fsdp(?:_\d+|\.bin)",
)
_TRAINER_FILE = _pattern(
    rb"(?:optimizer|scheduler|scaler)(?:_\d+)?\.(?:pt|bin)",
    rb"rng_state(?:_\d+)?\.pth",
    rb"training_args\.bin",
    rb"trainer_state\.json",
    rb"(?:adapter_|generation_)?config\.json",
)


def claim(name: bytes, names: Collection[bytes], parent_has_latest: bool = False) -> Format | None:
    """Whether a directory of this name, holding these names, is a checkpoint of a sharded format.

    By names alone: cheap, and asked of every directory that a walk lists. A checkpoint that is still being written is
    claimed as well, from its first telling file on; its format may still become more exact (`dcp`, then `fsdp`).

    Args:
        name: of the directory, without what leads to it.
        names: its own listing, files and directories.
        parent_has_latest: the file `latest` of DeepSpeed lies beside the directory.

    Returns:
        The format; None where it is an ordinary directory.
    """
    has_suffix = name.endswith(CHECKPOINT_SUFFIXES)
    in_trainer = _TRAINER_DIRECTORY.fullmatch(name) is not None
    # One search of all names: a directory may hold 100,000 of them.
    joined = b"\0%s\0" % b"\0".join(names)
    if in_trainer and _among(_MODEL_FILE).search(joined):
        return Format.TRANSFORMERS
    if _among(_DCP_SHARD).search(joined) or _has_dcp_metadata(names, joined, has_suffix):
        return Format.FSDP if FSDP_META in names else Format.DCP
    if _among(_RANK_FILE).search(joined):
        return Format.DEEPSPEED
    if (has_suffix or in_trainer) and _among(TAG).search(joined):
        return Format.DEEPSPEED
    if parent_has_latest and TAG.fullmatch(name) and b"_states.pt\0" in joined:
        return Format.DEEPSPEED
    return None


@functools.cache
def _among(pattern: re.Pattern[bytes]) -> re.Pattern[bytes]:
    """`pattern` as one of many names that are joined by NUL."""
    return re.compile(b"\\0(?:%s)(?=\\0)" % pattern.pattern)


def _has_dcp_metadata(names: Collection[bytes], joined: bytes, has_suffix: bool) -> bool:
    """Whether the metadata of shards is there. Eclipse keeps a `.metadata` too, but beside names of other kinds."""
    if not _among(_DCP_METADATA).search(joined):
        return False
    return has_suffix or b".safetensors\0" in joined or all(map(is_member_name, names))


def is_member_name(name: bytes) -> bool:
    """Whether a file of this name may belong to a sharded checkpoint.

    Then its directory, and that one's parent, are worth a look when the file appears, changes or goes.
    """
    if name in (FSDP_META, LATEST, ZERO_SCRIPT):
        return True
    kinds = (_DCP_SHARD, _DCP_METADATA, _RANK_FILE, _MODEL_FILE, _TRAINER_FILE)
    return any(kind.fullmatch(name) for kind in kinds)


def wants(name: bytes) -> int:
    """Order in which files are opened when there are more than may be opened, the smallest first.

    Args:
        name: relative to the directory.
    """
    base = os.path.basename(name)
    if _DCP_METADATA.fullmatch(base) or base.endswith(b".json") or base == LATEST:
        return 0
    if base in (FSDP_META, b"training_args.bin") or base.startswith(b"mp_rank_"):
        return 1
    if _MODEL_FILE.fullmatch(base) or base.endswith(b"model_states.pt"):
        return 2
    if _DCP_SHARD.fullmatch(base) or base.endswith(b".safetensors"):
        return 3
    return 4 if is_member_name(base) else 5


def directory_identity(directory: FileIdentity, parts: Sequence[Part]) -> FileIdentity:
    """The identity of a checkpoint that is a directory.

    Args:
        directory: of the directory itself.
        parts: its files.

    Returns:
        The directory's inode, the sum of the sizes, the newest times of all.
    """
    everything = [directory, *(part.identity for part in parts)]
    return FileIdentity(
        inode=directory.inode,
        size=sum(part.identity.size for part in parts),
        mtime_ns=max(identity.mtime_ns for identity in everything),
        ctime_ns=max(identity.ctime_ns for identity in everything),
    )


def shards_digest(parts: Sequence[Part]) -> str:
    """Digest of the names and identities of a directory's files: changes with each of them, whatever their order."""
    rows = sorted((part.name, *msgspec.structs.astuple(part.identity)) for part in parts)
    return f"blake2b:{hashlib.blake2b(msgspec.msgpack.encode(rows), digest_size=_DIGEST_BYTES).hexdigest()}"
