"""Conversation history by session id, in the shape that Cipher's providers have.

    provider = HistoryProvider("ws://127.0.0.1:8765/ws")
    await provider.save_message("session-1", {"role": "user", "content": "hi"})
    await provider.get_history("session-1", limit=20)
    await provider.disconnect()

Rules of this module:
- A session is the chat `character:history/<session id>`; it is made by the first message, never by reading.
- A session that never was is empty; a server that cannot be reached, a chat that cannot be read, and one that
  somebody put into the trash are errors.
- `save_message` returns when the message is durable, exactly once, however often the connection was lost meanwhile;
  it waits for the server as long as its caller does.
- `get_history` sees every message whose `save_message` returned before, whichever process saved it: it asks the server
  where the history ends before it answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from .catching_up import caught_up
from .chat import Chat
from .client import CONNECT_TIMEOUT_S, Client, connect
from .errors import ConflictError, ConnectionLost, RefusedError
from .intents import Message

CLEAR_PASSES_MAX = 8
SESSIONS_OPEN_MAX = 64
"""Sessions that stay open between calls; well below what a server allows one connection."""


class HistoryProvider:
    """The history of any number of sessions on one server. Connects with the first call; takes what `connect` takes.

    `connect_timeout_s` is also how long reading waits for the server.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self._options = options
        self._timeout_s: float = options.get("connect_timeout_s", CONNECT_TIMEOUT_S) or CONNECT_TIMEOUT_S
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._open: dict[str, Chat] = {}
        """By session id, the one used last at the end."""
        self._used: dict[str, int] = {}
        """Calls that are under way, by session id."""

    async def get_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """The last `limit` messages of a session in order, all of them when it is None; none when it has none.

        Raises: ConnectionLost when the server does not answer in time; RefusedError, ValueError.
        """
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise ValueError("limit is an integer that is not negative, or None")
        try:
            async with asyncio.timeout(self._timeout_s), self._session(session_id, create=False) as chat:
                await caught_up(chat)
                messages = chat.messages
                return messages[:] if limit is None else messages[max(0, len(messages) - limit) :]
        except TimeoutError:
            raise ConnectionLost(f"{self._url} did not answer within {self._timeout_s:g} s") from None
        except RefusedError as error:
            if error.code != "not-found":
                raise
            return []

    async def save_message(self, session_id: str, message: Mapping[str, Any]) -> str:
        """Put a message at the end of a session. Returns its id. Raises: RefusedError, TypeError."""
        if not isinstance(message, Mapping):
            raise TypeError("a message is an object")
        async with self._session(session_id, create=True) as chat:
            return (await chat.append(message)).message_ids[0]

    async def clear_history(self, session_id: str) -> None:
        """Take all messages of a session out: all that were saved before, and those that others add meanwhile.

        Raises: RefusedError; ConflictError when others write faster than they can be cleared.
        """
        try:
            async with self._session(session_id, create=False) as chat:
                for left in reversed(range(CLEAR_PASSES_MAX)):
                    try:
                        # An answer brings everything that was stored before it, so nothing saved earlier is overlooked.
                        await caught_up(chat)
                        ids = chat.messages.ids()
                        if not ids:
                            return
                        await chat.delete(ids)
                    except ConflictError as error:
                        error.conflict.take_theirs()
                        if not left:
                            raise
        except RefusedError as error:
            if error.code != "not-found":
                raise

    async def disconnect(self) -> None:
        """Wait for the last answers and end. The next call connects again."""
        client, self._client = self._client, None
        self._open.clear()
        if client is not None:
            await client.aclose()

    @asynccontextmanager
    async def _session(self, session_id: str, *, create: bool) -> AsyncIterator[Chat]:
        """The session's chat for one call."""
        if not isinstance(session_id, str):
            raise TypeError("a session id is a string")
        self._used[session_id] = self._used.get(session_id, 0) + 1
        try:
            client = await self._connected()
            chat = self._open.pop(session_id, None)
            if chat is None or chat.subscription.error is not None:
                chat = await client.open(f"character:history/{session_id}", create=create)
            self._open[session_id] = chat
            yield chat
        finally:
            self._used[session_id] -= 1
            if not self._used[session_id]:
                del self._used[session_id]
            await self._close_idle()

    async def _connected(self) -> Client:
        async with self._connecting:
            if self._client is None:
                client = connect(self._url, **self._options)
                await client.start()
                self._client = client
            return self._client

    async def _close_idle(self) -> None:
        """Keep the number of open chats in bounds, the ones used longest ago first."""
        while len(self._open) > SESSIONS_OPEN_MAX and self._client is not None:
            idle = next(
                (name for name, chat in self._open.items() if name not in self._used and not chat.pending), None)
            if idle is None:
                return
            # Taken out and unsubscribed in one step: whoever asks for the session meanwhile opens it anew.
            chat = self._open.pop(idle)
            if chat.subscription.error is None:
                await self._client.close_chat(chat)
