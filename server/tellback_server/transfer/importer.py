"""Importer: puts items into a user's folder, each whole or not at all, and nothing over anything.

    importer = Importer(files, user, image, journal, clock, source, is_dry=..., conflict=..., again=...)
    for found in source.items(): importer.take(found)   -> Taken

Rules of this module (STORAGE "Import and export", IE5 to IE8):
- A name that is taken by something else is never overwritten: the item comes in beside it, or is left out.
- States are written before their owner: an owner that is there has all of them, whenever we were killed.
- What was imported before is known by its content, not by its name; it stays as it is here now.
- What is replaced (unchanged here, changed in the source) is kept first.
"""

from __future__ import annotations

import os
from typing import Final, Literal

import msgspec

from tellback_protocol.ids import CharacterChat, GroupChat, sidecar_name
from tellback_server.checks.log_image import LogImage
from tellback_server.clock import Clock
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMissing, FileTaken, Fs, FsError
from tellback_server.store.files import FileStore
from tellback_server.store.groups import GroupEdit, edited, with_id
from tellback_server.store.held import OutsideEdit
from tellback_server.store.jsonl import parse_chat
from tellback_server.store.marks import SYNC_NAMESPACE
from tellback_server.store.place import STATE_ENDING, is_nameable, twin_key
from tellback_server.store.touch import replace_state
from tellback_server.transfer.anomalies import Anomaly, Notes
from tellback_server.transfer.item import GroupFile, Item, Target, beside, digest, path_of, target_of
from tellback_server.transfer.journal import Entry, Journal
from tellback_server.transfer.source import Found, Source

__all__ = ["Action", "Conflict", "Importer", "Taken"]

