"""Trash: where the files of an owner go when it is deleted, and where they come back from.

    trash = Trash(files)
    trash.put(user, Entry(...))               in a thread; durable on return; the same entry again finishes a move that
                                              a crash cut off, and is harmless when it was finished
    trash.entries(user)                       what is in the trash, the newest first
    trash.find(user, owner_id)                the newest entry of an id, or None; `find_named` by the owner's name
    trash.take_out(user, entry, {old: new})   the files go back, under other names where the mapping says so; durable on
                                              return; again finishes it; nothing is ever overwritten

    <user>/trash/<deleted_ms>-<id>/manifest.json         the Entry
    <user>/trash/<deleted_ms>-<id>/<path of the file>    each file under the path that it had below the user's root

Rules of this module (STORAGE "Trash"):
- The manifest is durable before the first file moves and goes last: every file in the trash is told by a manifest.
- A file is moved by name, never copied and never opened, so that a user's odd file comes back as it was.
- Who wants a deletion to be redone after a crash logs the Entry first; its `deleted_ms` and `id` name the folder.
- No link is followed, and nothing outside the user's root is touched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from tellback_protocol.ids import SIDECAR_MARK, Version
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMissing, FileTaken, FileUnsafe, FsError
from tellback_server.sealed import seal, unseal
from tellback_server.store.files import CHAT_ENDING, STATE_ENDING, SYNC_NAMESPACE, FileStore
from tellback_server.store.marks import SyncMark, sync_of

__all__ = ["MANIFEST", "OWNERS", "Entry", "Trash", "chats_of", "manifest_bytes"]

FOLDER: Final = "trash"
MANIFEST: Final = "manifest.json"
OWNERS: Final = "owners"
"""Of an entry: owners as a store had them (`store_trash`)."""
GOING_SUFFIX: Final = ".going"
"""Of an entry's folder that is being emptied; no entry has such a name."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One deletion. Persisted as the manifest: keep stable."""

    id: str
    """The owner's immutable id."""
    name: str
    """The owner's name: `character:Alice/First meeting`, `group:...`, `character:Alice`, `preset:OpenAI Settings/x`."""
    deleted_ms: int
    reason: Literal["deleted", "owner-deleted", "orphaned"]
    """Somebody asked for it; it went with its character; or another program had deleted what it belonged to."""
    files: list[str]
    """Paths below the user's root. One that was not there when it was moved is left out of the folder."""
    head: Version | None = None
    """The last version of the owner's stream, as far as it had one."""

    @property
    def folder(self) -> str:
        """The entry's folder in the trash."""
        return f"{self.deleted_ms}-{self.id}"


_decode = msgspec.json.Decoder(Entry).decode


def manifest_bytes(entry: Entry) -> bytes:
    """The file that tells an entry."""
    return seal(msgspec.json.encode(entry))


def chats_of(entry: Entry) -> list[tuple[str, str]]:
    """Name and path of each chat in an entry: the one that it is about, or those that went with their character."""
    found: list[tuple[str, str]] = []
    for path in entry.files:
        if path.endswith(CHAT_ENDING):
            folder, _slash, file = path.rpartition("/")
            is_with = folder.startswith("chats/") and "/" not in entry.name and entry.name.startswith("character:")
            chat = f"character:{folder.removeprefix('chats/')}/{file.removesuffix(CHAT_ENDING)}"
            found.append((chat if is_with else entry.name, path))
    return found


