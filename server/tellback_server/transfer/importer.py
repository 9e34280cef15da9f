"""Importer: puts items into a user's folder or a store, each whole or not at all, and nothing over anything.

    importer = Importer(files, user, image, journal, clock, source, is_dry=..., conflict=..., again=...)
    for found in source.items(): importer.take(found)   -> Taken

Rules of this module (STORAGE "Import and export", IE5 to IE8):
- A name that is taken by something else is never overwritten: the item comes in beside it, or is left out.
- States are written before their owner: an owner that is there has all of them, whenever we were killed.
- What was imported before is known by its content, not by its name; it stays as it is here now.
- What is replaced (unchanged here, changed in the source) is kept first.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tellback_protocol.ids import CharacterChat, CharacterOwner, ChatName, GroupChat
from tellback_server.checks.log_image import LogImage
from tellback_server.clock import Clock
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileTaken, FsError
from tellback_server.store.files import FileStore
from tellback_server.store.groups import GroupEdit, edited, with_id
from tellback_server.store.jsonl import parse_chat
from tellback_server.store.place import twin_key
from tellback_server.transfer.anomalies import Anomaly, Notes
from tellback_server.transfer.destination import Destination, FileDestination
from tellback_server.transfer.item import GroupFile, Item, Target, beside, digest, path_of, target_of
from tellback_server.transfer.journal import Entry, Journal
from tellback_server.transfer.source import Found, Source

__all__ = ["Action", "Conflict", "Importer", "Taken"]

Action = Literal["imported", "beside", "updated", "known", "left-out"]
Conflict = Literal["beside", "skip"]
BESIDE_MAX: Final = 10_000


class Taken(msgspec.Struct, omit_defaults=True):
    """What became of an item. Read by scripts: keep the fields."""

    action: Action
    source: str
    target: str = ""
    messages: int = 0
    size_bytes: int = 0
    kept: str = ""
    """Below the user's folder: bytes of the source, or what was replaced."""
    notes: list[Anomaly] = []


