"""A chat as the user holds it: the live document, its writes, its states and what happens to it.

Rules of this module:
- Every write resolves when the server acknowledged it, which is when it is durable; not before, and never by a timeout
  of its own. A cancelled caller does not cancel its write (R20).
- A write goes to the chat it was asked of, whatever is opened meanwhile (R27).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakSet

from msgspec import UnsetType

from tellback_protocol.chat import Chat as ChatDocument
from tellback_protocol.frames import HistoryFrame
from tellback_protocol.ids import Version
from tellback_protocol.values import dumps, loads

from .conflict import Conflict
from .errors import ConflictError, TellbackError, refused
from .events import Conflicted, Event, EventQueue, Status, StatusChanged
from .intents import (
    AppendIntent,
    BatchIntent,
    DeleteIntent,
    Intent,
    Message,
    MetadataIntent,
    PatchIntent,
    StateIntent,
    UpdateMessageIntent,
    Updater,
)
from .outbox import PendingWrite, WriteResult
from .replica import Messages, Replica
from .subscription import Subscription

if TYPE_CHECKING:
    from .client import Client

APPENDED_BYTES_MAX = 1 << 20
"""Of one append when a whole chat is copied; well below a frame."""

Operations = Sequence[Mapping[str, Any]]
Done = TypeVar("Done")
"""What a verb gives back: something to await on a chat, nothing in a batch."""


def new_message_id() -> str:
    """64 random bits in hexadecimal, as the server makes them."""
    return secrets.token_hex(8)


class _Writing(Generic[Done]):
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

    def update_metadata(self, change: Updater | Mapping[str, Any]) -> Done:
        """Change the metadata by a function of it, or merge an object into it (RFC 7386; null removes)."""
        return self._do(MetadataIntent(update=change) if callable(change) else MetadataIntent(merge=dict(change)))

    def set_metadata(self, metadata: Mapping[str, Any]) -> Done:
        """Replace the whole metadata."""
        return self._do(MetadataIntent(set=dict(metadata)))

    def _do(self, intent: Intent) -> Done:
        raise NotImplementedError


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


class State:
    """One state document of a chat."""

    def __init__(self, chat: Chat, namespace: str) -> None:
        self._chat = chat
        self.namespace = namespace

    async def get(self) -> Any:
        """The document with the own writes on top, or None when there is none. Asks the server the first time only."""
        while True:
            document = self._chat.subscription.view().states.get(self.namespace)
            if document is not None:
                return None if document.data is None else loads(document.data)
            await self._chat.fetch_state(self.namespace)

    async def update(self, update: Updater) -> WriteResult:
        """Change the document by a function of it (a missing one is `{}`); run again when somebody was faster."""
        return await self._chat.write(StateIntent(self.namespace, update=update))

    async def set(self, data: Any) -> WriteResult:
        """Replace the document."""
        return await self._chat.write(StateIntent(self.namespace, set=data))

    async def merge(self, data: Mapping[str, Any]) -> WriteResult:
        """Merge an object into the document (RFC 7386; null removes)."""
        return await self._chat.write(StateIntent(self.namespace, merge=dict(data)))

    async def patch(self, operations: Operations) -> WriteResult:
        """RFC 6902 operations on the document; a missing one is `{}`."""
        return await self._chat.write(StateIntent(self.namespace, patch=list(operations)))

    async def delete(self) -> WriteResult:
        """Take the document away."""
        return await self._chat.write(StateIntent(self.namespace, delete=True))


class Chat(_Writing[Coroutine[Any, Any, WriteResult]]):
    """An open chat. Made by `Client.open`."""

    def __init__(self, client: Client, subscription: Subscription) -> None:
        self.subscription = subscription
        """The pure half; for tests and tools."""
        self.holders = 0
        """How often it was opened and not given back; `Client.open` counts up, contexts count down."""
        self._client = client
        self._queues: WeakSet[EventQueue[Event]] = WeakSet()
        self._observers: list[Callable[[Event], None]] = []
        self._status: Status = "connecting"
        self._saved: list[asyncio.Future[None]] = []

    # -- the live document -------------------------------------------------------------------------------------------

    @property
    def chat_id(self) -> str:
        """The permanent id."""
        return self.subscription.chat_id or ""

    @property
    def name(self) -> str:
        """As it was opened."""
        return self.subscription.name

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

    @property
    def head(self) -> Version:
        """The last confirmed commit of the chat and its states."""
        return self._confirmed().head

    @property
    def pending(self) -> int:
        """Own writes without an answer."""
        return self.subscription.pending

    @property
    def conflicts(self) -> list[Conflict]:
        """Own writes that wait for a decision."""
        return list(self.subscription.conflicts)

    @property
    def status(self) -> Status:
        """Where the chat stands; the most urgent word first: a conflict, damage, no connection, work, peace."""
        subscription = self.subscription
        if subscription.conflicts:
            return "conflicted"
        if subscription.read_only:
            return "read-only"
        if self._client.status != "connected":
            return "connecting" if self._client.status == "connecting" else "offline"
        if subscription.phase == "gone":
            return "offline"
        if subscription.phase != "live" or subscription.pending:
            return "syncing"
        return "synced"

    def state(self, namespace: str) -> State:
        """A state document of the chat."""
        return State(self, namespace)

    def events(self) -> EventQueue[Event]:
        """What happens from now on, for `async for`. The listener may await anything of this package (R44)."""
        queue: EventQueue[Event] = EventQueue()
        self._queues.add(queue)
        if self.subscription.error is not None:
            queue.close()
        return queue

    def observe(self, observer: Callable[[Event], None]) -> Callable[[], None]:
        """Call `observer` with every event from now on, in the step that installed it; returns how to stop.

        It must not wait and must not fail: the reader of the socket calls it. Everybody else uses `events`.
        """
        self.stepped()
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    # -- writes ------------------------------------------------------------------------------------------------------

    async def write(self, intent: Intent) -> WriteResult:
        """Carry an intent out.

        Raises: RefusedError, ConflictError, OutcomeUnknownError, ConnectionLost, ClientClosed, and what a function of
        the caller raises.
        """
        future: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()

        def settled(outcome: WriteResult | Exception) -> None:
            if future.done():
                return
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.subscription.submit(PendingWrite(intent, settled))
        self._client.stepped()
        return await future

    def _do(self, intent: Intent) -> Coroutine[Any, Any, WriteResult]:
        return self.write(intent)

    def batch(self) -> Batch:
        """Writes that are stored all or nothing."""
        return Batch(self)

    async def saved(self) -> None:
        """Wait until no own write is without an answer.

        Raises: ConflictError when one waits for a decision; what ended the chat, when it is gone.
        """
        while self.subscription.pending and self.subscription.error is None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._saved.append(future)
            await future
        if self.subscription.conflicts:
            raise ConflictError(self.subscription.conflicts[0])
        if self.subscription.error is not None:
            raise self.subscription.error

    async def close(self) -> None:
        """Wait for the own writes, then end the subscription."""
        await self.saved()
        await self._client.close_chat(self)

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

    async def fetch_state(self, namespace: str) -> None:
        """Ask the server for a state document and wait for it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def arrived(error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.subscription.want_state(namespace, arrived)
        self._client.stepped()
        await future

    # -- the exits of a conflict -------------------------------------------------------------------------------------

    def take_theirs(self, conflict: Conflict) -> None:
        """Exit 1: forget the own write."""
        self.subscription.solved(conflict)
        self._client.stepped()

    async def apply_mine_again(self, conflict: Conflict) -> WriteResult:
        """Exit 2: the own write on what is there now."""
        try:
            return await self.write(conflict.intent)
        finally:
            # Whatever came of it is told to the caller, or is a conflict of its own.
            self.take_theirs(conflict)

    async def save_mine_as(self, conflict: Conflict, name: str) -> Chat:
        """Exit 3: mine as a new chat."""
        copy = await self._client.open(name, create=True)
        # An attempt that was interrupted is taken up again; anything else that stands there is somebody's.
        if list(copy.messages) != conflict.mine.values()[: len(copy.messages)]:
            raise refused("exists", f"{name!r} exists and holds something else.", pointer="/chat")
        await copy.set_metadata(conflict.mine.metadata_value())
        mine = [message for message in conflict.mine.values() if copy.messages.get(message["id"]) is None]
        for page in pages(mine):
            await copy.append(page)
        self.take_theirs(conflict)
        return copy

    # -- called by the client ----------------------------------------------------------------------------------------

    def stepped(self) -> None:
        """Tell what happened since the last call. Never waits."""
        events, self.subscription.events = self.subscription.events, []
        for event in events:
            if isinstance(event, Conflicted):
                event.conflict.attach(self)
            self._tell(event)
        status = self.status
        if status != self._status:
            self._status = status
            self._tell(StatusChanged(status))
        ended = self.subscription.error is not None
        if self._saved and (not self.subscription.pending or ended):
            waiting, self._saved = self._saved, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)
        if ended:
            for queue in list(self._queues):
                queue.close()

    def _tell(self, event: Event) -> None:
        for observer in list(self._observers):
            observer(event)
        for queue in list(self._queues):
            queue.put(event)

    def _confirmed(self) -> Replica:
        replica = self.subscription.replica
        if replica is None:
            raise self.subscription.error or TellbackError("the chat is not open yet")
        return replica


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
