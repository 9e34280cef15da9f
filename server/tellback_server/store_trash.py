"""Store trash: where owners of a store go when they are deleted: the data folder's trash, as files for people.

    <user>/trash/<deleted ms>-<id>/<path of the file>      as SillyTavern and Luker would keep it
    <user>/trash/<deleted ms>-<id>/owners/<chat_id>        the owner as the store had it: what comes back (`staged`)
    <user>/trash/<deleted ms>-<id>/manifest.json           goes there last: from then on the trash holds all of it

Rules of this module (STORAGE "A store in the place of files"):
- Every step may be done twice, and nothing else in the folder is touched.
- Who edits the files of an entry edits a copy.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from tellback_protocol.ids import Place, parse_place
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMissing
from tellback_server.staged import Staged
from tellback_server.store.base import StoredChat, StoreError
from tellback_server.store.filed import as_files
from tellback_server.store.files import FileStore
from tellback_server.store.place import state_of
from tellback_server.trash import MANIFEST, OWNERS, Entry, Trash, chats_of, manifest_bytes

__all__ = ["StoreTrash"]


class StoreTrash:
    """Of all users. Every method blocks."""

    def __init__(self, files: FileStore, staged: Staged) -> None:
        self._files = files
        self._staged = staged
        self._trash = Trash(files)

    def find(self, user: str, owner_id: str) -> Entry | None:
        """What was deleted last under this id."""
        return self._trash.find(user, owner_id)

    def put(self, user: str, entry: Entry, names: Iterable[str]) -> None:
        """Fill an entry with what is staged under these names. Durable on return. Raises OSError, StoreError."""
        fs, root = self._files.fs, f"trash/{entry.folder}"
        manifest = self._files.checked_path(user, f"{root}/{MANIFEST}")
        if fs.stat(manifest) is not None:
            return
        for name in names:
            value = self._staged.get(user, name)
            if value is None:
                raise StoreError(f"what was staged of {entry.name} is gone")
            for path, data in as_files(value, entry.deleted_ms).items():
                self._write(user, f"{root}/{path}", data)
            self._staged.hand_over(user, name, self._made(user, f"{root}/{OWNERS}/{value.chat_id}"))
            failpoint("trash.after_move")
        fs.write_atomically(manifest, manifest_bytes(entry))
        failpoint("trash.after_manifest")

    def _made(self, user: str, path: str) -> str:
        """A path below the user's root, its folder made."""
        self._files.fs.make_directories(os.path.dirname(os.path.join(self._files.user_root(user), path)))
        return self._files.checked_path(user, path)

    def _write(self, user: str, path: str, data: bytes) -> None:
        self._files.fs.write_atomically(self._made(user, path), data)

    def owners_of(self, user: str, entry: Entry, chat_id: str) -> list[StoredChat]:
        """What the trash holds of an entry, the owner that it is about first. Raises OSError, StoreDamaged."""
        root = self._files.checked_path(user, f"trash/{entry.folder}/{OWNERS}")
        with contextlib.suppress(FileMissing):
            names = [name for name in self._files.fs.listdir(root) if not name.endswith(".tellback-tmp")]
            found = [self._staged.read_handed(os.path.join(root, name)) for name in names]
            owners = sorted(filter(None, found), key=lambda value: value.chat_id != chat_id)
            return owners if owners and owners[0].chat_id == chat_id else []
        return []

    def remove(self, user: str, entry: Entry) -> None:
        """The manifest goes last. What no owner in a store consists of, a card above all, gets its place back; where
        that is taken, and whatever else stands there, it stays.
        """
        fs, folder = self._files.fs, self._files.checked_path(user, f"trash/{entry.folder}")
        own = _own_files(entry)
        self._trash.give_back(user, entry, [path for path in entry.files if path not in own])
        paths = [os.path.join(folder, path) for path in own]
        owners = os.path.join(folder, OWNERS)
        with contextlib.suppress(FileMissing):
            paths += [os.path.join(owners, name) for name in fs.listdir(owners)]
        for path in (*paths, os.path.join(folder, MANIFEST)):
            with contextlib.suppress(FileMissing):
                fs.unlink(path)
        self._trash.remove_empty(folder)
        with contextlib.suppress(FileMissing):
            fs.fsync_directory(os.path.dirname(folder))


def _own_files(entry: Entry) -> dict[str, None]:
    """Files of an entry that the store has otherwise: chats, and states of what the entry is about."""
    chats = {path: place for name, path in chats_of(entry) if not isinstance(place := parse_place(name), str)}
    places: set[Place | str] = {parse_place(entry.name), *chats.values()}
    own: dict[str, None] = {}
    for path in entry.files:
        folder, _slash, name = path.rpartition("/")
        owned = state_of(tuple(folder.split("/")), name)
        if path in chats or (owned is not None and owned[0] in places):
            own[path] = None
    return own
