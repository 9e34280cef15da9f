"""What happens to a server or its stores while four tabs write: afterwards everything acknowledged is there once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from tests.support.forked_server import ForkedServer
from tests.support.oracle import Notes, Writer, check, whole_history
from tests.support.server import TabClient
from tests.support.stored import caught_up
from tests.support.waiting import GUARD_S, until

WRITERS = 4


@contextlib.asynccontextmanager
async def writing(server: ForkedServer, notes: Notes, writers: list[Writer]) -> AsyncIterator[None]:
    """The writers run meanwhile; at the end each gets all its answers."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(writer.run(server.url, stop)) for writer in writers]
    try:
        yield
        stop.set()
        async with asyncio.timeout(GUARD_S):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def goes_on(notes: Notes, count: int = 30) -> None:
    """So many more ops are answered."""
    wanted = sum(one.answer is not None for one in notes.invocations.values()) + count
    await until(lambda: sum(one.answer is not None for one in notes.invocations.values()) >= wanted)


async def disturbed(
    server: ForkedServer, chat: str, stores: Sequence[str], disturb: Callable[[Notes], Awaitable[Any]],
    prepare: Callable[[TabClient, list[str]], Awaitable[Any]] | None = None,
) -> None:
    """Four writers on a chat of three messages meanwhile; then the invariants hold, and every store is equal.

    `prepare` gets a tab and the ids of the messages before anybody else writes.
    """
    notes = Notes()
    reader = await TabClient.join(server.url)
    await reader.open(chat, create=True)
    ids = (await reader.append(chat, "one", "two", "three"))["messages"]
    if prepare is not None:
        await prepare(reader, ids)
    first = await reader.open(chat)
    await reader.close()
    writers = [Writer(chat, notes, number) for number in range(WRITERS)]
    async with writing(server, notes, writers):
        await disturb(notes)
    reader = await TabClient.join(server.url)
    final = await reader.open(chat)
    states = (await reader.ask("state-get", owner={"chat": chat}, namespaces=["memory"]))["states"]
    history = [one for one in await whole_history(reader, chat) if one["version"]["seq"] > first["head"]["seq"]]
    check(notes, history, first, final, {"memory": states["memory"]["data"]}, writers)
    found = [await caught_up(url, reader, chat) for url in stores]
    assert [list(one.messages.items()) for one in found] == [list(found[0].messages.items())] * len(found)
    assert [one.head for one in found] == [found[0].head] * len(found)
