"""Exporter: a user's things as another program keeps them, in a folder of its own.

    sillytavern   chats, group chats, groups, cards, presets, byte for byte
    luker         the same with the states
    cardshark     chats of characters with folders.json and active_chats.json, and the cards
    openai        <character>/<chat>.jsonl, a role/content message a line
    text          <character>/<chat>.txt

Rules of this module:
- Nothing is overwritten unless it is asked for; what is there byte for byte is left alone, so a second run goes on.
- What a format has no place for is told.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

import msgspec

from tellback_protocol.ids import CharacterChat, CharacterOwner, GroupChat, PresetOwner, parse_place, sidecar_name
from tellback_protocol.values import dumps, loads
from tellback_server.fs import Fs
from tellback_server.store.card import card_of, card_value_of
from tellback_server.store.jsonl import parse_chat
from tellback_server.store.marks import SYNC_NAMESPACE
from tellback_server.store.place import CARD_ENDING, twin_key
from tellback_server.transfer.anomalies import Anomaly, Notes
from tellback_server.transfer.cardshark import character_id_of, clean_name, to_cardshark
from tellback_server.transfer.item import GroupFile, Item, path_of
from tellback_server.transfer.plain_text import to_text
from tellback_server.transfer.role_content import to_role_content

__all__ = ["Exporter", "Form", "Given", "text_form", "wants"]

Form = Literal["sillytavern", "luker", "cardshark", "openai", "text"]
_ENDINGS: Final = {"openai": ".jsonl", "text": ".txt"}
_NS_MS: Final = 1_000_000
_NUMBERED_MAX: Final = 10_000


class Given(msgspec.Struct, omit_defaults=True):
    """What became of an item. Read by scripts: keep the fields."""

    action: Literal["written", "same", "left-out"]
    source: str
    files: list[str] = []
    messages: int = 0
    size_bytes: int = 0
    notes: list[Anomaly] = []


def text_form(item: Item, form: Literal["openai", "text"], notes: Notes) -> bytes:
    """A chat's file in a format of messages alone."""
    parsed = parse_chat(item.data, headed=isinstance(item.target, CharacterChat))
    messages: list[dict[str, Any]] = []
    for message_id, line in parsed.messages.items():
        value = loads(line)
        if message_id in parsed.bare:
            value.pop("id", None)
        messages.append(value)
    for damage in parsed.damage:
        notes.add("line-not-json", "left out", detail=damage.problem, line=damage.line)
    if len(loads(parsed.metadata)):
        notes.add("export-without", "left out", detail="metadata")
    if form == "openai":
        if any(isinstance(swipes := one.get("swipes"), list) and len(swipes) > 1 for one in messages):
            notes.add("export-without", "only the one that is shown is written", detail="swipes")
        return b"".join(_dumped(to_role_content(one), notes) for one in messages)
    return to_text(messages).encode("utf-8", "replace")


def _dumped(message: dict[str, Any], notes: Notes) -> bytes:
    try:
        return dumps(message) + b"\n"
    except RecursionError:
        notes.add("line-not-json", "left out", detail="nested too deeply to be written anew")
        return b""


