"""The keeper of owners: when they are read, folded into where they are kept (a room: files, a store) and let go.

Rules of this module:
- A room is touched in threads; an actor is told the result in the loop (BEHAVIOUR L1).
- A checkpoint folds only what is durable, runs once at a time for a chat, and is never in the way of an answer (K1).
- When the files are brought up to the log is the save strategy's business (`fold_timers`, K2, K8).
- An outside edit is looked for at every open, before every checkpoint, and now and then in between; the actor stands
  still until it is adopted, and what arrives meanwhile waits (K3).
- A chat that nobody has open is folded and leaves memory after the idle time (K4).
- A chat that a crash left unfolded is folded after the start, opened or not (K5).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import structlog

from tellback_protocol.decide import Committed
from tellback_protocol.errors import Refused
from tellback_protocol.ids import Place, StateOwner, parse_place
from tellback_protocol.requests import History, Open
from tellback_server.actor import Actor
from tellback_server.backups import Backups
from tellback_server.checkpoint import CheckpointFailed
from tellback_server.fold_timers import FoldTimers
from tellback_server.fs import FileUnreadable, FileUnsafe
from tellback_server.hub import Hub
from tellback_server.leftovers import Leftovers
from tellback_server.lifecycle import Lifecycle
from tellback_server.loaded import ChatMissing, LoadedStream
from tellback_server.log import LogClosed, LogError, LogPoisoned, Position
from tellback_server.lookback import Lookback
from tellback_server.names import Names
from tellback_server.registrar import Registrar
from tellback_server.releases import Envelope
from tellback_server.replay import Missed
from tellback_server.retention import Retention
from tellback_server.rooms import Room, refusal_of
from tellback_server.save_strategy import Reason, Strategy
from tellback_server.sessions import left_name
from tellback_server.store.base import StoreError
from tellback_server.store.files import FileStore
from tellback_server.store.held import OutsideEdit
from tellback_server.tab import Tab

log = structlog.get_logger()
Result = TypeVar("Result")

RETRY_S = 5.0
"""After a checkpoint that failed (a full disk, say); the log has it all."""
SETTLE_S = 10.0
"""A stop waits this long for chats that are being read; the log has them all."""
COLLECT_S = 60.0
"""How often log segments that nobody needs are let go."""
SWEEP_S = 1.0
LOOK_S = 5.0
"""How often the files of open chats are looked at when nothing else is a reason to."""


class Keeper:
    """The hub's shelf of chats, in a room. `files` are the data folder, which holds outcomes and names in any case."""

    def __init__(
        self, hub: Hub, files: FileStore, room: Room, names: Names, *, strategy: Strategy, backups: Backups,
        idle_s: float,
    ) -> None:
        self._hub = hub
        self._files = files
        self._room = room
        self._idle_s = idle_s
        self._timers = FoldTimers(
            hub.loop, hub.clock, strategy, lambda actor, reason: hub.spawn(self._fold(actor, reason))
        )
        self._names = names
        self.backups = backups
        backups.attend(room, settle=self._settle, fold=self._fold, became_dirty=self.became_dirty)
        self._lookback = Lookback(hub)
        self.lifecycle = Lifecycle(
            hub, files, room, Registrar(files), settle=self._settle, keep=backups.keep_restore, names=names,
            identified=self._identified,
        )
        hub.lives = self.lifecycle
        self._lookout = room.lookout(self._adopt, self.became_dirty)
        self.retention = Retention(hub, files, self._names, self.lifecycle.registrar)
        self._sweeper: asyncio.Task[None] | None = None
        self._leftovers_folded = False
        self._left_over: set[tuple[str, str]] = set()
        """User and name of chats that a crash left unfolded, until they are live."""
        self.needed_elsewhere: Callable[[], Position | None] = lambda: None
        """The oldest record that somebody else needs."""
        self._stopping = False

    async def start(self, leftovers: Leftovers) -> None:
        """Learn the names that the log knows, and begin to fold what a crash left."""
        now_ms = self._hub.clock.now_ms()
        recovered = self._hub.log.sequenced
        unfinished = leftovers.unfinished()
        for operation in await self._run(lambda: self.lifecycle.recover(unfinished, now_ms)):
            self.lifecycle.record(operation)
        await self._hub.log.flush()
        for _position, record in self._hub.log.scan(recovered):
            leftovers.add(record)
        for (user, chat_id), name in leftovers.names.items():
            self._names.named(user, chat_id, name)
        self.lifecycle.know_names()
        await self._run(lambda: self._room.begin(self.lifecycle.cut_off))
        self._sweeper = self._hub.loop.create_task(self._sweep_forever())
        unfolded = leftovers.unfolded()
        if self._room.keeps_log:
            # What the log says of the place was true before this start.
            unfolded = [(user, name) for (user, _owner_id), name in leftovers.names.items()]
        self._left_over.update(unfolded)
        self._hub.spawn(self._fold_leftovers(unfolded))
        self._hub.spawn(self.lifecycle.finish_cut_off())
        self.lifecycle.links.resume()

    async def stop(self) -> None:
        """Fold everything that is not in the files yet."""
        self._stopping = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._timers.stop()
        await self._settled()
        await asyncio.gather(*(self._let_go(actor, "stop") for actor in self._hub.actors if actor.state == "ready"))

    async def _settled(self) -> None:
        """Until nothing is being read: what a crash left belongs into files also when the stop follows on the start."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                while self._is_reading:  # noqa: ASYNC110  - Many tasks end it, soon; nobody else waits for it.
                    await asyncio.sleep(0.01)

    @property
    def _is_reading(self) -> bool:
        return not self._leftovers_folded or any(actor.state in ("loading", "busy") for actor in self._hub.actors)

    async def caught_up(self, user: str) -> None:
        """Until the user's chats that a crash left unfolded are live: their files do not tell all yet."""
        while any(of == user for of, _name in self._left_over):
            if self._leftovers_folded:
                loading = {(actor.user, actor.name) for actor in self._hub.actors if actor.state == "loading"}
                self._left_over &= loading
            await asyncio.sleep(0.005 if self._left_over else 0)

    # -- what the hub asks -------------------------------------------------------------------------------------------

    def load(self, actor: Actor) -> None:
        """See Shelf."""
        self._hub.spawn(self._load(actor))

    def became_dirty(self, actor: Actor) -> None:
        """See Shelf."""
        self._timers.dirty(actor)

    def create(self, actor: Actor, tab: Tab, request: Open, owner_json: bytes, size_bytes: int) -> None:
        """See Shelf."""
        self._hub.spawn(self._create(actor, tab, request, owner_json, size_bytes))

    async def find(self, user: str, chat_id: str) -> str | None:
        """See Shelf."""
        try:
            return await self._find(user, chat_id)
        except (OSError, StoreError) as error:
            log.warning("look-failed", user=user, chat=chat_id, error=str(error))
            raise refusal_of(f"id:{chat_id}", error) from error

    async def _find(self, user: str, chat_id: str) -> str | None:
        if self.lifecycle.registrar.went_with(user, chat_id) is not None:
            return None
        name = self._names.name_of(user, chat_id)
        if name is None:
            name = await self._run(lambda: self._room.resolve(user, chat_id))
            if name is None and self.lifecycle.registrar.of(user, chat_id) is None:
                name = await self._run(lambda: left_name(self._files, user, chat_id))
                if name is not None and self._names.id_of(user, name) is not None:
                    return None
            if name is None:
                return None
            self._names.named(user, chat_id, name)
        # Characters and presets are asked for by name.
        return None if isinstance(parse_place(name), StateOwner) else name

    async def history(self, actor: Actor, request: History) -> tuple[bytes, Iterator[bytes] | None]:
        """See Shelf."""
        try:
            return await self._lookback.history(actor, request)
        except (LogError, OSError) as error:
            raise refusal_of(actor.name, error) from error

    async def missed(self, actor: Actor, request: Open) -> Missed | None:
        """See Shelf."""
        return await self._lookback.missed(actor, request)

    @property
    def others_write(self) -> bool:
        """See Shelf."""
        return self._room.must_settle

    def look(self, actor: Actor, namespaces: Iterable[str] = (), *, around: bool = False) -> bool:
        """See Shelf."""
        return self._lookout.look(actor, namespaces, around=around)

    def keep_first(self, actor: Actor, letter: Envelope, decision: Committed) -> bool:
        """See Shelf."""
        return self.backups.keep_first(actor, letter, decision)

    def lag_s(self) -> float:
        """Age of the oldest commit that is not in its files."""
        oldest_s = min((actor.dirty_since_s for actor in self._hub.actors if actor.dirty_since_s is not None),
                       default=None)
        return 0.0 if oldest_s is None else self._hub.clock.monotonic_s() - oldest_s

    # -- coming ------------------------------------------------------------------------------------------------------

    async def _load(self, actor: Actor) -> None:
        await self.lifecycle.passed(actor)
        user, place = actor.user, _place(actor)
        chat_id, now_ms = self._names.id_of(user, actor.name), self._hub.clock.now_ms()
        try:
            loaded = await self._run(lambda: self._room.load(user, place, chat_id, now_ms))
        except Exception as error:
            self._give_up(actor, error)
            return
        if isinstance(loaded, ChatMissing):
            if loaded.head is not None:
                self._deleted_outside(actor, loaded)
            actor.missing(loaded.answers)
            return
        twin = self._hub.same_chat(user, actor.name, loaded.stream.chat_id) if actor.is_chat else None
        if twin is not None and self.look(twin):
            # It was moved here by hand, perhaps, and the other one is about to find that.
            while twin.state == "busy" and self._hub.is_admitting:  # noqa: ASYNC110  - It ends by itself, soon.
                await asyncio.sleep(0.005)
            await self._load(actor)
            return
        if twin is not None:
            self._give_up(actor, Refused("unreadable", f"It says that it is {twin.name!r}; a repair parts them."))
            return
        self._count_adoption(actor, loaded)
        actor.loaded(loaded)
        self.retention.loaded(actor, loaded)
        self._identified(actor)
        if actor.file is not None and actor.file.pending:
            self.became_dirty(actor)

    async def _create(self, actor: Actor, tab: Tab, request: Open, owner_json: bytes, size_bytes: int) -> None:
        async with self.lifecycle.turn(actor):
            await self._make(actor, tab, request, owner_json, size_bytes)

    async def _make(self, actor: Actor, tab: Tab, request: Open, owner_json: bytes, size_bytes: int) -> None:
        user, place = actor.user, _place(actor)
        assert not isinstance(place, StateOwner), "only chats are created"
        clock = self._hub.clock
        try:
            self._hub.admit()
            await self._run(lambda: self._room.check_new(user, place))
            await self.lifecycle.creation.check_new(actor)
        except Refused as refusal:
            tab.answer_refusal(request, owner_json, size_bytes, refusal)
            actor.state = "missing"
            actor.drain()
            return
        except Exception as error:
            tab.answer_refusal(request, owner_json, size_bytes, refusal_of(actor.name, error))
            self._give_up(actor, error)
            return
        now_ms = clock.now_ms()
        loaded = self._room.blank(user, actor.name, clock.uuid4(), now_ms)
        try:
            actor.created(loaded, tab, request, size_bytes)
        except LogPoisoned as error:
            tab.answer_refusal(request, owner_json, size_bytes, refusal_of(actor.name, error))
            self._give_up(actor, error)
            return
        self._identified(actor)
        actor.drain()

    def _deleted_outside(self, actor: Actor, missing: ChatMissing) -> None:
        self.retention.missing(actor.user, missing.chat_id)
        log.warning(
            "chat-deleted-outside", chat=actor.name, pending=missing.pending, backups=missing.backups,
        )

    def _give_up(self, actor: Actor, error: Exception) -> None:
        """The chat cannot be loaded now: everybody who waits is told, and the next request tries again."""
        refusal = refusal_of(actor.name, error)
        log.warning("chat-not-loaded", chat=actor.name, code=refusal.code, error=str(error))
        actor.failed(refusal)
        self._hub.end(actor)

    def _identified(self, actor: Actor) -> None:
        self._names.named(actor.user, actor.chat_id, actor.name)
        self._hub.identified(actor)

    async def _fold_leftovers(self, unfolded: list[tuple[str, str]]) -> None:
        for user, name in unfolded:
            address = parse_place(name)
            if not isinstance(address, str):
                self._hub.actor(user, address)
                await asyncio.sleep(0)
        self._leftovers_folded = True

    # -- folding -----------------------------------------------------------------------------------------------------

    async def _settle(self, actor: Actor, letter: Envelope | None) -> bool:
        """Fold everything that is pending while the actor stands still for `letter`. False: an outside edit was adopted
        first, and the letter comes again. Raises Refused when the disk does not take it.
        """
        turn, actor.settling = actor.turn, letter
        try:
            while True:
                while actor.folding:  # noqa: ASYNC110  - It ends by itself, soon; nobody else waits for it.
                    await asyncio.sleep(0.005)
                if actor.turn != turn or actor.state != "busy":
                    return False
                held = actor.file
                assert held is not None, "a live chat has files"
                if not self._room.must_settle:
                    await self._hub.log.flush()
                    return True
                if await self._run(lambda: self._room.is_changed(actor.user, held)):  # noqa: B023
                    actor.folding = True
                    await self._lookout.closer(actor)
                    return False
                if not held.pending:
                    return True
                if not await self._fold(actor, "operation", "busy") and actor.turn == turn and actor.state == "busy":
                    raise Refused("storage-full", "The files could not be written; nothing was changed.")
        finally:
            if actor.turn == turn and actor.settling is letter:
                actor.settling = None

    async def _fold(self, actor: Actor, reason: Reason, state: str = "ready") -> bool:
        """One checkpoint. True when everything that was committed before is in the files."""
        if actor.state != state or actor.folding or actor.stream is None or actor.file is None:
            return False
        self._timers.begun(actor)
        stream, held, clock = actor.stream, actor.file, self._hub.clock
        job, position = self._room.take(stream, held, clock.now_ms()), self.retention.position_of(actor)
        actor.dirty_since_s = None
        if job is None:
            return True
        actor.folding = True
        began_s = clock.monotonic_s()
        retry_s: float | None = None
        try:
            await self._hub.log.flush()
            done = await self._room.fold(job, lambda: stream.head.seq)
            done.install(stream, held)
            if self.retention.folded(actor, position):
                self._hub.spawn(self.retention.save(actor))
            self._hub.counters.checkpointed(reason, done.size_bytes)
            # A store gets the difference; what it took was mostly waiting for it.
            self._timers.done(actor, clock.monotonic_s() - began_s if self._room.must_settle else 0.0)
        except OutsideEdit as edit:
            log.warning("outside-edit", chat=actor.name, found=str(edit))
            await self._adopt(actor)
        except (LogPoisoned, LogClosed):
            return False
        except (CheckpointFailed, FileUnsafe, FileUnreadable, StoreError) as error:
            self._hub.counters.checkpoint_failures += 1
            log.error("checkpoint-failed", chat=actor.name, error=str(error))
            retry_s = RETRY_S
            actor.dirty_since_s = began_s
        finally:
            actor.folding = False
        if retry_s is not None:
            self._timers.retry(actor, retry_s)
            return False
        if actor.state == "ready" and actor.file is not None and actor.file.pending:
            self.became_dirty(actor)
            return False
        return True

    async def _adopt(self, actor: Actor) -> None:
        """The actor stands still; then it has another history, or is gone."""
        stream, held = actor.stream, actor.file
        assert stream is not None, "a live chat"
        assert held is not None, "a live chat"
        actor.state = "busy"
        if actor.settling is not None:
            # Who waits for the files comes again when they are ours.
            actor.put_back(actor.settling)
            actor.settling = None
        try:
            await self._hub.log.flush()
            loaded = await self._run(lambda: self._room.adopt(stream, held, self._hub.clock.now_ms()))
        except (LogPoisoned, LogClosed):
            return
        except Exception as error:
            actor.lost()
            self._give_up(actor, error)
            return
        if isinstance(loaded, ChatMissing):
            self._deleted_outside(actor, loaded)
            actor.lost()
            pointer = "/chat" if actor.is_chat else "/owner"
            actor.failed(Refused("not-found", "Another program deleted it.", pointer=pointer))
            self._hub.end(actor)
            return
        self._count_adoption(actor, loaded)
        if loaded.adoption is None:
            actor.resumed(loaded)
        else:
            actor.adopted(loaded)
        if loaded.file.pending:
            self.became_dirty(actor)

    def _count_adoption(self, actor: Actor, loaded: LoadedStream) -> None:
        if loaded.adoption is not None:
            self._hub.counters.outside_edits += 1
            log.warning(
                "outside-edit-adopted", chat=actor.name, epoch=loaded.stream.head.epoch,
                recovered=loaded.adoption.recovered, backups=loaded.adoption.backups,
            )

    # -- going -------------------------------------------------------------------------------------------------------

    async def _let_go(self, actor: Actor, reason: Reason = "idle") -> None:
        """Fold what is left and save the outcomes; the actor ends when nobody came meanwhile."""
        while actor.folding:  # noqa: ASYNC110  - It ends by itself, soon; nobody else waits for it.
            await asyncio.sleep(0.01)
        if not await self._fold(actor, reason) and actor.file is not None and actor.file.pending:
            # More came while it was folded, or an outside edit was adopted: once more, then the log has it.
            await self._fold(actor, reason)
        if reason == "idle":
            await self.backups.leaves(actor)
        await self.retention.save(actor)
        if actor.quiet and actor.state == "ready" and not (actor.file and actor.file.pending):
            self._timers.forget(actor)
            self._hub.end(actor)

    async def _sweep_forever(self) -> None:
        clock = self._hub.clock
        looked_s = collected_s = clock.monotonic_s()
        while True:
            await asyncio.sleep(min(SWEEP_S, self._idle_s))
            now_s = clock.monotonic_s()
            for actor in self._hub.actors:
                if actor.state != "ready" or actor.folding or self.backups.is_begun(actor) or not actor.quiet:
                    continue
                if self._timers.closed(actor):
                    self._hub.spawn(self._fold(actor, "event"))
                if actor.idle_since_s is None:
                    actor.idle_since_s = now_s
                elif now_s - actor.idle_since_s >= self._idle_s:
                    self._hub.spawn(self._let_go(actor))
            if self._timers.is_sweep_due():
                for actor in self._hub.actors:
                    if actor.dirty_since_s is not None:
                        self._hub.spawn(self._fold(actor, "sweep"))
            if now_s - looked_s >= LOOK_S:
                looked_s = now_s
                for actor in self._hub.actors:
                    if actor.audience.subscriptions and actor.dirty_since_s is None:
                        self.look(actor, around=True)
            if now_s - collected_s >= COLLECT_S:
                collected_s = now_s
                await self._collect()
            if self._leftovers_folded:
                await self._room.step()

    async def _collect(self) -> None:
        """Let go of log segments in which everything is in files and session files."""
        if not self._leftovers_folded or self._room.keeps_log:
            return
        try:
            await self.retention.collect(self.needed_elsewhere)
        except (OSError, LogError) as error:
            # A disk that is full or slow must not end the sweeping.
            log.error("log-not-collected", error=str(error))

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await self._hub.loop.run_in_executor(self._room.executor, work)


def _place(actor: Actor) -> Place:
    place = parse_place(actor.name)
    assert not isinstance(place, str), "an actor has a name"
    return place
