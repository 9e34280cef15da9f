"""CardShark source: its `chats` folder, with its map of folders and its cards.

    <root>/chats/folders.json, active_chats.json       {character id: folder}, {character id: chat id}
    <root>/chats/<clean name>[ N]/chat_<name>_<date>.jsonl
    <root>/chats/<8 digits of a uuid>/...              the later layout
    <root>/characters/*.png

Rules of this module:
- A folder is one character, called as the newest header in it says; two folders that say the same name stay apart.
- Maps that are missing or broken cost nothing: the folders tell.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from tellback_protocol.ids import CharacterChat, CharacterOwner, existing_name_problem
from tellback_server.fs import Fs
from tellback_server.store.jsonl import is_header, line_object
from tellback_server.store.place import CARD_ENDING, CHAT_ENDING, twin_key
from tellback_server.transfer.anomalies import Anomaly, Notes
from tellback_server.transfer.cardshark import from_cardshark, map_of
from tellback_server.transfer.item import Item, legal_name
from tellback_server.transfer.source import Entry, Found, Reading, SourceUnusable, other

__all__ = ["CardSharkSource"]

_MAPS: Final = ("folders.json", "active_chats.json")
_HEAD_BYTES: Final = 1 << 16
_NUMBERED: Final = re.compile(r"(.+) \d+")
_UUID_START: Final = re.compile(r"[0-9a-f]{8}")
_NS_MS: Final = 1_000_000


class CardSharkSource:
    """See Source."""

    def __init__(self, fs: Fs, root: str) -> None:
        self.root = root
        self._reading = Reading(fs, root)
        self._chats: tuple[str, ...] = ()
        self._folders: list[str] = []
        self._left_out: list[Anomaly] = []
        self._maps: dict[str, dict[str, str]] = {}

    def plan(self) -> int:
        fs = self._reading.fs
        inner = fs.stat(os.path.join(self.root, "chats"))
        self._chats = ("chats",) if inner is not None and inner.is_directory else ()
        for name in self._reading.folders(self._chats):
            if isinstance(name, Anomaly):
                self._left_out.append(name)
            elif name != "backups" and name[0] != ".":
                self._folders.append(name)
        size_bytes = 0
        found = 0
        for folder in self._folders:
            for entry in self._reading.listed((*self._chats, folder)):
                if isinstance(entry, Entry):
                    size_bytes += entry.size_bytes
                    found += entry.name.endswith(CHAT_ENDING)
        for entry in self._reading.listed(self._chats):
            if isinstance(entry, Entry) and entry.parts[-1] in _MAPS:
                found += 1
                self._map(entry)
        if not found:
            raise SourceUnusable(f"{self.root} is no folder of CardShark: no folders.json and no chat is in it")
        cards = self._reading.listed(("characters",)) if self._chats else iter(())
        return size_bytes + sum(one.size_bytes for one in cards if isinstance(one, Entry))

    def _map(self, entry: Entry) -> None:
        notes = Notes(entry.name)
        read = self._reading.read(entry, notes)
        found = None if read is None else map_of(read[0])
        if found is None:
            notes.add("source-map-unreadable", "the folders and headers tell")
        else:
            self._maps[entry.parts[-1]] = found
            if entry.parts[-1] == "active_chats.json" and found:
                notes.add("source-active-chats", "taken over where no chat was chosen here")
        self._left_out += notes.take()

    def has(self, source: str) -> bool:
        return self._reading.has(source)

    def items(self) -> Iterator[Found]:
        yield from self._left_out
        if self._chats:
            yield from self._cards()
        characters = self._characters()
        for entry in self._reading.listed(self._chats):
            if isinstance(entry, Anomaly):
                yield entry
            elif entry.parts[-1].endswith(CHAT_ENDING):
                yield from self._chat(entry, "")
            elif entry.parts[-1] not in _MAPS:
                yield other(entry)
        for folder in self._folders:
            for entry in self._reading.listed((*self._chats, folder)):
                if isinstance(entry, Anomaly):
                    yield entry
                elif entry.parts[-1].endswith(CHAT_ENDING):
                    yield from self._chat(entry, characters[folder])
                else:
                    yield other(entry)

    def _cards(self) -> Iterator[Found]:
        for entry in self._reading.listed(("characters",)):
            if isinstance(entry, Anomaly):
                yield entry
                continue
            name = entry.parts[-1].removesuffix(CARD_ENDING)
            notes = Notes(entry.name)
            if name == entry.parts[-1] or existing_name_problem(name) is not None:
                yield other(entry)
                continue
            read = self._reading.read(entry, notes)
            if read is None:
                yield from notes.take()
                continue
            data, stat = read
            yield Item(
                source=entry.name, target=CharacterOwner(name), data=data, mtime_ns=stat.mtime_ns,
                size_bytes=len(data), notes=notes.take(),
            )

    def _characters(self) -> dict[str, str]:
        """The character of each folder. Cost: the first line of every chat."""
        told: dict[str, str] = {}
        by_folder = {folder: character for character, folder in self._maps.get("folders.json", {}).items()}
        for folder in self._folders:
            told[folder] = self._told_character(folder) or _by_folder(folder, by_folder.get(folder, ""))
        taken: dict[str, str] = {}
        found: dict[str, str] = {}
        # The folder that is called as its character comes first, whatever stands beside it.
        for folder in sorted(told, key=lambda one: (one != told[one], one)):
            name = legal_name(told[folder], legal_name(folder, "CardShark"))
            if twin_key(name) in taken:
                name = legal_name(folder, "CardShark")
            number = 2
            base = name
            while twin_key(name) in taken:
                name = f"{base} {number}"
                number += 1
            taken[twin_key(name)] = folder
            found[folder] = name
        return found

    def _told_character(self, folder: str) -> str:
        """The name in the newest header of a folder."""
        newest: tuple[int, str] = (-1, "")
        for entry in self._reading.listed((*self._chats, folder)):
            if not isinstance(entry, Entry) or not entry.parts[-1].endswith(CHAT_ENDING):
                continue
            try:
                with self._reading.fs.open_read(entry.path) as file:
                    head, when = file.pread(_HEAD_BYTES, 0), file.stat().mtime_ns
            except OSError:
                continue
            value, _problem = line_object(head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0])
            name = value.get("character_name") if value is not None and is_header(value, headed=True) else None
            if isinstance(name, str) and name.strip() and name != "unused":
                newest = max(newest, (when, name.strip()))
        return newest[1]

    def _chat(self, entry: Entry, character: str) -> Iterator[Found]:
        notes = Notes(entry.name)
        read = self._reading.read(entry, notes)
        if read is None:
            yield from notes.take()
            return
        data, stat = read
        stem = entry.parts[-1].removesuffix(CHAT_ENDING)
        chat = from_cardshark(data, stem, stat.mtime_ns // _NS_MS, notes)
        name = chat.name if chat.name and existing_name_problem(chat.name) is None else legal_name(stem)
        if name not in (stem, chat.name):
            notes.add("name-made-legal", f"called {name}")
        character = character or legal_name(chat.character, "CardShark")
        active = self._maps.get("active_chats.json", {}).get(chat.character_id)
        yield Item(
            source=entry.name, target=CharacterChat(character, name), data=chat.data, content=data,
            mtime_ns=stat.mtime_ns,
            size_bytes=len(data), messages=chat.messages, notes=notes.take(),
            is_shown=active is not None and active in (chat.chat_id, stem),
        )


def _by_folder(folder: str, character_id: str) -> str:
    """The name that a folder tells when no header does."""
    numbered = _NUMBERED.fullmatch(folder)
    if _UUID_START.fullmatch(folder) and character_id:
        return character_id.rpartition("-")[0] or folder
    return numbered[1] if numbered else folder
