"""Card: the character inside a PNG, as SillyTavern keeps it. Reads only; never fails for what stands in the file.

    PNG chunk tEXt "ccv3" or "chara"  ->  base64  ->  JSON  ->  `data.name` or `name`, and `chat`

Rules of this module:
- `ccv3` wins over `chara`, and the first of each counts, as SillyTavern reads them.
- Only the heads of chunks are read, and the two that matter: the picture itself is not.
- A broken picture, chunk or JSON is a character without a card: its file's name is all that is known.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final, Protocol

import msgspec

from tellback_protocol.values import loads
from tellback_server.store.chat_summary import whole

__all__ = ["Card", "card_of", "card_value_of", "read_card"]

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_TEXT_BYTES_MAX: Final = 16 << 20
"""A card's text beyond this is not read; SillyTavern's largest are a few hundred KiB."""
_CHUNKS_MAX: Final = 10_000
_KEYWORDS: Final = (b"ccv3", b"chara")
NAME_CHARACTERS_MAX: Final = 1000


class Readable(Protocol):
    """What is needed of a file."""

    def pread(self, size_bytes: int, offset: int) -> bytes: ...


class Card(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a list shows of a character."""

    name: str | None = None
    """None when the picture holds no readable card."""
    chat: str | None = None
    """The chat that SillyTavern has active, by its name alone."""


def read_card(file: Readable, size_bytes: int) -> Card:
    """The card in a PNG of `size_bytes`. Raises OSError when the disk does. Cost: one small read a chunk."""
    value = read_card_value(file, size_bytes)
    if value is None:
        return Card()
    inner = value.get("data")
    name = _text(inner.get("name")) if isinstance(inner, dict) else None
    chat = _text(value.get("chat"))
    return Card(name or _text(value.get("name")), None if chat is None else chat.removesuffix(".jsonl"))


def read_card_value(file: Readable, size_bytes: int) -> dict[str, Any] | None:
    """All that the card tells; None when there is none. Raises OSError."""
    texts: dict[bytes, bytes] = {}
    if file.pread(len(_SIGNATURE), 0) != _SIGNATURE:
        return None
    at = len(_SIGNATURE)
    for _chunk in range(_CHUNKS_MAX):
        head = file.pread(8, at)
        if len(head) < 8:
            break
        length = int.from_bytes(head[:4])
        kind = head[4:]
        if kind == b"IEND" or at + 12 + length > size_bytes:
            break
        if kind == b"tEXt" and length <= _TEXT_BYTES_MAX:
            keyword, _zero, text = file.pread(length, at + 8).partition(b"\0")
            texts.setdefault(keyword.lower(), text)
        at += 12 + length
    for keyword in _KEYWORDS:
        value = _value(texts[keyword]) if keyword in texts else None
        if value is not None:
            return value
    return None


class _Bytes:
    """A file that was read already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def pread(self, size_bytes: int, offset: int) -> bytes:
        return self._data[offset : offset + size_bytes]


def card_of(data: bytes) -> Card:
    """The card in a PNG's bytes."""
    return read_card(_Bytes(data), len(data))


def card_value_of(data: bytes) -> dict[str, Any] | None:
    """All that the card in a PNG's bytes tells."""
    return read_card_value(_Bytes(data), len(data))


def _value(text: bytes) -> dict[str, Any] | None:
    try:
        value = loads(base64.b64decode(text))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str | None:
    return whole(value[:NAME_CHARACTERS_MAX]) if isinstance(value, str) and value else None
