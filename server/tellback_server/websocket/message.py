"""A message that comes in fragments: collected within its bounds, and checked as early as it is bad."""

from __future__ import annotations

import codecs
from typing import Final

__all__ = ["FRAGMENTS_FREE", "FRAGMENT_BYTES_MEAN_MIN", "OpenMessage", "TooManyFragments"]

FRAGMENTS_FREE: Final = 1024
FRAGMENT_BYTES_MEAN_MIN: Final = 64
"""A message may come in FRAGMENTS_FREE fragments of any size; beyond that they must carry this many bytes on average.
Empty fragments are legal (RFC 6455 section 5.4) and would otherwise keep a core busy for nothing."""

_Utf8Decoder: Final = codecs.getincrementaldecoder("utf-8")


class TooManyFragments(Exception):
    """They carry too little."""


class OpenMessage:
    """One of them, from its first fragment to its last."""

    __slots__ = ("_count", "_data", "_decoder", "is_text")

    def __init__(self, is_text: bool) -> None:
        self.is_text = is_text
        self._data = bytearray()
        self._count = 0
        self._decoder: codecs.IncrementalDecoder | None = _Utf8Decoder() if is_text else None

    def __len__(self) -> int:
        return len(self._data)

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    def add(self, data: bytes, is_last: bool) -> None:
        """The next fragment. Raises TooManyFragments, UnicodeDecodeError."""
        self._data += data
        self._count += 1
        if self._count > FRAGMENTS_FREE + len(self._data) // FRAGMENT_BYTES_MEAN_MIN:
            raise TooManyFragments
        if self._decoder is not None:
            self._decoder.decode(data, is_last)
