"""Lookback: what the log tells of a live chat's past, read in threads, while the chat goes on.

Rules of this module (BEHAVIOUR R7, H1-H4):
- Only what is durable is told.
- Few tabs at a time: chats that are read or written must not wait for a crowd of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import structlog

from tellback_protocol.requests import History, Open
from tellback_server.actor import Actor
from tellback_server.history import as_it_was, chat_at, page
from tellback_server.hub import Hub
from tellback_server.log import LogError
from tellback_server.replay import Missed, missed_since, replay_bytes_max

log = structlog.get_logger()

LOOKS_MAX = 2
"""Tabs for which the log is read at the same time: chats that are read or written must not wait for a crowd of them."""


class Lookback:
    """See the module."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._looks = asyncio.Semaphore(LOOKS_MAX)

    async def history(self, actor: Actor, request: History) -> tuple[bytes, Iterator[bytes] | None]:
        key, records = actor.key, self._hub.log
        if not isinstance(request.at, int):
            after = request.after if isinstance(request.after, int) else 0
            return await self._hub.in_thread(
                lambda: page(records, key, request.chat, request.id, after, request.limit)
            ), None
        at = request.at
        stream = actor.stream
        assert stream is not None, "history is asked of a chat that is there"
        copy, head = stream.chat.copy(), stream.head
        await records.flush()
        return await self._hub.in_thread(
            lambda: as_it_was(request.chat, request.id, chat_at(records, key, copy, head, at))
        )

    async def missed(self, actor: Actor, request: Open) -> Missed | None:
        """See Shelf. Cost: what a replay may have, read once."""
        key, records, stream, since = actor.key, self._hub.log, actor.stream, request.since
        assert stream is not None, "a live chat"
        assert since is not None, "what was missed begins somewhere"
        missed = Missed("known", since)
        try:
            async with self._looks:
                await records.flush()
                while actor.stream is stream and stream.since(missed.last) is None and not missed.is_too_large:
                    last, bytes_max = missed.last, replay_bytes_max(stream) - missed.size_bytes
                    more = await self._hub.in_thread(lambda: missed_since(records, key, last, bytes_max))  # noqa: B023
                    missed.extend(more)
                    if more.verdict != "known" or not more.commits:
                        break
        except (LogError, OSError) as error:
            log.error("log-not-readable", chat=actor.name, error=str(error))
            return None
        return missed