class Trash:
    """The trash of all users. Every method blocks; one call at a time for one owner."""

    def __init__(self, files: FileStore) -> None:
        self._files = files

    def put(self, user: str, entry: Entry) -> None:
        """Moves the files of an entry into the trash. Raises FileUnsafe, OSError: what was moved stays moved, and the
        same call goes on from there.
        """
        files, fs = self._files, self._files.fs
        folder = files.checked_path(user, f"{FOLDER}/{entry.folder}")
        fs.make_directories(folder)
        manifest = os.path.join(folder, MANIFEST)
        if fs.stat(manifest) is None:
            fs.write_atomically(manifest, manifest_bytes(entry))
        failpoint("trash.after_manifest")
        with files.operation("trash", folder, owner=entry.name, reason=entry.reason, count=len(entry.files)):
            for path in entry.files:
                kept = files.checked_path(user, f"{FOLDER}/{entry.folder}/{path}")
                self._move(files.checked_path(user, path), kept)
                failpoint("trash.after_move")

    def _move(self, source: str, target: str) -> None:
        """One file, by its name. What stands at `target` was moved by an earlier try, so a newer `source` stays."""
        fs = self._files.fs
        if fs.stat(target) is None:
            standing = fs.stat(source)
            if standing is None or not standing.is_regular:
                return
            fs.make_directories(os.path.dirname(target))
            with contextlib.suppress(FileMissing):
                fs.rename(source, target)
            failpoint("trash.after_rename")
        # The new name before the loss of the old one: a power cut between the two leaves both.
        fs.fsync_directory(os.path.dirname(target))
        with contextlib.suppress(FileMissing):
            fs.fsync_directory(os.path.dirname(source))

    def entries(self, user: str) -> list[Entry]:
        """Every entry with a manifest that can be read, the newest first. Cost: one small file an entry."""
        files = self._files
        root = files.checked_path(user, FOLDER)
        try:
            names = files.fs.listdir(root)
        except FileMissing:
            return []
        found: list[Entry] = []
        for name in names:
            try:
                unsealed = unseal(files.fs.read(files.checked_path(user, f"{FOLDER}/{name}/{MANIFEST}")))
                entry = _decode(unsealed[0] if unsealed is not None else b"")
            except (FsError, msgspec.MsgspecError):
                continue
            if entry.folder == name:
                found.append(entry)
        return sorted(found, key=lambda entry: entry.deleted_ms, reverse=True)

    def find(self, user: str, owner_id: str) -> Entry | None:
        """What was deleted last under this id."""
        return next((entry for entry in self.entries(user) if entry.id == owner_id), None)

    def find_named(self, user: str, name: str) -> Entry | None:
        """What was deleted last under this name."""
        return next((entry for entry in self.entries(user) if entry.name == name), None)

    def path(self, user: str, entry: Entry, path: str) -> str:
        """Where a file of the entry is kept."""
        return self._files.checked_path(user, f"{FOLDER}/{entry.folder}/{path}")

    def chat_id(self, user: str, entry: Entry, path: str) -> str | None:
        """The id of a chat that is in another owner's entry; None when nobody wrote to it."""
        mark = self.mark(user, entry, path)
        return None if mark is None else mark.chat_id

    def mark(self, user: str, entry: Entry, path: str) -> SyncMark | None:
        """What chat_sync tells of a chat's file in an entry."""
        kept = self.path(user, entry, path.removesuffix(CHAT_ENDING) + SIDECAR_MARK + SYNC_NAMESPACE + STATE_ENDING)
        try:
            sync = sync_of(self._files.fs.read(kept))
        except FsError:
            return None
        return None if sync is None else sync.mark

    def mark_of(self, user: str, entry: Entry, name: str) -> SyncMark | None:
        """The same, of the chat with this name."""
        path = next((path for chat, path in chats_of(entry) if chat == name), None)
        return None if path is None else self.mark(user, entry, path)

    def size_bytes(self, user: str, entry: Entry) -> int:
        """Of what of it is kept. Cost: a stat a file."""
        stats = (self._files.fs.stat(self.path(user, entry, path)) for path in entry.files)
        return sum(stat.size_bytes for stat in stats if stat is not None)

    def remove(self, user: str, entry: Entry) -> None:
        """An entry goes for good. From the first step on it is no entry any more; the next call of `sweep` removes what
        a crash left of it. Raises FileUnsafe, OSError.
        """
        files, fs = self._files, self._files.fs
        folder = files.checked_path(user, f"{FOLDER}/{entry.folder}")
        going = files.checked_path(user, f"{FOLDER}/{entry.folder}{GOING_SUFFIX}")
        with files.operation("empty-trash", folder, owner=entry.name, count=len(entry.files)):
            fs.rename(folder, going)
            fs.fsync_directory(os.path.dirname(folder))
            failpoint("trash.after_going")
            self._remove_all(going)
            fs.fsync_directory(os.path.dirname(folder))

    def sweep(self, user: str) -> None:
        """Remove what a crash left of entries that were on their way out."""
        root = self._files.checked_path(user, FOLDER)
        with contextlib.suppress(FileMissing):
            for name in self._files.fs.listdir(root):
                if name.endswith(GOING_SUFFIX):
                    self._remove_all(os.path.join(root, name))

    def _remove_all(self, folder: str) -> None:
        fs = self._files.fs
        for name in fs.listdir(folder):
            path = os.path.join(folder, name)
            found = fs.stat(path)
            if found is not None and found.is_directory:
                self._remove_all(path)
            elif found is not None:
                # A link goes; what it leads to does not.
                fs.unlink(path)
            failpoint("trash.after_remove")
        fs.remove_directory(folder)

    def take_out(self, user: str, entry: Entry, renamed: Mapping[str, str] | None = None) -> None:
        """Gives the files their places back: `renamed` tells another path below the user's root for some of them.

        Raises FileTaken when a place is taken: files before it are back already, and the entry still tells the rest.
        Raises FileUnsafe, OSError.
        """
        files, fs = self._files, self._files.fs
        folder = files.checked_path(user, f"{FOLDER}/{entry.folder}")
        targets = renamed or {}
        with files.operation("take-out", folder, owner=entry.name, count=len(entry.files)):
            for path in entry.files:
                self._give_back(self.path(user, entry, path), files.checked_path(user, targets.get(path, path)))
                failpoint("trash.after_give_back")
            # Of a data folder that was a store's, and has the same as files.
            owners = os.path.join(folder, OWNERS)
            found = fs.stat(owners)
            if found is not None and found.is_directory:
                self._remove_all(owners)
            with contextlib.suppress(FileMissing):
                fs.unlink(os.path.join(folder, MANIFEST))
            self.remove_empty(folder)
            with contextlib.suppress(FileMissing):
                fs.fsync_directory(os.path.dirname(folder))

    def give_back(self, user: str, entry: Entry, paths: Iterable[str]) -> None:
        """Some files of an entry get their places back; one whose place is taken or unsafe stays. Raises OSError."""
        for path in paths:
            with contextlib.suppress(FileTaken, FileUnsafe):
                self._give_back(self.path(user, entry, path), self._files.checked_path(user, path))

    def _give_back(self, kept: str, target: str) -> None:
        if self._files.fs.stat(kept) is not None:
            self._files.fs.make_directories(os.path.dirname(target))
            self._files.move(kept, target)

    def remove_empty(self, folder: str) -> None:
        """Removes the entry's folders; one that holds something else stays."""
        fs = self._files.fs
        with contextlib.suppress(FileMissing):
            for name in fs.listdir(folder):
                inner = os.path.join(folder, name)
                found = fs.stat(inner)
                if found is not None and found.is_directory:
                    self.remove_empty(inner)
        with contextlib.suppress(OSError):
            fs.remove_directory(folder)
