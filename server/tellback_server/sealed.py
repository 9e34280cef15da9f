"""Sealed: a small file of the server's own with a checksum behind its JSON. Pure.

    {...the JSON...}\n
    crc32=0a1b2c3d\n

    {...the JSON...} TAB crc32=0a1b2c3d    a line of a file that grows, without its line end

Rules of this module (STORAGE "Sealed files", X12):
- One flipped bit, anywhere, is turned back. More is damage: the file tells nothing.
- A file without the second line is one of an earlier version and is taken as it is, while it is JSON.
"""

from __future__ import annotations

import re
import zlib
from typing import Final

from tellback_server.one_bit import unflipped

__all__ = ["seal", "seal_line", "unseal", "unseal_line"]

_SEAL: Final = re.compile(rb"crc32=([0-9a-f]{8})\n")
_SEAL_BYTES: Final = len(b"crc32=00000000\n")


def seal(body: bytes) -> bytes:
    """The file of a JSON text that holds no line end."""
    return b"%b\ncrc32=%08x\n" % (body, zlib.crc32(body))


def seal_line(body: bytes) -> bytes:
    """A line of a JSON text that holds no line end."""
    return b"%b\tcrc32=%08x" % (body, zlib.crc32(body))


def unseal_line(line: bytes) -> bytes | None:
    """The JSON text; None when the line is not what was written."""
    body, _tab, last = line.rpartition(b"\t")
    return body if last == b"crc32=%08x" % zlib.crc32(body) else None


def unseal(data: bytes) -> tuple[bytes, bool] | None:
    """The JSON text, and whether a bit of the file had flipped; None when more is wrong.

    What was never sealed is returned whole: whether it is JSON is for its reader to find out.
    """
    end = len(data) - _SEAL_BYTES
    body, last = data[: max(0, end - 1)], data[max(0, end) :]
    found = _SEAL.fullmatch(last) if end > 0 else None
    if found is None or data[end - 1 : end] != b"\n":
        return _without_seal(data, body, last)
    crc32 = int(found[1], 16)
    if zlib.crc32(body) == crc32:
        return body, False
    if _distance(seal(body)[len(body) + 1 :], last) == 1:
        # The bit was in the checksum, not in what it speaks of.
        return body, True
    mended = unflipped(body, crc32)
    return None if mended is None else (mended, True)


def _without_seal(data: bytes, body: bytes, last: bytes) -> tuple[bytes, bool] | None:
    """A file whose last line is no seal: flipped by one bit, cut off, or of an earlier version."""
    expected = b"\n" + seal(body)[len(body) + 1 :] if len(data) > _SEAL_BYTES else b""
    actual = data[len(body) :]
    if len(expected) == len(actual) and _distance(expected, actual) == 1:
        return body, True
    # A seal that was begun and cut off, or broken in more than a bit, is damage; no JSON text ends like this.
    if b"\ncrc32" in data[-_SEAL_BYTES - 1 :] or data.endswith(b"\n") or b"\n" in data:
        return None
    try:
        # A decoder of JSON says so in an error of another kind than for the rest.
        data.decode()
    except UnicodeDecodeError:
        return None
    return data, False


def _distance(one: bytes, other: bytes) -> int:
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))
