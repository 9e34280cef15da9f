"""Backing: the backup of a server's primary: its store behind a watch, the flusher, and what is told of both.

    backing = Backing(open_store(url), url, ...)
    guarded = backing.open(hub, data_id)          in a thread
    await backing.start(file, survey, ...)        names are known, before serving
    await backing.stop()                          nothing is written any more

Rules of this module (STORAGE "Primary and backup"):
- A stop brings the backup up to the log for at most `timeout_s`, and says what is left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final, Literal

import msgspec
import structlog

from tellback_server.flushed import FlushedFile
from tellback_server.flusher import Flusher, Survey
from tellback_server.hub import Hub
from tellback_server.log import Position
from tellback_server.names import Names
from tellback_server.registrar import Registrar
from tellback_server.store.address import StoreAddress
from tellback_server.store.base import Store, StoreUnavailable
from tellback_server.store.multi import Guarded
from tellback_server.store_watch import StoreWatch, WatchedStore

__all__ = ["Backing", "StoreReport", "probe"]

log = structlog.get_logger()

THREADS: Final = 4
Condition = Literal["up", "away", "behind", "resync"]


class StoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """How one store is, for people and metrics."""

    store: Literal["primary", "backup"]
    kind: str
    """`files`, or the scheme of its URL: whoever reads this may be a stranger."""
    state: Condition
    """away: it cannot be reached; behind: writes wait for it; resync: it gets owners whole."""
    lag_s: float
    """Age of the oldest durable write that it may not hold."""
    pending_entries: int
    """Writes that it may not hold: of the backup records of the log, of the primary commits."""
    pending_bytes: int
    """Log that is kept for it."""
    failures: int
    """Calls that failed."""
    away_s: float = 0.0
    """How long it has not been reached."""


def probe(store: Guarded, watch: StoreWatch, data_id: str) -> None:
    """Ask a store that is away whether it is back, by a call that reads and one that changes nothing."""
    if watch.is_failing:
        with contextlib.suppress(StoreUnavailable):
            store.users()
        with contextlib.suppress(StoreUnavailable):
            store.check()
            store.claim(data_id)


class Backing:
    """See the module."""

    def __init__(self, store: Store, url: str, *, interval_s: float, bytes_max: int, timeout_s: float) -> None:
        self._store = store
        self.url = str(StoreAddress(url))
        self._interval_s = interval_s
        self._bytes_max = bytes_max
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="tellback-backup")
        self.flusher: Flusher | None = None
        """Set by `start`."""
        self.watch: StoreWatch
        self.guarded: WatchedStore

    def open(self, hub: Hub, data_id: str) -> WatchedStore:
        """Blocks. Raises StoreError but StoreUnavailable."""
        self._hub = hub
        self.watch = StoreWatch(hub, behind_bytes_max=self._bytes_max)
        self.guarded = WatchedStore(self._store, self.watch, data_id)
        # One that is away is told by the watch, and the flusher asks again.
        with contextlib.suppress(StoreUnavailable):
            self.guarded.check()
        return self.guarded

    async def start(
        self, file: FlushedFile, survey: Survey, registrar: Registrar, names: Names, *,
        recoveries: Callable[[], int], is_primary_away: Callable[[], bool], probe: Callable[[], object],
        name_of: Callable[[str, str], str | None] | None = None,
    ) -> None:
        flusher = Flusher(
            self._hub, self.guarded, self.watch, file, self._executor, interval_s=self._interval_s,
            bytes_max=self._bytes_max, survey=survey, recoveries=recoveries, is_primary_away=is_primary_away,
            probe=probe,
        )
        flusher.registrar = registrar
        flusher.name_of = name_of or names.name_of
        await flusher.start()
        self.flusher = flusher

    async def stop(self) -> None:
        if self.flusher is None:
            return
        left = await self.flusher.stop(self._timeout_s)
        if left:
            log.warning(
                "stopped-behind", store="backup", pending_entries=left, pending_bytes=self.flusher.pending_bytes,
                error=self.watch.error or self.flusher.error, meaning="The log keeps it; the next start goes on.",
            )

    @property
    def executor(self) -> tuple[Executor, int]:
        """Where the backup is called, and with how many threads."""
        return self._executor, THREADS

    def probe(self, data_id: str) -> None:
        """Ask a backup that is away whether it is back. Blocks."""
        probe(self.guarded, self.watch, data_id)

    @property
    def needed(self) -> Position | None:
        """The oldest record that the backup may not hold."""
        return None if self.flusher is None else self.flusher.needed

    def report(self) -> StoreReport:
        flusher, watch = self.flusher, self.watch
        assert flusher is not None, "it was started"
        state: Condition = "away" if watch.is_failing else "resync" if flusher.is_resyncing else "up"
        if state == "up" and flusher.lag_s > 4 * self._interval_s + 1:
            state = "behind"
        return StoreReport(
            store="backup", kind=StoreAddress(self.url).scheme, state=state, lag_s=flusher.lag_s,
            pending_entries=flusher.pending_entries, pending_bytes=flusher.pending_bytes, failures=watch.failures,
            away_s=watch.failing_s,
        )

    def close(self) -> None:
        """Blocks until what runs is done."""
        self._executor.shutdown()
        self.guarded.close()
