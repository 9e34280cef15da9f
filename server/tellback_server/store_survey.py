"""Store survey: what a primary and a backup hold, compared; what one of them lost is copied from the other.

    StoreSurvey     two stores
    FileSurvey      users' folders and a store that mirrors them

Rules of this module (STORAGE "Primary and backup"):
- Compared are ids and heads. Of one owner the later version is right; the log's own commits come on top later. A copy
  that the later one does not continue is kept first (`diverged`).
- What is in the trash is copied nowhere. What only the backup knows, and nobody deleted, goes to the primary.
- A store that was emptied, or is new, is claimed again before anything goes there.
- What another program removed from a folder stays in the backup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import structlog

from tellback_protocol.ids import Version, parse_place
from tellback_server.clock import Clock
from tellback_server.diverged import Diverged
from tellback_server.flusher import Backed, Wanted
from tellback_server.names import Names
from tellback_server.records import owner_key
from tellback_server.store.base import ListedOwner, Store, StoreUnavailable
from tellback_server.store.chat_index import ChatEntry, ChatIndex, Folder
from tellback_server.store.files import FileStore
from tellback_server.store.multi import Guarded, MultiStore, is_newer
from tellback_server.store.store_state import decode_listing
from tellback_server.store_index import StoreIndex

__all__ = ["FileSurvey", "StoreSurvey"]

log = structlog.get_logger()

COPIES_TOLD: Final = 3


class StoreSurvey:
    """See flusher.Survey."""

    def __init__(
        self, stores: MultiStore, data_id: str, users: Callable[[], Iterable[str]], names: Names, index: StoreIndex,
        diverged: Diverged,
    ) -> None:
        """`users` are those that the data folder knows."""
        self._diverged = diverged
        self._stores = stores
        self._data_id = data_id
        self._users = users
        self._names = names
        self._index = index

    def __call__(self, backed: dict[str, Backed]) -> Iterator[Wanted]:
        primary, backup = self._stores.primary, self._stores.backup
        backup.check()
        backup.claim(self._data_id)
        try:
            primary.check()
            primary.claim(self._data_id)
            is_primary_there = True
        except StoreUnavailable:
            is_primary_there = False
        for user in dict.fromkeys((*self._users(), *self._stores.users())):
            kept = {one.chat_id: one for one in backup.list(user)}
            backed.update({owner_key(user, one.chat_id): Backed(one.head, one.name) for one in kept.values()})
            if is_primary_there:
                self._compare(user, {one.chat_id: one for one in primary.list(user)}, kept, backed)
        if is_primary_there and self._stores.is_partial:
            self._stores.is_partial = False
            self._index.ask_again()
        yield from ()

    def _compare(
        self, user: str, held: dict[str, ListedOwner], kept: dict[str, ListedOwner], backed: dict[str, Backed]
    ) -> None:
        primary, backup, is_gone = self._stores.primary, self._stores.backup, self._stores.is_gone
        filled: list[str] = []
        given_up: list[ListedOwner] = []
        for one in kept.values():
            other = held.get(one.chat_id)
            if (other is None or is_newer(one.head, other.head)) and not is_gone(user, one.chat_id):
                if other is not None:
                    given_up += self._keep(user, other, one.head, primary)
                with self._stores.turn(user, one.chat_id):
                    _copy(user, one.chat_id, backup, primary)
                self._index.put(user, one)
                filled.append(one.name)
        _tell("primary-filled", user, filled)
        filled.clear()
        for one in held.values():
            other = kept.get(one.chat_id)
            if is_gone(user, one.chat_id):
                continue
            if other is None or (one.head != other.head and not is_newer(other.head, one.head)):
                if other is not None:
                    given_up += self._keep(user, other, one.head, backup)
                head = _copy(user, one.chat_id, primary, backup)
                if head is not None:
                    backed[owner_key(user, one.chat_id)] = Backed(head.head, head.name)
                    filled.append(one.name)
            elif other.name != one.name and self._names.name_of(user, one.chat_id) in (None, one.name):
                backup.rename(user, one.chat_id, one.name)
                backed[owner_key(user, one.chat_id)].name = one.name
        for one in given_up:
            if _copy(user, one.chat_id, primary, backup) is not None:
                backed[owner_key(user, one.chat_id)] = Backed(one.head, one.name)
        _tell("backup-filled", user, filled)

    def _keep(self, user: str, loser: ListedOwner, winner: Version, store: Guarded) -> list[ListedOwner]:
        """What will be written over, unless it is what the winner began with; the chat that it is now."""
        if not self._diverged.are(user, loser.chat_id, loser.head, winner):
            return []
        value = store.load(user, loser.chat_id)
        if value is None or value.head != loser.head:
            return []
        kept, listed = self._diverged.keep(user, value)
        self._diverged.tell(user, loser.name, winner, loser.head, kept)
        return [] if listed is None else [listed]


def _copy(user: str, chat_id: str, source: Store, target: Store) -> ListedOwner | None:
    """What was copied; None when it is gone meanwhile."""
    value = source.load(user, chat_id)
    if value is None:
        return None
    target.save(user, None, None, value)
    return ListedOwner(chat_id, value.name, value.head, b"")


def _tell(event: str, user: str, names: list[str]) -> None:
    if names:
        log.warning(event, user=user, count=len(names), examples=names[:COPIES_TOLD])


class FileSurvey:
    """See flusher.Survey. The log tells what tellback wrote; this finds what others wrote while nobody looked."""

    def __init__(self, files: FileStore, backup: Guarded, data_id: str, names: Names, clock: Clock) -> None:
        self._files = files
        self._backup = backup
        self._data_id = data_id
        self._names = names
        self._clock = clock
        self._indexes: dict[str, ChatIndex] = {}

    def __call__(self, backed: dict[str, Backed]) -> Iterator[Wanted]:
        self._backup.check()
        self._backup.claim(self._data_id)
        for user in dict.fromkeys((*self._files.known_users(), *self._backup.users())):
            kept = {one.chat_id: one for one in self._backup.list(user)}
            backed.update({owner_key(user, one.chat_id): Backed(one.head, one.name) for one in kept.values()})
            if user not in self._indexes:
                self._indexes[user] = ChatIndex(self._files, user, self._clock)
            folder = self._indexes[user].look()
            for chat, entry in folder.chats.items():
                chat_id = self._id_of(user, chat, folder)
                if not self._is_held(user, chat, entry, kept.get(chat_id)):
                    yield Wanted(user, chat_id, chat)

    def _id_of(self, user: str, chat: str, folder: Folder) -> str:
        return self._names.id_of(user, chat) or folder.chat_id(chat) or self._files.new_id(user, chat)

    def _is_held(self, user: str, chat: str, entry: ChatEntry, kept: ListedOwner | None) -> bool:
        """Whether the backup holds the chat as its files are. Cost: its chat_sync."""
        if kept is None:
            return False
        mark = entry.mark
        if decode_listing(kept.summary).mark == (mark.size_bytes, mark.mtime_ns, mark.inode):
            return True
        place = parse_place(chat)
        assert not isinstance(place, str), "a listed chat has a name"
        sync = self._files.read_sync(user, place)
        if sync is None or sync.mark is None or sync.mark.watermark.bytes != mark.size_bytes:
            return False
        return not is_newer(sync.mark.head, kept.head)
