"""Store destination: a store as what an import puts chats and states into. Nobody serves it meanwhile.

Rules of this module (STORAGE "Import and export", IE10):
- A chat has the id, the integrity and the message ids that a server on a folder would give to the same file.
- Cards, presets and files of groups have no place in a store: they stand in the data folder as they are, and come back
  with an export.
- Lines that are no messages have no place either: the file is kept whole.
- What the store may lose is kept in the data folder, too.
"""

from __future__ import annotations

import msgspec

from tellback_protocol.ids import (
    CharacterChat,
    ChatName,
    GroupChat,
    Place,
    Version,
    derived_uuid,
    file_integrity,
    namespace_problem,
    parse_place,
)
from tellback_server.clock import Clock
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMissing
from tellback_server.staged import Staged
from tellback_server.store.base import ListedOwner, Store, StoredChat
from tellback_server.store.filed import chat_as_found, from_files, line_as_found, parse_chat_of
from tellback_server.store.jsonl import ParsedChat
from tellback_server.store.marks import SYNC_NAMESPACE
from tellback_server.store.place import twin_key
from tellback_server.transfer.anomalies import Notes
from tellback_server.transfer.destination import FileDestination
from tellback_server.transfer.item import GroupFile, Item, Target, digest, path_of
from tellback_server.transfer.journal import Entry

__all__ = ["StoreDestination"]

_NS_MS = 1_000_000