class Importer:
    """One run for one user. Call it with the data folder locked, or with `is_dry`."""

    def __init__(
        self, files: FileStore, user: str, image: LogImage, journal: Journal, clock: Clock, source: Source, *,
        is_dry: bool = False, conflict: Conflict = "beside", again: bool = False, there: Destination | None = None,
    ) -> None:
        """`there`: where it goes, if not into the user's folder. Raises LogCorrupt, FsError when the log of the data
        folder cannot be read.
        """
        self._there: Destination = there or FileDestination(files, user, clock, is_dry=is_dry)
        self._journal = journal
        self._clock = clock
        self._source = source
        self._conflict = conflict
        self._again = again
        self.shown: dict[str, tuple[str, str]] = {}
        """Chats that the source shows, by scope: id and name here."""
        self._characters: dict[str, str] = {}
        self._renamed: dict[str, str] = {}
        """Group chats that came in under another name."""
        self._logged = {
            facts.base.name for facts in image.facts().values()
            if facts.base is not None and facts.base.user == user and not facts.is_gone
        }
        if image.error is not None:
            raise image.error

    # -- one item ----------------------------------------------------------------------------------------------------

    def take(self, found: Found) -> Taken:
        """Put it where it belongs. Durable on return. Raises OSError when the disk does not take it."""
        if isinstance(found, Anomaly):
            return Taken("left-out", found.path, notes=[found])
        notes = Notes(found.source)
        taken = None if self._again else self._known(found, notes)
        if taken is None:
            # What its first import told is not told again.
            for note in found.notes:
                notes.put(note)
            taken = self._place(found, notes)
        taken.notes = notes.take()
        if found.is_shown and isinstance(found.target, CharacterChat):
            self._show(taken.target)
        if isinstance(found.target, GroupChat) and taken.target not in ("", str(found.target)):
            self._renamed[found.target.chat] = taken.target.removeprefix("group:")
        return taken

    def _show(self, target: str) -> None:
        place = target_of(target)
        chat_id = None if place is None else self._there.chat_id(place)
        if isinstance(place, CharacterChat) and chat_id is not None:
            self.shown[str(CharacterOwner(place.character))] = chat_id, target

    def _known(self, item: Item, notes: Notes) -> Taken | None:
        """What an earlier run made of it; None when it is new."""
        entry = self._journal.same(item.fingerprint, str(item.target))
        if entry is None:
            entry = self._renamed_there(item)
            if entry is None:
                return None
            notes.add("renamed-there", "left as it is here", detail=f"as {entry.target}")
        target = target_of(entry.target)
        now = None if target is None else self._there.digest(target)
        if now is None:
            notes.add("gone-here", "not imported again without --again", detail=entry.target)
        elif now != entry.stored:
            notes.add("changed-here", "left as it is here", detail=entry.target)
        return Taken("known", item.source, entry.target, item.messages)

    def _renamed_there(self, item: Item) -> Entry | None:
        """The import of the same chat, which had another name in this source then."""
        if not isinstance(item.target, CharacterChat | GroupChat) or not item.messages:
            return None
        folders, _name = path_of(item.target)
        return next((
            one for one in self._journal.copies(item.fingerprint)
            if one.root == self._source.root and not self._source.has(one.source)
            and (place := target_of(one.place)) is not None and path_of(place)[0] == folders
        ), None)

    def _place(self, item: Item, notes: Notes) -> Taken:
        updated = self._update(item, notes)
        if updated is not None:
            return updated
        target = self._own_folder(item.target, notes)
        if isinstance(target, GroupFile):
            self._take_new_names(item)
        for number in range(BESIDE_MAX):
            candidate = target if number == 0 else beside(target, number)
            data = item.data
            if isinstance(candidate, GroupFile) and number:
                data = with_id(data, candidate.group)
            standing = self._standing(item, candidate, data)
            if standing == "same":
                self._there.add_states(item, candidate, notes)
                self._remember(item, candidate, data)
                return Taken("known", item.source, str(candidate), item.messages)
            if standing == "free" and self._there.put(item, candidate, data, notes):
                kept = ""
                if item.quarantine:
                    kept = self._there.keep(f"{digest(item.quarantine)}-source", item.quarantine)
                self._remember(item, candidate, data)
                action: Action = "imported" if number == 0 else "beside"
                if number:
                    notes.add("name-taken", f"imported as {candidate}")
                return Taken(action, item.source, str(candidate), item.messages, item.size_bytes, kept)
            if self._conflict == "skip":
                notes.add("name-taken", "left out; --on-conflict beside imports it under another name")
                return Taken("left-out", item.source)
        raise FileTaken(str(target), f"{BESIDE_MAX} things of this name are here")

    # -- what is there -----------------------------------------------------------------------------------------------

    def _own_folder(self, target: Target, notes: Notes) -> Target:
        """A character's chats go where no other folder is taken for the same."""
        if not isinstance(target, CharacterChat):
            return target
        character = self._characters.get(target.character)
        if character is None:
            character = target.character
            listing = self._there.names(("chats",))
            number = 1
            while listing.get(twin_key(character), character) != character:
                moved = beside(CharacterChat("", target.character), number)
                assert isinstance(moved, CharacterChat), "as what was given"
                character = moved.chat
                number += 1
            self._characters[target.character] = character
        if character != target.character:
            notes.add("character-twin", f"its chats go to {character}", detail=target.character)
        return CharacterChat(character, target.chat)

    def _standing(self, item: Item, target: Target, data: bytes) -> Literal["free", "same", "other"]:
        folders, name = path_of(target)
        taken = self._there.names(folders).get(twin_key(name))
        if taken is None:
            # A chat that the log knows and that has no file: another program deleted it, or it was never written.
            return "other" if str(target) in self._logged and not isinstance(target, GroupFile) else "free"
        if taken != name:
            return "other"
        return "same" if self._there.digest(target) == self._there.digest_of(item, target, data) else "other"

    def _remember(self, item: Item, target: Target, data: bytes) -> None:
        self._journal.add(Entry(
            self._source.root, item.source, str(item.target), str(target), item.fingerprint,
            self._there.digest_of(item, target, data),
            {namespace: digest(state) for namespace, state in item.states.items()}, self._clock.now_ms(),
        ))
        failpoint("import.after_journal")

    # -- what the source changed since -------------------------------------------------------------------------------

    def _update(self, item: Item, notes: Notes) -> Taken | None:
        """Replaces what an earlier run wrote and nobody touched since, when the source has a later state of the same.

        None when that is not so.
        """
        entry = self._journal.before(str(item.target))
        if entry is None or self._again:
            return None
        target = target_of(entry.target)
        if target is None or (now := self._there.digest(target)) is None:
            return None
        is_same = (entry.root, entry.source) == (self._source.root, item.source)
        if not is_same:
            # What stands in the source under both names are two things, whatever they hold.
            is_there = entry.root == self._source.root and self._source.has(entry.source)
            if is_there or not isinstance(target, CharacterChat | GroupChat) or not self._goes_on(item, target):
                return None
        if now != entry.stored or entry.target in self._logged:
            notes.add("changed-there", "not replaced, because it was changed here too", detail=entry.target)
            return None
        if isinstance(target, GroupFile):
            self._take_new_names(item)
        kept = self._there.replace(item, target, entry, notes)
        if kept is None:
            notes.add("changed-there", "not replaced, because it was changed here too", detail=entry.target)
            return None
        self._remember(item, target, item.data)
        notes.add("changed-there", "replaced, because nobody changed it here; what stood here is kept", detail=kept)
        return Taken("updated", item.source, entry.target, item.messages, item.size_bytes, kept)

    def _goes_on(self, item: Item, target: ChatName) -> bool:
        """Whether the source has every message that stands here, and others behind them."""
        try:
            here = self._there.lines(target)
        except FsError:
            return False
        there = list(parse_chat(item.data, headed=isinstance(item.target, CharacterChat)).messages.values())
        return len(here) > 0 and there[: len(here)] == here

    def _take_new_names(self, item: Item) -> None:
        """Gives a group's file the names that its chats have here."""
        item.content = item.content or item.data
        for old, new in self._renamed.items():
            changed = edited(item.data, GroupEdit(path="", action="replace", chat=old, to=new))
            item.data = item.data if changed is None else changed
