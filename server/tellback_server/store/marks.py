"""Marks: what a file was when it was read, and what chat_sync remembers of the files beside it.

Rules of this module:
- Values only; `files` reads and writes them.
- SyncMark and Watermark are persisted: a field keeps its meaning, new ones have a default.
- Our part of chat_sync carries a CRC-32 over itself (X12): one that does not match tells nothing. One without is of an
  earlier version.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import msgspec

from tellback_protocol.ids import Version
from tellback_protocol.values import loads
from tellback_server.fs import FileStat
from tellback_server.records import FileIdentity, StateMark

__all__ = [
    "SYNC_NAMESPACE", "ChatSync", "LoadedFile", "StateFile", "SyncMark", "Watermark", "mark_fields", "sync_of",
]

SYNC_NAMESPACE: Final = "chat_sync"


class LoadedFile(msgspec.Struct, frozen=True, gc=False):
    """A file's bytes and what it was when they were read."""

    data: bytes
    identity: FileIdentity
    stat: FileStat


class StateFile(msgspec.Struct, frozen=True, gc=False):
    """A state sidecar. `corrupt`: it is no JSON and is kept as it is."""

    data: bytes
    identity: FileIdentity
    corrupt: bool


class Watermark(msgspec.Struct, frozen=True, gc=False):
    """How much of the chat file is ours: all of it."""

    bytes: int
    lines: int
    crc32: int


class SyncMark(msgspec.Struct, frozen=True, gc=False):
    """Our part of chat_sync. Persisted: keep stable."""

    chat_id: str
    name: str
    version: Version
    head: Version
    watermark: Watermark
    states: dict[str, StateMark] = {}
    anew: bool = False
    """A repair was told that the log may be older than the files: they are taken as they are, in a new epoch (X13)."""


class ChatSync(msgspec.Struct, gc=False):
    """`<chat>.luker-state.chat_sync.json`: the seed's `integrity` and `updated_at`, and our part.

    `mark` is None when another program wrote the file; `fields` are all its fields, kept when it is rewritten.
    """

    fields: dict[str, Any]
    mark: SyncMark | None
    identity: FileIdentity | None = None
    """None when it was not read from a file."""


def mark_fields(mark: SyncMark) -> dict[str, Any]:
    """Our part of chat_sync, as it is written."""
    fields: dict[str, Any] = msgspec.to_builtins(mark)
    if not mark.anew:
        del fields["anew"]
    return {**fields, "crc32": _crc32_of(fields)}


def sync_of(data: bytes) -> ChatSync | None:
    """A chat_sync; None when it is no JSON object. Without a mark when ours is missing or damaged."""
    try:
        fields = loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    return ChatSync(fields, _mark_of(fields.get("tellback")))


def _mark_of(value: Any) -> SyncMark | None:
    try:
        mark = msgspec.convert(value, SyncMark)
        crc32 = value.get("crc32")
        return mark if crc32 is None or crc32 == _crc32_of(value) else None
    except (msgspec.ValidationError, UnicodeEncodeError):
        # Half a surrogate pair has no bytes to count.
        return None


def _crc32_of(fields: dict[str, Any]) -> int:
    """Of what is there but the checksum itself, as compact JSON in its order."""
    return zlib.crc32(msgspec.json.encode({name: value for name, value in fields.items() if name != "crc32"}))
