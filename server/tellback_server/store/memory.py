"""Memory: a store that lasts as long as the process, so that only the log keeps what it was given.

`memory:` is one of its own for every server; `memory:<name>` is shared by everything in the process that names it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import chain

import msgspec

from tellback_protocol.effects import Effect
from tellback_protocol.ids import Version
from tellback_protocol.stream import StateDocument
from tellback_server.store.address import StoreAddress
from tellback_server.store.base import (
    ListedOwner,
    StoreBehind,
    StoredChat,
    StoreForeign,
    StoreHealth,
    StoreUnsafe,
    is_at_least,
)
from tellback_server.store.difference import Difference, difference_of

__all__ = ["MemoryStore"]


class MemoryStore:
    """See base.Store."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[str, StoredChat]] = {}
        self._data_id: str | None = None
        self._lock = threading.Lock()

    def check(self) -> StoreHealth:
        return StoreHealth(backend="memory of the process", durability="log")

    def load(self, user: str, chat_id: str) -> StoredChat | None:
        with self._lock:
            found = self._owners.get(user, {}).get(chat_id)
            return None if found is None else _copied(found)

    def save(self, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        with self._lock:
            found = self._owners.get(user, {}).get(value.chat_id)
            head = None if found is None else found.head
            if is_at_least(head, value.head):
                return
            if effects is not None and head != base:
                raise StoreBehind(head, base)
            difference = None if effects is None or found is None else difference_of(effects, value)
            if difference is None or found is None or not _installed(found, difference, value):
                self._owners.setdefault(user, {})[value.chat_id] = _copied(value)

    def delete(self, user: str, chat_id: str, head: Version) -> None:
        with self._lock:
            owners = self._owners.get(user, {})
            found = owners.get(chat_id)
            if found is not None and (found.head.epoch, found.head.seq) <= (head.epoch, head.seq):
                del owners[chat_id]

    def rename(self, user: str, chat_id: str, name: str) -> None:
        with self._lock:
            found = self._owners.get(user, {}).get(chat_id)
            if found is not None:
                found.name = name

    def list(self, user: str) -> Iterator[ListedOwner]:
        with self._lock:
            owners = [
                ListedOwner(one.chat_id, one.name, one.head, one.summary)
                for one in self._owners.get(user, {}).values()
            ]
        return iter(owners)

    def users(self) -> Sequence[str]:
        with self._lock:
            return [user for user, owners in self._owners.items() if owners]

    def claim(self, data_id: str) -> None:
        with self._lock:
            if self._data_id not in (None, data_id):
                raise StoreForeign("the store in memory belongs to another data folder")
            self._data_id = data_id

    def close(self) -> None:
        """What is stored stays: whoever holds the store may go on."""

    def snapshot(self) -> MemoryStore:
        """A store with the same content that goes its own way. Cost: one pointer a message."""
        other = MemoryStore()
        with self._lock:
            other._data_id = self._data_id
            other._owners = {
                user: {chat_id: _copied(one) for chat_id, one in owners.items()}
                for user, owners in self._owners.items()
            }
        return other


def _copied(one: StoredChat) -> StoredChat:
    states = {namespace: _document(document) for namespace, document in one.states.items()}
    return msgspec.structs.replace(one, messages=dict(one.messages), states=states)


def _document(document: StateDocument) -> StateDocument:
    return StateDocument(document.version, document.data, corrupt=document.corrupt)


def _installed(found: StoredChat, difference: Difference, value: StoredChat) -> bool:
    """False, and nothing done, when the difference does not lead from what is found to the value."""
    removed = set(difference.removed) & found.messages.keys()
    count = len(found.messages) - len(removed) + difference.placed()
    anchors = {after for after in difference.after if after is not None}
    new = set(chain(difference.appended, *difference.after.values()))
    if (
        count != len(value.messages) or not anchors <= found.messages.keys()
        or not set(difference.changed) <= found.messages.keys() or new & (found.messages.keys() - removed)
    ):
        return False
    if difference.after:
        # The order of the value is the order that the effects made; only here all of it is gone through.
        found.messages = dict(value.messages)
    else:
        for message_id in removed:
            del found.messages[message_id]
        for message_id in (*difference.changed, *difference.appended):
            found.messages[message_id] = value.messages[message_id]
    for namespace in difference.namespaces:
        document = value.states.get(namespace)
        if document is None:
            found.states.pop(namespace, None)
        else:
            found.states[namespace] = _document(document)
    found.name, found.head, found.version = value.name, value.head, value.version
    found.metadata, found.summary = value.metadata, value.summary
    return True


_shared: dict[str, MemoryStore] = {}


def open_address(address: StoreAddress) -> MemoryStore:
    """See schemes. Raises StoreUnsafe."""
    if address.host or address.user:
        raise StoreUnsafe("a store in memory is memory: or memory:<name>")
    if address.take_durability("log") != "log":
        raise StoreUnsafe("memory: keeps nothing when the process ends; only durability=log is true of it")
    address.refuse_rest()
    return _shared.setdefault(address.path, MemoryStore()) if address.path else MemoryStore()
