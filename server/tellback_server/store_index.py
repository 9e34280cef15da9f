"""Store index: which owners a store holds, by name and by id, without asking it each time.

    index = StoreIndex(store)
    index.name_of(user, chat_id), index.id_of(user, name), index.twin_of(user, name)     in a thread
    index.put(user, listed), index.drop(user, chat_id)                                    any thread, never waits

Rules of this module:
- Derived: asked of the store once for each user, then kept by what is saved, renamed and deleted. Nobody else writes
  to the store (`claim`).
- What was put while the store was being asked is newer than what it told; a name that the log knows is newer than both.
- Cost: an entry for each owner.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import msgspec

from tellback_server.store.base import ListedOwner, Store
from tellback_server.store.place import twin_key

__all__ = ["StoreIndex", "character_of"]


def character_of(name: str) -> str | None:
    """The character of a chat, or that an owner is."""
    kind, _colon, rest = name.partition(":")
    return rest.partition("/")[0] if kind == "character" else None


class _Known:
    """One user's."""

    def __init__(self) -> None:
        self.owners: dict[str, ListedOwner] = {}
        self.by_name: dict[str, str] = {}
        self.twins: dict[str, dict[str, None]] = {}
        """Names by the name that some file system takes for them."""
        self.characters: dict[str, dict[str, int]] = {}
        """How many owners each character has, by the name that some file system takes for it."""
        self.gone: set[str] = set()
        self.is_asked = False
        self.asking = threading.Lock()
        self.changes = 0

    def put(self, listed: ListedOwner) -> None:
        self.drop(listed.chat_id)
        self.gone.discard(listed.chat_id)
        self.owners[listed.chat_id] = listed
        self.by_name[listed.name] = listed.chat_id
        self.twins.setdefault(twin_key(listed.name), {})[listed.name] = None
        character = character_of(listed.name)
        if character is not None:
            counts = self.characters.setdefault(twin_key(character), {})
            counts[character] = counts.get(character, 0) + 1

    def drop(self, chat_id: str) -> None:
        self.changes += 1
        before = self.owners.pop(chat_id, None)
        if before is None or self.by_name.get(before.name) != chat_id:
            return
        del self.by_name[before.name]
        key = twin_key(before.name)
        self.twins[key].pop(before.name, None)
        if not self.twins[key]:
            del self.twins[key]
        character = character_of(before.name)
        if character is not None:
            counts = self.characters[twin_key(character)]
            counts[character] -= 1
            if not counts[character]:
                del counts[character]


class StoreIndex:
    """See the module."""

    def __init__(self, store: Store, name_of: Callable[[str, str], str | None]) -> None:
        """`name_of` tells what the log calls an owner now, by user and id; the store may not have heard of it yet."""
        self._store = store
        self._name_of = name_of
        self._users: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def put(self, user: str, listed: ListedOwner) -> None:
        """The store holds this now."""
        with self._lock:
            self._of(user).put(self._named(user, listed))

    def _named(self, user: str, listed: ListedOwner) -> ListedOwner:
        name = self._name_of(user, listed.chat_id)
        return listed if name in (None, listed.name) else msgspec.structs.replace(listed, name=name)

    def rename(self, user: str, chat_id: str, name: str) -> None:
        """An owner that the store may hold has another name."""
        with self._lock:
            known = self._of(user)
            listed = known.owners.get(chat_id)
            if listed is not None:
                known.put(msgspec.structs.replace(listed, name=name))

    def drop(self, user: str, chat_id: str) -> None:
        """The store does not hold this any more."""
        with self._lock:
            known = self._of(user)
            known.drop(chat_id)
            known.gone.add(chat_id)

    def ask_again(self) -> None:
        """The store may hold owners that it did not tell; the next question asks it anew."""
        with self._lock:
            for known in self._users.values():
                known.is_asked = False
                known.changes += 1

    def known_name(self, user: str, chat_id: str) -> str | None:
        """As `name_of`, as far as it was told; never blocks for the store."""
        with self._lock:
            listed = self._of(user).owners.get(chat_id)
        return None if listed is None else listed.name

    def name_of(self, user: str, chat_id: str) -> str | None:
        """Blocks the first time. Raises StoreError."""
        listed = self._asked(user).owners.get(chat_id)
        return None if listed is None else listed.name

    def id_of(self, user: str, name: str) -> str | None:
        """Blocks the first time. Raises StoreError."""
        return self._asked(user).by_name.get(name)

    def twin_of(self, user: str, name: str) -> str | None:
        """A name that is this one, or that some file system takes for it. Blocks the first time. Raises StoreError."""
        known = self._asked(user)
        with self._lock:
            twins = known.twins.get(twin_key(name), {})
            return name if name in twins else next(iter(twins), None)

    def characters_like(self, user: str, character: str) -> list[str]:
        """Characters of this name, or that some file system takes for it. Blocks the first time. Raises StoreError."""
        known = self._asked(user)
        with self._lock:
            return list(known.characters.get(twin_key(character), ()))

    def owners(self, user: str) -> tuple[int, Mapping[str, ListedOwner]]:
        """All of a user's by id, and a number that is another one when they changed. Blocks the first time; cost: a
        pointer each. Raises StoreError.
        """
        known = self._asked(user)
        with self._lock:
            return known.changes, dict(known.owners)

    def changes(self, user: str) -> int:
        """See `owners`."""
        return self._asked(user).changes

    def _of(self, user: str) -> _Known:
        known = self._users.get(user)
        if known is None:
            known = self._users[user] = _Known()
        return known

    def _asked(self, user: str) -> _Known:
        with self._lock:
            known = self._of(user)
        if not known.is_asked:
            with known.asking:
                if not known.is_asked:
                    found = list(self._store.list(user))
                    with self._lock:
                        for listed in found:
                            if listed.chat_id not in known.owners and listed.chat_id not in known.gone:
                                known.put(self._named(user, listed))
                        known.gone.clear()
                        known.is_asked = True
        return known
