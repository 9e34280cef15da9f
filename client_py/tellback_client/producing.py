"""Producing a reply: a program that runs the model hands its text over, and the server keeps it.

    async with chat.generate({"name": "User", "is_user": True, "mes": "And then?"}, reply={"name": "Alice"}) as reply:
        async for token in model:
            await reply.push(token)
    reply.result.message                    the id of the stored message

Rules of this module:
- Entering stores the user's turn; leaving in good order stores the reply. Both return when that is durable.
- A lost connection is no end: `push` goes on, and what the server has not got goes out when it is back. The server
  waits for that as long as the lease says.
- An exception stores the text so far as `failed`, a cancelled task as `cancelled`; both go on at once, and what is to
  be stored is on its way (`await reply.stored` waits for it). What the exception says stays here: it may hold a key.
- When somebody else stops the reply, the block is left at its next await, without an exception; `reply.state` says how.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from anyio import CancelScope
from msgspec import UNSET, Raw, UnsetType

from tellback_protocol.generation_requests import (
    Generate,
    GenerationCancel,
    GenerationEnd,
    GenerationError,
    GenerationStart,
    GenerationTarget,
)
from tellback_protocol.generations import ENTRY_BYTES, NAMESPACE
from tellback_protocol.stream import Stream
from tellback_protocol.values import dumps

from .errors import GenerationOver, TellbackError, refused
from .followed import Followed, GenerationResult, Sending
from .generation import BeginIntent, EndIntent, Generation, Stored, end, followed_in
from .intents import AppendIntent, Intent
from .payload import payload, text
from .replica import Messages, finished

if TYPE_CHECKING:
    from .chat import Chat

__all__ = ["Generating", "Producing"]

PIECE_CHARS = 8 << 10
"""A long push is taken in pieces of this size, so that every frame is small."""
REPLACEMENT = "\ufffd"


class _Halves:
    """Puts together what a model cut between the halves of a surrogate pair."""

    __slots__ = ("_high",)

    def __init__(self) -> None:
        self._high = ""

    def join(self, piece: str, pointer: str) -> str:
        """The text that is whole. Raises RefusedError `bad-json` for a half that nothing can make whole."""
        if not piece or (not self._high and piece.isascii()):
            return piece
        whole = (self._high + piece).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        high = whole[-1:] if "\ud800" <= whole[-1:] <= "\udbff" else ""
        whole = text(whole[: len(whole) - len(high)], pointer)
        self._high = high
        return whole

    def rest(self) -> str:
        """What stands for a half whose other half never came."""
        high, self._high = self._high, ""
        return REPLACEMENT if high else ""


class Producing:
    """A reply whose text comes from here. Made by `Chat.generate` and `Chat.resume`; used once, with `async with`."""

    def __init__(self, chat: Chat, generation_id: str, begin: BeginIntent | None) -> None:
        """`begin` is None for one that runs already."""
        self._chat = chat
        self._id = generation_id
        self._begin = begin
        self._halves, self._reasoning_halves = _Halves(), _Halves()
        self._scope: CancelScope | None = None
        self._is_ending = False

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The generation's id."""
        return self._id

    @property
    def generation(self) -> Generation:
        """The same generation as everybody sees it; there once the block was entered."""
        return Generation(self._chat, self._followed)

    @property
    def message(self) -> str:
        """Id of the message that the text is for."""
        return self._followed.message

    @property
    def text(self) -> str:
        """What was pushed so far; once it has ended, what the chat holds of it."""
        return str(self._followed.running.text)

    @property
    def durable(self) -> int:
        """How much of it survives a crash of the server, in UTF-16 units."""
        return self._followed.durable

    @property
    def state(self) -> Literal["running", "stored", "cancelled", "failed", "orphaned"]:
        """`running`, or how it ended."""
        return self.generation.state

    @property
    def result(self) -> GenerationResult | None:
        """What became of it."""
        return self._followed.result

    @property
    def stored(self) -> Stored:
        """As `Generation.stored`."""
        return self.generation.stored

    @property
    def _followed(self) -> Followed:
        return followed_in(self._chat, self._id)

    @property
    def _sending(self) -> Sending:
        sending = self._followed.sending
        assert sending is not None, "set when the block is entered"
        return sending

    # -- the text ----------------------------------------------------------------------------------------------------

    async def push(self, piece: str = "", *, reasoning: str = "") -> None:
        """Put text behind the text so far. It is on its way when this returns, and kept here until it is stored.

        Raises: GenerationOver when the reply has ended; RefusedError `bad-json` for half of a character that nothing
        can make whole, `too-large` when the reply would not fit into a message; what ended the chat.
        """
        self._check()
        self._take(self._halves.join(piece, "/text"), self._reasoning_halves.join(reasoning, "/reasoning"))
        # Whoever produces faster than the socket takes lets the socket run.
        await asyncio.sleep(0)

    def _take(self, piece: str, reasoning: str) -> None:
        running = self._followed.running
        size_bytes_max = self._chat.limits.document_bytes - ENTRY_BYTES
        size_bytes = running.size_bytes + len(dumps(piece)) + len(dumps(reasoning))
        if size_bytes > size_bytes_max:
            raise refused("too-large", f"A reply has at most {size_bytes_max} bytes as JSON.", pointer="/text")
        for text_of, more in ((running.text, piece), (running.reasoning, reasoning)):
            for start in range(0, len(more), PIECE_CHARS):
                text_of.append(more[start : start + PIECE_CHARS])
        if piece or reasoning:
            self._followed.changed()
            self._chat.wake()

    def _check(self) -> None:
        followed = self._followed
        if followed.error is not None:
            raise followed.error
        if followed.result is not None or self._is_ending:
            raise GenerationOver(self._id, self.state)
        refusal = self._sending.refusal
        if refusal is not None:
            raise refusal

    # -- the end -----------------------------------------------------------------------------------------------------

    async def end(self, reply: Mapping[str, Any] | None = None) -> GenerationResult:
        """The reply is complete: store it, and wait until the chat holds it. Leaving the block does the same.

        `reply` adds fields to those of the start, or replaces them; a text in it (`mes`, `content`) is stored instead
        of what was pushed. Raises: RefusedError, and what ended the chat.
        """
        return await self._ended(self._last(reply))

    async def fail(
        self, message: str, *, code: str = "failed", reply: Mapping[str, Any] | None = None
    ) -> GenerationResult:
        """The model failed: store what there is, with a sentence that every tab may read."""
        return await self._ended(self._last(reply, GenerationError(code[:64], message[:2000])))

    def _last(
        self, reply: Mapping[str, Any] | None = None, error: GenerationError | None = None
    ) -> GenerationEnd:
        """The frame that ends it, with the length of everything that was pushed."""
        fields = UNSET if reply is None else Raw(payload(dict(reply), "/reply"))
        if not self._is_ending and not self._followed.is_over:
            self._take(self._halves.rest(), self._reasoning_halves.rest())
        self._is_ending = True
        units, reasoning_units = self._followed.place
        # What the server does not take any more it cannot have.
        is_whole = self._sending.refusal is None
        return GenerationEnd(
            "", self._id, fields, units if is_whole else UNSET, reasoning_units if is_whole else UNSET,
            UNSET if error is None else error,
        )

    async def _ended(self, write: GenerationEnd) -> GenerationResult:
        if not self._followed.is_over:
            try:
                await end(self._chat, write)
            except TellbackError:
                # The server does not take the end as it is; the text is not to wait for it.
                self._hand_over(GenerationCancel("", self._id))
                raise
        return await self.stored

    def _hand_over(self, write: GenerationEnd | GenerationCancel) -> None:
        """Have it ended without waiting for that."""
        self._is_ending = True
        followed = self._chat.subscription.generations.known.get(self._id)
        if followed is not None and followed.sending is not None:
            followed.sending.is_closing = True
        if followed is None or not followed.is_over:
            self._chat.hand_over(EndIntent(write))

    # -- the block ---------------------------------------------------------------------------------------------------

    async def begin(self) -> Producing:
        """What entering the block does; then `leave` is the caller's to call."""
        if self._begin is None:
            followed = followed_in(self._chat, self._id)
            self._chat.subscription.generations.resumed(followed)
            self._chat.wake()
            while self._sending.is_fresh and not followed.is_over and self._sending.refusal is None:
                await self.generation._changed()
            self._check()
            return self
        try:
            await self._chat.write(self._begin)
        except asyncio.CancelledError:
            # The start goes its way; nobody would ever produce its text.
            self._hand_over(GenerationCancel("", self._id))
            raise
        return self

    async def leave(self, error: BaseException | None = None) -> None:
        """What leaving the block does, in good order or with `error`. Raises: as `end`; not `error` itself."""
        followed = self._followed
        if followed.error is not None:
            if error is None or isinstance(error, GenerationOver):
                raise followed.error
            return
        if followed.result is not None or self._is_ending:
            return
        refusal = self._sending.refusal
        if refusal is not None:
            self._hand_over(self._last(error=GenerationError(refusal.code, refusal.message)))
            if error is None:
                raise refusal
        elif error is None:
            await self.end()
        elif isinstance(error, Exception):
            said = f"{type(error).__name__} in the program that produced the reply."
            self._hand_over(self._last(error=GenerationError("producer-failed", said)))
        else:
            self._hand_over(GenerationCancel("", self._id))

    async def __aenter__(self) -> Producing:
        await self.begin()
        self._scope = CancelScope()
        self._scope.__enter__()
        self._followed.watchers.append(self._look)
        self._look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        followed = self._followed
        followed.watchers.remove(self._look)
        assert self._scope is not None, "the block was entered"
        is_ours = bool(self._scope.__exit__(kind, error, trace))
        if isinstance(error, GenerationOver) and error.generation == self._id:
            is_ours = True
        await self.leave(None if is_ours else error)
        return is_ours

    def _look(self) -> None:
        """Leave the block when its text is not wanted any more. Called in the step that changed something."""
        followed = self._followed
        if self._scope is not None and not self._is_ending and (
            followed.is_over or (followed.sending is not None and followed.sending.refusal is not None)
        ):
            self._scope.cancel()


