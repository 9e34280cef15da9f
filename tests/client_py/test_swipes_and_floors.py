"""Swipes and floor states through the client, against the real server process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tellback_client import BlockingClient, RefusedError, ServerProcess, connect
from tests.support.waiting import until

from .test_end_to_end import CHAT


async def test_swipes_are_shown_at_once_and_told_to_the_other_tab(tellback_server: ServerProcess) -> None:
    """[Y1, Y3, Y4] Own writes first, the answer later; both tabs end with the same message."""
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        mine = await one.open(CHAT, create=True)
        theirs = await other.open(CHAT)
        (message_id,) = (await mine.append({"mes": "a", "extra": {"n": 0}})).message_ids
        adding = asyncio.ensure_future(mine.swipe_add(message_id, {"mes": "b", "extra": {"n": 1}}))
        await asyncio.sleep(0)
        assert mine.messages[0]["mes"] == "b"
        assert mine.pending == 1
        await adding
        await mine.swipe_add(message_id, "c", select=False)
        await mine.swipe_select(message_id, 0)
        async with mine.batch() as batch:
            batch.swipe_delete(message_id, 1)
            batch.swipe_add(message_id, "d")
        await until(lambda: theirs.head == mine.head)
        assert list(mine.messages) == list(theirs.messages)
        assert mine.messages[0]["swipes"] == ["a", "c", "d"]
        assert mine.messages[0]["swipe_id"] == 2
        assert mine.messages[0]["mes"] == "d"
        for wrong in (mine.swipe_select(message_id, 3), mine.swipe_select(message_id, -1)):
            with pytest.raises(RefusedError) as refused:
                await wrong
            assert refused.value.code == "swipe-unknown"


async def test_a_floor_state_follows_swipes_and_deletions_in_every_tab(tellback_server: ServerProcess) -> None:
    """[G2, G5, G7] What the tab that asked reads, and what the other one reads."""
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        mine, theirs = await one.open(CHAT, create=True), await other.open(CHAT)
        score = mine.floor_state(" Score ")
        assert score.namespace == "score"
        assert await score.get() is None
        with pytest.raises(RefusedError):
            await score.update(lambda state: {"a": 1})
        first, second = (await mine.append([{"mes": "one"}, {"mes": "two"}])).message_ids
        await score.update(lambda state: {**state, "n": 1}, floor=0)
        await score.update(lambda state: {**state, "list": [1]})
        assert await theirs.floor_state("score").get() == {"n": 1, "list": [1]}
        await mine.swipe_add(second, "other")
        await mine.saved()
        assert await score.get() == {"n": 1}
        await score.patch([{"op": "add", "path": "/m", "value": 2}])
        await mine.swipe_select(second, 0)
        await until(lambda: theirs.head == mine.head)
        assert await theirs.floor_state("score").get() == await score.get() == {"n": 1, "list": [1]}
        await mine.delete(first)
        await until(lambda: theirs.head == mine.head)
        assert await theirs.floor_state("score").get() == await score.get() == {"list": [1]}
        log = await theirs.state("score__floor_log").get()
        assert [(commit["floor"], commit["swipeId"]) for commit in log["commits"]] == [(0, 0), (0, 1)]
        tellback_server.kill()
        tellback_server.restart()
        await mine.append({"mes": "three"})
        assert await score.get() == {"list": [1]}
        await score.delete()
        assert await score.get() is None
        assert await mine.state("score__floor_log").get() is None


async def test_reducers_that_change_nothing_and_targets_that_are_not_there(tellback_server: ServerProcess) -> None:
    """[G1, G2] Only an object is a next state; a wrong floor is refused, here or there."""
    async with connect(tellback_server.url) as client:
        chat = await client.open(CHAT, create=True)
        await chat.append({"mes": "one"})
        score = chat.floor_state("score")
        for nothing in (None, 3, "x", [1], True):
            result = await score.update(lambda state, nothing=nothing: nothing)
            assert not result.changed
        assert not (await score.patch([])).changed
        for wrong in ({"floor": 1}, {"floor": -1}, {"floor": 0.5}, {"floor": True}, {"floor": "0"}, {"swipe": 1},
                      {"floor": 0, "swipe": -1}):
            with pytest.raises(RefusedError) as refused:
                await score.update(lambda state: {"a": 1}, **wrong)  # type: ignore[arg-type]
            assert refused.value.code in ("message-unknown", "swipe-unknown", "bad-frame")
        assert await score.get() is None
        big = {str(number): number for number in range(11_000)}
        await score.update(lambda state: big)
        assert await score.get() == big
        with pytest.raises(RefusedError) as plain:
            await chat.state("score").set({})
        assert plain.value.code == "floor-state"
        with pytest.raises(ZeroDivisionError):
            await score.update(lambda state: 1 // 0)
        score.destroy()
        assert not (await score.update(lambda state: {})).changed
        assert await score.get() == big


async def test_two_tabs_count_in_one_floor_state(tellback_server: ServerProcess) -> None:
    """[G1] A reducer runs again on what is there by then: no step is lost."""
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        chats = [await one.open(CHAT, create=True), await other.open(CHAT)]
        await chats[0].append({"mes": "one"})
        await until(lambda: len(chats[1].messages) == 1)

        async def count(chat: Any) -> None:
            score = chat.floor_state("score")
            for _ in range(50):
                await score.update(lambda state: {**state, "n": state.get("n", 0) + 1})
            await score.ready()

        await asyncio.gather(*map(count, chats))
        await until(lambda: chats[0].head == chats[1].head)
        assert [await chat.floor_state("score").get() for chat in chats] == [{"n": 100}, {"n": 100}]


async def test_a_batch_holds_floor_updates_too(tellback_server: ServerProcess) -> None:
    """[G4] A new message and what hangs on it are one commit."""
    async with connect(tellback_server.url) as client:
        chat = await client.open(CHAT, create=True)
        await chat.append({"mes": "one"})
        score = chat.floor_state("score")
        await score.get()
        async with chat.batch() as batch:
            batch.append({"id": "two", "mes": "two"})
            batch.floor_state("score").update(lambda state: {**state, "a": 1})
            batch.floor_state("score").patch([{"op": "add", "path": "/b", "value": 2}])
        assert await score.get() == {"a": 1, "b": 2}
        await chat.delete("two")
        assert await score.get() == {}


async def test_two_updates_of_one_state_in_a_batch_reach_the_other_tab(tellback_server: ServerProcess) -> None:
    """[E1] Several effects of one commit on one document are all installed."""
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        mine, theirs = await one.open(CHAT, create=True), await other.open(CHAT)
        await mine.state("memory").set({"n": 0})
        assert await theirs.state("memory").get() == {"n": 0}
        async with mine.batch() as batch:
            for _ in range(3):
                batch.state("memory").update(lambda memory: {"n": memory["n"] + 1})
        await until(lambda: theirs.head == mine.head)
        assert await mine.state("memory").get() == await theirs.state("memory").get() == {"n": 3}


def test_the_blocking_client_has_the_same_verbs(tellback_server: ServerProcess) -> None:
    with BlockingClient(tellback_server.url) as client:
        chat = client.open(CHAT, create=True)
        (message_id,) = chat.append({"mes": "a"}).message_ids
        chat.swipe_add(message_id, "b")
        chat.swipe_select(message_id, 0)
        chat.swipe_delete(message_id, 1)
        score = chat.floor_state("score")
        score.update(lambda state: {"n": 1})
        score.patch([{"op": "replace", "path": "/n", "value": 2}], floor=0, swipe=0)
        score.ready()
        assert score.get() == {"n": 2}
        score.delete()
        score.destroy()
        assert score.get() is None
