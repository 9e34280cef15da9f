"""Store source: a user's things of a server on a store: chats and states out of the store, cards, presets and files of
groups out of the data folder. See Source.

Rules of this module:
- A chat's file is as another program had it, as long as nobody wrote here (`store.filed`).
- The store is only read; what the log knows beyond it was folded before.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tellback_protocol.ids import Place, StateOwner, parse_place
from tellback_server.fs import Fs
from tellback_server.store.base import ListedOwner, Store, StoredChat
from tellback_server.store.filed import chat_as_found
from tellback_server.store.store_state import decode_listing
from tellback_server.transfer.folder_source import FolderSource
from tellback_server.transfer.item import Item
from tellback_server.transfer.source import Found

__all__ = ["StoreSource"]

_MS_NS = 1_000_000


class StoreSource:
    """See the module."""

    def __init__(self, fs: Fs, root: str, store: Store, user: str) -> None:
        """`root` is the user's folder."""
        self.root = root
        self._store = store
        self._user = user
        self._folder = FolderSource(fs, root, has_chats=False)
        self._owners: dict[Place, ListedOwner] = {}

    def plan(self) -> int:
        for one in sorted(self._store.list(self._user), key=lambda one: one.name):
            place = parse_place(one.name)
            if not isinstance(place, str):
                self._owners[place] = one
        return self._folder.plan() + sum(decode_listing(one.summary).size_bytes for one in self._owners.values())

    def has(self, source: str) -> bool:
        return self._folder.has(source)

    def items(self) -> Iterator[Found]:
        left = dict(self._owners)
        for found in self._folder.items():
            one = left.pop(found.target, None) if isinstance(found, Item) else None  # type: ignore[arg-type]
            value = None if one is None else self._store.load(self._user, one.chat_id)
            yield found if value is None or not isinstance(found, Item) else msgspec.structs.replace(
                found, states={**found.states, **_states(value)}
            )
        for place, one in left.items():
            value = self._store.load(self._user, one.chat_id)
            if value is not None and not (isinstance(place, StateOwner) and not _states(value)):
                yield _item(place, value)


def _item(place: Place, value: StoredChat) -> Item:
    listing = decode_listing(value.summary)
    is_bare = isinstance(place, StateOwner)
    data = b"" if is_bare else chat_as_found(value, listing.changed_ms)
    return Item(
        source=value.name, target=place, data=data, states=_states(value), mtime_ns=listing.changed_ms * _MS_NS,
        size_bytes=listing.size_bytes, messages=len(value.messages), is_bare=is_bare,
    )


def _states(value: StoredChat) -> dict[str, bytes]:
    return {namespace: one.data for namespace, one in value.states.items() if one.data is not None}
