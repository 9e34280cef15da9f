"""Conversation history by session id, in the shape that Cipher's providers have.

    provider = HistoryProvider("ws://127.0.0.1:8377/ws")
    await provider.save_message("session-1", {"role": "user", "content": "hi"})
    await provider.get_history("session-1", limit=20)
    await provider.disconnect()

Rules of this module:
- A session is the chat `character:history/<session id>`; it is made by the first message, never by reading.
- A session without messages is empty; a server that cannot be reached, or a chat that cannot be read, is an error.
- `save_message` returns when the message is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from .chat import Chat
from .client import Client, connect
from .errors import ConflictError, NotFoundError
from .intents import Message

CLEAR_ATTEMPTS_MAX = 8


class HistoryProvider:
    """The history of any number of sessions on one server. Connects with the first call; takes what `connect` takes."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self._options = options
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    async def get_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """The last `limit` messages of a session in order, all of them when it is None; none when it has none."""
        if limit is not None and limit < 0:
            raise ValueError("limit is not negative")
        try:
            chat = await self._chat(session_id, create=False)
        except NotFoundError:
            return []
        messages = chat.messages
        return messages[:] if limit is None else messages[max(0, len(messages) - limit) :]

    async def save_message(self, session_id: str, message: Mapping[str, Any]) -> str:
        """Put a message at the end of a session. Returns its id."""
        chat = await self._chat(session_id, create=True)
        return (await chat.append(message)).message_ids[0]

    async def clear_history(self, session_id: str) -> None:
        """Take all messages of a session out, those included that others add or change meanwhile."""
        try:
            chat = await self._chat(session_id, create=False)
        except NotFoundError:
            return
        for attempt in range(1, CLEAR_ATTEMPTS_MAX + 1):
            try:
                await chat.delete(chat.messages.ids())
                return
            except ConflictError as error:
                error.conflict.take_theirs()
                if attempt == CLEAR_ATTEMPTS_MAX:
                    raise

    async def disconnect(self) -> None:
        """Wait for the last answers and end. The next call connects again."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _chat(self, session_id: str, *, create: bool) -> Chat:
        async with self._connecting:
            if self._client is None:
                client = connect(self._url, **self._options)
                await client.start()
                self._client = client
        return await self._client.open(f"character:history/{session_id}", create=create)
