"""Destination: what an import puts things into. Users' folders here; a store in `store_destination`.

    Destination         names, digests, writing; the importer decides what goes where and what is left alone
    FileDestination     a user's folder

Rules of this module (STORAGE "Import and export", IE5 to IE7):
- Nothing is put over anything; what is replaced is kept first.
- States are durable before their owner is there: an owner that is there has all of them, whenever we were killed.
- A dry run answers as if it had written, and writes nothing.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

from tellback_protocol.ids import CharacterChat, GroupChat, sidecar_name
from tellback_server.clock import Clock
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMissing, FileTaken, FsError
from tellback_server.store.files import FileStore
from tellback_server.store.held import OutsideEdit
from tellback_server.store.jsonl import parse_chat
from tellback_server.store.marks import SYNC_NAMESPACE
from tellback_server.store.place import STATE_ENDING, is_nameable, twin_key
from tellback_server.store.touch import replace_state
from tellback_server.transfer.anomalies import Notes
from tellback_server.transfer.item import GroupFile, Item, Target, digest, path_of
from tellback_server.transfer.journal import Entry

__all__ = ["Destination", "FileDestination"]

KEPT_FOLDER: Final = ("backups", "tellback", "imports")
LISTINGS_MAX: Final = 64
"""Folders whose names are remembered; sources come folder by folder."""


class Destination(Protocol):
    """One user's place. Every method blocks and raises OSError, StoreError."""

    def names(self, folders: tuple[str, ...]) -> dict[str, str]:
        """Names of files in a folder below the user's, by what no other name may equal."""

    def digest(self, target: Target) -> str | None:
        """What tells whether a thing is as it was put there; None when it is not there."""

    def digest_of(self, item: Item, target: Target, data: bytes) -> str:
        """What `digest` would tell of an item that stands at `target` as `data`."""

    def put(self, item: Item, target: Target, data: bytes, notes: Notes) -> bool:
        """Durable on return. False when somebody else's thing is in the way."""

    def add_states(self, item: Item, target: Target, notes: Notes) -> None:
        """States that are missing beside a thing that is there."""

    def lines(self, target: Target) -> list[bytes]:
        """A chat's messages, as another program's file would have them."""

    def replace(self, item: Item, target: Target, before: Entry, notes: Notes) -> str | None:
        """Durable on return; where the former content is kept. None when it was changed meanwhile."""

    def keep(self, name: str, data: bytes) -> str:
        """Bytes that have no other place; their path below the user's folder."""

    def chat_id(self, target: Target) -> str | None:
        """The id of a chat that is there."""


