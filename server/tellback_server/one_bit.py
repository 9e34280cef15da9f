"""One bit: which bit of some bytes flipped, when their CRC-32 of before is known. Pure (RELIABILITY fact 4)."""

from __future__ import annotations

import zlib
from typing import Final

__all__ = ["flipped_bit", "unflipped"]


def _crc_table() -> list[int]:
    """The table of CRC-32 (reflected polynomial EDB88320), as zlib uses it."""
    table: list[int] = []
    for index in range(256):
        value = index
        for _ in range(8):
            value = value >> 1 ^ 0xEDB88320 if value & 1 else value >> 1
        table.append(value)
    return table


_TABLE: Final = _crc_table()
_INDEX_BY_TOP: Final = {entry >> 24: index for index, entry in enumerate(_TABLE)}
_BIT_BY_SYNDROME: Final = {_TABLE[1 << bit]: bit for bit in range(8)}


def flipped_bit(size_bytes: int, difference: int) -> int | None:
    """The number (8 * byte + bit) of the bit that flipped in `size_bytes` bytes, or None when it was not one bit.

    `difference` is the CRC-32 found XOR the one wanted. CRC-32 is linear: the difference depends only on which bit
    flipped and how many bytes follow it. So it is run backwards through the CRC, byte by byte from the end, until it is
    that of one bit: O(size) instead of O(size squared). Other damage passes by chance with 8 * size / 2^32.
    """
    if difference == 0:
        return None
    bits, table, tops = _BIT_BY_SYNDROME, _TABLE, _INDEX_BY_TOP
    for index in range(size_bytes - 1, -1, -1):
        bit = bits.get(difference)
        if bit is not None:
            return index * 8 + bit
        entry = tops[difference >> 24]
        difference = ((difference ^ table[entry]) << 8 | entry) & 0xFFFFFFFF
    return None


def unflipped(data: bytes, crc32: int) -> bytes | None:
    """`data` as it was before one bit flipped, when `crc32` is that of before; None when that does not explain it."""
    bit = flipped_bit(len(data), zlib.crc32(data) ^ crc32)
    if bit is None:
        return None
    mended = bytearray(data)
    mended[bit >> 3] ^= 1 << (bit & 7)
    return bytes(mended) if zlib.crc32(mended) == crc32 else None
