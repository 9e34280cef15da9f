"""The bounded queue of events."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from tellback_client import ConnectionChanged, ServerProcess, connect
from tellback_client.events import Event, EventQueue, EventsLost, StatusChanged
from tests.support.waiting import until


async def test_r40_a_slow_listener_is_told_what_it_lost() -> None:
    queue: EventQueue[Event] = EventQueue(events_max=2)
    for _ in range(3):
        queue.put(StatusChanged("syncing"))
    queue.put(StatusChanged("synced"))
    queue.close()

    assert [event async for event in queue] == [EventsLost(2), StatusChanged("syncing"), StatusChanged("synced")]


async def test_a_waiting_listener_is_woken_and_ended() -> None:
    queue: EventQueue[Event] = EventQueue()
    listening = asyncio.create_task(anext(aiter(queue)))
    await asyncio.sleep(0)
    queue.put(StatusChanged("synced"))

    assert await listening == StatusChanged("synced")
    queue.close()
    assert [event async for event in queue] == []


async def test_r44_the_client_tells_when_its_connection_goes_and_comes_back(tellback_server: ServerProcess) -> None:
    """Also without an open chat, and while a chat's own status says something more urgent."""
    client = connect(tellback_server.url)
    await client.start()
    events = client.events()
    told: list[str] = []

    async def listen() -> None:
        async for event in events:
            assert isinstance(event, ConnectionChanged)
            told.append(event.status)

    listening = asyncio.create_task(listen())
    tellback_server.kill()
    await until(lambda: "offline" in told)
    tellback_server.restart()
    client.reconnect()
    await until(lambda: told[-1] == "connected")
    await client.aclose()
    await listening

    assert told[0] == "offline"
    assert told[-1] == "closed"
    assert all(one != other for one, other in pairwise(told))
    assert [event async for event in client.events()] == []


async def test_a_frame_over_the_clients_bound_ends_the_connection_and_not_the_client(
    tellback_server: ServerProcess,
) -> None:
    async with connect(tellback_server.url) as writer:
        chat = await writer.open("group:Long", create=True)
        await chat.append({"mes": "x" * 300_000})
    async with connect(tellback_server.url, frame_bytes_max=100_000) as reader:
        events = reader.events()
        opening = asyncio.create_task(reader.open("group:Long"))
        assert await anext(aiter(events)) == ConnectionChanged("offline")
        opening.cancel()
    async with connect(tellback_server.url, frame_bytes_max=400_000) as reader:
        assert len((await reader.open("group:Long")).messages) == 1
