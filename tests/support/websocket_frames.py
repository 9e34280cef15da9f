"""Client frames and handshakes as bytes, right and wrong on purpose, written from RFC 6455 alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\x37\xfa\x21\x3d"  # The mask of the examples in RFC 6455 section 5.7.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # The key of the example in RFC 6455 section 1.3.


def client_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    mask: bytes | None = MASK,
    length_form: int | None = None,
    claimed_length: int | None = None,
) -> bytes:
    """One frame. `reserved` is three bits; `mask` None leaves the mask out; `length_form` 7, 16 or 64 forces a form of
    the length; `claimed_length` lies about it."""
    length = len(payload) if claimed_length is None else claimed_length
    if length_form is None:
        length_form = 7 if length < 126 else 16 if length < 65536 else 64
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    bit = 0 if mask is None else 0x80
    if length_form == 7:
        header = bytes((first, bit | length))
    elif length_form == 16:
        header = bytes((first, bit | 126)) + length.to_bytes(2, "big")
    else:
        header = bytes((first, bit | 127)) + length.to_bytes(8, "big")
    if mask is None:
        return header + payload
    return header + mask + masked(payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    """XOR with the repeated mask (RFC 6455 section 5.3)."""
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def close_payload(code: int, reason: bytes = b"") -> bytes:
    """The body of a close frame."""
    return code.to_bytes(2, "big") + reason


def handshake(
    path: str = "/ws", headers: Mapping[str, str | None] | None = None, extra: Iterable[tuple[str, str]] = ()
) -> bytes:
    """An upgrade request. `headers` replace the usual ones, or with None remove them; `extra` come in addition."""
    fields: dict[str, str | None] = {
        "Host": "127.0.0.1:8000",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        **(headers or {}),
    }
    lines = [f"GET {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
    lines += [f"{name}: {value}" for name, value in extra]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Split what a server sent into (opcode, payload); every frame must be whole, final, unmasked and unreserved."""
    frames = []
    position = 0
    while position < len(data):
        first, length = data[position], data[position + 1]
        assert first & 0xF0 == 0x80, f"not a final frame without reserved bits: {first:#x}"
        assert length < 128, "a server does not mask"
        position += 2
        if length == 126:
            length = int.from_bytes(data[position : position + 2], "big")
            assert length > 125, "the length is not in its shortest form"
            position += 2
        elif length == 127:
            length = int.from_bytes(data[position : position + 8], "big")
            assert length > 65535, "the length is not in its shortest form"
            position += 8
        assert position + length <= len(data), "a torn frame"
        frames.append((first & 0x0F, data[position : position + length]))
        position += length
    return frames
