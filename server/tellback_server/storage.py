"""Storage: where a server keeps chats, chosen by one setting: users' folders, or a store.

    storage = choose(settings)                       nothing is reached or touched yet; raises ConfigurationError
    storage.prepare(fs, data, files, log, clock)     in a thread, the data folder locked, the log open
    storage.room(hub, files, names), .library(...)   for keeper and catalog
    storage.close()                                  in a thread, when everything is folded

Rules of this module:
- A store with settings that lose data, or that belongs to another folder, stops the start with a sentence.
- A store that cannot be reached does not: what is asked of it is `storage-unavailable` until it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog

from tellback_server.clock import Clock
from tellback_server.config import Settings
from tellback_server.config_problems import ConfigurationError, Problem, flag_of
from tellback_server.file_room import FileRoom
from tellback_server.fs import Fs
from tellback_server.hub import Hub
from tellback_server.library import FileLibrary, Library, StoreLibrary
from tellback_server.log import Log
from tellback_server.names import Names
from tellback_server.rooms import Room
from tellback_server.store.base import Store, StoreError, StoreUnavailable, StoreUnsafe
from tellback_server.store.files import FileStore
from tellback_server.store.schemes import open_store
from tellback_server.store_binding import Binding, bind, check_files, moved
from tellback_server.store_watch import StoreWatch, WatchedStore
from tellback_server.vault import Vault

__all__ = ["Storage", "choose"]

log = structlog.get_logger()


class Storage(Protocol):
    """See the module."""

    def prepare(self, fs: Fs, data: str, files: FileStore, records: Log, clock: Clock) -> None:
        """Raises ConfigurationError, FsError."""

    def room(self, hub: Hub, files: FileStore, names: Names) -> Room:
        """Where the keeper keeps owners."""

    def library(self, files: FileStore, clock: Clock) -> Library:
        """What the catalog looks at; after `room`."""

    @property
    def state(self) -> str:
        """What is wrong with it now, for people; empty when nothing is."""

    @property
    def gauges(self) -> dict[str, Callable[[], float]]:
        """What is to be seen of it."""

    def close(self) -> None:
        """Blocks."""


class _Folders:
    """Users' folders."""

    state = ""

    def prepare(self, fs: Fs, data: str, files: FileStore, records: Log, clock: Clock) -> None:
        del files, records, clock
        check_files(fs, data)

    def room(self, hub: Hub, files: FileStore, names: Names) -> FileRoom:
        del names
        return FileRoom(hub, files)

    def library(self, files: FileStore, clock: Clock) -> FileLibrary:
        return FileLibrary(files, clock)

    @property
    def gauges(self) -> dict[str, Callable[[], float]]:
        return {}

    def close(self) -> None:
        """Files are closed."""


class _Store:
    """A store."""

    def __init__(self, store: Store, url: str, behind_bytes_max: int) -> None:
        self._store = store
        self._url = url
        self._behind_bytes_max = behind_bytes_max
        self._binding: Binding
        self._is_moved: Callable[[bool], Binding]
        self._watch: StoreWatch
        self._vault: Vault

    def prepare(self, fs: Fs, data: str, files: FileStore, records: Log, clock: Clock) -> None:
        has_chats = bool(files.known_users()) or any(not key.endswith("/active-chats") for key in records.owners())
        self._binding = bind(fs, data, self._url, clock.uuid4, has_chats=has_chats)
        self._is_moved = lambda holds: moved(fs, data, self._binding, self._url, holds_owners=holds)

    def room(self, hub: Hub, files: FileStore, names: Names) -> Vault:
        """Raises ConfigurationError."""
        self._watch = StoreWatch(hub, behind_bytes_max=self._behind_bytes_max)
        watched = WatchedStore(self._store, self._watch, self._binding.data_id, self._is_moved)
        try:
            watched.check()
        except StoreUnavailable:
            # Told by the watch; whoever asks for a chat hears it.
            pass
        except StoreError as error:
            raise ConfigurationError(Problem(flag_of("store"), f"{error}.".replace("..", "."))) from None
        self._vault = Vault(hub, files, watched, names, self._watch)
        return self._vault

    def library(self, files: FileStore, clock: Clock) -> StoreLibrary:
        return StoreLibrary(files, self._vault, clock)

    @property
    def state(self) -> str:
        watch = self._watch
        return f"the store has not been reached for {watch.failing_s:.0f} s" if watch.is_failing else ""

    @property
    def gauges(self) -> dict[str, Callable[[], float]]:
        watch = self._watch
        return {
            "tellback_store_up": lambda: 0.0 if watch.is_failing else 1.0,
            "tellback_store_failures": lambda: float(watch.failures),
            "tellback_store_behind_bytes": lambda: float(watch.behind_bytes),
        }

    def close(self) -> None:
        self._vault.close()


def choose(settings: Settings) -> Storage:
    """See the module."""
    if settings.store == "files":
        return _Folders()
    try:
        return _Store(open_store(settings.store), settings.store, settings.store_behind_bytes_max)
    except StoreUnsafe as error:
        raise ConfigurationError(Problem(flag_of("store"), f"{error}.")) from None
