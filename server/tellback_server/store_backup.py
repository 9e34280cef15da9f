"""Store backup: the owners of a store in a copy of a whole server, and from there into a store again.

    owners = OwnersCopying(store, copying, ...)
    owners.copy()                      while the server goes on: most of them, in any state
    owners.copy()                      while it stands still: what is different now
    fill_store(fs, source, data, manifest, url, store, ...)     into a store that holds nothing yet
    settle_filling(fs, data)           behind everything else of a restore

Rules of this module (BEHAVIOUR Z13, Z14):
- A copied owner is what the store held; what the log knows of it beyond that is in the copy of the log.
- A copy belongs to no store: its binding has an id of its own, so no server takes the store that was copied for it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from typing import Final

from tellback_protocol.ids import Version
from tellback_server.fs import FileMissing, Fs
from tellback_server.server_backup import OWNERS, BackupUnusable, Copying, Manifest, Report
from tellback_server.staged import owner_bytes, owner_from
from tellback_server.store.address import StoreAddress
from tellback_server.store.base import Store, StoreDamaged
from tellback_server.store.files import SERVER_FOLDER
from tellback_server.store.store_state import decode_listing
from tellback_server.store_binding import Binding, as_file, read_binding, write_binding

__all__ = [
    "OwnersCopying", "begin_filling", "copy_owners", "end_filling", "fill_store", "owners_size_bytes",
    "settle_filling",
]

FILLING: Final = f"{SERVER_FOLDER}/filling"
"""The binding of a folder whose store is being filled; goes when all owners are there and the folder is whole."""


class OwnersCopying:
    """One backup being made. Every method blocks and raises StoreError, OSError."""

    def __init__(self, store: Store, copying: Copying, binding: Binding, new_id: Callable[[], str]) -> None:
        self._store = store
        self._copying = copying
        self._held: dict[str, tuple[Version, str]] = {}
        """Head and name of what was copied, by path."""
        path, data = as_file(Binding(new_id(), binding.store))
        copying.put(path, data)

    def copy(self) -> None:
        """Those that are not copied as they are now. One that changes meanwhile is the next call's."""
        found: dict[str, tuple[Version, str]] = {}
        for user in self._store.users():
            for one in self._store.list(user):
                path = f"{OWNERS}/{user}/{one.chat_id}"
                found[path] = one.head, one.name
                if self._held.get(path) == found[path]:
                    continue
                value = self._store.load(user, one.chat_id)
                if value is None:
                    del found[path]
                    continue
                found[path] = value.head, value.name
                self._copying.put(path, owner_bytes(value))
        for path in self._held.keys() - found.keys():
            self._copying.take_back(path)
        self._held = found


def owners_size_bytes(store: Store) -> int:
    """About what a copy of a store will be. Cost: a list. Raises StoreError."""
    return sum(decode_listing(one.summary).size_bytes for user in store.users() for one in store.list(user))


def fill_store(
    fs: Fs, source: str, data: str, manifest: Manifest, url: str, store: Store, report: Report,
    new_id: Callable[[], str],
) -> None:
    """Bind a restored data folder to a store that holds nothing, or that a restore which was cut off began to fill,
    and save every owner there; `settle_filling` comes when the folder is finished. Raises BackupUnusable,
    ConfigurationError, StoreError, OSError: the same call goes on.
    """
    durability = store.check().durability
    if durability != manifest.durability:
        # A log that forgets what a store confirmed is no copy for one that confirms nothing, nor the other way round.
        option = "add" if manifest.durability == "log" else "leave out"
        reason = f"the chats were in a store with durability={manifest.durability}; {option} ?durability=log"
        raise BackupUnusable(str(StoreAddress(url)), reason)
    binding = begin_filling(fs, data, url, store, new_id)
    for path, told in manifest.files.items():
        if not path.startswith(f"{OWNERS}/"):
            continue
        whole = os.path.join(source, path)
        try:
            content = fs.read(whole)
            if (len(content), zlib.crc32(content)) != (told.size_bytes, told.crc32):
                raise BackupUnusable(whole, "is not what was written")
            value = owner_from(content, whole)
        except FileMissing:
            raise BackupUnusable(whole, "is missing") from None
        except StoreDamaged as error:
            raise BackupUnusable(whole, str(error)) from None
        user = path.removeprefix(f"{OWNERS}/").partition("/")[0]
        store.save(user, None, None, value)
        report(path, len(content))
    write_binding(fs, data, binding)


def begin_filling(fs: Fs, data: str, url: str, store: Store, new_id: Callable[[], str]) -> Binding:
    """Claim a store that holds nothing for a data folder, or one that a run which was cut off began to fill.

    Raises BackupUnusable, ConfigurationError, StoreError, OSError.
    """
    here, mark = str(StoreAddress(url)), os.path.join(data, FILLING)
    settle_filling(fs, data)
    if fs.stat(mark) is None:
        if store.users():
            raise BackupUnusable(here, "holds chats already; name an empty store")
        fs.write_atomically(mark, as_file(Binding(new_id(), here))[1])
    binding = read_binding(fs, data, os.path.basename(FILLING))
    assert binding is not None, "just written"
    if binding.store != here:
        raise BackupUnusable(here, f"what was cut off went into {binding.store}")
    store.claim(binding.data_id)
    return binding


def end_filling(fs: Fs, data: str, binding: Binding) -> None:
    """The folder belongs to the store from now on. Durable on return. Raises OSError."""
    write_binding(fs, data, binding)
    settle_filling(fs, data)


def settle_filling(fs: Fs, data: str) -> None:
    """What marks a filling goes when the folder belongs to that store: it came to its end, however long ago. Durable on
    return. Raises ConfigurationError, OSError.
    """
    filling, binding = read_binding(fs, data, os.path.basename(FILLING)), read_binding(fs, data)
    if filling is not None and binding is not None and filling.data_id == binding.data_id:
        mark = os.path.join(data, FILLING)
        fs.unlink(mark)
        fs.fsync_directory(os.path.dirname(mark))


def copy_owners(source: Store, target: Store) -> Iterator[str]:
    """Every owner of a store into another one; their names, one by one. What a run that was cut off brought goes first,
    where it is otherwise now. Raises StoreError.
    """
    for user in list(target.users()):
        now = {one.chat_id: (one.head, one.name) for one in source.list(user)}
        for one in list(target.list(user)):
            if now.get(one.chat_id) != (one.head, one.name):
                target.delete(user, one.chat_id, one.head)
    for user in source.users():
        for one in source.list(user):
            value = source.load(user, one.chat_id)
            if value is not None:
                target.save(user, None, None, value)
                yield value.name