class Exporter:
    """One run into one folder."""

    def __init__(self, fs: Fs, folder: str, form: Form, *, overwrites: bool = False, is_dry: bool = False) -> None:
        self._fs = fs
        self._folder = folder
        self._form = form
        self._overwrites = overwrites
        self._is_dry = is_dry
        self._cards: dict[str, dict[str, Any]] = {}
        self._shown: dict[str, str] = {}
        self._chosen: dict[str, str] = {}
        self._folders: dict[str, str] = {}
        """CardShark's folder of each character."""
        self._ids: dict[str, str] = {}
        self._chats: dict[str, dict[str, str]] = {}
        """Chat ids of each character, by chat."""
        self._newest: dict[str, tuple[int, str]] = {}
        self._taken: set[tuple[str, str]] = set()

    def take(self, item: Item) -> Given:
        """Write it. Durable on return. Raises OSError."""
        notes = Notes(item.source)
        for note in item.notes:
            if note.severity == "damage":
                notes.put(note)
        given = Given("left-out", item.source, messages=item.messages)
        if isinstance(item.target, CharacterOwner):
            self._know(item.target.character, item.data)
        for path, data in self._files_of(item, notes):
            action = self._put(path, data, item.mtime_ns, notes)
            if action == "left-out":
                continue
            given.action = "written" if "written" in (action, given.action) else action
            given.files.append(path)
            given.size_bytes += len(data)
        given.notes = notes.take()
        return given

    def finish(self) -> list[Given]:
        """What stands beside all of them."""
        if self._form != "cardshark" or not self._folders:
            return []
        active = {}
        for character, character_id in self._ids.items():
            chats = self._chats.get(character, {})
            shown = {**self._shown, **self._chosen}.get(character, "")
            active[character_id] = chats.get(shown, self._newest.get(character, (0, ""))[1])
        maps = {
            "chats/folders.json": {self._ids[character]: folder for character, folder in self._folders.items()},
            "chats/active_chats.json": active,
        }
        found = []
        for path, value in maps.items():
            notes = Notes(path)
            action = self._put(path, dumps(value), 0, notes)
            found.append(Given(action, path, [path], notes=notes.take()))
        return found

    # -- what is written ---------------------------------------------------------------------------------------------

    def _files_of(self, item: Item, notes: Notes) -> Iterator[tuple[str, bytes]]:
        target = item.target
        match self._form:
            case "sillytavern" | "luker":
                folders, name = path_of(target)
                if not isinstance(target, GroupFile):
                    states = {one: data for one, data in item.states.items() if one != SYNC_NAMESPACE}
                    if self._form == "luker":
                        for namespace, data in item.states.items():
                            yield "/".join((*folders, sidecar_name(target, namespace))), data
                    elif states:
                        notes.add("export-without", "left out", detail=f"states: {', '.join(sorted(states))}")
                if not item.is_bare:
                    yield "/".join((*folders, name)), item.data
            case "cardshark":
                yield from self._cardshark(item, notes)
            case "openai" | "text" as form:
                if isinstance(target, CharacterChat | GroupChat):
                    folder = target.character if isinstance(target, CharacterChat) else "group chats"
                    yield f"{folder}/{target.chat}{_ENDINGS[form]}", text_form(item, form, notes)

    def _cardshark(self, item: Item, notes: Notes) -> Iterator[tuple[str, bytes]]:
        target = item.target
        match target:
            case CharacterOwner():
                if not item.is_bare:
                    yield f"characters/{target.character}{CARD_ENDING}", item.data
            case CharacterChat():
                character = target.character
                character_id = self._ids.get(character) or character_id_of(character, self._cards.get(character))
                chat = to_cardshark(
                    item.data, character, target.chat, character_id, item.mtime_ns // _NS_MS
                )
                # The header of a chat that came from there knows the id better.
                self._ids[character] = self._ids.get(character) or chat.character_id
                self._chats.setdefault(character, {})[target.chat] = chat.chat_id
                self._newest[character] = max(self._newest.get(character, (0, "")), (item.mtime_ns, chat.chat_id))
                folder = self._folder_of(character)
                stem = self._free(folder, chat.stem)
                if stem != chat.stem:
                    notes.add("export-name", f"called {stem}")
                if set(item.states) - {SYNC_NAMESPACE}:
                    notes.add("export-without", "left out", detail="states")
                yield f"chats/{folder}/{stem}.jsonl", chat.data
            case GroupChat():
                notes.add("export-without", "left out", detail="chats of groups")

    def _folder_of(self, character: str) -> str:
        if character not in self._folders:
            base = folder = clean_name(character)
            number = 2
            while twin_key(folder) in {twin_key(one) for one in self._folders.values()}:
                folder = f"{base} {number}"
                number += 1
            self._folders[character] = folder
        return self._folders[character]

    def _free(self, folder: str, stem: str) -> str:
        name = stem
        for number in range(1, _NUMBERED_MAX):
            if (folder, twin_key(name)) not in self._taken:
                break
            # The date stays the end of the name.
            start, _line, rest = stem.partition("_")
            name = f"{start}_{number}_{rest}"
        self._taken.add((folder, twin_key(name)))
        return name

    def show(self, chats: Iterable[str]) -> None:
        """Chats that were chosen to be active here: they count more than what cards say."""
        for name in chats:
            place = parse_place(name)
            if isinstance(place, CharacterChat):
                self._chosen[place.character] = place.chat

    def know(self, item: Item) -> None:
        """A card that is not exported itself."""
        assert isinstance(item.target, CharacterOwner), "a card"
        self._know(item.target.character, item.data)

    def bytes_of(self, item: Item) -> list[bytes]:
        """What `take` would write last: a chat's own file."""
        return [data for _path, data in self._files_of(item, Notes(item.source))][-1:]

    def _know(self, character: str, data: bytes) -> None:
        value = card_value_of(data)
        if value is not None:
            self._cards[character] = value
        card = card_of(data)
        if card.chat is not None:
            self._shown[character] = card.chat

    # -- writing -----------------------------------------------------------------------------------------------------

    def _put(self, path: str, data: bytes, mtime_ns: int, notes: Notes) -> Literal["written", "same", "left-out"]:
        full = os.path.join(self._folder, *path.split("/"))
        standing = self._fs.stat(full)
        if standing is not None:
            if standing.is_regular and standing.size_bytes == len(data) and self._fs.read(full) == data:
                return "same"
            if not self._overwrites or not standing.is_regular:
                notes.add("export-differs", "left as it is; --overwrite replaces it", detail=path)
                return "left-out"
        if not self._is_dry:
            self._fs.make_directories(os.path.dirname(full))
            self._fs.write_atomically(full, data)
            if mtime_ns:
                self._fs.set_mtime(full, mtime_ns)
        return "written"


def wants(item: Item, form: Form) -> bool:
    """Whether a format has a place for such a thing at all."""
    if form in ("openai", "text"):
        return isinstance(item.target, CharacterChat | GroupChat)
    return form != "cardshark" or not isinstance(item.target, PresetOwner | GroupFile)
