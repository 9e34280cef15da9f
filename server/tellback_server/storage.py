"""Storage: where a server keeps chats, chosen by one setting: users' folders, or a store.

    storage = choose(settings)                       nothing is reached or touched yet; raises ConfigurationError
    storage.prepare(fs, data, files, log, clock)     in a thread, the data folder locked, the log open
    storage.room(hub, files, names), .library(...)   for keeper and catalog
    await storage.start(keeper), .stop()             what runs beside the keeper
    storage.close()                                  in a thread, when everything is folded

Rules of this module:
- A store with settings that lose data, or that belongs to another folder, stops the start with a sentence.
- A store that cannot be reached does not: what is asked of it is `storage-unavailable` until it is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol

import structlog

from tellback_server.backing import Backing, StoreReport, probe
from tellback_server.clock import Clock
from tellback_server.config import Settings
from tellback_server.config_problems import ConfigurationError, Problem, flag_of
from tellback_server.diverged import Diverged
from tellback_server.file_room import FileRoom
from tellback_server.flushed import FlushedFile
from tellback_server.fs import Fs
from tellback_server.hub import Hub
from tellback_server.keeper import Keeper
from tellback_server.library import FileLibrary, Library, StoreLibrary
from tellback_server.log import Log, Position
from tellback_server.names import Names
from tellback_server.registrar import Registrar
from tellback_server.rooms import Room
from tellback_server.store.address import StoreAddress
from tellback_server.store.base import Store, StoreError, StoreUnavailable, StoreUnsafe
from tellback_server.store.files import FileStore
from tellback_server.store.multi import Guarded, MultiStore
from tellback_server.store.schemes import open_store
from tellback_server.store_binding import Binding, bind, check_files, mirror_binding, moved
from tellback_server.store_survey import FileSurvey, StoreSurvey
from tellback_server.store_watch import StoreWatch, WatchedStore
from tellback_server.vault import THREADS as STORE_THREADS
from tellback_server.vault import Vault

__all__ = ["Storage", "choose"]

log = structlog.get_logger()


Gauges = dict[str, Callable[[], float] | Callable[[], dict[str, float]]]
"""By metric; of one that stores have in common by store."""


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
    def gauges(self) -> Gauges:
        """What is to be seen of it."""

    @property
    def reports(self) -> list[StoreReport]:
        """How each store is; none of users' folders alone."""

    @property
    def needed(self) -> Position | None:
        """The oldest record of the log that a store still needs."""

    async def start(self, keeper: Keeper) -> None:
        """When the names are known, before serving."""

    async def stop(self) -> None:
        """Nothing is written any more; owners are still live."""

    @property
    def executors(self) -> list[tuple[Executor, int]]:
        """Whose threads touch a store, each with the number of its threads."""

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

    needed: Position | None = None

    @property
    def gauges(self) -> Gauges:
        return {}

    @property
    def reports(self) -> list[StoreReport]:
        return []

    @property
    def executors(self) -> list[tuple[Executor, int]]:
        return []

    async def start(self, keeper: Keeper) -> None:
        """Nothing runs beside it."""

    async def stop(self) -> None:
        """Nothing runs beside it."""

    def close(self) -> None:
        """Files are closed."""


class _Store:
    """A store."""

    _setting = "store"

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

    def _guarded(self, hub: Hub) -> Guarded:
        """The store behind its watch. Raises ConfigurationError."""
        del hub
        return WatchedStore(self._store, self._watch, self._binding.data_id, self._is_moved)

    def room(self, hub: Hub, files: FileStore, names: Names) -> Vault:
        """Raises ConfigurationError."""
        self._hub, self._files = hub, files
        self._watch = StoreWatch(hub, behind_bytes_max=self._behind_bytes_max)
        watched = self._guarded(hub)
        try:
            watched.check()
        except StoreUnavailable:
            # Told by the watch; whoever asks for a chat hears it.
            pass
        except StoreError as error:
            raise _problem(error, self._setting) from None
        self._vault = Vault(hub, files, watched, names, self._watch)
        return self._vault

    def library(self, files: FileStore, clock: Clock) -> StoreLibrary:
        return StoreLibrary(files, self._vault, clock)

    @property
    def state(self) -> str:
        watch = self._watch
        return f"the store has not been reached for {watch.failing_s:.0f} s" if watch.is_failing else ""

    needed: Position | None = None

    async def start(self, keeper: Keeper) -> None:
        """Nothing runs beside it."""

    async def stop(self) -> None:
        """Nothing runs beside it."""

    @property
    def executors(self) -> list[tuple[Executor, int]]:
        return [(self._vault.executor, STORE_THREADS)]

    @property
    def reports(self) -> list[StoreReport]:
        return [_primary_report(self._hub, self._watch, self._url)]

    @property
    def gauges(self) -> Gauges:
        watch = self._watch
        return {
            "tellback_store_up": lambda: 0.0 if watch.is_failing else 1.0,
            "tellback_store_failures": lambda: float(watch.failures),
            "tellback_store_behind_bytes": lambda: float(watch.behind_bytes),
        }

    def close(self) -> None:
        self._vault.close()


