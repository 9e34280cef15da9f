"""An owner as the user holds it: its states, its writes and what happens to it. A chat is one with messages.

Rules of this module:
- Every write resolves when the server acknowledged it, which is when it is durable; not before, and never by a timeout
  of its own. A cancelled caller does not cancel its write (R20).
- A write goes to the owner it was asked of, whatever is opened meanwhile (R27).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from tellback_protocol.frames import Limits
from tellback_protocol.ids import Version
from tellback_protocol.values import loads

from .asking import waiter_of
from .conflict import Conflict
from .errors import ConflictError, RefusedError, TellbackError, refused
from .events import Conflicted, Event, EventQueue, Status, StatusChanged
from .intents import Intent, StateIntent, Updater
from .outbox import PendingWrite, WriteResult
from .replica import Replica
from .subscription import Subscription

if TYPE_CHECKING:
    from .chat import Chat
    from .client import Client

Operations = Sequence[Mapping[str, Any]]


class State:
    """One state document of an owner."""

    def __init__(self, owner: Handle, namespace: str) -> None:
        self._owner = owner
        self.namespace = namespace

    async def get(self) -> Any:
        """The document with the own writes on top, or None when there is none. Asks the server the first time only."""
        while True:
            document = self._owner.subscription.view().states.get(self.namespace)
            if document is not None:
                return None if document.data is None else loads(document.data)
            await self._owner.fetch_state(self.namespace)

    async def update(self, update: Updater) -> WriteResult:
        """Change the document by a function of it (a missing one is `{}`); run again when somebody was faster."""
        return await self._owner.write(StateIntent(self.namespace, update=update))

    async def set(self, data: Any) -> WriteResult:
        """Replace the document."""
        return await self._owner.write(StateIntent(self.namespace, set=data))

    async def merge(self, data: Mapping[str, Any]) -> WriteResult:
        """Merge an object into the document (RFC 7386; null removes)."""
        return await self._owner.write(StateIntent(self.namespace, merge=dict(data)))

    async def patch(self, operations: Operations) -> WriteResult:
        """RFC 6902 operations on the document; a missing one is `{}`."""
        return await self._owner.write(StateIntent(self.namespace, patch=list(operations)))

    async def delete(self) -> WriteResult:
        """Take the document away."""
        return await self._owner.write(StateIntent(self.namespace, delete=True))


class Handle:
    """What chats, characters and presets have in common."""

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

    @property
    def name(self) -> str:
        """As it was opened."""
        return self.subscription.name

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
        answer = waiter_of(future)

        def settled(outcome: WriteResult | Exception) -> None:
            if future.done() and isinstance(outcome, Exception):
                # Its caller was cancelled.
                self.subscription.tell_later(outcome)
            answer(outcome)

        self.subscription.submit(PendingWrite(intent, settled))
        self._client.stepped()
        return await future

    def hand_over(self, intent: Intent) -> None:
        """Carry an intent out without waiting for what comes of it."""
        self.subscription.submit(PendingWrite(intent))
        self._client.stepped()

    def wake(self) -> None:
        """There is text to send."""
        self._client.wake()

    @property
    def limits(self) -> Limits:
        """What the server accepts."""
        return self._client.limits

    async def saved(self) -> None:
        """Wait until no own write is without an answer.

        Raises: ConflictError when one waits for a decision; what ended the chat, for ever, when it is gone.
        """
        await self.answered()
        if self.subscription.error is not None:
            raise self.subscription.error

    async def answered(self) -> None:
        """As `saved`; that the chat is gone is raised once, and only when writes were lost with it. So is what was said
        of a write whose caller had given up waiting.
        """
        await self._decided()
        if self.subscription.lost:
            raise self.subscription.lost.popleft()

    async def _decided(self) -> None:
        """Wait until no own write is without an answer. Raises: ConflictError when one waits for a decision."""
        while self.subscription.pending and self.subscription.error is None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._saved.append(future)
            await future
        if self.subscription.conflicts:
            raise ConflictError(self.subscription.conflicts[0])

    async def close(self) -> None:
        """Wait for the own writes, then end the subscription. Raises: ConflictError when one waits for a decision."""
        await self._decided()
        await self._client.close_chat(self)

    # -- states ------------------------------------------------------------------------------------------------------

    async def state_get(self, namespace: str) -> Any:
        """A state document with the own writes on top, or None when there is none."""
        return await self.state(namespace).get()

    async def state_get_many(self, namespaces: Sequence[str] | None = None) -> dict[str, Any]:
        """State documents by namespace, None for one that there is not. Raises for one that is corrupt.

        All that there are when none is named; then the error stands in the place of one that is corrupt.
        """
        if namespaces is None:
            return {namespace: await self._get_or_error(namespace) for namespace in await self._client.namespaces(self)}
        names = list(dict.fromkeys(namespaces))
        documents = await asyncio.gather(*(self.state_get(namespace) for namespace in names))
        return dict(zip(names, documents, strict=True))

    async def _get_or_error(self, namespace: str) -> Any:
        try:
            return await self.state_get(namespace)
        except RefusedError as error:
            if error.code != "state-corrupt":
                raise
            return error

    async def set_state(self, namespace: str, data: Any) -> WriteResult:
        """Replace a document."""
        return await self.state(namespace).set(data)

    async def update_state(self, namespace: str, reducer: Updater) -> WriteResult:
        """Change a document by a function of it (a missing one is `{}`); run again when somebody was faster."""
        return await self.state(namespace).update(reducer)

    async def delete_state(self, namespace: str) -> WriteResult:
        """Take a document away."""
        return await self.state(namespace).delete()

    async def fetch_state(self, namespace: str) -> None:
        """Ask the server for a state document and wait for it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.subscription.want_state(namespace, waiter_of(future))
        self._client.stepped()
        await future

    # -- the exits of a conflict -------------------------------------------------------------------------------------

    def take_theirs(self, conflict: Conflict) -> None:
        """Exit 1: forget the own write."""
        self.subscription.solved(conflict)
        self._client.stepped()

    async def apply_mine_again(self, conflict: Conflict) -> WriteResult:
        """Exit 2: the own write on what is there now. Of what is gone nothing is given up: the conflict stays."""
        if self.subscription.error is not None:
            raise self.subscription.error
        try:
            return await self.write(conflict.intent)
        finally:
            # Whatever came of it is told to the caller, or is a conflict of its own.
            self.take_theirs(conflict)

    async def save_mine_as(self, conflict: Conflict, name: str) -> Chat:
        """Exit 3 is for chats. Raises RefusedError."""
        raise refused("unsupported", "Only a chat can be saved under another name.")

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
            raise self.subscription.error or TellbackError("it is not open yet")
        return replica
