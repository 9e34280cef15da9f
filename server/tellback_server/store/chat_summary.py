"""Chat summary: what a list shows of a chat's file, from its bytes. Pure: no files, no clock.

Rules of this module:
- It counts what `jsonl.parse_chat` would find and calls damaged what that would, without keeping the lines (BEHAVIOUR
  I3); a test holds the two together.
- Line by line, so that another thread waits for one line at most.
- A preview is text for people: the beginning of the last message's `mes` or `content`, whatever else stands in it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from tellback_server.store.jsonl import is_header, line_object, metadata_key_of

__all__ = ["PREVIEW_CHARACTERS_MAX", "ChatSummary", "message_text", "preview", "summarize", "whole"]

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


def summarize(data: bytes, *, headed: bool) -> ChatSummary:
    """What a chat's file holds. `headed`: its first object is a header unless it looks like a message. Never fails.

    Cost: one look at each line; only the first and the last one become values.
    """
    if data.startswith(_BOM):
        data = data[len(_BOM) :]
    count = 0
    main_chat: str | None = None
    last = b""
    is_damaged = False
    is_first = True
    start = 0
    size_bytes = len(data)
    while start < size_bytes:
        end = data.find(b"\n", start)
        if end < 0:
            end = size_bytes
        line = data[start:end]
        start = end + 1
        if line.endswith(b"\r"):
            line = line[:-1]
        if not line or line.isspace():
            continue
        if is_first:
            is_first = False
            value, _remark = line_object(line)
            if value is None:
                is_damaged = True
            elif is_header(value, headed):
                main_chat = _main_chat(value)
            else:
                count += 1
                last = line
        elif _is_object(line):
            count += 1
            last = line
        else:
            is_damaged = True
    value = line_object(last)[0] if last else None
    return ChatSummary(count, preview(value) if value is not None else "", main_chat, is_damaged)


def _is_object(line: bytes) -> bool:
    try:
        _decode_line(line)
        if not line.isascii():
            # msgspec does not look into strings that it leaves out.
            line.decode()
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return line_object(line)[0] is not None
    return True


def _main_chat(header: dict[str, Any]) -> str | None:
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
