"""Store watch: a store behind a guard that knows whether it answers, and how far the log may run ahead of it.

    watch = StoreWatch(hub, behind_bytes_max=...)
    store = WatchedStore(open_store(url), watch, data_id)        a Store; prepared before its first use

Rules of this module (STORAGE "A store in the place of files"):
- A store that cannot be reached is asked by one call a second; every other call fails at once, so that no thread waits.
  Calls that read and calls that change something are told apart.
- Nothing is read or saved before `check` and `claim` said yes, also when the store came up after the server.
- Writes to what is live go on: the log is durable. Past `behind_bytes_max` of log that waits for the store nothing more
  is admitted, until it has caught up.
- What is wrong is told once when it begins, and once when it ends.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import structlog

from tellback_protocol.effects import Effect
from tellback_protocol.ids import Version
from tellback_server.clock import Clock
from tellback_server.hub import Hub
from tellback_server.log import Position
from tellback_server.store.base import ListedOwner, Store, StoredChat, StoreError, StoreHealth, StoreUnavailable

__all__ = ["StoreWatch", "WatchedStore"]

log = structlog.get_logger()

ASK_S: Final = 1.0


class _Gate:
    """Calls of one kind: those that read, or those that change something. A store may answer the ones only."""

    def __init__(self, kind: str, clock: Clock) -> None:
        self._kind = kind
        self._clock = clock
        self._asked_s = 0.0
        self.failing_since_s: float | None = None
        self.error = ""

    def check(self) -> None:
        """Raises StoreUnavailable when the store was just asked in vain."""
        if self.failing_since_s is not None:
            now_s = self._clock.monotonic_s()
            if now_s - self._asked_s < ASK_S:
                raise StoreUnavailable(f"not reached: {self.error}")
            self._asked_s = now_s

    def failed(self, error: StoreUnavailable) -> None:
        self.error = str(error)
        if self.failing_since_s is None:
            self._asked_s = self.failing_since_s = self._clock.monotonic_s()
            log.error("store-unavailable", kind=self._kind, error=self.error, meaning="What is live goes on.")

    def passed(self) -> bool:
        """True when it had failed before."""
        if self.failing_since_s is None:
            return False
        failed_s = round(self._clock.monotonic_s() - self.failing_since_s, 3)
        self.failing_since_s = None
        log.warning("store-reached", kind=self._kind, failed_s=failed_s)
        return True


class StoreWatch:
    """See the module. `asking` is for any thread, the rest for the loop."""

    def __init__(self, hub: Hub, *, behind_bytes_max: int) -> None:
        self._hub = hub
        self._behind_bytes_max = behind_bytes_max
        self.failures = 0
        """Calls that failed."""
        self._reading = _Gate("read", hub.clock)
        self._saving = _Gate("save", hub.clock)
        self._reached_s = 0.0
        """When the store took something again."""
        self.recoveries = 0
        """How often it was reached again."""
        self.behind_from: Position | None = None
        """The oldest record that the store may not hold because it could not be reached."""

    @contextlib.contextmanager
    def asking(self, *, saving: bool) -> Iterator[None]:
        """Around every call of the store. Raises StoreUnavailable at once when it was just asked in vain."""
        gate = self._saving if saving else self._reading
        gate.check()
        try:
            yield
        except StoreUnavailable as error:
            self.failures += 1
            if self.behind_from is None:
                self.behind_from = self._hub.log.sequenced
            gate.failed(error)
            raise
        except StoreError:
            self.failures += 1
            raise
        if gate.passed():
            self.recoveries += 1
            if saving:
                self._reached_s = self._hub.clock.monotonic_s()

    @property
    def is_failing(self) -> bool:
        """The last call of a kind did not reach the store."""
        return self._saving.failing_since_s is not None or self._reading.failing_since_s is not None

    @property
    def error(self) -> str:
        """What was wrong last."""
        return self._saving.error or self._reading.error

    @property
    def failing_s(self) -> float:
        """How long the store has not been reached."""
        times_s = [gate.failing_since_s for gate in (self._saving, self._reading)]
        since_s = min((time_s for time_s in times_s if time_s is not None), default=None)
        return 0.0 if since_s is None else self._hub.clock.monotonic_s() - since_s

    @property
    def behind_bytes(self) -> int:
        """Log that has to stay because the store could not be reached."""
        return 0 if self.behind_from is None else self._hub.log.bytes_from(self.behind_from)

    def step(self, waits_since_s: float | None) -> None:
        """Now and then: stop writes that the log should not hold alone, or let them go on. `waits_since_s` is when the
        oldest commit was made that the store does not hold.
        """
        if self._saving.failing_since_s is None and (waits_since_s is None or waits_since_s > self._reached_s):
            self.behind_from = None
        is_over = self.behind_bytes > self._behind_bytes_max
        if is_over and self._hub.held_up is None:
            log.error("store-too-far-behind", behind_bytes=self.behind_bytes, error=self.error)
            self._hub.hold_up("storage-full", "The store cannot be reached, and the log holds no more for it.")
        elif not is_over and self._hub.held_up is not None:
            log.warning("store-caught-up", behind_bytes=self.behind_bytes)
            self._hub.go_on()


class WatchedStore:
    """See base.Store. Every call may raise StoreUnavailable at once."""

    def __init__(
        self, store: Store, watch: StoreWatch, data_id: str, found: Callable[[bool], object] = lambda _holds: None
    ) -> None:
        """`found` is told once whether a store that is ours holds owners; it may refuse it."""
        self._store = store
        self._watch = watch
        self._data_id = data_id
        self._found = found
        self._preparing = threading.Lock()
        self.health: StoreHealth | None = None
        """What `check` found; None while nothing was asked."""

    @property
    def keeps_all(self) -> bool:
        """Whether the log may forget what was saved."""
        return self.health is not None and self.health.durability == "store"

    def prepare(self) -> StoreHealth:
        """Check and claim, once. Raises StoreUnsafe, StoreForeign, StoreError."""
        with self._preparing:
            if self.health is None:
                health = self._store.check()
                self._store.claim(self._data_id)
                self._found(bool(self._store.users()))
                self.health = health
                log.info("store-prepared", backend=health.backend, durability=health.durability)
            return self.health

    @contextlib.contextmanager
    def _asking(self, *, saving: bool = False) -> Iterator[None]:
        with self._watch.asking(saving=saving):
            if self.health is None:
                self.prepare()
            yield

    def check(self) -> StoreHealth:
        with self._watch.asking(saving=True):
            return self.prepare()

    def load(self, user: str, chat_id: str) -> StoredChat | None:
        with self._asking():
            return self._store.load(user, chat_id)

    def other_copy(self, user: str, chat_id: str, than: StoredChat | None) -> StoredChat | None:
        """There is one copy. See multi.Guarded."""
        del user, chat_id, than
        return None

    def save(self, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        with self._asking(saving=True):
            self._store.save(user, base, effects, value)

    def delete(self, user: str, chat_id: str, head: Version) -> None:
        with self._asking(saving=True):
            self._store.delete(user, chat_id, head)

    def rename(self, user: str, chat_id: str, name: str) -> None:
        with self._asking(saving=True):
            self._store.rename(user, chat_id, name)

    def list(self, user: str) -> Iterator[ListedOwner]:
        with self._asking():
            return iter(list(self._store.list(user)))

    def users(self) -> Sequence[str]:
        with self._asking():
            return list(self._store.users())

    def claim(self, data_id: str) -> None:
        with self._watch.asking(saving=True):
            self._store.claim(data_id)

    def close(self) -> None:
        self._store.close()