class FileDestination:
    """See Destination."""

    def __init__(self, files: FileStore, user: str, clock: Clock, *, is_dry: bool) -> None:
        self.files = files
        self.user = user
        self._fs = files.fs
        self._clock = clock
        self._root = files.user_root(user)
        self._is_dry = is_dry
        self._listings: dict[tuple[str, ...], dict[str, str]] = {}
        self._written: dict[str, str] = {}
        """Digests of what a dry run would write, by path."""

    def names(self, folders: tuple[str, ...]) -> dict[str, str]:
        known = self._listings.get(folders)
        if known is None:
            path = self.files.checked_path(self.user, "/".join((*folders, "x")))
            try:
                names = self._fs.listdir(os.path.dirname(path))
            except FileMissing:
                names = []
            known = {twin_key(name): name for name in names}
            if len(self._listings) > LISTINGS_MAX:
                self._listings.clear()
            known |= {
                twin_key(os.path.basename(one)): os.path.basename(one) for one in self._written
                if os.path.dirname(one) == os.path.dirname(path)
            }
            self._listings[folders] = known
        return known

    def _path(self, target: Target) -> str:
        folders, name = path_of(target)
        return self.files.checked_path(self.user, "/".join((*folders, name)))

    def digest(self, target: Target) -> str | None:
        return self._digest(self._path(target))

    def _digest(self, path: str) -> str | None:
        if self._is_dry and path in self._written:
            return self._written[path]
        try:
            return digest(self.files.read(path).data)
        except FileMissing:
            return None
        except FsError:
            # It is there, and it is nothing that could be compared.
            return ""

    def digest_of(self, item: Item, target: Target, data: bytes) -> str:
        del item, target
        return digest(data)

    def put(self, item: Item, target: Target, data: bytes, notes: Notes) -> bool:
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

    def add_states(self, item: Item, target: Target, notes: Notes) -> None:
        self._write_states(item, target, notes)

    def _write_states(self, item: Item, target: Target, notes: Notes, *, is_new: bool = False) -> bool:
        """`is_new`: another content in the place of one is somebody else's."""
        if isinstance(target, GroupFile):
            return True
        folders, _name = path_of(target)
        for namespace, data in item.states.items():
            name = sidecar_name(target, namespace)
            if not is_nameable(target, namespace):
                notes.add("name-unusable", "left out", detail=f"{name} is too long for a file")
                continue
            path = self.files.checked_path(self.user, "/".join((*folders, name)))
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

    def _publish(self, path: str, data: bytes, mtime_ns: int) -> None:
        """Lists show when a chat changed: that is when it did so in the source. Raises FileTaken, OSError."""
        self.files.publish_new(path, data)
        self._fs.set_mtime(path, mtime_ns)

    def _written_now(self, path: str, data: bytes) -> None:
        folders = tuple(os.path.relpath(os.path.dirname(path), self._root).split(os.sep))
        name = os.path.basename(path)
        if folders in self._listings:
            self._listings[folders][twin_key(name)] = name
        if len(folders) > 1 and folders[:1] in self._listings:
            self._listings[folders[:1]][twin_key(folders[1])] = folders[1]
        if self._is_dry:
            self._written[path] = digest(data)

    def lines(self, target: Target) -> list[bytes]:
        data = self.files.read(self._path(target)).data
        return list(parse_chat(data, headed=isinstance(target, CharacterChat)).messages.values())

    def replace(self, item: Item, target: Target, before: Entry, notes: Notes) -> str | None:
        path, kept = self._path(target), ""
        if not self._is_dry:
            standing = self.files.read(path)
            kept = self._kept_before(target, standing.data)
            failpoint("import.after_kept")
            try:
                self._replace_states(item, target, before, notes)
                replace_state(self.files, path, item.data, standing.identity, "import")
                self._fs.set_mtime(path, item.mtime_ns)
            except OutsideEdit:
                return None
        self._written_now(path, item.data)
        return kept

    def _kept_before(self, target: Target, data: bytes) -> str:
        if isinstance(target, CharacterChat | GroupChat):
            chat_id = self.files.chat_id_of(self.user, target)
            return self.files.backup(self.user, chat_id, 0, self._clock.now_ms(), data)
        _folders, name = path_of(target)
        return self.keep(f"{digest(data)}{os.path.splitext(name)[1]}", data)

    def _replace_states(self, item: Item, target: Target, before: Entry, notes: Notes) -> None:
        """What was changed here stays. Raises OutsideEdit."""
        if isinstance(target, GroupFile):
            return
        for namespace, data in item.states.items():
            path = self.files.state_path(self.user, target, namespace)
            try:
                standing = self.files.read(path)
            except FileMissing:
                self._publish(path, data, item.mtime_ns)
                continue
            if standing.data == data:
                continue
            if digest(standing.data) != before.states.get(namespace):
                notes.add("state-taken", "left as it is here", detail=namespace)
                continue
            self.keep(f"{digest(standing.data)}.{namespace}{STATE_ENDING}", standing.data)
            replace_state(self.files, path, data, standing.identity, namespace)

    def keep(self, name: str, data: bytes) -> str:
        path = self.files.checked_path(self.user, "/".join((*KEPT_FOLDER, name)))
        if not self._is_dry:
            self._fs.make_directories(os.path.dirname(path))
            if self._fs.stat(path) is None:
                self.files.publish_new(path, data)
        return "/".join((*KEPT_FOLDER, name))

    def chat_id(self, target: Target) -> str | None:
        if not isinstance(target, CharacterChat | GroupChat):
            return None
        if self._is_dry or self.files.stat_chat(self.user, target) is None:
            return None
        return self.files.chat_id_of(self.user, target)