Action = Literal["imported", "beside", "updated", "known", "left-out"]
Conflict = Literal["beside", "skip"]
BESIDE_MAX: Final = 10_000
KEPT_FOLDER: Final = ("backups", "tellback", "imports")


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
        is_dry: bool = False, conflict: Conflict = "beside", again: bool = False,
    ) -> None:
        """Raises LogCorrupt, FsError when the log of the data folder cannot be read."""
        self._files = files
        self._fs: Fs = files.fs
        self._user = user
        self._root = files.user_root(user)
        self._journal = journal
        self._clock = clock
        self._source = source
        self._is_dry = is_dry
        self._conflict = conflict
        self._again = again
        self._listings: dict[tuple[str, ...], dict[str, str]] = {}
        """Names in the folders of the user, by what no other name may equal."""
        self._written: dict[str, str] = {}
        """Digests of what this run wrote or would write, by path."""
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
        if isinstance(found.target, GroupChat) and taken.target not in ("", str(found.target)):
            self._renamed[found.target.chat] = taken.target.removeprefix("group:")
        return taken

    def _known(self, item: Item, notes: Notes) -> Taken | None:
        """What an earlier run made of it; None when it is new."""
        entry = self._journal.same(item.fingerprint, str(item.target))
        if entry is None:
            entry = self._renamed_there(item)
            if entry is None:
                return None
            notes.add("renamed-there", "left as it is here", detail=f"as {entry.target}")
        target = target_of(entry.target)
        path = None if target is None else self._path(target)
        now = None if path is None else self._digest(path)
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
            standing = self._standing(candidate, data)
            if standing == "same":
                self._write_states(item, candidate, notes)
                self._remember(item, candidate, data)
                return Taken("known", item.source, str(candidate), item.messages)
            if standing == "free" and self._write(item, candidate, data, notes):
                kept = self._keep(item) if item.quarantine else ""
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
            listing = self._listing(("chats",))
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

    def _standing(self, target: Target, data: bytes) -> Literal["free", "same", "other"]:
        folders, name = path_of(target)
        taken = self._listing(folders).get(twin_key(name))
        if taken is None:
            # A chat that the log knows and that has no file: another program deleted it, or it was never written.
            return "other" if str(target) in self._logged and not isinstance(target, GroupFile) else "free"
        if taken != name:
            return "other"
        return "same" if self._digest(self._path(target)) == digest(data) else "other"

    def _listing(self, folders: tuple[str, ...]) -> dict[str, str]:
        known = self._listings.get(folders)
        if known is None:
            path = self._files.checked_path(self._user, "/".join((*folders, "x")))
            try:
                names = self._fs.listdir(os.path.dirname(path))
            except FileMissing:
                names = []
            known = {twin_key(name): name for name in names}
            if len(self._listings) > 64:
                # Sources come folder by folder.
                self._listings.clear()
            if not self._is_dry:
                self._listings[folders] = known
            else:
                known |= {
                    twin_key(os.path.basename(one)): os.path.basename(one) for one in self._written
                    if os.path.dirname(one) == os.path.dirname(path)
                }
                self._listings[folders] = known
        return known

    def _path(self, target: Target) -> str:
        folders, name = path_of(target)
        return self._files.checked_path(self._user, "/".join((*folders, name)))

    def _digest(self, path: str) -> str | None:
        if self._is_dry and path in self._written:
            return self._written[path]
        try:
            return digest(self._files.read(path).data)
        except FileMissing:
            return None
        except FsError:
            # It is there, and it is nothing that could be compared.
            return ""

    # -- writing -----------------------------------------------------------------------------------------------------

    def _write(self, item: Item, target: Target, data: bytes, notes: Notes) -> bool:
        """False when somebody else's file is in the way."""
        path = self._path(target)
        if not self._write_states(item, target, notes, is_new=True):
            return False
        failpoint("import.after_states")
        if not self._is_dry:
            self._fs.make_directories(os.path.dirname(path))
            try:
                self._publish(path, data, item.mtime_ns)
            except FileTaken:
                self._listings.clear()
                return False
            failpoint("import.after_file")
        self._written_now(path, data)
        return True

    def _publish(self, path: str, data: bytes, mtime_ns: int) -> None:
        """Lists show when a chat changed: that is when it did so in the source. Raises FileTaken, OSError."""
        self._files.publish_new(path, data)
        self._fs.set_mtime(path, mtime_ns)

    def _written_now(self, path: str, data: bytes) -> None:
        folders = tuple(os.path.relpath(os.path.dirname(path), self._root).split(os.sep))
        name = os.path.basename(path)
        if folders in self._listings:
            self._listings[folders][twin_key(name)] = name
        if len(folders) == 2 and folders[:1] in self._listings:
            self._listings[folders[:1]][twin_key(folders[1])] = folders[1]
        if self._is_dry:
            self._written[path] = digest(data)

    def _write_states(self, item: Item, target: Target, notes: Notes, *, is_new: bool = False) -> bool:
        """Writes the states that are missing. `is_new`: another content in the place of one is somebody else's."""
        if isinstance(target, GroupFile):
            return True
        folders, _name = path_of(target)
        for namespace, data in item.states.items():
            name = sidecar_name(target, namespace)
            if not is_nameable(target, namespace):
                notes.add("name-unusable", "left out", detail=f"{name} is too long for a file")
                continue
            path = self._files.checked_path(self._user, "/".join((*folders, name)))
            now = self._digest(path)
            if now is not None:
                if now != digest(data):
                    if is_new:
                        return False
                    if namespace != SYNC_NAMESPACE:
                        notes.add("state-taken", "left as it is here", detail=namespace)
                continue
            if not self._is_dry:
                self._fs.make_directories(os.path.dirname(path))
                try:
                    self._publish(path, data, item.mtime_ns)
                except FileTaken:
                    return False
                failpoint("import.after_state")
            self._written_now(path, data)
        return True

    def _remember(self, item: Item, target: Target, data: bytes) -> None:
        self._journal.add(Entry(
            self._source.root, item.source, str(item.target), str(target), item.fingerprint, digest(data),
            {namespace: digest(state) for namespace, state in item.states.items()}, self._clock.now_ms(),
        ))
        failpoint("import.after_journal")

    def _keep(self, item: Item) -> str:
        """Bytes of the source that no file holds."""
        return self._kept(f"{digest(item.quarantine)}-source", item.quarantine)

    def _kept(self, name: str, data: bytes) -> str:
        path = self._files.checked_path(self._user, "/".join((*KEPT_FOLDER, name)))
        if not self._is_dry:
            self._fs.make_directories(os.path.dirname(path))
            if self._fs.stat(path) is None:
                self._files.publish_new(path, data)
        return "/".join((*KEPT_FOLDER, name))

    # -- what the source changed since -------------------------------------------------------------------------------

    def _update(self, item: Item, notes: Notes) -> Taken | None:
        """Replaces what an earlier run wrote and nobody touched since, when the source has a later state of the same.

        None when that is not so.
        """
        entry = self._journal.before(str(item.target))
        if entry is None or self._again:
            return None
        target = target_of(entry.target)
        path = None if target is None else self._path(target)
        if target is None or path is None or (now := self._digest(path)) is None:
            return None
        is_same = (entry.root, entry.source) == (self._source.root, item.source)
        if not is_same:
            # What stands in the source under both names are two things, whatever they hold.
            is_there = entry.root == self._source.root and self._source.has(entry.source)
            if is_there or not isinstance(target, CharacterChat | GroupChat) or not self._goes_on(item, path):
                return None
        if now != entry.stored or entry.target in self._logged:
            notes.add("changed-there", "not replaced, because it was changed here too", detail=entry.target)
            return None
        if isinstance(target, GroupFile):
            self._take_new_names(item)
        kept = ""
        if not self._is_dry:
            standing = self._files.read(path)
            kept = self._kept_before(target, standing.data)
            failpoint("import.after_kept")
            try:
                self._replace_states(item, target, entry, notes)
                replace_state(self._files, path, item.data, standing.identity, "import")
                self._fs.set_mtime(path, item.mtime_ns)
            except OutsideEdit:
                notes.add("changed-there", "not replaced, because it was changed here too", detail=entry.target)
                return None
        self._written_now(path, item.data)
        self._remember(item, target, item.data)
        notes.add("changed-there", "replaced, because nobody changed it here; what stood here is kept", detail=kept)
        return Taken("updated", item.source, entry.target, item.messages, item.size_bytes, kept)

    def _goes_on(self, item: Item, path: str) -> bool:
        """Whether the source has every message that stands here, and others behind them."""
        headed = isinstance(item.target, CharacterChat)
        try:
            here = list(parse_chat(self._files.read(path).data, headed=headed).messages.values())
        except FsError:
            return False
        there = list(parse_chat(item.data, headed=headed).messages.values())
        return len(here) > 0 and there[: len(here)] == here

    def _kept_before(self, target: Target, data: bytes) -> str:
        if isinstance(target, CharacterChat | GroupChat):
            chat_id = self._files.chat_id_of(self._user, target)
            return self._files.backup(self._user, chat_id, 0, self._clock.now_ms(), data)
        _folders, name = path_of(target)
        return self._kept(f"{digest(data)}{os.path.splitext(name)[1]}", data)

    def _replace_states(self, item: Item, target: Target, entry: Entry, notes: Notes) -> None:
        """What was changed here stays. Raises OutsideEdit."""
        if isinstance(target, GroupFile):
            return
        for namespace, data in item.states.items():
            path = self._files.state_path(self._user, target, namespace)
            try:
                standing = self._files.read(path)
            except FileMissing:
                self._publish(path, data, item.mtime_ns)
                continue
            if standing.data == data:
                continue
            if digest(standing.data) != entry.states.get(namespace):
                notes.add("state-taken", "left as it is here", detail=namespace)
                continue
            self._kept(f"{digest(standing.data)}.{namespace}{STATE_ENDING}", standing.data)
            replace_state(self._files, path, data, standing.identity, namespace)

    def _take_new_names(self, item: Item) -> None:
        """Gives a group's file the names that its chats have here."""
        item.content = item.content or item.data
        for old, new in self._renamed.items():
            changed = edited(item.data, GroupEdit(path="", action="replace", chat=old, to=new))
            item.data = item.data if changed is None else changed