class StoreDestination:
    """See destination.Destination. `files` are the data folder."""

    def __init__(
        self, files: FileDestination, store: Store | None, clock: Clock, *, keeps_log: bool, is_dry: bool
    ) -> None:
        """`store` is None for a dry run into one that no folder was bound to yet. Cost: a list of the owners."""
        self._files = files
        self._user = files.user
        self._store = store
        self._clock = clock
        self._staged = Staged(files.files) if keeps_log else None
        self._is_dry = is_dry
        self._owners: dict[str, ListedOwner] = {}
        """By name."""
        self._ids: set[str] = set()
        self._folders: dict[tuple[str, ...], dict[str, str]] = {}
        for one in () if store is None else store.list(self._user):
            self._put_down(one)

    def _put_down(self, one: ListedOwner) -> None:
        self._owners[one.name] = one
        self._ids.add(one.chat_id)
        place = parse_place(one.name)
        if isinstance(place, CharacterChat | GroupChat):
            folders, name = path_of(place)
            self._folders.setdefault(folders, {})[twin_key(name)] = name
            if len(folders) > 1:
                self._folders.setdefault(folders[:1], {})[twin_key(folders[1])] = folders[1]

    def names(self, folders: tuple[str, ...]) -> dict[str, str]:
        try:
            return {**self._files.names(folders), **self._folders.get(folders, {})}
        except FileMissing:
            return self._folders.get(folders, {})

    def digest(self, target: Target) -> str | None:
        if not isinstance(target, CharacterChat | GroupChat):
            return self._files.digest(target)
        one = self._owners.get(str(target))
        return None if one is None else one.head.integrity

    def digest_of(self, item: Item, target: Target, data: bytes) -> str:
        if not isinstance(target, CharacterChat | GroupChat):
            return self._files.digest_of(item, target, data)
        told = self._parsed(item, target, data).image.inherited
        inherited = b"" if not isinstance(told, msgspec.Raw) or bytes(told) == b"{}" else bytes(told)
        return file_integrity(1, 0, str(target), data + b"\0" + inherited if inherited else data)

    def _parsed(self, item: Item, target: ChatName, data: bytes) -> ParsedChat:
        return parse_chat_of(target, data, item.inherited or None)

    def put(self, item: Item, target: Target, data: bytes, notes: Notes) -> bool:
        if isinstance(target, CharacterChat | GroupChat):
            self._save(self._value(item, target, data, notes))
            return True
        bare = msgspec.structs.replace(item, states={})
        if not self._files.put(bare, target, data, notes):
            return False
        self._save_states(item, target, notes)
        return True

    def _value(self, item: Item, target: ChatName, data: bytes, notes: Notes) -> StoredChat:
        parsed, name = self._parsed(item, target, data), str(target)
        if parsed.damage:
            kept = self._files.keep(f"{digest(data)}-source", data)
            notes.add("lines-left-out", "the file is kept whole", detail=f"{len(parsed.damage)}, {kept}")
        known = self._owners.get(name)
        return from_files(
            target, parsed, self._usable(item, notes), chat_id=self._id(name) if known is None else known.chat_id,
            version=Version(1, 0, self.digest_of(item, target, data)), now_ms=item.mtime_ns // _NS_MS,
            state_version=lambda namespace, state: Version(1, 0, file_integrity(1, 0, f"{name}#{namespace}", state)),
        )

    def _id(self, name: str) -> str:
        found = self._files.files.new_id(self._user, name)
        return found if found not in self._ids else self._clock.uuid4()

    def _usable(self, item: Item, notes: Notes) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for namespace, data in item.states.items():
            problem = namespace_problem(namespace)
            if namespace == SYNC_NAMESPACE:
                continue
            if problem is None:
                found[namespace] = data
            else:
                kept = self._files.keep(f"{digest(data)}-state", data)
                notes.add("name-unusable", "kept beside", detail=f"{namespace}, {kept}")
        return found

    def _save(self, value: StoredChat) -> None:
        if not self._is_dry:
            assert self._store is not None, "only a dry run has none"
            if self._staged is not None:
                self._staged.keep(self._user, value)
            self._store.save(self._user, None, None, value)
            failpoint("import.after_file")
        self._put_down(ListedOwner(value.chat_id, value.name, value.head, value.summary))

    def _load(self, target: Target) -> StoredChat | None:
        one = self._owners.get(str(target))
        return None if one is None or self._store is None else self._store.load(self._user, one.chat_id)

    def _save_states(self, item: Item, place: Place | GroupFile, notes: Notes) -> None:
        """Of a character or preset: those that are missing, while nobody wrote one here."""
        states = self._usable(item, notes)
        if not states or isinstance(place, GroupFile):
            return
        name, found = str(place), self._load(place)
        held = {} if found is None else {
            namespace: one.data for namespace, one in found.states.items() if one.data is not None
        }
        is_ours = found is not None and found.head.seq > 0
        for namespace in [one for one, data in states.items() if held.get(one, data) != data or is_ours]:
            if held.get(namespace) != states.pop(namespace):
                notes.add("state-taken", "left as it is here", detail=namespace)
        if not states or states.items() <= held.items():
            return
        every = {**held, **states}
        parts = [part for namespace in sorted(every) for part in (namespace, every[namespace])]
        self._save(from_files(
            place, None, every, chat_id=self._id(name) if found is None else found.chat_id,
            version=Version(1, 0, derived_uuid(1, 0, name, *parts)), now_ms=item.mtime_ns // _NS_MS,
            state_version=lambda namespace, state: Version(1, 0, file_integrity(1, 0, f"{name}#{namespace}", state)),
        ))

    def add_states(self, item: Item, target: Target, notes: Notes) -> None:
        if not isinstance(target, CharacterChat | GroupChat):
            self._save_states(item, target, notes)
            return
        standing = self._load(target) if item.states.keys() - {SYNC_NAMESPACE} else None
        if standing is None:
            return
        value = self._value(item, target, item.data, notes)
        held = {namespace: one for namespace, one in standing.states.items() if one.data is not None}
        for namespace in sorted(value.states.keys() & held.keys()):
            if value.states[namespace].data != held[namespace].data:
                notes.add("state-taken", "left as it is here", detail=namespace)
        if value.states.keys() - held.keys():
            value.states |= held
            self._save_over(standing, value)

    def lines(self, target: Target) -> list[bytes]:
        value = self._load(target)
        if value is None:
            return []
        return [line_as_found(line, message_id) for message_id, line in value.messages.items()]

    def replace(self, item: Item, target: Target, before: Entry, notes: Notes) -> str | None:
        if not isinstance(target, CharacterChat | GroupChat):
            kept = self._files.replace(msgspec.structs.replace(item, states={}), target, before, notes)
            if kept is not None:
                self._save_states(item, target, notes)
            return kept
        standing = self._load(target)
        if standing is None:
            return None
        kept = ""
        if not self._is_dry:
            data, now_ms = chat_as_found(standing, self._clock.now_ms()), self._clock.now_ms()
            kept = self._files.files.backup(self._user, standing.chat_id, 0, now_ms, data)
            failpoint("import.after_kept")
        value = self._value(item, target, item.data, notes)
        for namespace, old in standing.states.items():
            new = value.states.setdefault(namespace, old)
            if old.data is not None and new.data != old.data and not self._is_dry:
                self._files.keep(f"{digest(old.data)}.{namespace}.json", old.data)
        self._save_over(standing, value)
        return kept

    def _save_over(self, standing: StoredChat, value: StoredChat) -> None:
        """A store leaves alone what is at the head that it has, and states are not in that."""
        is_same = value.head.integrity == standing.head.integrity
        value.head = Version(standing.head.epoch + is_same, 0, value.head.integrity)
        self._save(value)

    def keep(self, name: str, data: bytes) -> str:
        return self._files.keep(name, data)

    def chat_id(self, target: Target) -> str | None:
        one = self._owners.get(str(target))
        return None if one is None else one.chat_id
