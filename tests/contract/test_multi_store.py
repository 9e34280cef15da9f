"""A primary and a backup together keep the contract of one store; also when only the backup is left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tellback_protocol.effects import Effect
from tellback_protocol.ids import Version
from tellback_server.contract import Saved, StoreContract, same
from tellback_server.store.base import ListedOwner, Store, StoredChat, StoreForeign, StoreHealth
from tellback_server.store.multi import MultiStore
from tellback_server.store.schemes import open_store


class Unwatched:
    """A store that nobody watches, as MultiStore takes one."""

    def __init__(self, url: str) -> None:
        self._store = open_store(url)
        self.health: StoreHealth | None = None

    @property
    def keeps_all(self) -> bool:
        return self.health is not None and self.health.durability == "store"

    def check(self) -> StoreHealth:
        self.health = self._store.check()
        return self.health

    def load(self, user: str, chat_id: str) -> StoredChat | None:
        return self._store.load(user, chat_id)

    def other_copy(self, user: str, chat_id: str, than: StoredChat | None) -> StoredChat | None:
        return None

    def save(self, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        self._store.save(user, base, effects, value)

    def delete(self, user: str, chat_id: str, head: Version) -> None:
        self._store.delete(user, chat_id, head)

    def rename(self, user: str, chat_id: str, name: str) -> None:
        self._store.rename(user, chat_id, name)

    def list(self, user: str) -> Iterator[ListedOwner]:
        return self._store.list(user)

    def users(self) -> Sequence[str]:
        return self._store.users()

    def claim(self, data_id: str) -> None:
        self._store.claim(data_id)

    def close(self) -> None:
        self._store.close()


class Pair(MultiStore):
    """Both are opened and closed together."""

    def __init__(self, primary: str, backup: str) -> None:
        super().__init__(Unwatched(primary), Unwatched(backup))

    def close(self) -> None:
        super().close()
        self.backup.close()


class Flushed(Pair):
    """The backup is brought up at once, as the flusher does it a little later."""

    def save(self, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        super().save(user, base, effects, value)
        self.backup.save(user, None, None, value)

    def delete(self, user: str, chat_id: str, head: Version) -> None:
        super().delete(user, chat_id, head)
        self.backup.delete(user, chat_id, head)

    def rename(self, user: str, chat_id: str, name: str) -> None:
        super().rename(user, chat_id, name)
        self.backup.rename(user, chat_id, name)


class TestMultiStore(StoreContract):
    """The backup holds nothing yet: what it lacks is in nobody's way."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """The primary's: what was saved there is saved."""
        return f"sqlite://{tmp_path}/primary.db"

    def opened(self, url: str, folder: Path) -> Pair:
        return Pair(url, f"sqlite://{folder}/backup.db")

    @pytest.fixture
    def store(self, url: str, tmp_path: Path) -> Iterator[Store]:
        with contextlib.closing(self.opened(url, tmp_path)) as store:
            store.check()
            yield store

    @pytest.fixture
    def again(self, url: str, store: Store, tmp_path: Path) -> Iterator[Callable[[], Store]]:
        with contextlib.ExitStack() as stack:

            def reopen() -> Store:
                store.close()
                other = stack.enter_context(contextlib.closing(self.opened(url, tmp_path)))
                other.check()
                return other

            yield reopen


class TestWhatOnlyTheBackupHolds(TestMultiStore):
    """Opened again it has a primary that holds nothing: every answer is the backup's."""

    def opened(self, url: str, folder: Path) -> Pair:
        backup = f"sqlite://{folder}/backup.db"
        with contextlib.closing(open_store(backup)) as kept:
            kept.check()
            if kept.users():
                url = f"{url}-emptied"
        return Flushed(url, backup)


def test_sm3_both_are_claimed_and_neither_may_be_another_ones(tmp_path: Path) -> None:
    primary, backup = f"sqlite://{tmp_path}/primary.db", f"sqlite://{tmp_path}/backup.db"
    with contextlib.closing(Unwatched(backup)) as other:
        other.check()
        other.claim("another")
    with contextlib.closing(Pair(primary, backup)) as store:
        store.check()
        with pytest.raises(StoreForeign):
            store.claim("mine")


def test_sm3_what_is_newer_is_listed_and_what_is_gone_is_not(tmp_path: Path) -> None:
    with contextlib.closing(Pair(f"sqlite://{tmp_path}/a.db", f"sqlite://{tmp_path}/b.db")) as store:
        store.check()
        saved = Saved()
        saved.append()
        older = saved.save(store)
        saved.append()
        newer = saved.value()
        store.backup.save("default-user", None, None, newer)
        assert [one.head for one in store.list("default-user")] == [newer.head]
        same(store.load("default-user", saved.chat_id), older)
        same(store.other_copy("default-user", saved.chat_id, older), newer)
        store.is_gone = lambda _user, chat_id: chat_id == saved.chat_id
        assert list(store.list("default-user")) == []
