"""Element types of torch as stand-ins: their names, sizes and the storage classes that imply them."""

from typing import NoReturn

import msgspec


class Dtype(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What stands for a `torch.dtype`, and for a storage class, which is written in its place.

    There is one object for each, compared by identity: hashing by value would cost more than the counting it serves.
    """

    name: str
    """torch's name without the prefix."""
    itemsize: int
    """Bytes per element, as torch counts them."""
    per_byte: int = 1
    """Elements that share one byte of a storage; torch counts each of them as a byte all the same."""

    def __setstate__(self, state: object) -> NoReturn:
        """Refuse pickle's BUILD: these objects are shared by all files."""
        raise TypeError("a dtype has no state")


_SIZES = {
    1: (
        "bool int8 uint8 qint8 quint8 quint4x2 quint2x4 bits8 bits1x8 bits2x4 bits4x2 float8_e4m3fn float8_e4m3fnuz "
        "float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 "
        "int1 int2 int3 int4 int5 int6 int7 uint1 uint2 uint3 uint4 uint5 uint6 uint7"
    ),
    2: "float16 bfloat16 int16 uint16 bits16",
    4: "float32 int32 uint32 qint32 complex32",
    8: "float64 int64 uint64 complex64",
    16: "complex128",
}
_ALIASES = {
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "short": "int16",
    "int": "int32",
    "long": "int64",
    "chalf": "complex32",
    "cfloat": "complex64",
    "cdouble": "complex128",
    "bit": "uint1",
}
# torch/storage.py, _dtype_to_storage_type_map
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt8Storage": "qint8",
    "QInt32Storage": "qint32",
    "QUInt8Storage": "quint8",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}

# c10/core/ScalarType.h, `quint4x2` and `quint2x4`; aten/src/ATen/quantized/Quantizer.cpp, `get_sub_byte_tensor_size`
_PER_BYTE = {"quint4x2": 2, "quint2x4": 4}

DTYPES: dict[str, Dtype] = {
    name: Dtype(name, size, _PER_BYTE.get(name, 1)) for size, names in _SIZES.items() for name in names.split()
}
"""torch's name without the prefix → dtype, for every dtype of torch 2.x."""
DTYPES |= {alias: DTYPES[name] for alias, name in _ALIASES.items()}

UINT8 = DTYPES["uint8"]

STORAGE_DTYPES: dict[str, Dtype] = {name: DTYPES[dtype] for name, dtype in _STORAGES.items()}
"""Storage class in `torch` (and, for files of old, in `torch.cuda`) → dtype of its elements."""

FLOATING = frozenset(name for name in DTYPES if name.startswith(("float", "bfloat")))
