"""The bytes of the frames that the server sends."""

from __future__ import annotations

from typing import Final

__all__ = ["HEADERS", "PING_FRAME", "TEXT_FRAME", "text_frame", "text_frames"]

TEXT_FRAME: Final = 0x81  # FIN set, RSV 0, opcode text (RFC 6455 section 5.2).
PING_FRAME: Final = b"\x89\x00"
HEADERS: Final = (
    *(bytes((TEXT_FRAME, length)) for length in range(126)),
    *(b"\x81\x7e" + length.to_bytes(2, "big") for length in range(126, 4096)),
)
"""What stands before a payload, by its length: most are this short, and a look costs less than making one."""


def text_frame(payload: bytes) -> bytes:
    """Return the server's text frame for `payload` (UTF-8, any length). A broadcast is built once and given to
    `send_frame` of every connection."""
    length = len(payload)
    if length < 4096:
        return HEADERS[length] + payload
    if length < 65536:
        return b"\x81\x7e" + length.to_bytes(2, "big") + payload
    return b"\x81\x7f" + length.to_bytes(8, "big") + payload


def text_frames(payloads: list[bytes]) -> bytes:
    """The frames of several messages, as one piece."""
    if len(payloads) == 1:
        return text_frame(payloads[0])
    pieces: list[bytes] = []
    for payload in payloads:
        length = len(payload)
        if length < 4096:
            pieces += (HEADERS[length], payload)
        else:
            pieces.append(text_frame(payload))
    return b"".join(pieces)
