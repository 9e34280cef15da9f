"""Links: what other chats say of one that has another name now follows, by commits of those chats.

    rename or restore carried out --> links.follow(user, chat_id) --> each linking chat: its turn, one commit
                                                                  --> the entry of the registrar tells no links any more

Rules of this module (BEHAVIOUR J12):
- What has to be told stands in the registrar's entry, written with the operation itself: a start goes on with it.
- Telling twice changes nothing. A chat that cannot be told (damaged, in the trash) keeps its link; the registrar still
  knows where that leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog

from tellback_protocol.decide import Fresh, decide_links
from tellback_protocol.errors import Refused
from tellback_protocol.ids import StateOwner, stem_of
from tellback_server.actor import Actor
from tellback_server.hub import Hub
from tellback_server.log import LogError
from tellback_server.planning import place_of
from tellback_server.registrar import Registered, Registrar

__all__ = ["Links"]

log = structlog.get_logger()
Result = TypeVar("Result")

POLL_S = 0.01
RETRY_S = 2.0
"""Between tries while nothing can be stored."""


class Links:
    """See the module. Loop thread."""

    def __init__(
        self, hub: Hub, registrar: Registrar, *, turn: Callable[[str], asyncio.Lock],
        write: Callable[[Registered], Awaitable[None]],
    ) -> None:
        """`turn` is the lock of a user's life writes, `write` makes an entry durable."""
        self._hub = hub
        self._registrar = registrar
        self._turn = turn
        self._write = write
        self._busy: set[tuple[str, str]] = set()

    def resume(self) -> None:
        """Go on with what a stop or a crash left."""
        for registered in self._registrar.entries:
            self.follow(registered.user, registered.chat_id)

    def follow(self, user: str, chat_id: str) -> None:
        """Tell who links to the chat by a name that it had."""
        registered = self._registrar.of(user, chat_id)
        if registered is None or not registered.links or registered.gone is not None:
            return
        if (user, chat_id) not in self._busy:
            self._busy.add((user, chat_id))
            self._hub.spawn(self._follow(user, chat_id))

    async def _follow(self, user: str, chat_id: str) -> None:
        try:
            while self._hub.is_admitting:
                registered = self._registrar.of(user, chat_id)
                if registered is None or not registered.links or registered.gone is not None:
                    return
                for name in registered.links:
                    await self._tell(registered, name)
                async with self._turn(user):
                    # Another rename of it in between has told who else is to be told.
                    if self._registrar.of(user, chat_id) is registered:
                        told = msgspec.structs.replace(registered, links=[], linked_as=[])
                        await self._write(told)
                        self._registrar.put(told)
        except (LogError, OSError) as error:
            # The next start goes on.
            log.error("links-not-told", user=user, chat_id=chat_id, error=str(error))
        finally:
            self._busy.discard((user, chat_id))

    async def _tell(self, registered: Registered, name: str) -> None:
        """One commit of the chat called `name`, wherever it is by now."""
        hub = self._hub
        while hub.is_admitting:
            actor = await self._settled(registered.user, name)
            if actor is None:
                return
            stream = actor.stream
            assert stream is not None, "it is ready"
            if stream.damage or stream.chat_id == registered.chat_id:
                return
            try:
                hub.admit()
                fresh = Fresh(hub.clock.integrity(), hub.clock.random_bits(64), hub.clock.now_ms())
                to = _stem(registered.name)
                decision = decide_links(stream, set(registered.linked_as) - {to}, to, fresh, hub.limits)
                if decision is not None:
                    actor.writes.commit_own(decision)
                return
            except Refused as refusal:
                if refusal.retry == "never":
                    log.warning("link-not-told", chat=name, code=refusal.code)
                    return
            await asyncio.sleep(RETRY_S)

    async def _settled(self, user: str, name: str) -> Actor | None:
        """The live chat, when nothing is being done to it; None when it is not there any more."""
        hub = self._hub
        while hub.is_admitting:
            place = place_of(name)
            actor = hub.actor(user, place)
            while actor is not None and actor.state in ("loading", "busy"):  # noqa: ASYNC110 - As in afterlife.
                await asyncio.sleep(POLL_S)
            if actor is None or actor.state == "ready":
                return actor
            if actor.state == "ended":
                continue
            former = self._registrar.former(user, name, hub.clock.now_ms())
            if former is None or former.gone is not None or former.name == name:
                return None
            name = former.name
        return None


def _stem(name: str) -> str:
    place = place_of(name)
    assert not isinstance(place, StateOwner), "only chats are linked"
    return stem_of(place)
