"""The client for programs without an event loop: the same client, on a loop in a thread of its own.

    with BlockingClient("ws://127.0.0.1:8765/ws") as client:
        chat = client.open("character:Alice/First meeting", create=True)
        chat.append({"name": "User", "is_user": True, "mes": "hi"})

Rules of this module:
- No logic: every method hands one call over and waits for its end.
- It can be used from any number of threads; calls to one chat are carried out in the order they arrive.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from tellback_protocol.backups import ListedBackup
from tellback_protocol.catalog_frames import Character, FoundMessage, ListedChat
from tellback_protocol.ids import Version
from tellback_protocol.repairs import ChatRepairFrame
from tellback_protocol.status import StatusFrame

from .backups import BackupContent
from .blocking_generation import BlockingGeneration, BlockingProducing
from .chat import Batch, Chat, Operations
from .client import Client, connect
from .conflict import Conflict
from .events import Event, EventQueue, Status
from .handle import Handle
from .intents import Message, Updater
from .outbox import WriteResult
from .owner import Owner

T = TypeVar("T")


class BlockingClient:
    """`Client`, waiting. Takes what `connect` takes."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self._options = options
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._client: Client | None = None

    def __enter__(self) -> BlockingClient:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            client = connect(self._url, **self._options)
            self._client = stack.enter_context(self._portal.wrap_async_context_manager(client))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the last answers and end the thread."""
        self._stack.close()

    @property
    def client(self) -> Client:
        """The client behind this one; it belongs to the other thread."""
        if self._client is None:
            raise RuntimeError("use the client inside `with`")
        return self._client

    @property
    def status(self) -> str:
        """As `Client.status`."""
        return self.client.status

    def open(self, name: str, *, create: bool = False) -> BlockingChat:
        """As `Client.open`."""
        return BlockingChat(self, self.wait(lambda: self.client.open(name, create=create)))

    def character(self, name: str) -> BlockingOwner:
        """As `Client.character`."""
        return BlockingOwner(self, self.wait(lambda: self.client.character(name)))

    def preset(self, name: str) -> BlockingOwner:
        """As `Client.preset`."""
        return BlockingOwner(self, self.wait(lambda: self.client.preset(name)))

    def create_chat(self, name: str, **begin: Any) -> BlockingChat:
        """As `Client.create_chat`."""
        return BlockingChat(self, self.wait(lambda: self.client.create_chat(name, **begin)))

    def restore_chat(self, chat_id: str, to: str | None = None) -> BlockingChat:
        """As `Client.restore_chat`."""
        return BlockingChat(self, self.wait(lambda: self.client.restore_chat(chat_id, to)))

    def restore_deleted(self, chat_id: str, backup: str, to: str | None = None) -> BlockingChat:
        """As `Client.restore_deleted`."""
        return BlockingChat(self, self.wait(lambda: self.client.restore_deleted(chat_id, backup, to)))

    def backups(self, chat: str) -> list[ListedBackup]:
        """As `Client.backups`."""
        return self.wait(lambda: self.client.backups(chat))

    def back_up(self, chat: str) -> ListedBackup:
        """As `Client.back_up`."""
        return self.wait(lambda: self.client.back_up(chat))

    def repair(self, chat: str, *, apply: bool = False) -> ChatRepairFrame:
        """As `Client.repair`."""
        return self.wait(lambda: self.client.repair(chat, apply=apply))

    def backup_content(self, chat: str, backup: str = "last") -> BackupContent:
        """As `Client.backup_content`."""
        return self.wait(lambda: self.client.backup_content(chat, backup))

    def list_chats(self, **filters: Any) -> list[ListedChat]:
        """As `Client.list_chats`, all of them."""
        return self.wait(self.client.list_chats(**filters).all)

    def search_chats(self, query: str, **filters: Any) -> list[FoundMessage]:
        """As `Client.search_chats`, all that is found; `client.search_page` goes page by page."""
        return self.wait(self.client.search_chats(query, **filters).all)

    def active_chat(self, *, character: str | None = None, group: str | None = None) -> str | None:
        """As `Client.active_chat`."""
        return self.wait(lambda: self.client.active_chat(character=character, group=group))

    def set_active_chat(
        self, chat: str | None, *, character: str | None = None, group: str | None = None
    ) -> str | None:
        """As `Client.set_active_chat`."""
        return self.wait(lambda: self.client.set_active_chat(chat, character=character, group=group))

    def characters(self) -> list[Character]:
        """As `Client.characters`."""
        return self.wait(self.client.characters)

    def groups(self) -> list[dict[str, Any]]:
        """As `Client.groups`."""
        return self.wait(self.client.groups)

    def server_status(self, limit: int = 200) -> StatusFrame:
        """As `Client.server_status`."""
        return self.wait(lambda: self.client.server_status(limit))

    def saved(self) -> None:
        """As `Client.saved`."""
        self.wait(self.client.saved)

    def wait(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run an async call on the client's loop and wait for it."""
        if self._portal is None:
            raise RuntimeError("use the client inside `with`")
        return self._portal.call(call)

    def look(self, call: Callable[[], T]) -> T:
        """Run a plain call on the client's loop, where nothing changes meanwhile."""
        if self._portal is None:
            raise RuntimeError("use the client inside `with`")
        return self._portal.call(call)


