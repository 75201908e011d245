"""What a child that was taken over could say to hurt the service: answers that explode in memory, or cannot be told.

Types are msgspec's to check. What is left are values of the fields that hold any plain data, and the ratio of what a
value takes in memory to what it takes on the wire: an empty list is one byte there, and 72 here.
"""

from typing import Literal

import msgspec

from ckptd.catalog.description import Description

from .answers import MAX_NODES, BadAnswer

COUNTED_FROM_BYTES = 1 << 20
"""Pieces of up to this size take at most 72 MB, whatever is in them; of larger ones the values are counted first."""
MAX_VALUES = 2 * MAX_NODES
LEAST_PIECE_BYTES = 32_000
"""Of a part of a tensor table, but for the last one: `TENSORS_PER_PIECE` tensors take 70 bytes each and more."""
PREFIX_BYTES = 4

_encoder = msgspec.json.Encoder()

# First byte → (bytes that follow it as a number, bytes that follow it as they are): msgpack's specification, "Formats".
_COUNTED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXTENSIONS = frozenset((0xC7, 0xC8, 0xC9))
_CONTAINERS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
_FIXED = {0xCA: 4, 0xCB: 8, **{0xCC + n: 1 << n for n in range(4)}, **{0xD0 + n: 1 << n for n in range(4)}}
_FIXED |= {0xD4 + n: 1 + (1 << n) for n in range(5)}


def check_size(answer: bytes) -> None:
    """See that decoding an answer takes no more time and memory than an honest one of its size. Decodes nothing.

    Raises:
        BadAnswer: it has too many pieces, or one has too many values.
    """
    view = memoryview(answer)
    for _ in range(2 + len(answer) // LEAST_PIECE_BYTES):
        if len(view) < PREFIX_BYTES:
            return
        size = _number(view, 0, PREFIX_BYTES, "little")
        _check_piece(view[PREFIX_BYTES : PREFIX_BYTES + size])
        view = view[PREFIX_BYTES + size :]
    if view:
        raise BadAnswer("it is in more pieces than its size needs")


def _check_piece(piece: "memoryview[int]") -> None:
    if len(piece) <= COUNTED_FROM_BYTES:
        return
    position, due, nodes = 0, 1, 0
    while due and position < len(piece):
        size, children = _head(piece, position)
        position += size
        due += children - 1
        nodes += 1
        if nodes + due > MAX_VALUES:
            raise BadAnswer(f"a piece of it holds more than {MAX_VALUES} values")


def check_can_be_told(description: Description) -> None:
    """See that what the fields of any plain data hold can be shown: JSON knows no other types, and no keys but text.

    Raises:
        BadAnswer: something is there that the parser never makes.
    """
    inspection = description.inspection
    callbacks = [callback.state for callback in inspection.callbacks]
    for value in (description.config, description.user, description.metadata, inspection.hyper_parameters, callbacks):
        try:
            _encoder.encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadAnswer(f"it holds what cannot be told: {error}") from error


def _head(piece: "memoryview[int]", position: int) -> tuple[int, int]:
    """Bytes of the value at a position, its children apart, and how many of those follow."""
    first = piece[position]
    if first < 0x80 or first >= 0xE0:
        return 1, 0
    if first < 0xA0:
        return 1, (first & 15) * (2 if first < 0x90 else 1)
    if first < 0xC0:
        return 1 + (first & 31), 0
    if first in _CONTAINERS:
        width, each = _CONTAINERS[first]
        return 1 + width, each * _number(piece, position + 1, width)
    if first in _COUNTED:
        width = _COUNTED[first]
        return 1 + width + (first in _EXTENSIONS) + _number(piece, position + 1, width), 0
    return 1 + _FIXED.get(first, 0), 0


def _number(piece: "memoryview[int]", position: int, width: int, byteorder: Literal["little", "big"] = "big") -> int:
    return int.from_bytes(piece[position : position + width], byteorder)
