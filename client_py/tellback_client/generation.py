"""A generation as the user holds it: a reply that is being written, by whomever.

    async for text in generation: ...           what there is, then what comes; the same for who comes late
    result = await generation.stored            when the chat holds it
    await generation.cancel()                   from any tab

Rules of this module:
- It can be looked at from any number of places; nobody takes text away from anybody.
- A lost connection is no end: whoever listens goes on where it was, without a gap and without a repetition.
- A tab that goes away stops nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from tellback_protocol.effects import Effect
from tellback_protocol.generation_requests import (
    GenerationCancel,
    GenerationError,
    GenerationTarget,
)
from tellback_protocol.generations import StreamedText

from .errors import RefusedError, refused
from .followed import Followed, GenerationResult
from .intents import Intent, View
from .own_write import Beginning, Unbased

if TYPE_CHECKING:
    from .chat import Chat

__all__ = ["BeginIntent", "Delta", "EndIntent", "Generation", "Stored", "end", "followed_in"]


class Delta(msgspec.Struct, frozen=True):
    """Text that came."""

    text: str
    reasoning: str


class BeginIntent:
    """A reply to begin."""

    def __init__(self, write: Beginning) -> None:
        self._write = write
        self._seen: bytes | None = None

    def parts(self, view: View) -> list[Beginning]:
        message = self._write.target.message
        self._seen = view().chat.messages.get(message) if isinstance(message, str) else None
        return [msgspec.structs.replace(self._write)]

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        target = self._write.target
        if target.kind == "message" or not isinstance(target.message, str):
            return True
        now = view().chat.messages.get(target.message)
        # One more swipe goes behind whatever is there; text to go on with has to be the text that was seen.
        return now is not None and (target.kind == "swipe" or now == self._seen)


class EndIntent:
    """The end of one, or the wish to stop it."""

    def __init__(self, write: Unbased) -> None:
        self._write = write

    def parts(self, view: View) -> list[Unbased]:
        return [self._write]

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        return True


async def end(chat: Chat, write: Unbased) -> None:
    """End a generation; that it has ended already is no error. Raises RefusedError otherwise."""
    followed = chat.subscription.generations.known.get(write.generation)
    if followed is not None and followed.sending is not None:
        followed.sending.is_closing = True
    intent: Intent = EndIntent(write)
    try:
        await chat.write(intent)
    except RefusedError as error:
        if error.code != "generation-ended":
            raise


class Generation:
    """One generation of an open chat. Made by `Chat.generation`, `Chat.generations` and `Chat.generate_from`."""

    def __init__(self, chat: Chat, followed: Followed) -> None:
        self._chat = chat
        self._followed = followed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Generation) and other._followed is self._followed

    def __hash__(self) -> int:
        return id(self._followed)

    def __repr__(self) -> str:
        return f"<Generation {self.id}: {self.state}>"

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Its id in this chat."""
        return self._followed.id

    @property
    def target(self) -> GenerationTarget:
        """Where the text goes: a message of its own, a swipe, the end of a message's text."""
        return self._followed.target

    @property
    def message(self) -> str:
        """Id of the message that the text is for; that of `result` says where it came to stand."""
        return self._followed.message

    @property
    def by(self) -> str:
        """The session that began it."""
        return self._followed.by

    @property
    def supersedes(self) -> str | None:
        """Id of the generation that this one is another try of."""
        return self._followed.supersedes

    @property
    def offered(self) -> bool:
        """It ended while this session, which began it, was away, and was offered when the session came back."""
        return self._followed.offered

    @property
    def state(self) -> Literal["running", "stored", "cancelled", "failed", "orphaned"]:
        """`running`, or how it ended."""
        result = self._followed.result
        return "running" if result is None else result.state

    @property
    def text(self) -> str:
        """The text so far; once it has ended, what the chat holds of it."""
        return str(self._followed.running.text)

    @property
    def reasoning(self) -> str:
        """As `text`, of what the model thought before."""
        return str(self._followed.running.reasoning)

    @property
    def durable(self) -> int:
        """How much of the text survives a crash of the server, in UTF-16 units."""
        return self._followed.durable

    @property
    def error(self) -> GenerationError | None:
        """Why it failed, when it did."""
        return None if self._followed.result is None else self._followed.result.error

    @property
    def result(self) -> GenerationResult | None:
        """What became of it, once this chat's replica holds that; None while it runs."""
        return self._followed.result

    # -- what comes --------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[str]:
        return self._texts()

    async def _texts(self) -> AsyncIterator[str]:
        async for delta in self.deltas():
            if delta.text:
                yield delta.text

    async def deltas(self) -> AsyncIterator[Delta]:
        """Text and reasoning: what there is, then what comes, until the generation has ended.

        Raises: what ended the chat or the client.
        """
        followed = self._followed
        units = reasoning_units = 0
        while True:
            running = followed.running
            delta = Delta(_behind(running.text, units), _behind(running.reasoning, reasoning_units))
            if delta.text or delta.reasoning:
                units, reasoning_units = followed.place
                yield delta
            elif followed.error is not None:
                raise followed.error
            elif followed.result is not None:
                return
            else:
                await self._changed()

    @property
    def stored(self) -> Stored:
        """To await: what became of it, as soon as the chat's replica holds that."""
        return Stored(self)

    async def wait(self) -> GenerationResult:
        """As `stored`. Raises: what ended the chat or the client; RefusedError `generation-unknown` when the chat knows
        nothing of it any more.
        """
        followed = self._followed
        while followed.result is None:
            if followed.error is not None:
                raise followed.error
            await self._changed()
        return followed.result

    async def cancel(self) -> GenerationResult:
        """Stop it, whoever writes it; what there is of its text is stored. One that has ended stays as it is."""
        if not self._followed.is_over:
            await end(self._chat, GenerationCancel("", self.id))
        return await self.wait()

    async def _changed(self) -> None:
        happened = asyncio.Event()
        self._followed.watchers.append(happened.set)
        try:
            await happened.wait()
        finally:
            self._followed.watchers.remove(happened.set)


class Stored:
    """What `await generation.stored` waits for."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def __await__(self) -> Generator[object, None, GenerationResult]:
        return self._generation.wait().__await__()


def _behind(text: StreamedText, units: int) -> str:
    """What stands behind a unit. A text that took the place of another one may have a pair there: it is given whole."""
    found = text.since(units)
    return found if found is not None else text.since(units - 1) or ""


def followed_in(chat: Chat, generation_id: str) -> Followed:
    """One that is known here. Raises RefusedError `generation-unknown`."""
    followed = chat.subscription.generations.known.get(generation_id)
    if followed is None:
        raise refused("generation-unknown", f"No generation {generation_id!r} is known here.", pointer="/generation")
    return followed
