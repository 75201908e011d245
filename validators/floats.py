"""How each floating type is judged: whether bytes hold nothing but numbers, and whether all of them are zero.

torch is handed in, not imported: only who looks at values needs it.
"""

import math
from collections.abc import Callable
from typing import Any

import msgspec


class Kind(msgspec.Struct, frozen=True, eq=False):
    """How to judge elements of one floating type."""

    width: int
    """Bytes of one number."""
    numbers: int
    """In one element: two for complex types."""
    judge: Callable[[Any, Any], tuple[bool, bool]]
    """(torch, bytes) → whether all numbers are finite, and whether all are zero."""
    values: Callable[[Any, Any], Any]
    """(torch, bytes) → a tensor whose infinities and NaN are those of the bytes."""


def _native(dtype: str, width: int, numbers: int = 1) -> Kind:
    """A type that torch reduces by itself. NaN and infinities both show in the extremes: 15 GB/s and more, where
    `isfinite().all()` reaches 2 (float32) and 0.5 (float16)."""

    def values(torch: Any, raw: Any) -> Any:
        return raw.view(getattr(torch, dtype))

    def judge(torch: Any, raw: Any) -> tuple[bool, bool]:
        low, high = (extreme.item() for extreme in torch.aminmax(values(torch, raw)))
        return math.isfinite(low) and math.isfinite(high), low == high == 0

    return Kind(width, numbers, judge, values)


def _by_magnitude(infinity: int | None, nan: int) -> Kind:
    """Eight bits with a sign; `nan` is the lowest magnitude that is no number. torch reduces none of these types."""
    lowest = nan if infinity is None else infinity

    def values(torch: Any, raw: Any) -> Any:
        decoded = _decoded(torch, raw, zero=raw & 0x7F == 0, nan=raw & 0x7F >= nan)
        if infinity is not None:
            decoded[raw == infinity] = math.inf
            decoded[raw == infinity | 0x80] = -math.inf
        return decoded

    def judge(torch: Any, raw: Any) -> tuple[bool, bool]:
        largest = (raw & 0x7F).max().item()
        return largest < lowest, largest == 0

    return Kind(1, 1, judge, values)


def _by_pattern(nan: int, zero: int | None) -> Kind:
    """Eight bits of which one pattern is NaN, and one is zero; None is infinite."""

    def values(torch: Any, raw: Any) -> Any:
        is_zero = raw == zero if zero is not None else torch.zeros(len(raw), dtype=torch.bool)
        return _decoded(torch, raw, zero=is_zero, nan=raw == nan)

    def judge(torch: Any, raw: Any) -> tuple[bool, bool]:
        low, high = (extreme.item() for extreme in torch.aminmax(raw))
        is_zero = zero is not None and low == high == zero
        return not (low <= nan <= high and (raw == nan).any().item()), is_zero

    return Kind(1, 1, judge, values)


def _decoded(torch: Any, raw: Any, *, zero: Any, nan: Any) -> Any:
    """Numbers that are right where they are zero or none; the others are all one."""
    decoded = torch.ones(len(raw), dtype=torch.float32)
    decoded[zero] = 0
    decoded[nan] = math.nan
    return decoded


def _four_bits() -> Kind:
    """Two numbers of four bits (OCP microscaling formats, E2M1), all of which are finite."""

    def judge(torch: Any, raw: Any) -> tuple[bool, bool]:
        return True, (raw & 0x77).max().item() == 0

    return Kind(1, 1, judge, lambda torch, raw: torch.ones(len(raw)))


KINDS: dict[str, Kind] = {
    "float64": _native("float64", 8),
    "float32": _native("float32", 4),
    "float16": _native("float16", 2),
    "bfloat16": _native("bfloat16", 2),
    "complex128": _native("float64", 8, 2),
    "complex64": _native("float32", 4, 2),
    "complex32": _native("float16", 2, 2),
    # Bit patterns: c10/util/Float8_*.h; the OCP and Graphcore proposals that they name.
    "float8_e5m2": _by_magnitude(infinity=0x7C, nan=0x7D),
    "float8_e4m3fn": _by_magnitude(infinity=None, nan=0x7F),
    "float8_e5m2fnuz": _by_pattern(nan=0x80, zero=0),
    "float8_e4m3fnuz": _by_pattern(nan=0x80, zero=0),
    "float8_e8m0fnu": _by_pattern(nan=0xFF, zero=None),
    "float4_e2m1fn_x2": _four_bits(),
}
"""Every floating and complex type. Integers, quantized ones among them, are always finite."""
