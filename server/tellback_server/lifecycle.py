"""Lifecycle: carries out what makes, moves or ends an owner, one life write of a user at a time.

    the actor stands still; requests wait in its mailbox
    everything pending is folded into its files; an outside edit is adopted first, and then the request comes again
    facts are gathered (planning), `decide` decides, and what follows is one step without an await:
        OPERATION and COMMIT are appended, the decision is installed, the new name is taken
    durable; then the files are moved (operations), the base under the new name and DONE are appended, the answer leaves

Rules of this module (BEHAVIOUR J):
- Nothing is told before the files are moved; a crash before that is finished at the next start (J3).
- Both names never have a live actor (J4).
- A disk that refuses a move is asked again and again; the chat stands still meanwhile, and the next start goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import msgspec
import structlog

from tellback_protocol.backups import BackupRestore
from tellback_protocol.decide import Committed, decide
from tellback_protocol.errors import Refused
from tellback_protocol.ids import CharacterOwner, Version, new_name_problem
from tellback_protocol.requests import (
    ChatBranch,
    ChatDelete,
    LifeWrite,
    Malformed,
    OwnerDelete,
    OwnerRename,
    Request,
)
from tellback_protocol.stream import Stream
from tellback_server.actor import Actor
from tellback_server.afterlife import Afterlife
from tellback_server.creation import Creation
from tellback_server.failpoint import failpoint
from tellback_server.followers import Followers
from tellback_server.hub import Hub
from tellback_server.links import Links
from tellback_server.log import LogError
from tellback_server.names import Names
from tellback_server.operations import Operation
from tellback_server.planning import place_of
from tellback_server.records import ANCHOR, CHECKPOINT, DONE, Done, encode, owner_key
from tellback_server.registrar import Registered, Registrar
from tellback_server.releases import Envelope
from tellback_server.rooms import Around, Plan, Room, trouble_code
from tellback_server.store.base import StoreError, StoreUnavailable
from tellback_server.store.files import FileStore
from tellback_server.store.held import OutsideEdit

log = structlog.get_logger()
Result = TypeVar("Result")

RETRY_S = 1.0
"""Between tries to move files that the disk refused."""
TRIES_TOLD = 3
"""After so many the client hears that its op is not done; it will be."""
POLL_S = 0.005
REST_S = 60.0
"""How long the actor of a deleted chat stays for resent ops."""


class Lifecycle:
    """See the module. Owned by the keeper."""

    def __init__(
        self,
        hub: Hub,
        files: FileStore,
        room: Room,
        registrar: Registrar,
        *,
        settle: Callable[[Actor, Envelope | None], Awaitable[bool]],
        keep: Callable[[Actor], Awaitable[None]],
        names: Names,
        identified: Callable[[Actor], None],
    ) -> None:
        self._hub = hub
        self._room = room
        self._plans = room.plans(registrar)
        self.registrar = registrar
        self._settle = settle
        self._keep = keep
        """A backup of an owner whose files stand still and hold everything. Raises Refused."""
        self._names = names
        self._locks: dict[str, asyncio.Lock] = {}
        self.waiting: set[Actor] = set()
        """Actors that stand still until a life write of somebody else is done."""
        self._begun: dict[Actor, Envelope] = {}
        """The life write that an actor is busy with: who comes back from one that another followed changes nothing."""
        self.afterlife = Afterlife(hub, files, self.registrar)
        self.creation = Creation(
            hub, room, self._plans, self.afterlife, turn=self.turn, waiting=self.waiting, execute=self._execute,
            record=self.record, identified=identified,
        )
        self.links = Links(hub, registrar, turn=self.lock_of, waiting=self.waiting)
        self._gates: dict[tuple[str, str], asyncio.Event] = {}
        """Beginnings of names whose owners are on their way."""
        self.cut_off: list[Operation] = []
        """What a crash cut off and the store could not take at the start."""

    # -- starting ----------------------------------------------------------------------------------------------------

    def recover(self, unfinished: list[Operation], now_ms: int) -> list[Operation]:
        """Finish what a crash cut off and read the names. Blocks; before serving. The operations need `record`.

        What a store that cannot be reached does not take now is in `cut_off` and waits for `finish_cut_off`.
        """
        done: list[Operation] = []
        for operation in unfinished:
            log.warning("operation-redone", what=operation.what, name=operation.name, seq=operation.seq)
            try:
                self._plans.carry_out(operation)
                done.append(operation)
            except StoreUnavailable as error:
                log.error("operation-waits", what=operation.what, name=operation.name, error=str(error))
                self.cut_off.append(operation)
        self.registrar.load(self._room.users(), now_ms)
        for operation in self.cut_off:
            for registered in operation.registered:
                self.registrar.put(registered)
        return done

    async def finish_cut_off(self) -> None:
        """Carry out what the store could not take at the start; no life write of its users comes before it."""
        for operation in list(self.cut_off):
            async with self.lock_of(operation.user):
                while self._hub.is_admitting:
                    try:
                        await self._run(lambda: self._plans.carry_out(operation))  # noqa: B023
                    except (OSError, OutsideEdit, StoreError):
                        await asyncio.sleep(RETRY_S)
                        continue
                    self.record(operation)
                    self.cut_off.remove(operation)
                    break

    def know_names(self) -> None:
        """Names that the log may not know any more."""
        for known in self.registrar.entries:
            if known.gone is None:
                self._names.named(known.user, known.chat_id, known.name)

    def record(self, operation: Operation) -> None:
        """Append what says that an operation is done. Loop thread."""
        key = owner_key(operation.user, operation.chat_id)
        for base in operation.bases:
            self._hub.log.append(CHECKPOINT, owner_key(base.user, base.chat_id), base.head.seq, encode(base))
        for anchor in operation.anchors:
            self._hub.log.append(ANCHOR, owner_key(anchor.user, anchor.chat_id), operation.seq, encode(anchor))
        done = Done(operation.integrity, operation.what == "delete")
        self._hub.log.append(DONE, key, operation.seq, msgspec.json.encode(done))

    @contextlib.asynccontextmanager
    async def turn(self, actor: Actor) -> AsyncIterator[None]:
        """For whoever makes, moves or ends one of the user's owners: one after another. Nobody waits for who waits."""
        self.waiting.add(actor)
        lock = self.lock_of(actor.user)
        try:
            await lock.acquire()
        finally:
            self.waiting.discard(actor)
        try:
            yield
        finally:
            lock.release()

    def lock_of(self, user: str) -> asyncio.Lock:
        """Of the user's life writes; whoever touches the trash has it too."""
        return self._locks.setdefault(user, asyncio.Lock())

    # -- what actors ask ---------------------------------------------------------------------------------------------

    def begin(self, actor: Actor, letter: Envelope) -> None:
        """See Lives."""
        actor.state, actor.settling = "busy", letter
        self._begun[actor] = letter
        self._hub.spawn(self._live(actor, letter))

    def create(self, actor: Actor, letter: Envelope) -> None:
        """See Lives."""
        self.creation.begin(actor, letter)

    def former(self, user: str, name: str) -> Registered | None:
        """See Lives."""
        return self.afterlife.former(user, name)

    def answer_former(self, actor: Actor, letter: Envelope, former: Registered) -> None:
        """See Lives."""
        self.afterlife.answer_former(actor, letter, former)

    def departed(self, user: str, chat_id: str) -> Actor | None:
        """See Lives."""
        return self.afterlife.departed(user, chat_id)

    # -- one life write ----------------------------------------------------------------------------------------------

    async def _live(self, actor: Actor, letter: Envelope) -> None:
        turn = actor.turn
        try:
            async with self.turn(actor):
                await self._catch_up(actor)
                if actor.state == "ended":
                    if actor.settling is letter:
                        # It went with its character while it waited; what an adoption took was answered there.
                        await self._hub.submit_again(actor, letter)
                    return
                if actor.turn != turn:
                    # An outside edit was adopted meanwhile, and the letter came again: that one may wait still.
                    if self._begun.get(actor) is not letter:
                        self.waiting.add(actor)
                    return
                await self._carry(actor, letter)
        except Refused as refusal:
            self._hub.counters.refused(refusal.code)
            actor.refuse_letter(letter, refusal)
        except LogError:
            actor.writes.log_failed(letter)
            return
        except Exception as error:
            log.error("life-write-failed", chat=actor.name, exc_info=error)
            sentence = "What is there could not be looked at; nothing was changed."
            actor.refuse_letter(letter, Refused(trouble_code(error), sentence))
        finally:
            is_last = self._begun.get(actor) is letter
            if is_last:
                del self._begun[actor]
            if actor.settling is letter:
                actor.settling = None
        if is_last and actor.state == "busy" and actor.turn == turn:
            actor.resume("gone" if actor.stream is not None and actor.stream.deleted else "ready")

    async def _catch_up(self, actor: Actor) -> None:
        """Links that earlier renames left are told before anything is planned; the actor stands still for that."""
        self.waiting.add(actor)
        try:
            await self.links.catch_up(actor.user)
        finally:
            self.waiting.discard(actor)

    async def _carry(self, actor: Actor, letter: Envelope) -> None:
        hub, request, stream = self._hub, letter.request, actor.stream
        assert stream is not None, "a live owner, or a deleted one"
        hub.admit()
        if stream.deleted_with:
            raise Refused("deleted", stream.in_trash(), pointer="/chat", details={"chat_id": actor.chat_id})
        if not stream.deleted and not await self._settle(actor, letter):
            return
        stream = actor.stream
        assert stream is not None, "a live owner, or a deleted one"
        now_ms = hub.clock.now_ms()
        followers = self._followers(actor, request)
        if followers is None:
            await self._decide(actor, letter, stream, now_ms, None)
            return
        with self._gate(actor.user, followers):
            await followers.stand_still(self._settle_follower)
            if not await self._decide(actor, letter, stream, now_ms, followers):
                followers.stay()

    async def _decide(
        self, actor: Actor, letter: Envelope, stream: Stream, now_ms: int, followers: Followers | None, *,
        base_held: bool = False,
    ) -> bool:
        """Decide and carry out. False when nothing was committed."""
        hub, request = self._hub, letter.request
        assert isinstance(request, LifeWrite), "nothing else comes here"
        plan = await self._plan(actor, stream, request, now_ms)
        facts = msgspec.structs.replace(plan.facts, base_held=base_held)
        hub.admit()
        decision = decide(stream, request, letter.tab.session_id, hub.fresh(now_ms), hub.limits, facts)
        is_replaced = isinstance(request, BackupRestore) and not stream.deleted and not isinstance(request.to, str)
        is_deletion = isinstance(decision, Committed) and (
            is_replaced or isinstance(request, ChatDelete | OwnerDelete)
        )
        if is_deletion and not base_held and self._end_replies(actor, followers):
            if not await self._settle_all(actor, letter, followers):
                return False
            return await self._decide(actor, letter, stream, now_ms, followers, base_held=True)
        if not isinstance(decision, Committed):
            actor.writes.life_decided(letter, decision, now_ms, b"")
            if stream.deleted:
                await self.afterlife.save(actor)
            return False
        if is_replaced:
            await self._keep(actor)
        operation = await self._run(
            lambda: self._plans.operation(plan, stream, actor.file, request, decision.version, now_ms)
        )
        # From here to the flush there is no await: others see all of it or nothing.
        release = actor.writes.life_decided(letter, decision, now_ms, msgspec.json.encode(operation))
        if followers is not None:
            followers.commit()
        if operation.what in ("rename", "restore"):
            hub.reserve(actor, plan.facts.to)
        await hub.log.flush()
        failpoint("operation.after_log")
        if not await self._execute(letter, operation):
            hub.end(actor)
            return True
        self.record(operation)
        for registered in operation.registered:
            self.registrar.put(registered)
        failpoint("operation.after_done")
        match operation.what:
            case "rename":
                self._renamed(actor, operation.name, plan.facts.to, decision.version)
            case "delete":
                self._names.forgotten(actor.user, actor.chat_id, actor.name)
                hub.unname(actor)
            case "branch":
                self._names.named(actor.user, plan.facts.chat_id, plan.facts.to)
            case "restore":
                self._names.forgotten(actor.user, actor.chat_id, operation.name)
                self._names.named(actor.user, actor.chat_id, plan.facts.to)
        if followers is not None:
            followers.arrive(self._names, self._plans)
        if release is not None:
            hub.release(release)
        if operation.what == "delete":
            await self._gone(actor, followers)
        elif operation.what in ("restore", "backup-restore"):
            if is_replaced:
                actor.restored(operation.bases[0].head)
                hub.counters.reset("restored")
            # The next request reads files and log: they have to tell the same.
            await hub.log.flush()
            hub.end(actor)
            await actor.hand_on()
        self.links.follow(actor.user, actor.chat_id)
        return True

    def _followers(self, actor: Actor, request: Request | Malformed) -> Followers | None:
        """The live chats that go with a character."""
        place = place_of(actor.name)
        if not isinstance(place, CharacterOwner):
            return None
        if isinstance(request, OwnerRename) and new_name_problem(request.to) is None:
            return Followers(self._hub, actor.user, place.character, request.to, self.waiting)
        if isinstance(request, OwnerDelete) and request.chats:
            return Followers(self._hub, actor.user, place.character, None, self.waiting)
        return None

    @contextlib.contextmanager
    def _gate(self, user: str, followers: Followers) -> Iterator[None]:
        """Who asks for a chat of the character meanwhile waits."""
        opened = asyncio.Event()
        self._gates[user, followers.prefix] = opened
        try:
            yield
        finally:
            del self._gates[user, followers.prefix]
            opened.set()

    async def passed(self, actor: Actor) -> None:
        """Wait while the folder of a character is moved."""
        user, name = actor.user, actor.name
        while True:
            gate = next(
                (gate for (whose, prefix), gate in self._gates.items() if whose == user and name.startswith(prefix)),
                None,
            )
            if gate is None:
                return
            self.waiting.add(actor)
            try:
                await gate.wait()
            finally:
                self.waiting.discard(actor)

    def _end_replies(self, actor: Actor, followers: Followers | None) -> bool:
        """What is being written in chats that go to the trash goes there with them (BEHAVIOUR T24). True when something
        was.
        """
        going = [actor, *(followers.actors if followers is not None else ())]
        return any([one.generations.cancel_all() for one in going])

    async def _settle_all(self, actor: Actor, letter: Envelope, followers: Followers | None) -> bool:
        if not await self._settle(actor, letter):
            return False
        for follower in followers.actors if followers is not None else ():
            await self._settle_follower(follower)
        return True

    async def _settle_follower(self, actor: Actor) -> None:
        waits = actor.settling
        while not await self._settle(actor, waits):
            # An outside edit was adopted; it goes on as soon as it stands still again.
            while actor.state == "busy" and actor not in self.waiting:  # noqa: ASYNC110  - It ends by itself, soon.
                await asyncio.sleep(POLL_S)
            if actor.state not in ("ready", "busy"):
                return
            actor.state = "busy"
            waits = actor.settling
        # The next edit gives its own life write back, too.
        actor.settling = waits

    async def _execute(self, letter: Envelope, operation: Operation) -> bool:
        """Move the files; False when the server stops before the disk takes it, and the next start goes on."""
        tries = 0
        while True:
            try:
                await self._run(lambda: self._plans.carry_out(operation))
                return True
            except (OSError, OutsideEdit, StoreError) as error:
                tries += 1
                log.error("operation-failed", what=operation.what, name=operation.name, tries=tries, error=str(error))
                if tries == TRIES_TOLD and letter.tab.is_open:
                    refusal = Refused("storage-failed", "The files could not be moved yet; send this op again later.")
                    letter.tab.answer_refusal(letter.request, letter.owner_json, letter.size_bytes, refusal)
            if not self._hub.is_admitting:
                return False
            await asyncio.sleep(RETRY_S)

    def _renamed(self, actor: Actor, old: str, to: str, version: Version) -> None:
        assert actor.file is not None, "a live chat has files"
        self._names.forgotten(actor.user, actor.chat_id, old)
        self._names.named(actor.user, actor.chat_id, to)
        self._hub.renamed(actor, old, to)
        stream = actor.stream
        assert stream is not None, "a live chat"
        self._plans.renamed(actor.file, stream, to, version)
        if actor.file.pending:
            self._hub.shelf.became_dirty(actor)

    async def _gone(self, actor: Actor, followers: Followers | None) -> None:
        """Everybody was told; nobody hears more of it."""
        await self._hub.log.flush()
        actor.leave()
        if followers is not None:
            await followers.leave()
        await self.afterlife.save(actor)
        self.afterlife.rest(actor)

    # -- plans -------------------------------------------------------------------------------------------------------

    async def _plan(self, actor: Actor, stream: Stream, request: LifeWrite, now_ms: int) -> Plan:
        around = Around.of(self._hub.actors, actor.user, stream.name)
        if isinstance(request, ChatBranch | BackupRestore):
            around.chat_id, around.integrity = self._hub.clock.uuid4(), self._hub.clock.integrity()
        plan = await self._run(lambda: self._plans.plan(stream, request, around, now_ms))
        return await self._with_live(actor, plan)

    async def _with_live(self, actor: Actor, plan: Plan) -> Plan:
        """A name that a live chat has, whose file is not made yet, is not free either."""
        to, sentence = plan.facts.to, ""
        if not to or plan.facts.refused is not None:
            return plan
        if await self.creation.is_live(actor, to):
            sentence = "The name is taken."
        elif plan.is_moved and isinstance(place_of(to), CharacterOwner):
            if await self.creation.is_live_below(actor, to):
                sentence = "Chats of another character stand under that name."
        else:
            for chat in plan.chats_out():
                if await self.creation.is_live(actor, chat):
                    sentence = f"{chat} stands where a chat would come back to."
                    break
        if not sentence:
            return plan
        return plan.refused(("exists", sentence))

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await self._hub.loop.run_in_executor(self._room.executor, work)
