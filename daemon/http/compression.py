"""Compression: gzip whose pieces are made once and shared by any number of streams."""

import struct

from isal import isal_zlib

GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""RFC 1952, 2.3.1: magic, deflate, no flags, no time, no level, system unknown."""
DEFLATE_FROM_BYTES = 1024
"""A smaller piece is stored as it is: to compress it takes 19 µs and saves the network nothing worth that."""

_LEVEL = 1
"""isal's: 434 KB of entries become 33 KB in 0.4 ms, where zlib's level 1 takes 2.4 ms. So it stays on the loop."""
_RAW, _WITH_HEADER = -15, 31
"""Window bits: a bare deflate stream, and one with gzip's header and trailer."""
_STORED_LIMIT = 0xFFFF
"""RFC 1951, 3.2.4: the length of a stored block has 16 bits."""


def shared_piece(body: bytes) -> bytes:
    """`body` as a run of deflate blocks that may follow any other such run, after one `GZIP_HEADER`.

    Nothing in it refers to what came before, and it ends on a byte's border, so the same bytes serve every stream.
    The stream as a whole has no final block and no trailer: a live one has no end that anybody waits for.
    """
    if len(body) < DEFLATE_FROM_BYTES:
        return _stored(body)
    compressor = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _RAW)
    return compressor.compress(body) + compressor.flush(isal_zlib.Z_SYNC_FLUSH)


class GzipStream:
    """A gzip stream of its own, for a response that ends: each piece can be read at once, the end has its checksum."""

    def __init__(self) -> None:
        self._compressor = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _WITH_HEADER)

    def piece(self, body: bytes) -> bytes:
        """The bytes that make `body` readable."""
        return self._compressor.compress(body) + self._compressor.flush(isal_zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        """The final block and the trailer."""
        return self._compressor.flush(isal_zlib.Z_FINISH)


def _stored(body: bytes) -> bytes:
    """RFC 1951, 3.2.4: not final, type 00, padding, length and its complement, the bytes."""
    assert len(body) <= _STORED_LIMIT
    return b"\0" + struct.pack("<HH", len(body), len(body) ^ 0xFFFF) + body if body else b""
