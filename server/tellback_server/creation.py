"""Creation: chats that are not there yet, made by `chat-create` or by `open` with `create`.

Rules of this module (BEHAVIOUR J1, J2):
- A chat begins with a commit of its own; its file is made by the first checkpoint.
- One name is given once: folders, live chats without a file and names kept for the trash are looked at, one life write
  of a user at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Set
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import msgspec
import structlog

from tellback_protocol.decide import Committed, Facts, decide
from tellback_protocol.errors import Refused
from tellback_protocol.requests import ChatCreate
from tellback_server.actor import Actor
from tellback_server.afterlife import Afterlife
from tellback_server.failpoint import failpoint
from tellback_server.hub import Hub
from tellback_server.log import LogError
from tellback_server.operations import Operation
from tellback_server.planning import chat_of
from tellback_server.releases import Envelope
from tellback_server.rooms import Around, Plans, Room, trouble_code
from tellback_server.store.files import twin_key

log = structlog.get_logger()
Result = TypeVar("Result")

POLL_S = 0.005


class Creation:
    """See the module."""

    def __init__(
        self, hub: Hub, room: Room, plans: Plans, afterlife: Afterlife, *,
        turn: Callable[[Actor], AbstractAsyncContextManager[None]],
        waiting: Set[Actor],
        execute: Callable[[Envelope, Operation], Awaitable[bool]],
        record: Callable[[Operation], None],
        identified: Callable[[Actor], None],
    ) -> None:
        self._hub = hub
        self._room = room
        self._plans = plans
        self._afterlife = afterlife
        self.registrar = afterlife.registrar
        self._turn = turn
        self._waiting = waiting
        self._execute = execute
        self.record = record
        self._identified = identified

    def begin(self, actor: Actor, letter: Envelope) -> None:
        """`chat-create` of a chat that is not there."""
        actor.state = "loading"
        self._hub.spawn(self._create(actor, letter))

    async def _create(self, actor: Actor, letter: Envelope) -> None:
        tab, request = letter.tab, letter.request
        assert isinstance(request, ChatCreate), "nothing else comes here"
        try:
            former = self._afterlife.former(actor.user, actor.name)
            if former is not None and await self._afterlife.answered_before(letter, former):
                actor.not_made()
                return
            async with self._turn(actor):
                await self._make(actor, letter, request)
        except Refused as refusal:
            self._hub.counters.refused(refusal.code)
            tab.answer_refusal(request, letter.owner_json, letter.size_bytes, refusal)
            actor.not_made()
        except LogError:
            actor.writes.log_failed(letter)
        except Exception as error:
            log.error("create-failed", chat=actor.name, exc_info=error)
            failed = Refused(trouble_code(error), "The chat could not be made.")
            tab.answer_refusal(request, letter.owner_json, letter.size_bytes, failed)
            actor.not_made()

    async def _make(self, actor: Actor, letter: Envelope, request: ChatCreate) -> None:
        hub, user, place, clock = self._hub, actor.user, chat_of(actor.name), self._hub.clock
        hub.admit()
        now_ms = clock.now_ms()
        around = self._around(actor)
        found = await self._run(lambda: self._plans.room_for(user, actor.name, request, around, now_ms))
        refused, edits = found.refused, found.edits
        if refused is None and await self.is_live(actor, actor.name):
            refused = "exists", "The name is taken."
        loaded = self._room.blank(user, actor.name, clock.uuid4(), now_ms)
        facts = Facts(to=actor.name if found.has_folder else "", refused=refused, chat_id=loaded.stream.chat_id)
        hub.admit()
        decision = decide(loaded.stream, request, letter.tab.session_id, hub.fresh(now_ms), hub.limits, facts)
        assert isinstance(decision, Committed), "what is not made is refused without a trace"
        operation = Operation(
            what="create", user=user, chat_id=loaded.stream.chat_id, name=actor.name,
            integrity=decision.version.integrity, seq=decision.version.seq, groups=edits,
        )
        actor.made(loaded)
        release = actor.writes.life_decided(letter, decision, now_ms, msgspec.json.encode(operation) if edits else b"")
        self._identified(actor)
        hub.forget_name(user, str(place))
        await hub.log.flush()
        if edits:
            failpoint("operation.after_log")
            if not await self._execute(letter, operation):
                return
            self.record(operation)
            failpoint("operation.after_done")
        if release is not None:
            hub.release(release)
        actor.state = "ready"
        hub.shelf.became_dirty(actor)
        actor.drain()

    async def check_new(self, actor: Actor) -> None:
        """Raises Refused when the chat that this actor is to be cannot be made: its name is taken, or kept for another.
        """
        request, now_ms = ChatCreate(actor.name), self._hub.clock.now_ms()
        around = self._around(actor)
        found = await self._run(lambda: self._plans.room_for(actor.user, actor.name, request, around, now_ms))
        if found.refused is not None:
            raise Refused(*found.refused, pointer="/chat")
        if await self.is_live(actor, actor.name):
            raise Refused("exists", "A name that differs only in case or Unicode form is taken.", pointer="/chat")

    def _around(self, actor: Actor) -> Around:
        """Who links to whom matters for a name that somebody had."""
        had = self.registrar.had(actor.user, actor.name)
        return Around.of(self._hub.actors, actor.user, actor.name, with_chats=bool(had))

    async def is_live(self, actor: Actor, name: str) -> bool:
        """Whether a live owner has this name, or one that differs only in case or Unicode form."""
        key = twin_key(name)
        return await self._is_any(actor, lambda other: twin_key(other) == key)

    async def is_live_below(self, actor: Actor, character: str) -> bool:
        """Whether a chat of a character of this name, or of its twin, is live; those of `actor` itself do not count."""
        start, own = twin_key(character + "/"), f"{actor.name}/"
        return await self._is_any(
            actor, lambda other: twin_key(other).startswith(start) and not other.startswith(own)
        )

    async def _is_any(self, actor: Actor, is_meant: Callable[[str], bool]) -> bool:
        while True:
            others = [
                other for other in self._hub.actors
                if other is not actor and other.user == actor.user and is_meant(other.name)
            ]
            if any(other.state in ("ready", "busy") for other in others):
                return True
            if all(other in self._waiting for other in others):
                # Those look again when it is their turn.
                return False
            # Somebody asks for a chat of that name: soon it is there or it is not. Nobody else waits for that.
            await asyncio.sleep(POLL_S)

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await self._hub.loop.run_in_executor(self._room.executor, work)
