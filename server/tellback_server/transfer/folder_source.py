"""Folder source: a user's folder of SillyTavern or Luker, file by file, byte for byte.

Rules of this module:
- Every file keeps its bytes: the server reads what other programs write (STORAGE "User files"). Only
  what another tellback wrote into chat_sync stays behind: its ids and versions count there.
- A chat comes with its states, a card and a preset too; groups come last, because they name chats.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from tellback_protocol.ids import (
    PRESET_FOLDERS,
    CharacterChat,
    CharacterOwner,
    GroupChat,
    Place,
    existing_name_problem,
)
from tellback_protocol.values import dumps, loads
from tellback_server.checks.chat_lines import ChatScan
from tellback_server.checks.kinds import kind_of
from tellback_server.fs import Fs
from tellback_server.store.card import card_of
from tellback_server.store.files import SERVER_FOLDER
from tellback_server.store.groups import metadata_told
from tellback_server.store.jsonl import is_header, line_object
from tellback_server.store.marks import SYNC_NAMESPACE, sync_of
from tellback_server.store.place import CHAT_ENDING
from tellback_server.transfer.anomalies import Anomaly, Notes, from_finding
from tellback_server.transfer.item import GroupFile, Item, legal_name
from tellback_server.transfer.source import Entry, Found, Reading, SourceUnusable, existing, other

__all__ = ["FolderSource", "LooseChat", "user_roots"]

_CHATS: Final = ("chats", "group chats")
_FLAT: Final = ("characters", "group chats", *sorted(PRESET_FOLDERS), "groups")
_TAKEN: Final = frozenset(("chats", *_FLAT))
_ABOVE: Final = ("data", "public")
"""Where an installation of SillyTavern keeps its users, and its one user before 1.12."""


def user_roots(fs: Fs, path: str) -> dict[str, str]:
    """The users' folders that a path means, by name: itself, what is in it, or in the `data` of an installation."""
    if _is_user(fs, path):
        return {os.path.basename(path): path}
    users: dict[str, str] = {}
    for name in fs.listdir(path):
        if name[0] not in "._" and _is_user(fs, os.path.join(path, name)):
            users[name] = os.path.join(path, name)
    below = os.path.join(path, "data")
    if not set(users) - set(_ABOVE) and _is_folder(fs, below):
        inner = user_roots(fs, below)
        return inner or users
    return users


def _is_folder(fs: Fs, path: str) -> bool:
    stat = fs.stat(path)
    return stat is not None and stat.is_directory


def _is_user(fs: Fs, path: str) -> bool:
    return any(_is_folder(fs, os.path.join(path, name)) for name in _CHATS)


class _Family(msgspec.Struct):
    """An owner's file and its states."""

    main: Entry | None = None
    states: dict[str, Entry] = {}


