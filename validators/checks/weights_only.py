"""Would `torch.load(weights_only=True)` take a pickle: its names, its opcodes, and what those act on.

torch's restricted unpickler (torch/_weights_only_unpickler.py, version 2.13) knows 38 opcodes, those that protocol 2
writes for plain data and tensors, and lets BUILD act on a few types only. The names are a set to look in. The opcodes
are read by one regular expression, in C: 20,000 tensors have 600,000 of them, which a loop in Python would take half a
second for and the expression 6 ms. What BUILD and calls acted on is counted by the stand-ins while they are built.
"""

import re

from ..dtypes import DTYPES, STORAGE_DTYPES
from ..tally import Tally


def _names(module: str, names: str) -> set[str]:
    return {f"{module}.{name}" for name in names.split()}


_PLACES = ("", "cuda.", "sparse.", "cuda.sparse.")
_ALIASES = frozenset(("half", "float", "double", "short", "int", "long", "chalf", "cfloat", "cdouble", "bit"))
_PLAIN_CLASSES = "Double Float Half BFloat16 Long Int Short Char Byte"

TORCH_ALLOWED: frozenset[str] = frozenset(
    # torch/_weights_only_unpickler.py, `_get_allowed_globals`
    {f"torch.{name}" for name in (*(DTYPES.keys() - _ALIASES), *STORAGE_DTYPES)}
    | {f"torch.cuda.{name}" for name in STORAGE_DTYPES if not name.startswith("Q")}
    | {f"torch.{place}{kind}Tensor" for kind in _PLAIN_CLASSES.split() for place in _PLACES}
    | _names("torch", "BoolTensor cuda.BoolTensor")
    | _names("torch", "Size device Tensor per_tensor_affine per_tensor_symmetric")
    | _names("torch", "per_channel_affine per_channel_symmetric per_channel_affine_float_qparams")
    | _names("torch.storage", "UntypedStorage TypedStorage")
    | _names("torch.serialization", "_get_layout")
    | _names("torch.nn.parameter", "Parameter")
    | _names("torch._tensor", "_rebuild_from_type_v2")
    | _names(
        "torch._utils",
        "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state "
        "_rebuild_qtensor _rebuild_sparse_tensor _rebuild_nested_tensor _rebuild_meta_tensor_no_storage "
        "_rebuild_wrapper_subclass _rebuild_device_tensor_from_numpy _rebuild_device_tensor_from_cpu_tensor",
    )
    | _names("collections", "OrderedDict Counter")
    | _names("builtins", "bytearray set complex")
    | _names("_codecs", "encode")
    # what `import torch` itself adds by add_safe_globals: torch/nested/_internal/nested_tensor.py and
    # torch/distributed/_mesh_layout.py
    | _names("torch.nested._internal.nested_tensor", "NestedTensor _rebuild_njt")
    | _names("torch.distributed._mesh_layout", "_MeshLayout _FlatLayout")
)
"""What torch 2.13 lets a pickle name under `weights_only=True`, after `import torch` alone."""

_INLINE, _SHORT = 64, 21
"""Texts shorter than this are skipped by the expression itself: names of tensors; keys and locations of storages."""


def _text(limit: int) -> bytes:
    """BINUNICODE of fewer than `limit` bytes: an expression cannot count, so that each length is an alternative."""
    return rb"X(?:" + b"|".join(re.escape(bytes([n])) + rb"\0\0\0.{%d}" % n for n in range(limit)) + rb")"


def _expression() -> re.Pattern[bytes]:
    get, put = rb"(?:h.|j....)", rb"(?:r....|q.)?+"
    number = rb"(?:K.|M..|J....|\x8a(?:\x04.{4}|\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8}))"
    name = rb"c[^\n]*+\n[^\n]*+\n"
    # ("storage", class, key, location, elements), in legacy files also a view; nothing else may be a persistent id
    mark = rb"\((?:" + get + rb"|X\x07\0\0\0storage" + put + rb")"
    storage_class = rb"(?:" + get + rb"|" + name + put + rb")"
    key = rb"(?:" + get + rb"|" + _text(_SHORT) + put + rb"|" + number + rb")"
    view = rb"(?:N|\(?+" + key + number * 2 + rb"[t\x87]" + put + rb")?+"
    storage = mark + storage_class + key * 2 + number + view + rb"t" + put + rb"Q"
    # The 29 opcodes of one plain tensor as torch.save writes them, in one alternative: 2.6 times as fast.
    several = rb"|\(" + number + rb"{4,8}+t|\))"
    sides = rb"(?:" + number + rb"\x85|" + number * 2 + rb"\x86|" + number * 3 + rb"\x87" + several + put
    strided = rb"\(" + get * 2 + _text(_SHORT) + put + get + number + rb"t" + put + rb"Q" + number + sides * 2
    hooks = rb"[\x88\x89]" + get + rb"\)R" + put + rb"t" + put + rb"R" + put
    named = _text(_INLINE) + put + rb"(?:" + get + rb"\(" + strided + hooks + rb")?+"
    bare = rb"(?:[RaesutN)\]}\x85-\x89\x8f]|[hqK].|r....)++"
    rest = rb"[jJ]....|M..|G.{8}|\x80."
    alternatives = (named, bare, storage, rb"\(", rest, name)
    return re.compile(rb"(?:" + rb"|".join(alternatives) + rb")*+", re.DOTALL)


_KNOWN_OPCODES = _expression()
_LENGTH_BYTES = {ord("X"): 4, ord("U"): 1, 0x8A: 1}  # BINUNICODE, SHORT_BINSTRING, LONG1
_STOP, _BUILD, _NEWOBJ = ord("."), ord("b"), 0x81


def accepts(pickles: bytes, tally: Tally, streams: int = 1) -> bool:
    """Whether torch's restricted unpickler gets to the end of pickles whose names it allows.

    Args:
        pickles: `streams` pickles, one after the other, that `unpickle` has parsed without a failure.
        tally: what the parsing of all of them counted.
        streams: one in a zip archive, five in the legacy format.

    Returns:
        Not whether the tensors' data is there, nor whether the values that are given to torch's functions suit them.
    """
    builds = _count_builds(pickles, streams)
    return builds is not None and builds == tally.builds and not tally.strange


def _count_builds(data: bytes, streams: int) -> int | None:
    """How often BUILD occurs; None where an opcode occurs that torch refuses, or the pickles do not end."""
    match, position, builds = _KNOWN_OPCODES.match, 0, 0
    while True:
        found = match(data, position)
        position = found.end() if found else position
        opcode = data[position] if position < len(data) else -1
        position += 1
        if opcode in _LENGTH_BYTES:
            begin = position + _LENGTH_BYTES[opcode]
            position = begin + int.from_bytes(data[position:begin], "little")
        elif opcode == _BUILD:
            builds += 1
        elif opcode == _STOP:
            streams -= 1
            if not streams:
                return builds
        elif opcode != _NEWOBJ:
            return None
