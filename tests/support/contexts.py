"""Two contexts of the extension API on one chat, and what their listeners hear."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tellback_client import ServerProcess, connect
from tellback_client.context import Context, EventTypes, create_context
from tests.support.waiting import GUARD_S, until

CHAT = "character:Alice/First meeting"
HEARD = [
    EventTypes.MESSAGE_SENT, EventTypes.MESSAGE_RECEIVED, EventTypes.MESSAGE_EDITED, EventTypes.MESSAGE_UPDATED,
    EventTypes.MESSAGE_DELETED, EventTypes.MESSAGE_SWIPED, EventTypes.MESSAGE_SWIPE_DELETED,
]


@contextlib.asynccontextmanager
async def two_contexts(server: ServerProcess) -> AsyncIterator[tuple[Context, Context]]:
    """Two tabs that show the same chat."""
    async with connect(server.url) as one, connect(server.url) as other:
        await one.open(CHAT, create=True)
        async with await create_context(one, chat=CHAT) as mine, await create_context(other, chat=CHAT) as theirs:
            yield mine, theirs


def heard_by(context: Context) -> list[tuple[str, int]]:
    """Message events from now on: name and first argument."""
    heard: list[tuple[str, int]] = []
    for name in HEARD:
        context.event_source.on(name, lambda first, name=name: heard.append((name.value, first)))
    return heard


async def settled(one: Context, other: Context) -> None:
    """Both show the same commit, and their listeners know."""
    await until(lambda: one._current().chat.head == other._current().chat.head)
    async with asyncio.timeout(GUARD_S):
        await one.events_delivered()
        await other.events_delivered()
