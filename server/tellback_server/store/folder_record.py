"""Folder record: what a store of plain files knows of one owner, and the names of its files. Pure.

Rules of this module:
- A record is persisted as `chat_sync` of its owner, with a CRC-32 over itself: a field keeps its meaning, new ones have
  a default.
- Paths are relative to the user's folder.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from tellback_protocol.ids import CHARACTER_SIDECAR_MARK, SIDECAR_MARK, ChatName, Version, parse_place, stem_of
from tellback_protocol.values import UNDECODABLE
from tellback_server.store.base import StoreDamaged, StoreError
from tellback_server.store.place import CHARACTERS, CHAT_ENDING, STATE_ENDING, file_of

__all__ = ["RECORD_ENDING", "Home", "Move", "Piece", "Record", "StateEntry", "homes_of"]

RECORD_ENDING: Final = "state.chat_sync.json"
"""Of every record: `.luker-state.chat_sync.json`, and a character's `.state.chat_sync.json`."""


class Home(msgspec.Struct, frozen=True):
    """Where the files of an owner are."""

    folder: str
    stem: str
    is_chat: bool

    @property
    def chat(self) -> str:
        return f"{self.folder}/{self.stem}{CHAT_ENDING}"

    @property
    def record(self) -> str:
        return self.state("chat_sync")

    def state(self, namespace: str) -> str:
        mark = CHARACTER_SIDECAR_MARK if self.folder == CHARACTERS else SIDECAR_MARK
        return f"{self.folder}/{self.stem}{mark}{namespace}{STATE_ENDING}"

    def path_of(self, path: str, other: Home) -> str:
        """Where a file of another home is here."""
        if path == other.chat:
            return self.chat
        mark = CHARACTER_SIDECAR_MARK if other.folder == CHARACTERS else SIDECAR_MARK
        rest = os.path.basename(path)[len(other.stem) + len(mark) :]
        return self.state(rest.removesuffix(STATE_ENDING))


class Piece(msgspec.Struct, frozen=True):
    """How much of a file is counted."""

    size_bytes: int
    crc32: int


class Move(msgspec.Struct, frozen=True):
    """A file gets another path; without a target it is removed. Done again, it finds nothing to do."""

    source: str
    target: str


class StateEntry(msgspec.Struct, frozen=True):
    """A state document; without a file when it was deleted."""

    version: Version | None
    is_corrupt: bool
    file: Piece | None


class Record(msgspec.Struct, kw_only=True):
    """One owner at one version."""

    chat_id: str
    name: str
    home: Home
    head: Version
    version: Version
    summary: bytes
    messages: int
    chat: Piece | None = None
    """None when the owner has no messages: a character or preset."""
    metadata: bytes = b"{}"
    """Of an owner without a chat's file; a chat has it in the first line."""
    states: dict[str, StateEntry] = {}
    moves: list[Move] = []
    """What is to be done, and may be done already."""
    replaces: str = ""
    """The record at this path is not to be believed any more."""
    is_deleted: bool = False

    def files(self) -> list[str]:
        """Every file but the record."""
        states = [self.home.state(namespace) for namespace, entry in self.states.items() if entry.file is not None]
        return states if self.chat is None else [self.home.chat, *states]

    def written(self) -> bytes:
        body = msgspec.json.encode(self)
        return b'{"integrity":%b,"tellback":{"crc32":%d,"owner":%b}}' % (
            msgspec.json.encode(self.head.integrity), zlib.crc32(body), body,
        )

    @classmethod
    def read(cls, data: bytes, path: str) -> Record:
        """Raises StoreDamaged."""
        try:
            outer = _decode(data)
            body = bytes(outer.tellback.owner)
            if zlib.crc32(body) != outer.tellback.crc32:
                raise StoreDamaged(f"{path} does not match its checksum")
            return msgspec.json.decode(body, type=cls)
        except UNDECODABLE as error:
            raise StoreDamaged(f"{path}: {error}") from error


class _Inner(msgspec.Struct):
    crc32: int
    owner: msgspec.Raw


class _Outer(msgspec.Struct):
    integrity: str
    tellback: _Inner


_decode: Any = msgspec.json.Decoder(_Outer).decode


def homes_of(name: str, chat_id: str) -> Iterator[Home]:
    """Homes for a name, the best first; the last one is nobody else's. Raises StoreError when it is no name."""
    place = parse_place(name)
    if isinstance(place, str):
        raise StoreError(f"{name!r} cannot be a file: {place}")
    folders, _ = file_of(place)
    folder, stem, is_chat = "/".join(folders), stem_of(place), isinstance(place, ChatName)
    yield Home(folder, stem, is_chat)
    yield Home(folder, f"{stem} ({chat_id[:8]})", is_chat)
    yield Home(folder, chat_id.replace("/", "_"), is_chat)