class _BackedStore(_Store):
    """A store with a backup."""

    _setting = "primary"

    def __init__(self, store: Store, url: str, behind_bytes_max: int, backing: Backing) -> None:
        super().__init__(store, url, behind_bytes_max)
        self._backing = backing

    def prepare(self, fs: Fs, data: str, files: FileStore, records: Log, clock: Clock) -> None:
        super().prepare(fs, data, files, records, clock)
        self._file = FlushedFile(fs, data, self._backing.url)
        self._is_moved = lambda holds: moved(
            fs, data, self._binding, self._url, holds_owners=holds or self._is_backed()
        )

    def _is_backed(self) -> bool:
        """Whether an empty primary will be filled."""
        with contextlib.suppress(StoreError):
            return bool(self._backing.guarded.users())
        return False

    def _guarded(self, hub: Hub) -> MultiStore:
        backup = _opened(self._backing, hub, self._binding.data_id)
        self._stores = MultiStore(super()._guarded(hub), backup)
        return self._stores

    async def start(self, keeper: Keeper) -> None:
        vault, registrar = self._vault, keeper.lifecycle.registrar
        self._stores.is_gone = lambda user, chat_id: is_gone(registrar, user, chat_id)
        survey = StoreSurvey(
            self._stores, self._binding.data_id, vault.users, vault.names, vault.index,
            Diverged(self._stores, self._hub.log, self._files, vault.names, vault.index, self._hub.clock),
        )
        watches = (self._watch, self._backing.watch)
        await self._backing.start(
            self._file, survey, registrar, vault.names,
            recoveries=lambda: sum(watch.recoveries for watch in watches) + self._stores.losses,
            is_primary_away=lambda: self._watch.is_failing, probe=self._probe,
            name_of=lambda user, chat_id: vault.names.name_of(user, chat_id) or vault.index.known_name(user, chat_id),
        )

    def _probe(self) -> None:
        self._backing.probe(self._binding.data_id)
        probe(self._stores.primary, self._watch, self._binding.data_id)

    async def stop(self) -> None:
        await self._backing.stop()

    @property
    def needed(self) -> Position | None:  # type: ignore[override]  # A store alone needs what is not folded.
        return self._backing.needed

    @property
    def executors(self) -> list[tuple[Executor, int]]:
        return [self._backing.executor, *super().executors]

    @property
    def reports(self) -> list[StoreReport]:
        return [*super().reports, self._backing.report()]

    @property
    def state(self) -> str:
        return _state_of(self.reports)

    @property
    def gauges(self) -> Gauges:
        gauges = _gauges_of(lambda: self.reports)
        return {**gauges, "tellback_stores_diverged": lambda: float(self._stores.diverged)}

    def close(self) -> None:
        _tell_left(self._hub, "primary", self._watch.error)
        self._vault.close()
        self._backing.close()


