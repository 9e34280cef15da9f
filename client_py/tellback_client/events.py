"""What a program can be told about a chat, and the bounded queue that it reads from.

Rules of this module:
- Putting an event never waits: the reader of the socket never depends on a listener (R44).
- A listener that falls behind loses its oldest events and is told so by `EventsLost`; nothing is skipped in silence
  (R40). The chat itself is always complete; only the telling is bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import msgspec

from tellback_protocol.effects import Author, Effect
from tellback_protocol.ids import Version

if TYPE_CHECKING:
    from .conflict import Conflict
    from .connection import ConnectionStatus
    from .errors import TellbackError
    from .followed import GenerationResult
    from .intents import Intent

QUEUE_EVENTS_MAX = 1024
"""Events that wait for one listener."""

Status = Literal["connecting", "syncing", "synced", "offline", "conflicted", "read-only"]


class Committed(msgspec.Struct, frozen=True):
    """A commit was installed in the replica. `mine` is true for this client's own writes."""

    version: Version
    effects: list[Effect]
    by: Author | None
    mine: bool
    intent: Intent | None = None
    """The own wish that it carries out; None for others' commits, and for what an earlier process wrote."""


class StatusChanged(msgspec.Struct, frozen=True):
    """The chat's status is another one now."""

    status: Status


class Replaced(msgspec.Struct, frozen=True):
    """The replica was replaced by a snapshot; whoever shows the chat reads it again.

    `reason` is `epoch`, `trimmed`, `ahead`, `outside-edit`, `restored` or `failed` when history was interrupted, and
    `snapshot` when a snapshot was only shorter than the replay.
    """

    version: Version
    reason: str
    recovered: list[str] = []
    """After `outside-edit`: chats that hold own acknowledged writes that did not fit what the other program wrote."""
    kept: bool = False
    """After `outside-edit`: what the other program dropped or changed is in the server's backups."""


class Conflicted(msgspec.Struct, frozen=True):
    """A write was not carried out and waits for a decision."""

    conflict: Conflict


class ChatRenamed(msgspec.Struct, frozen=True):
    """The chat has another name; it stays open under it."""

    name: str
    """The name that it had, as it was opened; empty when it was opened by its id."""
    to: str


class ChatDeleted(msgspec.Struct, frozen=True):
    """The chat is in the trash; `Gone` follows."""

    chat_id: str


class Gone(msgspec.Struct, frozen=True):
    """The chat can no longer be opened; `code` is the server's."""

    code: str
    message: str


class EventsLost(msgspec.Struct, frozen=True):
    """The listener was too slow; `count` events before the next one were dropped. Read the chat again."""

    count: int


class GenerationStarted(msgspec.Struct, frozen=True):
    """A reply is being written; `Chat.generation` gives its text as it comes."""

    id: str
    message: str
    """Id of the message that the text is for."""
    by: str
    """The session that began it."""


class GenerationEnded(msgspec.Struct, frozen=True):
    """A reply has ended, and the chat holds what there was of it."""

    id: str
    result: GenerationResult
    offered: bool = False
    """It had ended before this session came back, which began it and did not know."""


Event = (
    Committed | StatusChanged | Replaced | Conflicted | ChatRenamed | ChatDeleted | Gone | EventsLost
    | GenerationStarted | GenerationEnded
)
"""What a chat tells."""


class ConnectionChanged(msgspec.Struct, frozen=True):
    """The client's connection was lost, is being made, or is there again; whatever its chats' status says meanwhile."""

    status: ConnectionStatus
    error: TellbackError | None = None
    """What closed the client, when `status` is `closed`."""


Told = TypeVar("Told")


class EventQueue(Generic[Told]):
    """Events for one listener, at most `events_max`; the oldest go first."""

    def __init__(self, events_max: int = QUEUE_EVENTS_MAX) -> None:
        self._events: deque[Told] = deque()
        self._events_max = events_max
        self._lost = 0
        self._closed = False
        self._wake = asyncio.Event()

    def put(self, event: Told) -> None:
        """Add an event. Never waits."""
        if len(self._events) >= self._events_max:
            self._events.popleft()
            self._lost += 1
        self._events.append(event)
        self._wake.set()

    def close(self) -> None:
        """No more events: the listener ends after those that wait."""
        self._closed = True
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[Told | EventsLost]:
        return self

    async def __anext__(self) -> Told | EventsLost:
        while True:
            if self._lost:
                lost, self._lost = self._lost, 0
                return EventsLost(lost)
            if self._events:
                return self._events.popleft()
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
