"""The client: one session on one server, any number of chats.

    async with connect("ws://127.0.0.1:8765/ws") as client:
        chat = await client.open("character:Alice/First meeting", create=True)
        await chat.append({"name": "User", "is_user": True, "mes": "hi"})

Rules of this module:
- The client keeps its session through every reconnect; with an outbox file also through its own death (R45).
- Closing flushes: what was asked for is acknowledged first, as long as the server can be reached in time.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from typing import Any, Literal, cast
from weakref import WeakSet

from anyio import to_thread
from msgspec import UnsetType

from tellback_protocol.frames import HistoryFrame, Limits, ModelServer, Opened, StateFrame
from tellback_protocol.ids import session_problem
from tellback_protocol.requests import Open, OwnerName, owner_named, owner_text
from tellback_protocol.values import loads

from .asking import waiter_of
from .backups import Backups
from .catalog import Catalog
from .chat import Chat
from .connection import FRAME_BYTES_MAX, Connection, ConnectionStatus, Token
from .errors import ClientClosed, ConnectionLost, NotFoundError, OutboxError, TellbackError, refused
from .events import ConnectionChanged, EventQueue
from .handle import Handle
from .life import Lives
from .link import Link
from .outbox import Journal
from .owner import Owner
from .payload import text
from .subscription import Subscription

CONNECT_TIMEOUT_S = 10.0
FLUSH_TIMEOUT_S = 10.0


def new_session() -> str:
    """A session id: 128 random bits."""
    return secrets.token_hex(16)


def connect(
    url: str,
    *,
    token: Token = None,
    session: str | None = None,
    outbox_path: str | os.PathLike[str] | None = None,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    flush_timeout_s: float = FLUSH_TIMEOUT_S,
    proxy: str | Literal[True] | None = True,
    frame_bytes_max: int = FRAME_BYTES_MAX,
) -> Client:
    """A client for `async with`.

    `url` is `ws://HOST:PORT/ws`. `token` is a string, or an async function that fetches a fresh one. `session` names
    who writes; a program that gives its own keeps its place in the op numbers. `outbox_path` is a file for writes
    without an answer: they survive this process, and so does the session. Entering waits for the server
    `connect_timeout_s` seconds; 0 does not wait at all, so that one can start offline. Leaving waits `flush_timeout_s`
    for the last answers. `proxy` is an URL, None for none, True for the environment's. A larger frame of the server
    than `frame_bytes_max` ends the connection: a frame holds at least one whole message.

    Raises, on entering: ConnectionLost, UnauthenticatedError, ForbiddenError, OutboxInUse, OutboxCorrupt, ValueError.
    """
    return Client(
        url, token=token, session=session, outbox_path=outbox_path, connect_timeout_s=connect_timeout_s,
        flush_timeout_s=flush_timeout_s, proxy=proxy, frame_bytes_max=frame_bytes_max,
    )


class Client(Catalog, Backups, Lives):
    """One session. Made by `connect`; all methods belong to the event loop it was entered in."""

    def __init__(
        self,
        url: str,
        *,
        token: Token = None,
        session: str | None = None,
        outbox_path: str | os.PathLike[str] | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        flush_timeout_s: float = FLUSH_TIMEOUT_S,
        proxy: str | Literal[True] | None = True,
        frame_bytes_max: int = FRAME_BYTES_MAX,
    ) -> None:
        problem = session_problem(session) if session is not None else None
        if problem:
            raise ValueError(problem)
        self.url = url
        self._token = token
        self._asked_session = session
        self._outbox_path = outbox_path
        self._connect_timeout_s = connect_timeout_s
        self._flush_timeout_s = flush_timeout_s
        self._proxy = proxy
        self._frame_bytes_max = frame_bytes_max
        self._journal: Journal | None = None
        self._link: Link | None = None
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._chats: dict[int, Handle] = {}
        self._changed = asyncio.Event()
        self._queues: WeakSet[EventQueue[ConnectionChanged]] = WeakSet()
        self._told_status: ConnectionStatus = "connecting"

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Client:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Connect, without `async with`; then `aclose` is the caller's to call."""
        assert self._link is None, "a client is entered once"
        session = self._asked_session
        if self._outbox_path is not None:
            self._journal = await to_thread.run_sync(Journal, self._outbox_path, lambda: session or new_session())
            if session is not None and self._journal.session != session:
                self._journal.close()
                raise ValueError("the outbox file belongs to another session")
            session = self._journal.session
        self._link = Link(
            session or new_session(), random.random, token=self._token if isinstance(self._token, str) else None,
            journaling=self._journal is not None,
        )
        if self._journal is not None:
            self._link.restore(self._journal.entries)
        self._connection = Connection(
            self.url, self._link, self._token, self._journal, self.tell, self._proxy, self._frame_bytes_max
        )
        self._task = asyncio.create_task(self._connection.run(), name="tellback-client")
        self._task.add_done_callback(self._ended)
        if self._connect_timeout_s > 0:
            try:
                await self.wait_connected(self._connect_timeout_s)
            except BaseException:
                await self._stop(ClientClosed())
                raise

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """Wait for a connection. Raises: ConnectionLost when there is none in time; what closed the client."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.status not in ("connected", "closed"):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ConnectionLost(f"no connection to {self.url} within {timeout_s:g} s") from None
        if self.error is not None:
            raise self.error

    async def aclose(self, flush_timeout_s: float | None = None) -> None:
        """Wait for the answers to all own writes, then end. A second call does nothing.

        When time runs out, whoever still awaits a write gets ClientClosed; with an outbox file the write itself is
        kept and goes out when the file is next used. One that waits for a state document, or for the answers to others
        that it builds on, has no request yet and is not kept.
        """
        if self._task is None or self._link is None:
            return
        for chat in self.chats:
            chat.stop_producing()
        timeout_s = self._flush_timeout_s if flush_timeout_s is None else flush_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                while self._link.error is None and self.pending:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        finally:
            await self._stop(ClientClosed())

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Nobody may wait for answers that cannot come: the task ends only with the client, or with its loop."""
        if self._link is not None and self._link.error is None:
            self._link.fail(ClientClosed())
            self.stepped()

    async def _stop(self, error: TellbackError) -> None:
        task, self._task = self._task, None
        assert self._link is not None, "stopped after it was started"
        assert self._connection is not None, "stopped after it was started"
        if task is not None:
            await self._connection.stop()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._link.error is None:
            self._link.fail(error)
        self._connection.status = "closed"
        journal, self._journal = self._journal, None
        try:
            if journal is not None:
                await to_thread.run_sync(journal.write, self._link.journal())
        except OSError as error:
            raise OutboxError(str(self._outbox_path), str(error)) from error
        finally:
            if journal is not None:
                # Else the next client would find the outbox in use.
                journal.close()
            self.stepped()

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def status(self) -> ConnectionStatus:
        """`connecting`, `connected`, `offline` (waiting to connect again) or `closed`."""
        return self._connection.status if self._connection is not None else "connecting"

    @property
    def error(self) -> TellbackError | None:
        """What closed the client, or None."""
        return self._link.error if self._link is not None else None

    @property
    def session(self) -> str:
        """The session id."""
        return self._started().session

    @property
    def user(self) -> str:
        """Who the server takes this client for."""
        return self._started().user

    @property
    def upstreams(self) -> list[ModelServer]:
        """The model servers that `Chat.generate_from` can ask here, each with its `name`; none before it is connected.
        """
        return list(self._started().upstreams)

    @property
    def limits(self) -> Limits:
        """What the server accepts."""
        return self._started().limits

    @property
    def pending(self) -> int:
        """Own writes without an answer, in all chats."""
        return sum(subscription.pending for subscription in self._started().subscriptions)

    @property
    def chats(self) -> list[Chat]:
        """The chats that are open, those with writes from an earlier process included."""
        handles = [self._chat(subscription) for subscription in self._started().subscriptions
                   if subscription.replica is not None]
        return [handle for handle in handles if isinstance(handle, Chat)]

    async def saved(self) -> None:
        """Wait until no own write is without an answer, in all chats.

        A chat that is gone is nothing to wait for: its writes were answered, or are conflicts. Raises: ConflictError
        when a write waits for a decision; what closed the client; once, what ended a chat whose writes were left by an
        earlier process and cannot be sent.
        """
        chats = [self._chat(subscription) for subscription in self._started().subscriptions]
        # A conflict is told at once, whatever others still wait for.
        for chat in sorted(chats, key=lambda chat: not chat.conflicts):
            await chat.answered()
        if self.error is not None:
            raise self.error

    def events(self) -> EventQueue[ConnectionChanged]:
        """When the connection goes and comes back, from now on, for `async for`; ends when the client is closed."""
        queue: EventQueue[ConnectionChanged] = EventQueue()
        self._queues.add(queue)
        if self.status == "closed":
            queue.close()
        return queue

    def reconnect(self) -> None:
        """Connect now instead of after the backoff: for programs that know that the network is back."""
        if self._connection is not None:
            self._connection.reconnect()

    # -- chats -------------------------------------------------------------------------------------------------------

    async def open(self, name: str, *, create: bool = False) -> Chat:
        """Open a chat: `character:<character>/<chat>`, `group:<chat>` or `id:<chat_id>`.

        A chat that is open already is the same chat. Raises: NotFoundError, RefusedError, ConnectionLost, ClientClosed.
        """
        if not isinstance(owner_named(name).chat, str):
            raise refused("name-illegal", f"{name!r} is no chat: see character and preset.", pointer="/chat")
        chat = self._chat(await self._opened(name, create=create))
        assert isinstance(chat, Chat), "the name is a chat's"
        chat.holders += 1
        return chat

    async def character(self, name: str) -> Owner:
        """Open a character by the name of its card, for its state. Raises: as `open`."""
        return await self._owner(OwnerName(character=name))

    async def preset(self, name: str) -> Owner:
        """Open a preset, `<folder>/<preset>` (`OpenAI Settings/Default`), for its state. Raises: as `open`."""
        return await self._owner(OwnerName(preset=name))

    async def _owner(self, name: OwnerName) -> Owner:
        owned = owner_text(name)
        if owned is None:
            raise refused("name-illegal", "A name cannot leave its folder.", pointer="/owner")
        owner = self._chat(await self._opened(owned))
        assert isinstance(owner, Owner), "the name is no chat's"
        owner.holders += 1
        return owner

    async def _opened(self, name: str, *, create: bool = False) -> Subscription:
        """The open subscription to an owner by its one text."""
        link = self._started()
        subscription = link.subscribe(text(name, "/chat"), create=create)
        if subscription.error is not None:
            raise subscription.error
        if subscription.replica is None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            subscription.on_opened.append(waiter_of(future))
            self.stepped()
            try:
                await future
            except TellbackError as error:
                if not subscription.left_behind:
                    # What is kept for it is to be told by `saved`, and sent when it is back.
                    link.forget(subscription)
                if isinstance(error, NotFoundError) and create and not subscription.create:
                    # Somebody else here asked first, and did not want it made.
                    return await self._opened(name, create=True)
                raise
            subscription = link.subscribe(name)
        return subscription

    async def namespaces(self, owner: Handle) -> list[str]:
        """All namespaces that an owner has a document in, read from the server; `state_get_many` calls it."""
        future: asyncio.Future[StateFrame] = asyncio.get_running_loop().create_future()
        self._started().states(owner.subscription, waiter_of(future))
        self.stepped()
        return list((await future).states)

    async def close_chat(self, chat: Handle) -> None:
        """End a subscription; `Chat.close` calls it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def closed(_answer: object) -> None:
            if not future.done():
                future.set_result(None)

        self._started().unsubscribe(chat.subscription, closed)
        self._chats.pop(id(chat.subscription), None)
        self.stepped()
        await future
        chat.subscription.fail(ClientClosed())
        chat.stepped()

    async def history(self, chat: Chat, **fields: int) -> HistoryFrame:
        """The answer to `history`; `Chat.history` and `Chat.at` call it."""
        future: asyncio.Future[HistoryFrame] = asyncio.get_running_loop().create_future()
        self._started().history(chat.subscription.address, waiter_of(future), **fields)
        self.stepped()
        return await future

    async def header(self, chat: Chat) -> dict[str, Any] | None:
        """The header of a chat's file; `Chat.header` calls it."""
        asked = Open(chat=chat.subscription.address, since=None, tail=0, header=True)
        frame = cast(Opened, await self._ask(asked))
        return None if isinstance(frame.header, UnsetType) else loads(bytes(frame.header))

    # -- inside ------------------------------------------------------------------------------------------------------

    def stepped(self) -> None:
        """The user changed something: tell the listeners and wake the tasks. Never waits."""
        self.tell()
        self.wake()

    def wake(self) -> None:
        """There is something to send that no listener cares about. Never waits."""
        if self._connection is not None and self._connection.status != "closed":
            self._connection.wake()

    def tell(self) -> None:
        """Tell the listeners what happened. Never waits."""
        if self._link is not None:
            for subscription in list(self._link.subscriptions):
                self._chat(subscription).stepped()
        status = self.status
        if status != self._told_status:
            self._told_status = status
            for queue in list(self._queues):
                queue.put(ConnectionChanged(status, self.error if status == "closed" else None))
                if status == "closed":
                    queue.close()
        self._changed.set()

    def _chat(self, subscription: Subscription) -> Handle:
        chat = self._chats.get(id(subscription))
        if chat is None or chat.subscription is not subscription:
            kind = Chat if subscription.is_chat else Owner
            chat = self._chats[id(subscription)] = kind(self, subscription)
        return chat

    def _started(self) -> Link:
        if self._link is None:
            raise RuntimeError("use the client inside `async with`")
        return self._link