class _BackedFolders(_Folders):
    """Users' folders that a store mirrors."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    def prepare(self, fs: Fs, data: str, files: FileStore, records: Log, clock: Clock) -> None:
        super().prepare(fs, data, files, records, clock)
        self._file = FlushedFile(fs, data, self._backing.url)
        self._binding = mirror_binding(fs, data, self._backing.url, clock.uuid4)

    def room(self, hub: Hub, files: FileStore, names: Names) -> FileRoom:
        self._hub, self._files, self._names = hub, files, names
        _opened(self._backing, hub, self._binding.data_id)
        return FileRoom(hub, files)

    async def start(self, keeper: Keeper) -> None:
        survey = FileSurvey(
            self._files, self._backing.guarded, self._binding.data_id, self._names, self._hub.clock
        )
        await self._backing.start(
            self._file, survey, keeper.lifecycle.registrar, self._names,
            recoveries=lambda: self._backing.watch.recoveries, is_primary_away=lambda: False,
            probe=lambda: self._backing.probe(self._binding.data_id),
        )

    async def stop(self) -> None:
        await self._backing.stop()

    @property
    def needed(self) -> Position | None:  # type: ignore[override]  # Folders alone need what is not folded.
        return self._backing.needed

    @property
    def executors(self) -> list[tuple[Executor, int]]:
        return [self._backing.executor]

    @property
    def reports(self) -> list[StoreReport]:
        lag_s, commits, _since = _waiting(self._hub)
        files = StoreReport(
            store="primary", kind="files", state="up", lag_s=lag_s, pending_entries=commits, pending_bytes=0,
            failures=self._hub.counters.checkpoint_failures,
        )
        return [files, self._backing.report()]

    @property
    def state(self) -> str:  # type: ignore[override]  # Folders alone are well, or the log is not.
        return _state_of(self.reports)

    @property
    def gauges(self) -> Gauges:
        return _gauges_of(lambda: self.reports)

    def close(self) -> None:
        self._backing.close()


def is_gone(registrar: Registrar, user: str, chat_id: str) -> bool:
    """Whether an owner is in the trash, by itself or with its character."""
    registered = registrar.of(user, chat_id)
    return (registered is not None and registered.gone is not None) or registrar.went_with(user, chat_id) is not None


def _waiting(hub: Hub) -> tuple[float, int, float | None]:
    """Age of the oldest commit that is not in the primary, how many there are, and when the oldest was made."""
    commits, since_s = 0, None
    for actor in hub.actors:
        if actor.file is not None and actor.dirty_since_s is not None:
            commits += actor.file.pending.commits
            since_s = actor.dirty_since_s if since_s is None else min(since_s, actor.dirty_since_s)
    return (0.0 if since_s is None else hub.clock.monotonic_s() - since_s), commits, since_s


def _primary_report(hub: Hub, watch: StoreWatch, url: str) -> StoreReport:
    lag_s, commits, _since_s = _waiting(hub)
    return StoreReport(
        store="primary", kind=StoreAddress(url).scheme, state="away" if watch.is_failing else "up", lag_s=lag_s,
        pending_entries=commits, pending_bytes=watch.behind_bytes, failures=watch.failures, away_s=watch.failing_s,
    )


def _state_of(reports: list[StoreReport]) -> str:
    told = {
        "away": lambda one: f"the {one.store} has not been reached for {one.away_s:.0f} s",
        "behind": lambda one: f"the {one.store} is {one.lag_s:.0f} s behind",
    }
    return "; ".join(told[one.state](one) for one in reports if one.state in told)


def _gauges_of(reports: Callable[[], list[StoreReport]]) -> Gauges:
    def told(value: Callable[[StoreReport], float]) -> Callable[[], dict[str, float]]:
        return lambda: {one.store: value(one) for one in reports()}

    return {
        "tellback_store_up": told(lambda one: float(one.state != "away")),
        "tellback_store_failures": told(lambda one: float(one.failures)),
        "tellback_store_behind_bytes": told(lambda one: float(one.pending_bytes)),
        "tellback_store_lag_seconds": told(lambda one: one.lag_s),
        "tellback_store_pending_entries": told(lambda one: float(one.pending_entries)),
    }


def _tell_left(hub: Hub, store: str, error: str) -> None:
    _lag_s, commits, _since_s = _waiting(hub)
    if commits:
        log.warning(
            "stopped-behind", store=store, pending_entries=commits, error=error,
            meaning="The log keeps it; the next start goes on.",
        )


def _opened(backing: Backing, hub: Hub, data_id: str) -> WatchedStore:
    try:
        return backing.open(hub, data_id)
    except StoreError as error:
        raise _problem(error, "backup") from None


def _problem(error: StoreError, setting: str) -> ConfigurationError:
    return ConfigurationError(Problem(flag_of(setting), f"{error}.".replace("..", ".")))


def _named(url: str, setting: str) -> Store:
    try:
        return open_store(url)
    except StoreUnsafe as error:
        raise _problem(error, setting) from None


def choose(settings: Settings) -> Storage:
    """See the module."""
    if settings.store == "files":
        return _Folders()
    url, behind_bytes_max = settings.store, settings.store_behind_bytes_max
    if url != "multi":
        return _Store(_named(url, "store"), url, behind_bytes_max)
    primary, backup = settings.primary_and_backup
    backing = Backing(
        _named(backup, "backup"), backup, interval_s=settings.flush_interval_s, bytes_max=behind_bytes_max,
        timeout_s=settings.flush_timeout_s,
    )
    if primary == "files":
        return _BackedFolders(backing)
    return _BackedStore(_named(primary, "primary"), primary, behind_bytes_max, backing)
