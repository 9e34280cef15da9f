"""Pictures: whether a card's PNG is whole. Reads in pieces; never more than a chunk's window in memory.

Every chunk of a PNG carries a CRC-32 over its kind and data (PNG specification, 5.3), so any flipped bit is found.
"""

from __future__ import annotations

import zlib
from typing import Final

from tellback_server.checks.findings import Tally
from tellback_server.store.card import Card, Readable, read_card

__all__ = ["check_card"]

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_WINDOW_BYTES: Final = 1 << 20


def check_card(file: Readable, size_bytes: int, tally: Tally) -> None:
    """Adds what is wrong with a picture. Raises OSError. Cost: the file once."""
    if file.pread(len(_SIGNATURE), 0) != _SIGNATURE:
        tally.add("card-not-png", offset=0)
        return
    at = len(_SIGNATURE)
    is_ended = False
    while at < size_bytes and not is_ended:
        head = file.pread(8, at)
        length = int.from_bytes(head[:4])
        if len(head) < 8 or at + 12 + length > size_bytes:
            tally.add("card-broken", "a chunk is cut off", offset=at)
            return
        crc32 = zlib.crc32(head[4:])
        done = 0
        while done < length:
            piece = file.pread(min(_WINDOW_BYTES, length - done), at + 8 + done)
            if not piece:
                break
            crc32 = zlib.crc32(piece, crc32)
            done += len(piece)
        if file.pread(4, at + 8 + length) != crc32.to_bytes(4):
            kind = head[4:].decode("ascii", "replace")
            tally.add("card-broken", f"the chunk {kind} does not match its checksum", offset=at)
            return
        is_ended = head[4:] == b"IEND"
        at += 12 + length
    if not is_ended:
        tally.add("card-broken", "the picture has no end", offset=at)
    elif at < size_bytes:
        tally.add("card-trailing", f"{size_bytes - at:,} bytes", offset=at)
    elif read_card(file, size_bytes) == Card():
        tally.add("card-without-character")