class BlockingChat:
    """`Chat`, waiting."""

    def __init__(self, client: BlockingClient, chat: Chat) -> None:
        self._client = client
        self.chat = chat
        """The chat behind this one; it belongs to the other thread."""

    @property
    def chat_id(self) -> str:
        """As `Chat.chat_id`."""
        return self.chat.chat_id

    @property
    def messages(self) -> list[Message]:
        """The messages now."""
        return self._client.look(lambda: list(self.chat.messages))

    @property
    def metadata(self) -> Any:
        """The metadata now."""
        return self._client.look(lambda: self.chat.metadata)

    @property
    def version(self) -> Version:
        """As `Chat.version`."""
        return self._client.look(lambda: self.chat.version)

    @property
    def status(self) -> Status:
        """As `Chat.status`."""
        return self._client.look(lambda: self.chat.status)

    @property
    def pending(self) -> int:
        """As `Chat.pending`."""
        return self._client.look(lambda: self.chat.pending)

    @property
    def conflicts(self) -> list[Conflict]:
        """As `Chat.conflicts`; take their exits through `wait`."""
        return self._client.look(lambda: self.chat.conflicts)

    def append(self, messages: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> WriteResult:
        """As `Chat.append`."""
        return self._client.wait(lambda: self.chat.append(messages))

    def patch(self, message_id: str | None, change: Operations | Updater) -> WriteResult:
        """As `Chat.patch`."""
        return self._client.wait(lambda: self.chat.patch(message_id, change))

    def update_message(self, message_id: str, update: Updater) -> WriteResult:
        """As `Chat.update_message`; the function runs in the client's thread."""
        return self._client.wait(lambda: self.chat.update_message(message_id, update))

    def delete(self, message_ids: str | Sequence[str]) -> WriteResult:
        """As `Chat.delete`."""
        return self._client.wait(lambda: self.chat.delete(message_ids))

    def swipe_add(self, message_id: str, content: Mapping[str, Any] | str, *, select: bool = True) -> WriteResult:
        """As `Chat.swipe_add`."""
        return self._client.wait(lambda: self.chat.swipe_add(message_id, content, select=select))

    def swipe_select(self, message_id: str, swipe: int) -> WriteResult:
        """As `Chat.swipe_select`."""
        return self._client.wait(lambda: self.chat.swipe_select(message_id, swipe))

    def swipe_delete(self, message_id: str, swipe: int) -> WriteResult:
        """As `Chat.swipe_delete`."""
        return self._client.wait(lambda: self.chat.swipe_delete(message_id, swipe))

    def update_metadata(self, change: Updater | Mapping[str, Any]) -> WriteResult:
        """As `Chat.update_metadata`."""
        return self._client.wait(lambda: self.chat.update_metadata(change))

    def rename(self, to: str) -> WriteResult:
        """As `Chat.rename`."""
        return self._client.wait(lambda: self.chat.rename(to))

    def remove(self, *, force: bool = False) -> WriteResult:
        """As `Chat.remove`."""
        return self._client.wait(lambda: self.chat.remove(force=force))

    def restore_backup(self, backup: str) -> WriteResult:
        """As `Chat.restore_backup`."""
        return self._client.wait(lambda: self.chat.restore_backup(backup))

    def branch(
        self, message_id: str, *, to: str | None = None, kind: Literal["branch", "checkpoint"] = "branch",
        swipe: int | None = None,
    ) -> BlockingChat:
        """As `Chat.branch`."""
        return BlockingChat(self._client, self._client.wait(
            lambda: self.chat.branch(message_id, to=to, kind=kind, swipe=swipe)
        ))

    def header(self) -> dict[str, Any] | None:
        """As `Chat.header`."""
        return self._client.wait(self.chat.header)

    def batch(self, fill: Callable[[Batch], object]) -> WriteResult:
        """Store what `fill` asks for on a batch, all or nothing."""

        def filled() -> Awaitable[WriteResult]:
            batch = self.chat.batch()
            fill(batch)
            return batch.commit()

        return self._client.wait(filled)

    def generate(self, *turn: Any, **options: Any) -> BlockingProducing:
        """As `Chat.generate`, for a plain `with`."""
        return BlockingProducing(self._client, lambda: self.chat.generate(*turn, **options))

    def resume(self, generation_id: str) -> BlockingProducing:
        """As `Chat.resume`."""
        return BlockingProducing(self._client, lambda: self.chat.resume(generation_id))

    def generate_from(self, upstream: str, body: Mapping[str, Any], *turn: Any, **options: Any) -> BlockingGeneration:
        """As `Chat.generate_from`."""
        made = self._client.wait(lambda: self.chat.generate_from(upstream, body, *turn, **options))
        return BlockingGeneration(self._client, made)

    def generation(self, generation_id: str) -> BlockingGeneration:
        """As `Chat.generation`."""
        return BlockingGeneration(self._client, self._client.look(lambda: self.chat.generation(generation_id)))

    @property
    def generations(self) -> list[BlockingGeneration]:
        """As `Chat.generations`."""
        return [BlockingGeneration(self._client, one) for one in self._client.look(lambda: self.chat.generations)]

    def preview(self) -> list[Message]:
        """As `Chat.preview`."""
        return list(self._client.wait(self.chat.preview))

    def state(self, namespace: str) -> BlockingState:
        """As `Chat.state`."""
        return BlockingState(self._client, self.chat, namespace)

    def floor_state(self, namespace: str) -> BlockingFloorState:
        """As `Chat.floor_state`."""
        return BlockingFloorState(self._client, self.chat, namespace)

    def saved(self) -> None:
        """As `Chat.saved`."""
        self._client.wait(self.chat.saved)

    def close(self) -> None:
        """As `Chat.close`."""
        self._client.wait(self.chat.close)

    def wait(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run an async call of the chat or of a conflict, and wait for it."""
        return self._client.wait(call)

    def events(self) -> Iterator[Event]:
        """As `Chat.events`, for a plain `for` in a thread of its own."""
        queue = self._client.look(self.chat.events)
        return _events(self._client, queue)


class BlockingOwner:
    """`Owner`, waiting."""

    def __init__(self, client: BlockingClient, owner: Owner) -> None:
        self._client = client
        self.owner = owner
        """The owner behind this one; it belongs to the other thread."""

    @property
    def owner_id(self) -> str:
        """As `Owner.owner_id`."""
        return self.owner.owner_id

    @property
    def versions(self) -> dict[str, Version]:
        """As `Owner.versions`."""
        return self._client.look(lambda: self.owner.versions)

    @property
    def status(self) -> Status:
        """As `Owner.status`."""
        return self._client.look(lambda: self.owner.status)

    def state(self, namespace: str) -> BlockingState:
        """As `Owner.state`."""
        return BlockingState(self._client, self.owner, namespace)

    def state_get(self, namespace: str) -> Any:
        """As `Owner.state_get`."""
        return self._client.wait(lambda: self.owner.state_get(namespace))

    def state_get_many(self, namespaces: Sequence[str] | None = None) -> dict[str, Any]:
        """As `Owner.state_get_many`."""
        return self._client.wait(lambda: self.owner.state_get_many(namespaces))

    def set_state(self, namespace: str, data: Any) -> WriteResult:
        """As `Owner.set_state`."""
        return self._client.wait(lambda: self.owner.set_state(namespace, data))

    def update_state(self, namespace: str, reducer: Updater) -> WriteResult:
        """As `Owner.update_state`; the function runs in the client's thread."""
        return self._client.wait(lambda: self.owner.update_state(namespace, reducer))

    def delete_state(self, namespace: str) -> WriteResult:
        """As `Owner.delete_state`."""
        return self._client.wait(lambda: self.owner.delete_state(namespace))

    def saved(self) -> None:
        """As `Owner.saved`."""
        self._client.wait(self.owner.saved)

    def close(self) -> None:
        """As `Owner.close`."""
        self._client.wait(self.owner.close)

    def events(self) -> Iterator[Event]:
        """As `Owner.events`, for a plain `for` in a thread of its own."""
        queue = self._client.look(self.owner.events)
        return _events(self._client, queue)


def _events(client: BlockingClient, queue: EventQueue[Event]) -> Iterator[Event]:
    while True:
        try:
            yield client.wait(queue.__anext__)
        except StopAsyncIteration:
            return


class BlockingState:
    """`State`, waiting."""

    def __init__(self, client: BlockingClient, owner: Handle, namespace: str) -> None:
        self._client = client
        self._state = owner.state(namespace)

    def get(self) -> Any:
        """As `State.get`."""
        return self._client.wait(self._state.get)

    def update(self, update: Updater) -> WriteResult:
        """As `State.update`; the function runs in the client's thread."""
        return self._client.wait(lambda: self._state.update(update))

    def set(self, data: Any) -> WriteResult:
        """As `State.set`."""
        return self._client.wait(lambda: self._state.set(data))

    def merge(self, data: Mapping[str, Any]) -> WriteResult:
        """As `State.merge`."""
        return self._client.wait(lambda: self._state.merge(data))

    def patch(self, operations: Operations) -> WriteResult:
        """As `State.patch`."""
        return self._client.wait(lambda: self._state.patch(operations))

    def delete(self) -> WriteResult:
        """As `State.delete`."""
        return self._client.wait(self._state.delete)


class BlockingFloorState:
    """`FloorState`, waiting."""

    def __init__(self, client: BlockingClient, chat: Chat, namespace: str) -> None:
        self._client = client
        self._state = chat.floor_state(namespace)

    def get(self) -> Any:
        """As `FloorState.get`."""
        return self._client.wait(self._state.get)

    def update(self, reducer: Updater, *, floor: int | None = None, swipe: int | None = None) -> WriteResult:
        """As `FloorState.update`; the function runs in the client's thread."""
        return self._client.wait(lambda: self._state.update(reducer, floor=floor, swipe=swipe))

    def patch(self, operations: Operations, *, floor: int | None = None, swipe: int | None = None) -> WriteResult:
        """As `FloorState.patch`."""
        return self._client.wait(lambda: self._state.patch(operations, floor=floor, swipe=swipe))

    def delete(self) -> WriteResult:
        """As `FloorState.delete`."""
        return self._client.wait(self._state.delete)

    def ready(self) -> None:
        """As `FloorState.ready`."""
        self._client.wait(self._state.ready)

    def destroy(self) -> None:
        """As `FloorState.destroy`."""
        self._client.look(self._state.destroy)
