"""The server as a whole: which concrete parts there are, in which order they start, and how they stop.

    start    read the users, bind, lock the data folder, open the log, begin to accept
    stop     no new connections, stop reading, everything sequenced becomes durable and is answered, files are folded,
             connections close with 1001, the log is sealed
    poison   the log failed: nobody is acknowledged any more, tabs are told, exit code 70

Rules of this module:
- It is the only one that picks classes; it decides nothing about frames.
- A stop never weakens an answer: what was acknowledged is in the log before the process ends (BEHAVIOUR L6).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from tellback_protocol.frames import CLOSE_GOING_AWAY, SUBPROTOCOL, Limits, ModelServer
from tellback_server.auth import Authenticator, authenticator_for
from tellback_server.backup_desk import BackupDesk
from tellback_server.backups import Backups, BackupSettings
from tellback_server.catalog import THREADS as CATALOG_THREADS
from tellback_server.catalog import Catalog
from tellback_server.clock import Clock
from tellback_server.config import ConfigurationError, Problem, Settings, flag_of, upstream_keys
from tellback_server.control import Control
from tellback_server.file_desk import FileDesk
from tellback_server.fs import Fs
from tellback_server.gateway import Gateway
from tellback_server.generation_desk import GenerationLimits
from tellback_server.http import FrontDoor, HttpResponse
from tellback_server.hub import Hub
from tellback_server.keeper import Keeper
from tellback_server.leftovers import Leftovers
from tellback_server.lock import DataLock
from tellback_server.log import Log, LogPoisoned, Position
from tellback_server.metrics import CONTENT_TYPE, Counters, render, version
from tellback_server.names import Names
from tellback_server.page import page_routes
from tellback_server.producers import Producers
from tellback_server.reception import Reception
from tellback_server.repair_desk import RepairDesk
from tellback_server.server_backup import UNFINISHED, store_of_copy
from tellback_server.standstill import Standstill
from tellback_server.status import Status
from tellback_server.status_desk import StatusDesk
from tellback_server.storage import choose
from tellback_server.store.files import SERVER_FOLDER, FileStore
from tellback_server.tab import Tab
from tellback_server.trash import Trash
from tellback_server.trash_desk import TrashDesk
from tellback_server.websocket import PeerInfo, TransportLimits

if TYPE_CHECKING:
    from tellback_server.upstream import Upstreams

log = structlog.get_logger()

EXIT_STOPPED: Final = 0
EXIT_POISONED: Final = 70
STOP_TIMEOUT_S: Final = 5.0
POISON_TIMEOUT_S: Final = 1.0
LAG_SAMPLE_S: Final = 0.05
THREADS: Final = 4
"""For files and history; the log has a thread of its own."""


class App:
    """One server on one data folder."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None, fs: Fs | None = None) -> None:
        self.settings = settings
        self.clock = clock or Clock()
        self.fs = fs or Fs()
        self.counters = Counters()
        self._data = os.path.abspath(settings.data)
        self.urls: list[str] = []
        """Where clients connect, set by `start`."""
        self._stopping = asyncio.Event()
        self._poison: BaseException | None = None
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="tellback-files")
        self._lag_max_s = 0.0

    # -- start -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Everything up to accepting connections.

        Raises: DirectoryLocked, LogCorrupt, store and configuration errors, OSError when the address is taken.
        """
        loop = asyncio.get_running_loop()
        data = self._data
        # What can be found wrong without touching the folder comes first: nothing is made there in vain.
        self._look_at_folder(data)
        authenticator = authenticator_for(self.settings, self.fs, self.clock)
        self._storage = choose(self.settings)
        self._upstreams = self._make_upstreams()
        self._gateway = self._make_gateway(authenticator)
        async with contextlib.AsyncExitStack() as undo:
            # A start that fails ends what it had begun.
            undo.push_async_callback(self._close_upstreams)
            await self._gateway.bind()
            undo.callback(self._gateway.stop_accepting)
            self.fs.make_directories(data)
            self._lock = DataLock.take(self.fs, data)
            undo.callback(self._lock.release)
            await self._start_locked(loop, data, authenticator, undo)
            undo.pop_all()

    def _look_at_folder(self, data: str) -> None:
        """Raises: DirectoryLocked; ConfigurationError when the folder and the one around it are both missing."""
        found = self.fs.stat(data)
        if found is not None:
            if found.is_directory:
                self.fs.lock_directory(data).release()
                if self.fs.stat(os.path.join(data, UNFINISHED)) is not None:
                    remedy = "Run `tellback backup server` (or server-restore) again, it goes on; or remove it."
                    raise ConfigurationError(Problem(flag_of("data"), f"{data}: the copy is not finished.", remedy))
                copied = store_of_copy(self.fs, data)
                if copied:
                    remedy = "`tellback backup server-restore` makes a data folder and a store of it."
                    what = f"{data}: a backup of chats in {copied}."
                    raise ConfigurationError(Problem(flag_of("data"), what, remedy))
            return
        parent = os.path.dirname(data)
        if self.fs.stat(parent) is None and not self.settings.create:
            remedy = f"Check the path, or give {flag_of('create')} to make the folders on the way to it, too."
            raise ConfigurationError(Problem(flag_of("data"), f"{data}: {parent} does not exist.", remedy))

    def _make_upstreams(self) -> Upstreams | None:
        """None without model servers: most servers need no HTTP client. Raises: ConfigurationError."""
        keys = upstream_keys(self.settings, os.environ, self.fs)
        if not self.settings.upstreams:
            return None
        from tellback_server.upstream import Upstreams

        return Upstreams.configured(self.settings, keys, clock=self.clock, counters=self.counters)

    async def _close_upstreams(self) -> None:
        if self._upstreams is not None:
            await self._upstreams.close()

    def _make_gateway(self, authenticator: Authenticator) -> Gateway:
        settings = self.settings
        return Gateway(
            handler_factory=self._make_tab,
            host=settings.host,
            port=settings.port,
            front_door=FrontDoor.configured(
                extra_origins=settings.allowed_origins,
                loopback_only=authenticator.kind == "none",
                routes={
                    # A part of the program: not from the Fs that holds the data.
                    **page_routes(Fs()),
                    "/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics,
                    "/statusz": self._statusz,
                },
            ),
            limits=TransportLimits(),
            connections_max=settings.connections_max,
            connections_per_address_max=settings.connections_per_address_max,
            fast_path=settings.fast_path,
        )

    async def _start_locked(
        self, loop: asyncio.AbstractEventLoop, data: str, authenticator: Authenticator,
        undo: contextlib.AsyncExitStack,
    ) -> None:
        settings = self.settings
        limits = Limits(
            frame_bytes=settings.frame_bytes_max, document_bytes=settings.document_bytes_max,
            in_flight=settings.in_flight_max, open_chats=settings.open_chats_max,
        )
        # Whoever passes hello is a user; without configured users there is one, whose chats may lie in `data` itself.
        users = authenticator.users if authenticator.kind == "none" else None
        self._files = FileStore(self.fs, data, users, clock=self.clock)
        own = os.path.join(data, ".tellback", "log")
        leftovers = Leftovers()
        self._log = await loop.run_in_executor(self._executor, lambda: Log.open(
            self.fs, own, self.clock, segment_bytes=settings.log_segment_bytes,
            retain_bytes=settings.log_retain_bytes, retain_s=settings.log_retain_days * 86_400,
            sync=not settings.unsafe_no_sync, seen=leftovers.see,
        ))
        undo.push_async_callback(self._close_log)
        self._hub = Hub(
            log=self._log, clock=self.clock, limits=limits, counters=self.counters, loop=loop,
            executor=self._executor, durable=not settings.unsafe_no_sync, outbox_bytes_max=settings.outbox_bytes_max,
            generation_limits=GenerationLimits(
                lease_s=settings.generation_lease_s, silence_s=settings.generation_silence_s,
                running_max=settings.generations_max, running_bytes_max=settings.generation_bytes_max,
            ),
        )
        names = Names()
        await loop.run_in_executor(self._executor, lambda: self._storage.prepare(
            self.fs, data, self._files, self._log, self.clock
        ))
        room = await loop.run_in_executor(self._executor, lambda: self._storage.room(self._hub, self._files, names))
        undo.push_async_callback(self._close_storage)
        self._keeper = Keeper(
            self._hub, self._files, room, names,
            strategy=settings.save_strategy, backups=Backups(self._hub, self._files, BackupSettings(
                interval_s=settings.backup_interval_s, deletions_min=settings.backup_deletions_min,
                bytes_max=settings.backup_bytes_max, policy=settings.backup_policy,
            )),
            idle_s=settings.idle_s,
        )
        self._hub.producers = Producers(self._upstreams)
        self._hub.shelf = self._keeper
        self._catalog = Catalog(
            self._hub, self._files, self._storage.library(self._files, self.clock), self._keeper
        )
        self._catalog.backups = BackupDesk(self._hub, self._keeper.backups)
        self._catalog.repairs = RepairDesk(self._hub, self._files, offers=room.must_settle)
        self._catalog.trash = TrashDesk(self._hub, Trash(self._files), self._keeper.lifecycle.lock_of)
        self._catalog.files = FileDesk(self._hub, self._files)
        self._catalog.status = StatusDesk(self._hub, self._keeper.lag_s)
        self._hub.desk = self._catalog
        self._keeper.needed_elsewhere = self._needed
        self._reception = Reception(
            authenticator, f"tellback/{version()}", settings.heartbeat_ms,
            [ModelServer(name) for name in self._hub.producers.models],
        )
        self._hub.tabs = self._reception.tabs
        self._control = Control(self.fs, os.path.join(data, SERVER_FOLDER), Standstill(
            self._log,
            [*self._storage.executors, (self._executor, THREADS), (self._catalog.executor, CATALOG_THREADS)],
        ))
        self._log.start(loop, self._hub.on_durable, self._poisoned)
        await self._keeper.start(leftovers)
        await self._catalog.start()
        await self._storage.start(self._keeper)
        undo.push_async_callback(self._hub.finish_tasks)
        undo.push_async_callback(self._catalog.stop)
        undo.push_async_callback(self._keeper.stop)
        undo.push_async_callback(self._storage.stop)
        undo.push_async_callback(self._control.stop)
        await self._control.start()
        await self._gateway.start()
        self.urls = [
            f"ws://{f'[{host}]' if ':' in host else host}:{port}/ws" for host, port in self._gateway.addresses
        ]
        self._timers = [
            loop.create_task(self._every(settings.heartbeat_ms / 2000, self._reception.sweep)),
            loop.create_task(self._measure_lag(loop)),
        ]
        log.info("serving", urls=self.urls, data=data, subprotocol=SUBPROTOCOL, term=self._log.term)

    def _make_tab(self, peer: PeerInfo) -> Tab:
        return Tab(self._hub, self._reception, peer)

    # -- stop --------------------------------------------------------------------------------------------------------

    def request_stop(self, reason: str) -> None:
        """Ask for an orderly end; `run_until_stopped` returns when it is done."""
        if not self._stopping.is_set():
            log.info("stopping", reason=reason)
            self._stopping.set()

    async def run_until_stopped(self) -> int:
        """Serve until asked to stop or until the log fails. Returns the exit code: 0, or 70."""
        await self._stopping.wait()
        return await self._stop_poisoned() if self._poison is not None else await self._stop()

    async def _stop(self) -> int:
        self._gateway.stop_accepting()
        self._reception.goaway("shutting-down")
        await self._hub.producers.close()
        self._hub.generations.stop()
        # What was read before is still answered; what comes later is not read.
        self._hub.refuse_all("shutting-down", "The server is stopping.")
        try:
            await self._control.stop()
            await self._log.flush()
            await self._gateway.close_all(CLOSE_GOING_AWAY, "server stops", STOP_TIMEOUT_S)
            await self._storage.stop()
            await self._keeper.stop()
            await self._catalog.stop()
            await self._hub.finish_tasks()
            await self._close_upstreams()
            self._end_timers()
            await self._close_storage()
            await self._close_log()
        except LogPoisoned:
            return await self._stop_poisoned()
        self._executor.shutdown()
        self._lock.release()
        log.info("stopped")
        return EXIT_STOPPED

    async def _close_storage(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._storage.close)

    async def _close_log(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._log.close)

    async def _stop_poisoned(self) -> int:
        """Nothing that waits for the disk is answered: whether it is stored is not known."""
        self._gateway.stop_accepting()
        self._hub.refuse_all("storage-failed", "The disk failed.")
        self._reception.goaway("storage-failed")
        await self._gateway.close_all(1011, "storage failed", POISON_TIMEOUT_S)
        self._end_timers()
        log.error("poisoned", error=repr(self._poison))
        return EXIT_POISONED

    def _poisoned(self, error: BaseException) -> None:
        self._poison = error
        self._hub.refuse_all("storage-failed", "The disk failed.")
        self._stopping.set()

    def _end_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    async def _every(self, interval_s: float, work: object) -> None:
        assert callable(work)
        while True:
            await asyncio.sleep(interval_s)
            work()

    async def _measure_lag(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            planned_s = loop.time() + LAG_SAMPLE_S
            await asyncio.sleep(LAG_SAMPLE_S)
            self._lag_max_s = max(self._lag_max_s, loop.time() - planned_s)
            self._hub.watch_disk()

    def _needed(self) -> Position | None:
        """The oldest record of the log that somebody beside the keeper needs."""
        known = [one for one in (self._catalog.needed, self._storage.needed) if one is not None]
        return min(known, default=None)

    # -- plain HTTP --------------------------------------------------------------------------------------------------

    def _healthz(self) -> HttpResponse:
        return HttpResponse(200, b"ok\n")

    def _readyz(self) -> HttpResponse:
        hub = self._hub
        if hub.is_admitting and hub.held_up is None and not hub.is_stalled and self._log.storage_error is None:
            state = self._storage.state
            return HttpResponse(200, f"degraded: {state}\n".encode() if state else b"ready\n")
        return HttpResponse(503, b"not ready\n")

    def _statusz(self) -> HttpResponse:
        status = Status(
            server=f"tellback/{version()}", ready=self._readyz().status == 200, state=self._storage.state,
            connections=self._gateway.connection_count, chats=len(self._hub.actors),
            log_segments=self._log.segment_count, checkpoint_lag_s=self._keeper.lag_s(),
            stores=self._storage.reports,
        )
        return HttpResponse(200, msgspec.json.encode(status), "application/json")

    def _metrics(self) -> HttpResponse:
        body = render(self.counters, self._log.stats, {
            "tellback_connections": lambda: float(self._gateway.connection_count),
            "tellback_generations": lambda: float(self._hub.generations.running_count),
            "tellback_generation_bytes": lambda: float(self._hub.generations.running_bytes),
            "tellback_actors": lambda: float(len(self._hub.actors)),
            "tellback_checkpoint_lag_seconds": self._keeper.lag_s,
            "tellback_log_segments": lambda: float(self._log.segment_count),
            "tellback_log_segments_held": lambda: float(self._keeper.retention.segments_held),
            "tellback_log_stalled_seconds": lambda: self._log.stalled_s,
            "tellback_log_uncommitted_bytes": lambda: float(self._log.uncommitted_bytes),
            "tellback_backups_over_bound": lambda: float(self._keeper.backups.users_over),
            "tellback_loop_lag_seconds": self._take_lag,
            **self._storage.gauges,
        })
        return HttpResponse(200, body, CONTENT_TYPE)

    def _take_lag(self) -> float:
        lag_s, self._lag_max_s = self._lag_max_s, 0.0
        return lag_s
