"""Afterlife: what is still answered for owners that left a name, or are in the trash.

Rules of this module (BEHAVIOUR J5, J6):
- An old name answers where its owner went; a write that the owner has an outcome for is given that outcome.
- An owner in the trash has an actor without documents, as long as somebody asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import structlog

from tellback_protocol.decide import answered
from tellback_protocol.errors import Refused
from tellback_protocol.ids import Version, file_integrity
from tellback_protocol.requests import OwnerRestore, Write
from tellback_server.actor import Actor
from tellback_server.departed import load_departed, save_departed
from tellback_server.hub import Hub
from tellback_server.planning import place_of
from tellback_server.records import Checkpointed, owner_key
from tellback_server.registrar import Gone, GoneChat, Registered, Registrar
from tellback_server.releases import Envelope
from tellback_server.store.files import FileStore

log = structlog.get_logger()

POLL_S = 0.005
REST_S = 60.0
"""How long the actor of a deleted owner stays for resent ops."""


class Afterlife:
    """See the module."""

    def __init__(self, hub: Hub, files: FileStore, registrar: Registrar) -> None:
        self._hub = hub
        self._files = files
        self.registrar = registrar

    def former(self, user: str, name: str) -> Registered | None:
        """Whose name that was."""
        return self.registrar.former(user, name, self._hub.clock.now_ms())

    def answer_former(self, actor: Actor, letter: Envelope, former: Registered) -> None:
        """A request that names an owner by the name it had: the outcome that its op has, else where it went."""
        if isinstance(letter.request, OwnerRestore) and former.gone is not None:
            self._hub.spawn(self._refused_or(letter, self._restore_named(letter, former)))
        elif isinstance(letter.request, Write):
            self._hub.spawn(self._refused_or(letter, self._answer_former(letter, former)))
        else:
            letter.tab.answer_refusal(letter.request, letter.owner_json, letter.size_bytes, moved(former))

    async def _refused_or(self, letter: Envelope, answering: Awaitable[None]) -> None:
        """A store that is away, or a disk that fails, is an answer, too."""
        try:
            await answering
        except Refused as refusal:
            letter.tab.answer_refusal(letter.request, letter.owner_json, letter.size_bytes, refusal)

    async def _answer_former(self, letter: Envelope, former: Registered) -> None:
        if not await self.answered_before(letter, former):
            letter.tab.answer_refusal(letter.request, letter.owner_json, letter.size_bytes, moved(former))

    async def _restore_named(self, letter: Envelope, former: Registered) -> None:
        """A character or preset comes back by its name."""
        actor = await self._hub.actor_by_id(former.user, former.chat_id)
        if actor is None:
            raise moved(former)
        if letter.tab.is_open:
            actor.submit(letter.tab, letter.request, letter.owner_json, letter.size_bytes)

    async def answered_before(self, letter: Envelope, former: Registered) -> bool:
        """Give the outcome that this op had, when the owner has it under its name of today."""
        if not isinstance(letter.request, Write) or not isinstance(letter.request.op, int):
            return False
        if former.gone is not None and not former.chat_id:
            return False
        actor = (
            self._hub.actor(former.user, place_of(former.name)) if former.gone is None
            else await self._hub.actor_by_id(former.user, former.chat_id)
        )
        while actor is not None and actor.state in ("loading", "busy"):  # noqa: ASYNC110  - As above.
            await asyncio.sleep(POLL_S)
        if actor is None or actor.stream is None:
            return False
        outcome = answered(actor.stream, letter.request, letter.tab.session_id)
        if outcome is None:
            return False
        actor.writes.answer_again(letter, outcome)
        return True

    def departed(self, user: str, chat_id: str) -> Actor | None:
        """An actor for a chat in the trash, loading; None when there is no such chat."""
        registered, above = self.registrar.of(user, chat_id), ""
        with_character = self.registrar.went_with(user, chat_id)
        if with_character is not None:
            registered, above = _as_registered(user, *with_character), with_character[1].name
        if registered is None or registered.gone is None:
            return None
        actor = Actor(self._hub, user, registered.name)
        actor.chat_id = chat_id
        actor.key = owner_key(user, chat_id)
        self._hub.hold(actor)
        self._hub.spawn(self._load_departed(actor, registered, above))
        return actor

    async def _load_departed(self, actor: Actor, registered: Registered, above: str) -> None:
        now_ms = self._hub.clock.now_ms()
        try:
            stream = await self._hub.in_thread(lambda: load_departed(self._files, self._hub.log, registered, now_ms))
        except Exception as error:
            log.error("departed-not-loaded", chat=actor.name, exc_info=error)
            actor.failed(Refused("unreadable", "What is known of the deleted chat cannot be read now."))
            self._hub.end(actor)
            return
        stream.deleted_with = above
        actor.departed(stream)
        self.rest(actor)

    def rest(self, actor: Actor) -> None:
        self._hub.loop.call_later(REST_S, self._let_go, actor)

    def _let_go(self, actor: Actor) -> None:
        if actor.state != "gone":
            return
        if actor.quiet:
            self._hub.end(actor)
        else:
            self.rest(actor)

    async def save(self, actor: Actor) -> None:
        """Its outcomes, so that the log may forget them."""
        stream, registered = actor.stream, self.registrar.of(actor.user, actor.chat_id)
        if stream is None or registered is None or registered.gone is None:
            return
        base, now_ms = registered.gone.base, self._hub.clock.now_ms()
        await self._hub.log.flush()
        try:
            await self._hub.in_thread(save_departed(self._files, stream, base, now_ms))
        except OSError as error:
            log.error("sessions-not-saved", chat=actor.name, error=str(error))


def _as_registered(user: str, chat: GoneChat, above: Registered) -> Registered:
    """A chat that went with its character, as if it had gone by itself."""
    assert above.gone is not None, "a deleted character"
    version = chat.version or Version(1, 0, file_integrity(1, 0, chat.name, b""))
    base = Checkpointed(
        user=user, name=chat.name, chat_id=chat.chat_id, file=None, version=version, head=chat.head or version
    )
    gone = Gone(deleted_ms=above.gone.deleted_ms, base=base)
    return Registered(user=user, chat_id=chat.chat_id, name=chat.name, gone=gone)


def moved(former: Registered) -> Refused:
    """What an old name answers."""
    character, slash, _chat = former.name.partition("/")
    if former.gone is not None and former.gone.with_chats and slash:
        return Refused(
            "deleted", f"It went to the trash with {character}; owner-restore brings both back.",
            details={"chat_id": former.chat_id} if former.chat_id else {},
        )
    if not former.chat_id:
        return Refused("renamed", "Its character has another name now.", details={"to": former.name})
    if former.gone is not None:
        return Refused(
            "deleted", f"It is in the trash; restore id:{former.chat_id}.", details={"chat_id": former.chat_id}
        )
    return Refused(
        "renamed", "It has another name now.", details={"to": former.name, "chat_id": former.chat_id}
    )