class FolderSource:
    """One user's folder. See Source."""

    def __init__(self, fs: Fs, root: str, *, has_chats: bool = True) -> None:
        """Without `has_chats` the chats are in a store, and the rest stands here."""
        self.root = root
        self._has_chats = has_chats
        self._reading = Reading(fs, root)
        self._left_out: list[Anomaly] = []
        self._folders: list[tuple[str, ...]] = []
        self._shown: dict[str, str] = {}
        """The chat that each character's card shows; cards come before chats."""
        self._told: list[dict[str, Any]] | None = None
        """Files of groups that hold metadata of chats, once one was asked for."""

    def plan(self) -> int:
        if self._has_chats and not _is_user(self._reading.fs, self.root):
            raise SourceUnusable(f"{self.root} holds neither chats/ nor group chats/: it is no folder of a user")
        self._folders = [("characters",)]
        for name in self._reading.folders(("chats",)):
            if isinstance(name, Anomaly):
                self._left_out.append(name)
            else:
                self._folders.append(("chats", name))
        self._folders += [(name,) for name in _FLAT[1:]]
        size_bytes = 0
        for folder in self._folders:
            size_bytes += sum(one.size_bytes for one in self._reading.listed(folder) if isinstance(one, Entry))
        return size_bytes

    def has(self, source: str) -> bool:
        return self._reading.has(source)

    def items(self) -> Iterator[Found]:
        yield from self._left_out
        for name in self._reading.fs.listdir(self.root) if _is_folder(self._reading.fs, self.root) else ():
            if name not in _TAKEN:
                notes = Notes(name.encode("utf-8", "replace").decode())
                notes.add("source-server-file" if name == SERVER_FOLDER else "source-other", "left out")
                yield from notes.take()
        for entry in self._reading.listed(("chats",)):
            yield entry if isinstance(entry, Anomaly) else other(entry)
        for folder in self._folders:
            yield from self._folder(folder)

    def _folder(self, folder: tuple[str, ...]) -> Iterator[Found]:
        families: dict[Place, _Family] = {}
        for entry in self._reading.listed(folder):
            if isinstance(entry, Anomaly):
                yield entry
                continue
            kind = kind_of(entry.parts)
            match kind.sort:
                case "chat" | "card" | "preset":
                    assert kind.place is not None, "by its kind"
                    families.setdefault(kind.place, _Family(states={})).main = entry
                case "state" | "floor-log" | "sync":
                    assert kind.place is not None, "by its kind"
                    families.setdefault(kind.place, _Family(states={})).states[kind.namespace] = entry
                case "group":
                    yield from self._group(entry)
                case _:
                    yield other(entry)
        for place in list(families):
            yield from self._family(place, families.pop(place))

    def _group(self, entry: Entry) -> Iterator[Found]:
        notes = Notes(entry.name)
        group = entry.parts[-1].removesuffix(".json")
        read = self._reading.read(entry, notes)
        if existing_name_problem(group) is not None:
            notes.add("name-unusable", "left out")
        elif read is not None:
            data, stat = read
            try:
                loads(data)
            except (ValueError, RecursionError):
                notes.add("line-not-json", "kept as it is; the server passes it over")
            yield Item(
                source=entry.name, target=GroupFile(group), data=data, mtime_ns=stat.mtime_ns,
                size_bytes=len(data), notes=notes.take(),
            )
            return
        yield from notes.take()

    def _family(self, place: Place, family: _Family) -> Iterator[Found]:
        if family.main is None:
            for entry in family.states.values():
                notes = Notes(entry.name)
                notes.add("source-other", "left out", detail="a state whose owner is not there")
                yield from notes.take()
            return
        notes = Notes(family.main.name)
        read = self._reading.read(family.main, notes)
        if read is None:
            yield from notes.take()
            return
        data, stat = read
        size_bytes = len(data)
        states: dict[str, bytes] = {}
        for namespace, entry in family.states.items():
            told = Notes(entry.name)
            state = self._reading.read(entry, told)
            if state is not None:
                size_bytes += len(state[0])
                kept = state[0]
                if namespace == SYNC_NAMESPACE:
                    kept = _without_mark(kept, told)
                if kept:
                    states[namespace] = kept
            for one in told.take():
                notes.put(one)
        messages = 0
        if isinstance(place, CharacterChat | GroupChat):
            messages = _scan(data, place, family.main.name, notes)
        if isinstance(place, CharacterOwner):
            chat = card_of(data).chat
            if chat is not None:
                self._shown[place.character] = chat
        yield Item(
            source=family.main.name, target=place, data=data, states=states, mtime_ns=stat.mtime_ns,
            size_bytes=size_bytes, messages=messages, notes=notes.take(),
            inherited=self._inherited(place.chat) if isinstance(place, GroupChat) else b"",
            is_shown=isinstance(place, CharacterChat) and self._shown.get(place.character) == place.chat,
        )

    def _inherited(self, chat: str) -> bytes:
        """What files of groups tell of a chat without a header. Cost: each of them, once."""
        if self._told is None:
            self._told = []
            for entry in self._reading.listed(("groups",)):
                read = None if isinstance(entry, Anomaly) else self._reading.read(entry, Notes(entry.name))
                try:
                    group = None if read is None else loads(read[0])
                except (ValueError, RecursionError):
                    continue
                if isinstance(group, dict):
                    self._told.append(group)
        return next((told for group in self._told if (told := metadata_told(group, chat)) is not None), b"")


class LooseChat:
    """One chat's file by itself, as people send it to each other. See Source."""

    def __init__(self, fs: Fs, path: str, character: str | None) -> None:
        """`character`: whose chat it is; else the header tells, or the name (`<character> - <date>`)."""
        self.root, self._name = os.path.split(path)
        self._character = character
        self._reading = Reading(fs, self.root)

    def plan(self) -> int:
        if not self._name.lower().endswith(CHAT_ENDING):
            raise SourceUnusable(f"{self._name} is neither a folder nor a chat's file (.jsonl)")
        return existing(self._reading.fs, os.path.join(self.root, self._name)).size_bytes

    def has(self, source: str) -> bool:
        return self._reading.has(source)

    def items(self) -> Iterator[Found]:
        notes = Notes(self._name)
        read = self._reading.read(Entry(os.path.join(self.root, self._name), (self._name,), 0), notes)
        if read is None:
            yield from notes.take()
            return
        data, stat = read
        stem = self._name[: -len(CHAT_ENDING)]
        place = CharacterChat(legal_name(self._character or _character_of(data, stem)), legal_name(stem))
        if place.chat != stem:
            notes.add("name-made-legal", f"called {place.chat}", detail=stem[:80])
        messages = _scan(data, place, self._name, notes)
        yield Item(
            source=self._name, target=place, data=data, mtime_ns=stat.mtime_ns, size_bytes=len(data),
            messages=messages, notes=notes.take(),
        )


def _character_of(data: bytes, stem: str) -> str:
    value, _problem = line_object(data.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0])
    name = value.get("character_name") if value is not None and is_header(value, headed=True) else None
    if isinstance(name, str) and name.strip() and name != "unused":
        return name
    before, dash, _date = stem.partition(" - ")
    return before if dash else "Imported"


def _scan(data: bytes, place: Place, path: str, notes: Notes) -> int:
    scan = ChatScan(path, headed=isinstance(place, CharacterChat))
    scan.feed(data)
    scan.finish()
    for finding in scan.tally.take():
        notes.put(from_finding(finding, path))
    return scan.messages


def _without_mark(data: bytes, notes: Notes) -> bytes:
    """A chat_sync without what another tellback wrote into it; empty when nothing else is in it."""
    sync = sync_of(data)
    if sync is None or "tellback" not in sync.fields:
        return data
    notes.add("sync-of-a-server", "they count there and stay there; the messages keep their ids")
    rest = {key: value for key, value in sync.fields.items() if key != "tellback"}
    return dumps(rest) if rest else b""
