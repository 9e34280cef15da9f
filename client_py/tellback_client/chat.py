"""A chat as the user holds it: the live document and its writes; what it shares with other owners is in `handle`."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeVar

from msgspec import UnsetType

from tellback_protocol.chat import Chat as ChatDocument
from tellback_protocol.frames import HistoryFrame
from tellback_protocol.ids import Version
from tellback_protocol.values import dumps, loads

from .conflict import Conflict
from .errors import refused
from .floors import BatchedFloorState, FloorState
from .handle import Handle, Operations, State
from .intents import (
    AppendIntent,
    BatchIntent,
    DeleteIntent,
    Intent,
    Message,
    MetadataIntent,
    PatchIntent,
    StateIntent,
    SwipeIntent,
    UpdateMessageIntent,
    Updater,
)
from .life import LivingChat
from .outbox import WriteResult
from .producing import Generating
from .replica import Messages

__all__ = [
    "Batch", "BatchedFloorState", "BatchedState", "Chat", "FloorState", "Operations", "State", "new_message_id",
    "pages",
]

APPENDED_BYTES_MAX = 1 << 20
"""Of one append when a whole chat is copied; well below a frame."""

Done = TypeVar("Done")
"""What a verb gives back: something to await on a chat, nothing in a batch."""


def new_message_id() -> str:
    """64 random bits in hexadecimal, as the server makes them."""
    return secrets.token_hex(8)


class _Writing(ABC, Generic[Done]):
    """The verbs that a chat and a batch share. `_do` says what happens to an intent."""

    def append(self, messages: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Done:
        """Put one message or several at the end. A message without `id` gets one."""
        many = [messages] if isinstance(messages, Mapping) else list(messages)
        return self._do(AppendIntent(many, new_message_id))

    def patch(self, message_id: str | None, change: Operations | Updater) -> Done:
        """RFC 6902 operations on a message, or a function of it; on the whole chat when `message_id` is None."""
        if callable(change):
            if message_id is None:
                raise TypeError("a function changes one message: name it")
            return self._do(UpdateMessageIntent(message_id, change))
        return self._do(PatchIntent(message_id, change))

    def update_message(self, message_id: str, update: Updater) -> Done:
        """Change a message by a function of it; run again when somebody else changed the message meanwhile."""
        return self._do(UpdateMessageIntent(message_id, update))

    def delete(self, message_ids: str | Sequence[str]) -> Done:
        """Take messages out."""
        return self._do(DeleteIntent([message_ids] if isinstance(message_ids, str) else message_ids))

    def swipe_add(self, message_id: str, content: Mapping[str, Any] | str, *, select: bool = True) -> Done:
        """Put a swipe behind the others and show it, unless `select` is false. `content` is its text, or an object with
        `mes` and what goes with it (`send_date`, `gen_started`, `gen_finished`, `extra`)."""
        content = {"mes": content} if isinstance(content, str) else content
        return self._do(SwipeIntent(message_id, "add", content=content, select=select))

    def swipe_select(self, message_id: str, swipe: int) -> Done:
        """Show swipe number `swipe` of a message."""
        return self._do(SwipeIntent(message_id, "select", swipe=swipe))

    def swipe_delete(self, message_id: str, swipe: int) -> Done:
        """Take swipe number `swipe` of a message away; the only one is refused."""
        return self._do(SwipeIntent(message_id, "delete", swipe=swipe))

    def update_metadata(self, change: Updater | Mapping[str, Any]) -> Done:
        """Change the metadata by a function of it, or merge an object into it (RFC 7386; null removes)."""
        return self._do(MetadataIntent(update=change) if callable(change) else MetadataIntent(merge=dict(change)))

    def set_metadata(self, metadata: Mapping[str, Any]) -> Done:
        """Replace the whole metadata."""
        return self._do(MetadataIntent(set=dict(metadata)))

    @abstractmethod
    def _do(self, intent: Intent) -> Done:
        """Store it now, for a chat; collect it, for a batch."""


class Batch(_Writing[None]):
    """Writes to one chat, collected and then stored all or nothing, as one commit.

        async with chat.batch() as batch:
            batch.append({"mes": "hi"})
            batch.state("memory").merge({"mood": "calm"})
        batch.result.version
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._intents: list[Intent] = []
        self._result: WriteResult | None = None

    def state(self, namespace: str) -> BatchedState:
        """A state document inside the batch."""
        return BatchedState(self, namespace)

    def floor_state(self, namespace: str) -> BatchedFloorState:
        """A floor state inside the batch."""
        return BatchedFloorState(self, namespace)

    def _do(self, intent: Intent) -> None:
        self._intents.append(intent)

    @property
    def result(self) -> WriteResult:
        """What the batch became; there once the block ended well."""
        if self._result is None:
            raise RuntimeError("the batch is not stored yet")
        return self._result

    async def commit(self) -> WriteResult:
        """Store what was collected."""
        intents, self._intents = self._intents, []
        self._result = await self._chat.write(BatchIntent(intents))
        return self._result

    async def __aenter__(self) -> Batch:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            await self.commit()


