"""The safetensors format: the length of a JSON header, the header, and the tensors' bytes one after the other.

The header states the exact length of the file, so a file that is still being written shows as such. The rules are those
of the reference reader (safetensors/src/tensor.rs, `SafeTensors::read_metadata` and `Metadata::validate`), which leave
no byte outside a tensor; where JSON would let readers differ (a key twice), the file is refused.
"""

import json
import math
import struct
from typing import Any, NoReturn

import msgspec

from ..dtypes import DTYPES, Dtype
from ..errors import Corrupt, Incomplete
from ..plain import clip
from ..standins import Storage, Tensor
from ..tensors import MAX_BYTES, MAX_NAME, MAX_RANK, contiguous_stride
from ..text import counted
from .torch_zip import Source

MAX_HEADER_BYTES = 100_000_000
"""tensor.rs, `MAX_HEADER_SIZE`."""
_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
_PAIRS = "F4"
"""The type of elements of 4 bits."""

# tensor.rs, `Dtype`; in torch's words. F6_E2M3 and F6_E3M2 have no dtype of torch; its reader refuses them.
_DTYPES: dict[str, Dtype] = {
    name: DTYPES[dtype]
    for name, dtype in {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "F4": "float4_e2m1fn_x2",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2": "float8_e5m2",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "U16": "uint16",
        "I16": "int16",
        "F16": "float16",
        "BF16": "bfloat16",
        "U32": "uint32",
        "I32": "int32",
        "F32": "float32",
        "U64": "uint64",
        "I64": "int64",
        "F64": "float64",
        "C64": "complex64",
    }.items()
}


class Contents(msgspec.Struct, frozen=True):
    """What the header says; everything in it has been checked against the file."""

    names: list[str]
    tensors: list[Tensor]
    """Stand-ins, whose storages are named by position."""
    ranges: dict[str, tuple[int, int]]
    """Storage → where it begins in the file, and its size in bytes."""
    metadata: dict[str, str]
    header_end: int
    """Where the tensors' bytes begin."""


class _Entry(msgspec.Struct, frozen=True):
    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    begin: int
    end: int
    """Offsets from the end of the header."""


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file that begins with `head` is a safetensors file, or, with just its first 8 bytes, may become one."""
    return len(head) >= 8 and 2 <= _LENGTH.unpack_from(head)[0] <= MAX_HEADER_BYTES and head[8:9] in (b"", b"{")


def read_contents(source: Source) -> Contents:
    """Parse the header and check that tensors cover the rest of the file exactly.

    Raises:
        Incomplete: the file is shorter than its header says.
        Corrupt: the header contradicts itself, could be read in two ways, or bytes follow the tensors.
    """
    length = _LENGTH.unpack(source.read(0, 8))[0]
    header_end = 8 + length
    if source.size < header_end:
        raise Incomplete(f"{header_end - source.size:,} bytes of the header are still missing")
    header = _parse(source.read(8, length))
    metadata = _metadata(header.pop(_METADATA, {}))
    entries = [_entry(name, value) for name, value in header.items()]
    end = header_end + _covered(entries)
    if source.size < end:
        raise Incomplete(f"{end - source.size:,} of {end:,} bytes are still missing")
    if source.size > end:
        raise Corrupt(
            "archive.trailing_data", f"the end of the last tensor is followed by {counted(source.size - end, 'byte')}"
        )
    return Contents(
        names=[entry.name for entry in entries],
        tensors=[_tensor(str(position), entry) for position, entry in enumerate(entries)],
        ranges={
            str(position): (header_end + entry.begin, entry.end - entry.begin) for position, entry in enumerate(entries)
        },
        metadata=metadata,
        header_end=header_end,
    )


def _parse(data: bytes) -> dict[str, Any]:
    if not data.rstrip(b" ").endswith(b"}"):  # "MAY be trailing padded with whitespace (0x20)": the README's Format
        raise Corrupt("archive.malformed", "the header does not end with its closing bracket and spaces")
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = clip(str(error)) if isinstance(error, ValueError) else "it is nested too deeply"
        raise Corrupt("archive.malformed", f"the header is no JSON: {reason}") from error
    if not isinstance(header, dict):
        raise Corrupt("archive.malformed", "the header is no JSON object")
    try:
        "".join(header).encode()
    except UnicodeEncodeError as error:
        raise Corrupt("archive.malformed", "the header holds half a character as part of a name") from error
    return header


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Corrupt("archive.ambiguous", f"the header names {clip(double)} twice; readers take one or the other")
    return made


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or any(type(text) is not str for text in value.values()):
        raise Corrupt("archive.malformed", f"{_METADATA} holds something else than texts")
    return value


def _entry(name: str, value: Any) -> _Entry:
    if len(name) > MAX_NAME:
        raise Corrupt("pickle.limits", f"a tensor's name has more than {MAX_NAME} characters: {clip(name, 80)}")
    fields = value if isinstance(value, dict) else {}
    shape: Any = fields.get("shape")
    offsets: Any = fields.get("data_offsets")
    if type(fields.get("dtype")) is not str or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise Corrupt("archive.malformed", f"the header describes tensor {clip(name)} without type, shape or place")
    dtype = _DTYPES.get(fields["dtype"])
    if dtype is None:
        raise Corrupt(
            "format.unsupported", f"tensor {clip(name)} is of type {clip(fields['dtype'], 40)}, which torch cannot load"
        )
    begin, end = offsets
    if fields["dtype"] == _PAIRS:
        shape = _paired(name, shape)
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise Corrupt(
            "tensor.out_of_bounds",
            f"tensor {clip(name)} needs {math.prod(shape) * dtype.itemsize:,} bytes, but has {end - begin:,}",
        )
    return _Entry(name, dtype, tuple(shape), begin, end)


def _paired(name: str, shape: list[int]) -> list[int]:
    """The shape in torch's words, whose elements are pairs: bindings/python/src/lib.rs, `Open::get_tensor`."""
    if not shape or shape[-1] % 2:
        raise Corrupt(
            "format.unsupported",
            f"tensor {clip(name)} has an odd number of elements of 4 bits, which torch cannot load",
        )
    return [*shape[:-1], shape[-1] // 2]


def _are_sizes(values: Any) -> bool:
    return (
        type(values) is list
        and len(values) <= MAX_RANK
        and all(type(value) is int and 0 <= value < MAX_BYTES for value in values)
    )


def _covered(entries: list[_Entry]) -> int:
    """Bytes that the tensors take, which must lie one after the other."""
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin < position:
            raise Corrupt("archive.ambiguous", f"tensor {clip(entry.name)} overlaps the one before it")
        if entry.begin > position:
            hole = entry.begin - position
            raise Corrupt(
                "archive.malformed", f"before tensor {clip(entry.name)}, nothing accounts for {counted(hole, 'byte')}"
            )
        position = entry.end
    return position


def _tensor(key: str, entry: _Entry) -> Tensor:
    numel = (entry.end - entry.begin) // entry.dtype.itemsize
    storage = Storage(("storage", entry.dtype, key, "cpu", numel))
    return Tensor(storage, 0, entry.shape, contiguous_stride(entry.shape), requires_grad=False)
