"""Flusher: brings a backup store up to the log, owner by owner, now and then.

    flusher = Flusher(hub, side, ...)        side: the backup behind its watch
    await flusher.start(); await flusher.stop(timeout_s)
    flusher.needed                           the oldest record that the backup may not hold: the log keeps it

Rules of this module (STORAGE "Primary and backup"):
- One tick at a time. A tick takes the durable records behind the position in batches; an owner counts as flushed when
  the backup said that it has it; the position moves when all owners of a batch are, and is then written down.
- What is written is the owner as it is, once everything of it is durable; what it was made of since the backup's head
  stands in the log. Where the log does not lead from that head to this one, the owner is written whole.
- An owner in the trash is removed from the backup and never written again, whatever was pending.
- A position that is lost or too old costs work and nothing else: the backup tells what it holds (`survey`).
- A backup that is away keeps nobody waiting. Past `bytes_max` of log that only it needs, the log is let go and the
  backup gets what changed as wholes, later: the primary has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Final, Protocol

import msgspec
import structlog

from tellback_protocol.effects import decode_commit
from tellback_protocol.ids import Version, parse_place
from tellback_server.actor import Actor
from tellback_server.checkpoint import in_thread
from tellback_server.failpoint import failpoint
from tellback_server.flush_snapshot import Snapshot
from tellback_server.flushed import FlushedFile
from tellback_server.hub import Hub
from tellback_server.log import LogError, Position, RecordMissing
from tellback_server.records import ADOPT, CHECKPOINT, COMMIT, OPERATION, decode_base, owner_key
from tellback_server.registrar import Registrar
from tellback_server.store.base import StoreBehind, StoreDamaged, StoreError, StoreUnavailable, is_at_least
from tellback_server.store.multi import Guarded, is_newer
from tellback_server.store_watch import StoreWatch

__all__ = ["Backed", "Flusher", "Survey", "Wanted"]

log = structlog.get_logger()

RECORDS_MAX: Final = 20_000
"""Of one batch."""
OWNERS_AT_ONCE: Final = 4
LOADS_MAX: Final = 32
"""Owners that nobody has open which are read at a time for the backup."""
LOAD_S: Final = 10.0
SURVEY_S: Final = 300.0
"""How often it is looked for what came past the log: another program's edit of a file that nobody has open."""
RECOVERED_S: Final = 10.0
"""Least time between two looks at stores that come and go."""


class Backed(msgspec.Struct):
    """What the backup holds of an owner."""

    head: Version
    name: str


class Wanted(msgspec.Struct, frozen=True):
    """An owner that has to be read and brought to the backup."""

    user: str
    chat_id: str
    name: str


class Survey(Protocol):
    """What a look at both places finds. Blocks."""

    def __call__(self, backed: dict[str, Backed]) -> Iterable[Wanted]:
        """What the backup lacks and the log may not tell; `backed` is what it holds, by owner key. Whatever the primary
        lacks is copied there. Raises StoreError, OSError.
        """


