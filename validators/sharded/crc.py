"""CRC-32 of joined pieces from the checksums of the pieces, so that a tensor cut into shards is known by its whole.

zlib's `crc32_combine` is not in Python's `zlib`; the arithmetic is that of polynomials over GF(2) modulo the CRC's own,
written with the lowest power in the highest bit (RFC 1952, section 8).
"""

_POLYNOMIAL = 0xEDB88320
_ONE, _X = 1 << 31, 1 << 30


def combine(first: int, second: int, second_bytes: int) -> int:
    """CRC-32 of two pieces one after the other.

    Args:
        first: CRC-32 of the first piece.
        second: CRC-32 of the second piece.
        second_bytes: its length.
    """
    shift, power, exponent = _ONE, _X, 8 * second_bytes
    while exponent:
        if exponent & 1:
            shift = _multiply(shift, power)
        power = _multiply(power, power)
        exponent >>= 1
    return _multiply(first, shift) ^ second


def _multiply(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product
