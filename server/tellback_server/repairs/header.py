"""Header: a chat's first line made anew from what is left of it, the file's name, and what else is known. Pure."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from tellback_protocol.moments import text_of, utc_text
from tellback_protocol.values import dumps, loads

__all__ = ["HeaderFacts", "date_in_name", "rebuilt_header", "unnested"]

_DECODER: Final = json.JSONDecoder()
_TEXT_FIELDS: Final = ("user_name", "character_name", "create_date")
_METADATA_KEYS: Final = ("chat_metadata", "metadata")
_DATE: Final = re.compile(
    r"(\d{4})-(\d{1,2})-(\d{1,2}) ?@ ?(\d{1,2})h ?(\d{1,2})m ?(\d{1,2})s(?: ?(\d{1,3})ms)?"
)
_COMPACT_DATE: Final = re.compile(r"_(\d{4})(\d{2})(\d{2})_(\d{2})(\d{2})(\d{2})$")
NESTED_MAX: Final = 64
NESTING_FIELDS: Final = frozenset(("user_name", "character_name", "create_date", "version", "timestamp"))
"""What CardShark's fault puts into the metadata beside the metadata themselves."""


class HeaderFacts(msgspec.Struct, frozen=True):
    """What is known of a chat besides its broken header."""

    name: str
    """The chat's name."""
    chat_id: str | None
    metadata: bytes | None
    """From a backup or the group's file, as JSON; None when nothing tells."""
    changed_ms: int
    """When the file changed last."""
    now_ms: int


def rebuilt_header(broken: bytes, facts: HeaderFacts) -> tuple[bytes, list[str]]:
    """A header line, and sentences about where its parts come from. `broken` is the line that stood there, or empty."""
    text = broken.decode("utf-8", "replace")
    header: dict[str, Any] = {}
    kept: list[str] = []
    for field in _TEXT_FIELDS:
        value = _value_after(text, field)
        if isinstance(value, str) and "\ufffd" not in value and value.isprintable():
            header[field] = value
            kept.append(field)
    metadata: Any = None
    for key in _METADATA_KEYS:
        value = _value_after(text, key)
        if isinstance(value, dict):
            metadata = value
            kept.append(key)
            break
    said = [f"kept of the old header: {', '.join(kept)}"] if kept else []
    if metadata is None and facts.metadata is not None:
        metadata = loads(facts.metadata)
        said.append("the metadata come from a backup or the group's file")
    elif metadata is None:
        said.append("the metadata begin empty")
    if "create_date" not in header:
        header["create_date"] = date_in_name(facts.name) or utc_text(facts.changed_ms)
        said.append("the date comes from the name" if date_in_name(facts.name) else "the date is that of the file")
    header = {"user_name": "unused", "character_name": "unused", **header, "version": "1.0"}
    if facts.chat_id:
        header["chat_id"] = facts.chat_id
    header["timestamp"] = facts.now_ms
    header["chat_metadata"] = metadata if metadata is not None else {}
    return dumps(header), said


def _value_after(text: str, field: str) -> Any:
    """The whole JSON value behind a key, as far as one stands there."""
    found = re.search(rf'"{field}"\s*:\s*', text)
    if found is None:
        return None
    try:
        return _DECODER.raw_decode(text, found.end())[0]
    except (ValueError, RecursionError):
        return None


def date_in_name(name: str) -> str | None:
    """The date that SillyTavern or CardShark put into a chat's name, as ISO 8601; None when there is none."""
    match = _DATE.search(name) or _COMPACT_DATE.search(name)
    if match is None:
        return None
    year, month, day, hour, minute, second, *rest = (int(part) if part else 0 for part in match.groups())
    try:
        found = datetime(year, month, day, hour, minute, second, (rest[0] if rest else 0) * 1000, UTC)
    except ValueError:
        return None
    return text_of(found)


def unnested(header: dict[str, Any]) -> dict[str, Any]:
    """A header whose metadata hold metadata again: the outer ones win, the inner ones fill up, level by level."""
    key = "chat_metadata" if isinstance(header.get("chat_metadata"), dict) else "metadata"
    metadata = dict(header[key])
    for _level in range(NESTED_MAX):
        inner = metadata.pop("chat_metadata", None)
        if not isinstance(inner, dict):
            if inner is not None:
                metadata["chat_metadata"] = inner
            break
        for field in NESTING_FIELDS:
            if field in header:
                metadata.pop(field, None)
        metadata = {**{name: value for name, value in inner.items() if name not in metadata}, **metadata}
    return {**header, key: metadata}