class Generating:
    """The part of `Chat` that concerns generations."""

    def generate(
        self: Any, messages: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (), *,
        reply: Mapping[str, Any] | None = None, swipe_of: str | None = None, continuing: str | None = None,
        supersedes: Generation | str | None = None, lease_s: float | None = None, generation: str | None = None,
    ) -> Producing:
        """Produce a reply, in an `async with`: entering stores the user's turn `messages`, `push` gives the text.

        `reply` holds the fields of the message but its text (`name`, `extra`, an `id` of your own). The reply is a
        message of its own behind the turn, or one more swipe of the message `swipe_of`, or the rest of the text of the
        message `continuing`. `supersedes` is the generation that this is another try of. `lease_s` says how long the
        server waits for a producer that is gone: 1 to 300 s; of a fraction the next whole second.

        Raises, on entering: RefusedError (`generation-running`: another reply is being written there), ConflictError.
        """
        fields = _fields(messages, reply, swipe_of, continuing, supersedes)
        one_id = generation or secrets.token_hex(16)
        return Producing(self, one_id, BeginIntent(
            GenerationStart("", one_id, lease_s=UNSET if lease_s is None else math.ceil(lease_s), **fields)
        ))

    async def generate_from(
        self: Any, upstream: str, body: Mapping[str, Any],
        messages: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (), *,
        reply: Mapping[str, Any] | None = None, swipe_of: str | None = None, continuing: str | None = None,
        supersedes: Generation | str | None = None, generation: str | None = None,
    ) -> Generation:
        """Have the server ask one of its model servers (`Client.upstreams`) for a reply, and return when the user's
        turn is stored and the model is being asked. `body` is what the model's own API takes: `model`, `messages`, ...

        This program may go away: the reply is written and stored all the same. Raises: RefusedError
        (`upstream-unknown`, `unsupported`, `generation-running`), ConflictError.
        """
        fields = _fields(messages, reply, swipe_of, continuing, supersedes)
        one_id = generation or secrets.token_hex(16)
        write = Generate("", one_id, text(upstream, "/upstream"), Raw(payload(dict(body), "/body")), **fields)
        intent: Intent = BeginIntent(write)
        await self.write(intent)
        return self.generation(one_id)  # type: ignore[no-any-return]

    def resume(self: Any, generation_id: str) -> Producing:
        """Produce the rest of a reply that this session began and whose program died: `text` is what the server has.

        Only within the lease; after that it is `orphaned`. Raises RefusedError `generation-unknown`, `not-producer`.
        """
        followed = followed_in(self, generation_id)
        if followed.by != self.subscription.session:
            raise refused("not-producer", "Another session produces this text.", pointer="/generation")
        return Producing(self, generation_id, None)

    def stop_producing(self: Any) -> None:
        """Stop every reply whose text comes from here; what was pushed is stored."""
        for one in self.subscription.generations.produced:
            if not one.sending.is_closing:
                one.sending.is_closing = True
                self.hand_over(EndIntent(GenerationCancel("", one.id)))

    @property
    def generations(self: Any) -> list[Generation]:
        """Those that run now, and results that were offered when this session came back, oldest first."""
        return [
            Generation(self, one) for one in self.subscription.generations.known.values()
            if not one.is_over or one.offered
        ]

    def generation(self: Any, generation_id: str) -> Generation:
        """One that runs, or that ended while this chat was open. Raises RefusedError `generation-unknown`."""
        return Generation(self, followed_in(self, generation_id))

    async def preview(self: Any) -> Messages:
        """The messages with the text of what is being written where it will stand. Nothing of it is confirmed.

        Cost: the number of messages, and the texts. Asks the server the first time only.
        """
        room = self.subscription.generations
        if room.running and NAMESPACE not in self.subscription.view().states:
            await self.fetch_state(NAMESPACE)
        stream: Stream = self.subscription.view()
        return Messages(finished(stream, {one.id: one.running for one in room.running}).chat)


def _fields(
    messages: Mapping[str, Any] | Sequence[Mapping[str, Any]], reply: Mapping[str, Any] | None, swipe_of: str | None,
    continuing: str | None, supersedes: Generation | str | None,
) -> dict[str, Any]:
    """What both ways to begin have in common, checked."""
    from .chat import new_message_id

    many = [messages] if isinstance(messages, Mapping) else list(messages)
    if swipe_of is not None and continuing is not None:
        raise TypeError("a reply is a swipe or a continuation, not both")
    target = GenerationTarget()
    if swipe_of is not None:
        target = GenerationTarget("swipe", text(swipe_of, "/target/message"))
    if continuing is not None:
        target = GenerationTarget("continue", text(continuing, "/target/message"))
    earlier: str | UnsetType = UNSET
    if supersedes is not None:
        earlier = supersedes.id if isinstance(supersedes, Generation) else supersedes
    return {
        "messages": AppendIntent(many, new_message_id).lines, "target": target, "supersedes": earlier,
        "reply": UNSET if reply is None else Raw(payload(dict(reply), "/reply")),
    }


