"""A write that was not carried out because somebody else was faster, and its three exits.

Rules of this module:
- A conflict is part of the chat's state until an exit is taken; nothing leaves it by itself.
- No exit overwrites in silence: `take_theirs` drops the own write, `apply_mine_again` asks for it on what is there
  now, `save_mine_as` puts the chat as this client saw it under another name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Protocol

from tellback_protocol.chat import Chat as ChatDocument
from tellback_protocol.frames import IntegrityFrame
from tellback_protocol.ids import Version

if TYPE_CHECKING:
    from .chat import Chat
    from .intents import Intent
    from .outbox import WriteResult


class Exits(Protocol):
    """Who carries the exits out: the chat's handle."""

    def take_theirs(self, conflict: Conflict) -> None:
        """Forget the own write."""

    def apply_mine_again(self, conflict: Conflict) -> Awaitable[WriteResult]:
        """Ask for the own write on the chat as it is now."""

    def save_mine_as(self, conflict: Conflict, name: str) -> Awaitable[Chat]:
        """Make the chat as this client saw it a new one."""


class Conflict:
    """One write that waits for a decision."""

    __slots__ = ("_exits", "intent", "mine", "missed", "op", "reason", "request_id", "version")

    def __init__(
        self,
        *,
        op: int,
        request_id: int,
        intent: Intent,
        reason: str,
        version: Version | None,
        missed: Sequence[IntegrityFrame] | None,
        mine: ChatDocument,
    ) -> None:
        self.op = op
        self.request_id = request_id
        """Names the write in the outbox file."""
        self.intent = intent
        self.reason = reason
        self.version = version
        """The document's version that the write did not know; None when it has none."""
        self.missed = missed
        """The commits between; None when they are too many or unknown: read the chat."""
        self.mine = mine
        """The chat as this client saw it, own write included."""
        self._exits: Exits | None = None

    def attach(self, exits: Exits) -> None:
        """Called once by the chat's handle."""
        self._exits = exits

    def take_theirs(self) -> None:
        """Exit 1: drop the own write."""
        self._handle().take_theirs(self)

    async def apply_mine_again(self) -> WriteResult:
        """Exit 2: ask for the own write again, made against the chat as it is now.

        Raises: what a write raises; a new conflict when somebody was faster again.
        """
        return await self._handle().apply_mine_again(self)

    async def save_mine_as(self, name: str) -> Chat:
        """Exit 3: a new chat `name` (`character:<character>/<chat>` or `group:<chat>`) that holds mine.

        Raises: RefusedError `exists` when the name is taken; then the conflict stays.
        """
        return await self._handle().save_mine_as(self, name)

    def _handle(self) -> Exits:
        assert self._exits is not None, "a conflict is attached before anybody sees it"
        return self._exits

    def __repr__(self) -> str:
        return f"<Conflict of op {self.op}: {self.reason}>"
