"""The bounded queue of events."""

from __future__ import annotations

import asyncio

from tellback_client.events import EventQueue, EventsLost, StatusChanged


async def test_r40_a_slow_listener_is_told_what_it_lost() -> None:
    queue = EventQueue(events_max=2)
    for _ in range(3):
        queue.put(StatusChanged("syncing"))
    queue.put(StatusChanged("synced"))
    queue.close()

    assert [event async for event in queue] == [EventsLost(2), StatusChanged("syncing"), StatusChanged("synced")]


async def test_a_waiting_listener_is_woken_and_ended() -> None:
    queue = EventQueue()
    listening = asyncio.create_task(anext(aiter(queue)))
    await asyncio.sleep(0)
    queue.put(StatusChanged("synced"))

    assert await listening == StatusChanged("synced")
    queue.close()
    assert [event async for event in queue] == []
