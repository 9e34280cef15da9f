"""Links: what other chats say of one that has another name now follows, by commits of those chats.

    rename or restore carried out --> links.follow(user, chat_id) --> each linking chat: one commit
                                                                  --> the entry of the registrar tells no links any more

Rules of this module (BEHAVIOUR J12):
- What has to be told stands in the registrar's entry, written with the operation itself: a start goes on with it.
- It is told in a turn of the user's life writes, before the next one: that finds every link by the name of today.
- Telling twice changes nothing. A chat that cannot be told (damaged, in the trash) keeps its link; the registrar still
  knows where that leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set

import msgspec
import structlog

from tellback_protocol.decide import decide_links
from tellback_protocol.errors import Refused
from tellback_protocol.ids import StateOwner, stem_of
from tellback_server.actor import Actor
from tellback_server.failpoint import failpoint
from tellback_server.hub import Hub
from tellback_server.log import LogError
from tellback_server.planning import place_of
from tellback_server.registrar import Registered, Registrar

__all__ = ["Links"]

log = structlog.get_logger()

POLL_S = 0.005
RETRY_S = 1.0
"""Between tries while nothing can be stored."""


class Links:
    """See the module. Loop thread."""

    def __init__(
        self, hub: Hub, registrar: Registrar, *, turn: Callable[[str], asyncio.Lock], waiting: Set[Actor]
    ) -> None:
        """`turn` is the lock of a user's life writes, `waiting` are those who stand still until they have it."""
        self._hub = hub
        self._registrar = registrar
        self._turn = turn
        self._waiting = waiting
        self._untold: dict[str, dict[str, None]] = {}
        """Chats with links that were not told, by user."""

    def resume(self) -> None:
        """Go on with what a stop or a crash left."""
        for registered in self._registrar.entries:
            self.follow(registered.user, registered.chat_id)

    def follow(self, user: str, chat_id: str) -> None:
        """Soon: tell who links to the chat by a name that it had."""
        if self._entry(user, chat_id) is not None:
            is_new = not self._untold.get(user)
            self._untold.setdefault(user, {})[chat_id] = None
            if is_new:
                self._hub.spawn(self._follow(user))

    def _entry(self, user: str, chat_id: str) -> Registered | None:
        registered = self._registrar.of(user, chat_id)
        return registered if registered is not None and registered.links and registered.gone is None else None

    async def _follow(self, user: str) -> None:
        while self._hub.is_admitting and self._untold.get(user):
            async with self._turn(user):
                await self.catch_up(user)
            if self._untold.get(user):
                await asyncio.sleep(RETRY_S)

    async def catch_up(self, user: str) -> None:
        """Tell what can be told now. In a turn of the user's life writes."""
        untold = self._untold.get(user, {})
        for chat_id in list(untold):
            try:
                if await self._told(user, chat_id):
                    untold.pop(chat_id, None)
            except (LogError, OSError) as error:
                log.error("links-not-told", user=user, chat_id=chat_id, error=str(error))

    async def _told(self, user: str, chat_id: str) -> bool:
        registered = self._entry(user, chat_id)
        if registered is None:
            return True
        for name in registered.links:
            if not await self._tell(registered, name):
                return False
            failpoint("links.after_commit")
        await self._hub.log.flush()
        failpoint("links.after_flush")
        told = msgspec.structs.replace(registered, links=[], linked_as=[])
        await self._hub.loop.run_in_executor(self._hub.executor, self._registrar.write, told)
        self._registrar.put(told)
        failpoint("links.end")
        return True

    async def _tell(self, registered: Registered, name: str) -> bool:
        """One commit of the chat called `name`, wherever it is by now. False when that has to be tried again."""
        hub = self._hub
        actor = await self._settled(registered.user, name)
        stream = None if actor is None else actor.stream
        if actor is None or stream is None or stream.damage:
            return hub.is_admitting
        place = place_of(registered.name)
        assert not isinstance(place, StateOwner), "only chats are linked"
        try:
            hub.admit()
            to = stem_of(place)
            decision = decide_links(stream, set(registered.linked_as) - {to}, to, hub.fresh(), hub.limits)
        except Refused as refusal:
            log.warning("link-not-told", chat=name, code=refusal.code)
            return refusal.retry == "never"
        if decision is not None:
            actor.writes.commit_own(decision)
        return True

    async def _settled(self, user: str, name: str) -> Actor | None:
        """The live chat while nothing is being done to it; None when it is not there any more."""
        hub = self._hub
        while hub.is_admitting:
            actor = hub.actor(user, place_of(name))
            while (  # noqa: ASYNC110  - Many tasks end it, soon.
                actor is not None and actor.state in ("loading", "busy") and actor not in self._waiting
            ):
                await asyncio.sleep(POLL_S)
            if actor is None or actor.state in ("ready", "busy"):
                return actor
            if actor.state == "loading":
                # Another chat of that name is about to be made.
                return None
            if actor.state == "ended":
                continue
            former = self._registrar.former(user, name, hub.clock.now_ms())
            if former is None or former.gone is not None or former.name == name:
                return None
            name = former.name
        return None