class BatchedState:
    """The verbs of a state document inside a batch; the document must have been read before (`state(ns).get()`)."""

    def __init__(self, batch: Batch, namespace: str) -> None:
        self._batch = batch
        self._namespace = namespace

    def update(self, update: Updater) -> None:
        """Change the document by a function of it; a missing one is `{}`."""
        self._batch._do(StateIntent(self._namespace, update=update))

    def set(self, data: Any) -> None:
        """Replace the document."""
        self._batch._do(StateIntent(self._namespace, set=data))

    def merge(self, data: Mapping[str, Any]) -> None:
        """Merge an object into the document (RFC 7386)."""
        self._batch._do(StateIntent(self._namespace, merge=dict(data)))

    def delete(self) -> None:
        """Take the document away."""
        self._batch._do(StateIntent(self._namespace, delete=True))


class Chat(_Writing[Coroutine[Any, Any, WriteResult]], LivingChat, Generating, Handle):
    """An open chat. Made by `Client.open`."""

    @property
    def chat_id(self) -> str:
        """The permanent id."""
        return self.subscription.chat_id or ""

    @property
    def messages(self) -> Messages:
        """The messages now: confirmed ones, and own ones that wait for their answer."""
        return Messages(self.subscription.view().chat)

    @property
    def metadata(self) -> Any:
        """The metadata now; a copy."""
        return self.subscription.view().chat.metadata_value()

    @property
    def version(self) -> Version:
        """The confirmed version of messages and metadata."""
        return self._confirmed().chat.version

    def _do(self, intent: Intent) -> Coroutine[Any, Any, WriteResult]:
        return self.write(intent)

    async def close(self) -> None:
        """Stop what is being produced here, wait for the own writes, then end the subscription."""
        self.stop_producing()
        await super().close()

    def floor_state(self, namespace: str) -> FloorState:
        """A state document that follows messages and swipes."""
        return FloorState(self, namespace)

    def batch(self) -> Batch:
        """Writes that are stored all or nothing."""
        return Batch(self)

    # -- history -----------------------------------------------------------------------------------------------------

    async def history(self, after: int = 0, limit: int = 100) -> HistoryFrame:
        """A page of commits with seq > `after`."""
        return await self._client.history(self, after=after, limit=limit)

    async def at(self, seq: int) -> ChatDocument:
        """The chat as it was at `seq`."""
        frame = await self._client.history(self, at=seq)
        if isinstance(frame.version, UnsetType) or isinstance(frame.messages, UnsetType):
            raise refused("version-unknown", f"The server gave no chat for seq {seq}.")
        metadata = {} if isinstance(frame.metadata, UnsetType) else loads(bytes(frame.metadata))
        return ChatDocument.from_values(frame.version, metadata, [loads(bytes(raw)) for raw in frame.messages])

    async def header(self) -> dict[str, Any] | None:
        """The first line of the chat's file as a rewrite now would leave it: the fields of other programs, and the
        metadata; None when the file has none. Asks the server.
        """
        return await self._client.header(self)

    async def save_mine_as(self, conflict: Conflict, name: str) -> Chat:
        """Exit 3: mine as a new chat."""
        copy = await self._client.open(name, create=True)
        # An attempt that was interrupted is taken up again; anything else that stands there is somebody's.
        if list(copy.messages) != conflict.mine.values()[: len(copy.messages)]:
            raise refused("exists", f"{name!r} exists and holds something else.", pointer="/chat")
        metadata = conflict.mine.metadata_value()
        await copy.set_metadata({**metadata, "integrity": copy.chat_id} if "integrity" in metadata else metadata)
        mine = [message for message in conflict.mine.values() if copy.messages.get(message["id"]) is None]
        for page in pages(mine):
            await copy.append(page)
        self.take_theirs(conflict)
        return copy



def pages(messages: list[Message]) -> list[list[Message]]:
    """Messages in groups that fit a frame each."""
    grouped: list[list[Message]] = []
    size_bytes = APPENDED_BYTES_MAX
    for message in messages:
        length = len(dumps(message))
        if size_bytes + length > APPENDED_BYTES_MAX or len(grouped[-1]) >= 1000:
            grouped.append([])
            size_bytes = 0
        grouped[-1].append(message)
        size_bytes += length
    return grouped
