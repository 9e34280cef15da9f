"""Followers: the live chats of a character, which go where it goes: to another name, or to the trash.

Rules of this module:
- They stand still, everything in their files, before the character's folder is touched; who asks for a chat of either
  name meanwhile waits.
- Each tells its tabs by a commit of its own, in the step of the character's commit; it leaves when the files are moved.
- A chat that nobody has open needs no commit: it is found under the character's new name. One of which nothing may be
  stored (BEHAVIOUR X13) is let go first, and is such a chat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Set

import msgspec

from tellback_protocol.effects import Commit, DeletedEffect, Effect, RenamedEffect
from tellback_protocol.ids import CharacterChat, Version
from tellback_server.actor import Actor
from tellback_server.hub import Hub
from tellback_server.names import Names
from tellback_server.planning import chat_of
from tellback_server.releases import Release
from tellback_server.rooms import Plans

__all__ = ["Followers"]

POLL_S = 0.005


class Follower(msgspec.Struct, gc=True):
    """One live chat on its way."""

    actor: Actor
    old: str
    to: str
    """Its new name; empty when it goes to the trash."""
    release: Release | None = None


class Followers:
    """The live chats of one character during one operation."""

    def __init__(self, hub: Hub, user: str, character: str, to: str | None, waiting: Set[Actor]) -> None:
        """`to` is the character's new name, None for the trash. `waiting` are those who wait for this operation."""
        self._waiting = waiting
        self._hub = hub
        self._user = user
        self._to = to
        self.prefix = f"character:{character}/"
        self._all: list[Follower] = []

    def _live(self) -> list[Actor]:
        return [
            actor for actor in self._hub.actors
            if actor.user == self._user and actor.name.startswith(self.prefix)
            and actor.state != "ended" and not (actor.state == "loading" and actor in self._waiting)
        ]

    @property
    def actors(self) -> list[Actor]:
        """Those that stand still."""
        return [follower.actor for follower in self._all]

    async def stand_still(self, settle: Callable[[Actor], Awaitable[None]]) -> None:
        """Until every live chat of the character is busy, with everything in its files. Raises Refused, LogError."""
        still: dict[Actor, None] = {}
        try:
            while True:
                waiting = [actor for actor in self._live() if actor not in still]
                if not waiting:
                    break
                for actor in waiting:
                    if actor.state == "ready" or (actor.state == "busy" and actor in self._waiting):
                        if actor.stream is not None and actor.stream.contradiction:
                            actor.lost()
                            self._hub.end(actor)
                            self._hub.spawn(actor.hand_on())
                            continue
                        actor.state = "busy"
                        still[actor] = None
                        await settle(actor)
                await asyncio.sleep(POLL_S)
        except BaseException:
            self._let_go(still)
            raise
        for actor in still:
            if actor.state == "busy":
                name = chat_of(actor.name).chat
                to = "" if self._to is None else str(CharacterChat(self._to, name))
                self._all.append(Follower(actor, actor.name, to))

    def _let_go(self, actors: dict[Actor, None]) -> None:
        for actor in actors:
            if actor.state == "busy":
                self._go_on(actor)

    def _go_on(self, actor: Actor) -> None:
        if actor not in self._waiting:
            actor.resume()

    def stay(self) -> None:
        """Nothing becomes of it."""
        self._let_go({follower.actor: None for follower in self._all})

    def commit(self) -> None:
        """Append their commits, in the step of the character's. Raises LogError."""
        for follower in self._all:
            actor, stream = follower.actor, follower.actor.stream
            assert stream is not None, "a live chat"
            effect: Effect = RenamedEffect(follower.to) if follower.to else DeletedEffect()
            head = stream.head
            version = Version(head.epoch, head.seq + 1, self._hub.clock.integrity())
            follower.release = actor.writes.told_by_the_server(Commit(version, head.integrity, [effect]))
            if follower.to:
                self._hub.reserve(actor, follower.to)

    def arrive(self, names: Names, plans: Plans) -> None:
        """The files are moved: the chats have their new names, and go on."""
        names.moved(self._user, self.prefix, "" if self._to is None else f"character:{self._to}/")
        for follower in self._all:
            actor, stream, held = follower.actor, follower.actor.stream, follower.actor.file
            assert stream is not None, "a live chat"
            assert held is not None, "a live chat"
            assert follower.release is not None, "it was committed"
            if follower.to:
                self._hub.renamed(actor, follower.old, follower.to)
                record = plans.renamed(held, stream, follower.to, stream.head)
                self._hub.log.append(record.kind, record.owner, record.seq, record.body)
                if held.pending:
                    self._hub.shelf.became_dirty(actor)
            else:
                self._hub.unname(actor)
            self._hub.release(follower.release)
            if follower.to:
                self._go_on(actor)

    async def leave(self) -> None:
        """After a deletion, when everybody was told: nobody hears more of them."""
        for follower in self._all:
            if not follower.to:
                follower.actor.leave()
                self._hub.end(follower.actor)
