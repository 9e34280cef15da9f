"""Chat summary: what a list shows of a chat's file, from its bytes. Pure: no files, no clock.

Rules of this module:
- It counts what `jsonl.parse_chat` would find and calls damaged what that would, without keeping the lines (BEHAVIOUR
  I3); a test holds the two together.
- Line by line, so that another thread waits for one line at most.
- A preview is text for people: the beginning of the last message's `mes` or `content`, whatever else stands in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from tellback_protocol.values import UNDECODABLE
from tellback_server.store.jsonl import is_header, line_object, metadata_key_of

__all__ = [
    "PREVIEW_CHARACTERS_MAX",
    "ChatSummary",
    "MessageLines",
    "main_chat_of",
    "message_text",
    "preview",
    "summarize",
    "whole",
]

PREVIEW_CHARACTERS_MAX: Final = 400
"""As much as SillyTavern shows of a chat in its list."""
_BOM: Final = b"\xef\xbb\xbf"


class ChatSummary(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a file tells of its chat."""

    count: int
    """Messages."""
    preview: str = ""
    main_chat: str | None = None
    """The chat that this one was branched from, by its name alone."""
    damaged: bool = False


class _Line(msgspec.Struct):
    """Enough of a line to see that it is an object; msgspec checks the rest of it without keeping anything."""


_decode_line = msgspec.json.Decoder(_Line).decode


class MessageLines:
    """The messages of a chat's file, line by line, as `jsonl.parse_chat` finds them."""

    def __init__(self, data: bytes, *, headed: bool) -> None:
        """`headed`: the first object is a header unless it looks like a message."""
        self._data = data
        self._headed = headed
        self._at = len(_BOM) if data.startswith(_BOM) else 0
        self._is_first = True
        self.header: dict[str, Any] | None = None
        """Set with the first line."""
        self.is_damaged = False
        """A line so far was neither blank nor an object."""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data, size_bytes = self._data, len(self._data)
        while self._at < size_bytes:
            end = data.find(b"\n", self._at)
            if end < 0:
                end = size_bytes
            line = data[self._at : end]
            self._at = end + 1
            if line.endswith(b"\r"):
                line = line[:-1]
            if not line or line.isspace():
                continue
            if self._is_first:
                self._is_first = False
                value, _remark = line_object(line)
                if value is not None and is_header(value, self._headed):
                    self.header = value
                    continue
                if value is not None:
                    return line
            elif _is_object(line):
                return line
            self.is_damaged = True
        raise StopIteration


def summarize(data: bytes, *, headed: bool) -> ChatSummary:
    """What a chat's file holds. Never fails. Cost: a look at each line; only the first and the last become values."""
    lines = MessageLines(data, headed=headed)
    count = 0
    last = b""
    for last in lines:  # noqa: B007  - The last one is what is wanted.
        count += 1
    value = line_object(last)[0] if last else None
    main_chat = main_chat_of(lines.header) if lines.header is not None else None
    return ChatSummary(count, preview(value) if value is not None else "", main_chat, lines.is_damaged)


def _is_object(line: bytes) -> bool:
    try:
        _decode_line(line)
        if not line.isascii():
            # msgspec does not look into strings that it leaves out.
            line.decode()
    except UNDECODABLE:
        return line_object(line)[0] is not None
    return True


def main_chat_of(header: dict[str, Any]) -> str | None:
    """The chat that a header says this one was branched from."""
    key = metadata_key_of(header)
    name = header[key].get("main_chat") if key is not None else None
    return whole(name) if isinstance(name, str) and name else None


def preview(message: dict[str, Any]) -> str:
    """The beginning of what a message says."""
    return whole(message_text(message)[:PREVIEW_CHARACTERS_MAX])


def message_text(message: dict[str, Any]) -> str:
    """What a message says: `mes`, else `content`, which may be text or a list of parts with text."""
    for key in ("mes", "content"):
        value = message.get(key, UNSET)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return "\n".join(_parts(value))
    return ""


def _parts(parts: list[Any]) -> list[str]:
    texts: list[str | UnsetType] = [
        part if isinstance(part, str) else part.get("text", UNSET) if isinstance(part, dict) else UNSET
        for part in parts
    ]
    return [text for text in texts if isinstance(text, str)]


def whole(text: str) -> str:
    """`text` with U+FFFD for each half of a surrogate pair, which no frame can carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