class Flusher:
    """See the module. Loop thread; stores are called in threads."""

    def __init__(
        self, hub: Hub, backup: Guarded, watch: StoreWatch, file: FlushedFile, executor: Executor, *,
        interval_s: float, bytes_max: int, survey: Survey, recoveries: Callable[[], int],
        is_primary_away: Callable[[], bool], probe: Callable[[], object],
    ) -> None:
        """`recoveries` counts how often one of the places was back; `probe` asks those that are away, and blocks."""
        self._hub = hub
        self._backup = backup
        self._watch = watch
        self._file = file
        self._executor = executor
        self._interval_s = interval_s
        self._bytes_max = bytes_max
        self._survey = survey
        self._recoveries = recoveries
        self._is_primary_away = is_primary_away
        self._probe = probe
        self.registrar: Registrar
        """Set once, before `start`."""
        self.name_of: Callable[[str, str], str | None]
        """As `registrar`."""
        self.position = Position(0)
        """Everything up to here is in the backup."""
        self._upto = Position(0)
        self._batch: dict[str, bool] = {}
        """Owners of the batch that are not flushed yet, by key; whether a character's chats may have other names."""
        self._backed: dict[str, Backed] = {}
        self._wanted: list[Wanted] = []
        self._is_surveyed = False
        self._seen = -1
        self._surveyed_s = 0.0
        self._clean_s = 0.0
        """When everything that was durable was in the backup, the last time."""
        self._is_over = False
        self.flushed = 0
        """Owners brought to the backup, each time counted."""
        self.error = ""
        """Why something of the batch could not be brought, the last time."""
        self._task: asyncio.Task[None] | None = None
        self._ticking = asyncio.Lock()

    # -- what others ask ---------------------------------------------------------------------------------------------

    @property
    def needed(self) -> Position | None:
        """The oldest record that the backup may not hold."""
        return Position(self.position + 1) if self.pending_entries else None

    @property
    def pending_entries(self) -> int:
        """Records behind the position."""
        return max(0, self._hub.log.sequenced - self.position)

    @property
    def pending_bytes(self) -> int:
        """Log that holds them."""
        return self._hub.log.bytes_from(Position(self.position + 1)) if self.pending_entries else 0

    @property
    def lag_s(self) -> float:
        """How far the backup is behind, at most."""
        return self._hub.clock.monotonic_s() - self._clean_s if self.pending_entries or self._wanted else 0.0

    @property
    def is_resyncing(self) -> bool:
        """Whether owners wait to be brought whole."""
        return not self._is_surveyed or bool(self._wanted)

    # -- running -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin where the last run ended."""
        self._clean_s = self._hub.clock.monotonic_s()
        position = await in_thread(self._executor, self._file.read)
        # A log that was begun anew knows nothing of it.
        self.position = self._upto = position if position <= self._hub.log.durable else Position(0)
        self._task = self._hub.loop.create_task(self._run())

    async def stop(self, timeout_s: float) -> int:
        """Bring the backup up to the log, as far as the time allows. Returns the records that are left."""
        clock = self._hub.clock
        until_s = clock.monotonic_s() + timeout_s
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=timeout_s)
        last = self._hub.loop.create_task(self.tick())
        await asyncio.wait([last], timeout=max(0.0, until_s - clock.monotonic_s()))
        # A call of the store that hangs ends by the store's own time limit, in its thread; what was recorded since the
        # tick began is no write.
        is_done = last.done() and last.exception() is None and last.result()
        # The threads end next: a tick that goes on would find none.
        last.cancel()
        return 0 if is_done else self.pending_entries

    async def _run(self) -> None:
        while True:
            try:
                await self.tick()
            except Exception as error:
                # What nobody foresaw must not end the flushing.
                self.error = str(error)
                log.error("flush-failed", exc_info=error)
            await asyncio.sleep(self._interval_s)

    async def tick(self) -> bool:
        """Bring the backup up to what is durable now. True when it is."""
        async with self._ticking:
            began_s = self._hub.clock.monotonic_s()
            upto = self._hub.log.durable
            try:
                await self._look()
                while self.position < upto:
                    if not self._batch:
                        await self._gather(upto)
                    if not await self._flush_batch():
                        break
                is_done = self.position >= upto and await self._bring_wanted()
            except (StoreError, LogError, OSError) as error:
                if str(error) != self.error:
                    log.warning("flush-waits", error=str(error), position=self.position)
                self.error = str(error)
                is_done = False
            if is_done:
                self._clean_s = began_s
                self.error = ""
            self._bound()
            return is_done

    def _bound(self) -> None:
        """The log does not grow for a backup that is away for too long."""
        is_over = self.pending_bytes > self._bytes_max
        if is_over and not self._is_primary_away():
            log.error(
                "backup-too-far-behind", pending_bytes=self.pending_bytes, error=self.error,
                meaning="The log is let go; the backup gets what changed whole when it is back.",
            )
            self.position = self._upto = self._hub.log.durable
            self._batch.clear()
            self._is_surveyed = False

    # -- batches -----------------------------------------------------------------------------------------------------

    async def _gather(self, upto: Position) -> None:
        """The owners of the records behind the position. Cost: those records."""
        records, first = self._hub.log, max(self.position + 1, self._hub.log.first_retained)
        last = Position(min(upto, first + RECORDS_MAX - 1))

        def look() -> dict[str, bool]:
            found: dict[str, bool] = {}
            for position in range(first, last + 1):
                record = records.read(Position(position))
                if record.kind in (COMMIT, OPERATION) or record.owner not in found:
                    found[record.owner] = found.get(record.owner, False) or record.kind == OPERATION
            return found

        self._batch = await in_thread(self._executor, look)
        self._upto = Position(max(last, self.position))

    async def _flush_batch(self) -> bool:
        """True when all of the batch is in the backup, and that is written down."""
        waiting = iter(list(self._batch.items()))
        failures: list[BaseException] = []

        async def worker() -> None:
            for key, is_moved in waiting:
                try:
                    if not await self._flush(key, is_moved):
                        continue
                except StoreUnavailable:
                    raise
                except (StoreError, OSError, LogError) as error:
                    log.error("owner-not-flushed", owner=key, error=str(error))
                    failures.append(error)
                    continue
                del self._batch[key]

        done = await asyncio.gather(*(worker() for _ in range(OWNERS_AT_ONCE)), return_exceptions=True)
        for error in (*done, *failures):
            if isinstance(error, BaseException):
                raise error
        if self._batch:
            return False
        failpoint("flush.before_position")
        self.position = self._upto
        await in_thread(self._executor, lambda: self._file.write(self.position))
        failpoint("flush.after_position")
        return True

    async def _flush(self, key: str, is_moved: bool) -> bool:
        """One owner. False when it cannot be read now."""
        user, _slash, chat_id = key.partition("/")
        if chat_id == "active-chats":
            return True
        gone = self._gone(user, chat_id)
        if gone is not None:
            for one_id, head in gone:
                await in_thread(self._executor, lambda: self._delete(user, one_id, head))  # noqa: B023
            return True
        if is_moved:
            await in_thread(self._executor, lambda: self._rename_chats(user))
        if not await in_thread(self._executor, lambda: self._lacks(key)):
            return await self._keep_name(user, chat_id)
        actor = await self._live(user, chat_id)
        return actor if isinstance(actor, bool) else await self._bring(actor)

    def _gone(self, user: str, chat_id: str) -> list[tuple[str, Version]] | None:
        """Ids of an owner in the trash and of what went with it, each with a version behind everything it was."""
        registered = self.registrar.of(user, chat_id)
        if registered is None or registered.gone is None:
            above = self.registrar.went_with(user, chat_id)
            if above is None:
                return None
            head = above[0].head
            return [(chat_id, _behind(head, self._backed.get(owner_key(user, chat_id))))]
        gone = registered.gone
        found = [(chat_id, _behind(gone.base.head, self._backed.get(owner_key(user, chat_id))))]
        for chat in gone.chats:
            found.append((chat.chat_id, _behind(chat.head, self._backed.get(owner_key(user, chat.chat_id)))))
        return found

    def _delete(self, user: str, chat_id: str, head: Version) -> None:
        failpoint("flush.before_delete")
        self._backup.delete(user, chat_id, head)
        self._backed.pop(owner_key(user, chat_id), None)
        failpoint("flush.after_delete")

    def _rename_chats(self, user: str) -> None:
        """Chats that go with their character have other names without a commit of theirs."""
        for key, backed in list(self._backed.items()):
            of, _slash, chat_id = key.partition("/")
            name = self.name_of(user, chat_id) if of == user else None
            if name is not None and name != backed.name:
                self._backup.rename(user, chat_id, name)
                backed.name = name

    async def _keep_name(self, user: str, chat_id: str) -> bool:
        backed, name = self._backed.get(owner_key(user, chat_id)), self.name_of(user, chat_id)
        if backed is not None and name is not None and name != backed.name:
            await in_thread(self._executor, lambda: self._backup.rename(user, chat_id, name))
            backed.name = name
        return True

    def _lacks(self, key: str) -> bool:
        """Whether the log tells of a version of the owner that the backup does not hold."""
        backed = self._backed.get(key)
        last: Version | None = None
        try:
            for _position, record in self._hub.log.records(key, -1 if backed is None else backed.head.seq - 1):
                if record.kind == COMMIT:
                    last = decode_commit(record.body).version
                elif record.kind in (ADOPT, CHECKPOINT):
                    last = decode_base(record.body).head
                if last is not None and (backed is None or not is_at_least(backed.head, last)):
                    return True
        except RecordMissing:
            # The log was let go meanwhile: what the owner is now tells more.
            return True
        return False

    # -- one owner ---------------------------------------------------------------------------------------------------

    async def _live(self, user: str, chat_id: str, name: str | None = None) -> Actor | bool:
        """The owner's actor, read when nobody has it open; True when there is no such owner any more, because another
        program removed it, and False when it cannot be read now.
        """
        name = self.name_of(user, chat_id) or name
        place = None if name is None else parse_place(name)
        if place is None or isinstance(place, str):
            return True
        clock = self._hub.clock
        until_s = clock.monotonic_s() + LOAD_S
        actor = self._hub.actor(user, place)
        while actor is not None and clock.monotonic_s() < until_s:
            if actor.state == "missing":
                log.warning("backup-keeps-what-is-gone", user=user, chat=name)
                return True
            if actor.state in ("ready", "busy") and actor.stream is not None:
                # Its name may be another owner's by now.
                return actor if actor.chat_id == chat_id or not self.name_of(user, chat_id) else True
            if actor.state not in ("loading", "busy"):
                return False
            await asyncio.sleep(0.002)
        return False

    async def _bring(self, actor: Actor) -> bool:
        """The owner as it is goes to the backup. Cost: the change, and one pointer a message."""
        stream, held, key = actor.stream, actor.file, actor.key
        if stream is None or held is None or stream.deleted:
            return False
        backed = self._backed.get(key)
        if backed is not None and is_at_least(backed.head, stream.head) and backed.name == stream.name:
            return True
        if stream.damage and backed is not None:
            # What stands in the backup is more than what can be read here.
            return True
        user, snapshot = stream.user, Snapshot.take(stream, held)
        await self._hub.log.flush()
        failpoint("flush.before_save")
        await in_thread(self._executor, lambda: self._save(user, key, snapshot))
        failpoint("flush.after_save")
        self.flushed += 1
        return True

    def _save(self, user: str, key: str, snapshot: Snapshot) -> None:
        value, backed = snapshot.value, self._backed.get(key)
        if self._gone(user, value.chat_id) is not None:
            return
        snapshot.finish(self._hub.clock.now_ms())
        base = None if backed is None else backed.head
        effects = None if base is None else snapshot.effects_since(base, self._hub.log, key)
        try:
            self._backup.save(user, base, effects, value)
        except (StoreBehind, StoreDamaged) as error:
            log.warning("backup-behind", chat=value.name, error=str(error))
            self._backup.save(user, base, None, value)
            # It lost more than this, perhaps.
            self._is_surveyed = False
        if self._gone(user, value.chat_id) is not None:
            # It went to the trash meanwhile: the backup may have been told in between.
            self._backup.delete(user, value.chat_id, _behind(value.head, None))
            return
        if backed is not None and is_at_least(backed.head, value.head) and backed.name != value.name:
            self._backup.rename(user, value.chat_id, value.name)
        self._backed[key] = Backed(value.head, value.name)

    # -- what came past the log --------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Compare both places: at the start, when one of them was away, and now and then."""
        await in_thread(self._executor, self._probe)
        now_s = self._hub.clock.monotonic_s()
        is_due = not self._is_surveyed or now_s - self._surveyed_s >= SURVEY_S
        if self._recoveries() != self._seen and (self._seen < 0 or now_s - self._surveyed_s >= RECOVERED_S):
            is_due = True
        if not is_due:
            return
        seen = self._recoveries()
        backed: dict[str, Backed] = {}
        self._is_surveyed = True
        try:
            found = await in_thread(self._executor, lambda: list(self._survey(backed)))
        except BaseException:
            self._is_surveyed = False
            raise
        self._backed = backed
        self._wanted = found
        self._seen, self._surveyed_s = seen, now_s
        for key in list(backed):
            user, _slash, chat_id = key.partition("/")
            if self._gone(user, chat_id) is not None:
                await self._flush(key, is_moved=False)
        log.info("stores-compared", backed=len(backed), wanted=len(found))

    def _let_go(self, actor: Actor) -> None:
        """Nobody but the backup wanted it, and nothing of it was ever written: memory is for others."""
        is_used = actor.folding or actor.file is None or actor.file.pending or self._hub.log.last_of(actor.key)
        if actor.state == "ready" and actor.quiet and not is_used:
            self._hub.end(actor)

    async def _bring_wanted(self) -> bool:
        """Owners that the survey found. False when some are left."""
        while self._wanted:
            some = self._wanted[-LOADS_MAX:]
            for one in some:
                if self._gone(one.user, one.chat_id) is None:
                    actor = await self._live(one.user, one.chat_id, one.name)
                    if not isinstance(actor, bool):
                        await self._bring(actor)
                        self._let_go(actor)
            del self._wanted[-len(some) :]
        return not self._wanted


def _behind(head: Version | None, backed: Backed | None) -> Version:
    """A version that nothing which was saved of an owner in the trash is behind."""
    known = [one for one in (head, None if backed is None else backed.head) if one is not None]
    newest = known[0] if known else Version(1, 0, "")
    for one in known:
        newest = one if is_newer(one, newest) else newest
    return Version(newest.epoch, newest.seq + 1, newest.integrity)
