"""Multi: a primary and a backup as one store: saves go to the primary, reads fall back to the backup.

    store = MultiStore(primary, backup)
    store.is_gone = registrar...            set once, before the first read

Rules of this module (STORAGE "Primary and backup"):
- The backup is written by the flusher alone, from the log. Here it is only read.
- A primary that cannot answer, answers damage, or does not know an owner at all is no reason to say that there is
  nothing: the backup is asked. What it tells may be old; whoever joins it with the log finds out (`other_copy`).
- What the log knows to be deleted is not found in a backup that was not told yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import structlog

from tellback_protocol.effects import Effect
from tellback_protocol.ids import Version
from tellback_server.store.base import (
    ListedOwner,
    Store,
    StoreBehind,
    StoredChat,
    StoreError,
    StoreHealth,
    StoreUnavailable,
)

__all__ = ["Guarded", "MultiStore", "is_newer"]

log = structlog.get_logger()

LOCKS: Final = 64


class Guarded(Store, Protocol):
    """A store behind a watch."""

    @property
    def health(self) -> StoreHealth | None:
        """What `check` found; None while nothing was asked."""

    @property
    def keeps_all(self) -> bool:
        """Whether the log may forget what was saved."""

    def other_copy(self, user: str, chat_id: str, than: StoredChat | None) -> StoredChat | None:
        """A later copy of an owner than the one that `load` gave, or None. Raises StoreError."""


def is_newer(one: Version, other: Version) -> bool:
    """Whether `one` comes after `other`."""
    return (one.epoch, one.seq) > (other.epoch, other.seq)


class MultiStore:
    """See base.Store and the module."""

    def __init__(self, primary: Guarded, backup: Guarded) -> None:
        self.primary = primary
        self.backup = backup
        self.is_gone: Callable[[str, str], bool] = lambda _user, _chat_id: False
        """Whether an owner is known to be deleted."""
        self.fallbacks = 0
        """Reads that the backup answered."""
        self.losses = 0
        """How often the primary was found to hold less than it was given, or the backup knew what it did not."""
        self.diverged = 0
        """Owners of which neither copy continued the other; what gave way was kept."""
        self.is_partial = False
        """The last list was that of one store: the other one could not be asked."""
        self._locks = [threading.Lock() for _ in range(LOCKS)]

    @property
    def health(self) -> StoreHealth | None:
        return self.primary.health or self.backup.health

    @property
    def keeps_all(self) -> bool:
        return self.primary.keeps_all or self.backup.keeps_all

    def check(self) -> StoreHealth:
        """Both are checked; one that cannot be reached is no error as long as the other one is there."""
        health: StoreHealth | None = None
        away: StoreUnavailable | None = None
        for store in (self.backup, self.primary):
            try:
                health = store.check()
            except StoreUnavailable as error:
                away = error
        if health is None:
            assert away is not None, "neither is there"
            raise away
        return health

    def load(self, user: str, chat_id: str) -> StoredChat | None:
        try:
            found = self.primary.load(user, chat_id)
        except StoreError as error:
            kept = self._in_backup(user, chat_id)
            if kept is None:
                raise
            log.warning("store-fallback", chat=kept.name, error=str(error))
            return kept
        if found is not None or self.is_gone(user, chat_id):
            return found
        kept = self._in_backup(user, chat_id)
        self.losses += kept is not None
        return kept

    def other_copy(self, user: str, chat_id: str, than: StoredChat | None) -> StoredChat | None:
        kept = self._in_backup(user, chat_id)
        if kept is None or (than is not None and not is_newer(kept.head, than.head)):
            return None
        self.losses += 1
        log.warning("store-fallback", chat=kept.name, error="the primary holds less than it was given")
        return kept

    def _in_backup(self, user: str, chat_id: str) -> StoredChat | None:
        """None as well when it cannot be asked."""
        if self.is_gone(user, chat_id):
            return None
        try:
            kept = self.backup.load(user, chat_id)
        except StoreError as error:
            log.warning("backup-not-read", user=user, chat_id=chat_id, error=str(error))
            return None
        self.fallbacks += kept is not None
        return kept

    def save(self, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        with self.turn(user, value.chat_id):
            try:
                self.primary.save(user, base, effects, value)
            except StoreBehind:
                self.losses += 1
                raise

    def delete(self, user: str, chat_id: str, head: Version) -> None:
        with self.turn(user, chat_id):
            self.primary.delete(user, chat_id, head)

    def rename(self, user: str, chat_id: str, name: str) -> None:
        with self.turn(user, chat_id):
            self.primary.rename(user, chat_id, name)

    def turn(self, user: str, chat_id: str) -> threading.Lock:
        """Around every write of an owner to the primary: a store takes one at a time."""
        return self._locks[hash((user, chat_id)) % LOCKS]

    def list(self, user: str) -> Iterator[ListedOwner]:
        found: dict[str, ListedOwner] = {}
        failed: StoreError | None = None
        answers = 0
        for store in (self.backup, self.primary):
            try:
                listed = list(store.list(user))
            except StoreError as error:
                failed = error
                continue
            answers += 1
            for one in listed:
                known = found.get(one.chat_id)
                if known is None or not is_newer(known.head, one.head):
                    found[one.chat_id] = one
        if not answers:
            assert failed is not None, "neither answered"
            raise failed
        self.is_partial = self.is_partial or failed is not None
        return (one for one in found.values() if not self.is_gone(user, one.chat_id))

    def users(self) -> Sequence[str]:
        users: dict[str, None] = {}
        failed: StoreError | None = None
        answers = 0
        for store in (self.primary, self.backup):
            try:
                users.update(dict.fromkeys(store.users()))
                answers += 1
            except StoreError as error:
                failed = error
        if not answers:
            assert failed is not None, "neither answered"
            raise failed
        return list(users)

    def claim(self, data_id: str) -> None:
        """One that cannot be reached is claimed when it is."""
        away: StoreUnavailable | None = None
        reached = 0
        for store in (self.primary, self.backup):
            try:
                store.claim(data_id)
                reached += 1
            except StoreUnavailable as error:
                away = error
        if not reached:
            assert away is not None, "neither is there"
            raise away

    def close(self) -> None:
        """Whoever writes to the backup closes it."""
        self.primary.close()
