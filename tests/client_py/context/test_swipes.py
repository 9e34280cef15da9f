"""Swipes and floor states of the extension API, two contexts on one chat, on the real server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tellback_client import ConflictError, RefusedError, ServerProcess
from tellback_client.context import Context, EventTypes, SwipeState
from tests.support.contexts import heard_by, settled, two_contexts

SWIPED = {
    "name": "Alice", "is_user": False, "mes": "a", "swipe_id": 0, "swipes": ["a", "b", "c"],
    "swipe_info": [{"extra": {"n": 0}}, {"extra": {"n": 1}}, {"extra": {"n": 2}}], "extra": {"n": 0},
}


def texts(context: Context) -> list[str]:
    return [message["mes"] for message in context.chat]


async def test_the_greeting_wraps_both_ways_and_other_messages_only_to_the_left(
    tellback_server: ServerProcess,
) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        await mine.add_messages(SWIPED)
        await settled(mine, theirs)
        told, heard = heard_by(mine), heard_by(theirs)

        seen = []
        for _ in range(4):
            assert await mine.swipe.right()
            seen.append((mine.chat[0]["mes"], mine.chat[0]["swipe_id"], mine.chat[0]["extra"]["n"]))
        assert seen == [("b", 1, 1), ("c", 2, 2), ("a", 0, 0), ("b", 1, 1)]
        assert await mine.swipe.left()
        assert await mine.swipe.left()
        assert mine.chat[0]["mes"] == "c"
        await settled(mine, theirs)
        assert texts(theirs) == ["c"]
        assert told == heard == [("message_swiped", 0), ("message_updated", 0)] * 6

        await mine.add_messages([{"mes": "hi", "is_user": True}, SWIPED])
        assert [await mine.swipe.right() for _ in range(4)] == [True, True, False, False]
        assert texts(mine) == ["c", "hi", "c"]
        assert await mine.swipe.to(None, "left", force_mes_id=0)
        assert await mine.swipe.to(None, "right", force_swipe_id=0)
        assert not await mine.swipe.to(None, "right", force_swipe_id=0)
        assert texts(mine) == ["b", "hi", "a"]
        assert not await mine.swipe.to(None, "left", force_mes_id=1)
        for wrong in ({"force_swipe_id": 3}, {"force_swipe_id": -1}, {"force_mes_id": 9}, {"force_mes_id": "nobody"}):
            with pytest.raises(RefusedError):
                await mine.swipe.to(None, "right", **wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError):
            await mine.swipe.to(None, "up")


async def test_an_edit_keeps_the_active_swipe_in_step(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        await mine.add_messages(SWIPED)
        await mine.swipe.right()
        await mine.update_messages({"index": 0, "patch": {"mes": "B", "extra": {"model": "x"}}})
        await settled(mine, theirs)
        assert theirs.chat[0]["swipes"] == ["a", "B", "c"]
        assert theirs.chat[0]["swipe_info"][1]["extra"] == {"n": 1, "model": "x"}
        await theirs.swipe.left()
        await theirs.swipe.right()
        await settled(mine, theirs)
        assert texts(mine) == ["B"]
        assert mine.chat[0]["extra"] == {"n": 1, "model": "x"}


async def test_one_swipe_is_deleted_and_never_the_last(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        await mine.add_messages([{"mes": "hi"}, SWIPED])
        await settled(mine, theirs)
        infos: list[tuple[int, dict[str, Any]]] = []
        theirs.event_source.on(EventTypes.MESSAGE_SWIPE_DELETED, lambda index, info: infos.append((index, info)))
        message_id = mine.chat[1]["id"]

        after = await mine.delete_messages(1, swipe=0)
        assert (after["mes"], after["swipes"], after["swipe_id"]) == ("b", ["b", "c"], 0)
        (after,) = await mine.delete_messages([message_id], swipe=1)
        assert after["swipes"] == ["b"]
        for wrong in (0, 5):
            with pytest.raises(RefusedError):
                await mine.delete_messages(1, swipe=wrong)
        with pytest.raises(ValueError, match="one message"):
            await mine.delete_messages([0, 1], swipe=0)
        await settled(mine, theirs)
        assert [(index, info["message_id"], info["swipe_id"]) for index, info in infos] == [
            (1, message_id, 0), (1, message_id, 1)]
        assert theirs.get_message_count() == 2


async def test_state_and_buttons(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, _):
        assert not mine.swipe.is_allowed()
        await mine.add_messages(SWIPED)
        assert mine.swipe.is_allowed()
        moving = asyncio.create_task(mine.swipe.right())
        await asyncio.sleep(0)
        assert mine.swipe.state() is SwipeState.SWIPING
        assert not mine.swipe.is_allowed()
        await moving
        assert mine.swipe.state() is SwipeState.NONE
        mine.swipe.hide(hide_counters=True)
        assert (mine.swipe.visible, mine.swipe.counters_visible) == (False, False)
        mine.swipe.show()
        mine.swipe.refresh()
        assert mine.swipe.visible
        assert mine.swipe.is_allowed()
        chat = mine.client.chats[0]
        async with chat.generate(reply={"name": "Alice"}) as reply:
            await reply.push("being written")
            assert not mine.swipe.is_allowed()
        assert mine.swipe.is_allowed()
        assert mine.chat[-1]["mes"] == "being written"


async def test_two_tabs_swipe_at_once(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        await mine.add_messages(SWIPED)
        await settled(mine, theirs)
        for _ in range(10):
            results = await asyncio.gather(mine.swipe.right(), theirs.swipe.left(), return_exceptions=True)
            for result in results:
                assert isinstance(result, (bool, ConflictError))
                if isinstance(result, ConflictError):
                    result.conflict.take_theirs()
            await settled(mine, theirs)
            message = mine.chat[0]
            assert message == theirs.chat[0]
            assert message["mes"] == message["swipes"][message["swipe_id"]]


async def test_floor_state_follows_the_floors(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        floor = await mine.create_floor_state("plot")
        seen: list[Any] = []
        reader = await theirs.create_floor_state("plot")

        async def read() -> None:
            seen.append(await reader.get())

        assert await floor.get() is None
        assert await floor.update(lambda state: {"n": 0}) is False
        await mine.add_messages({"mes": "hi", "is_user": True})
        assert await floor.update(lambda state: {**state, "n": 1}) is True
        await mine.add_messages(SWIPED)
        assert await floor.update(lambda state: {**state, "n": state["n"] + 1})
        assert await floor.get() == {"n": 2}
        await settled(mine, theirs)
        for name in (EventTypes.MESSAGE_SWIPED, EventTypes.MESSAGE_SWIPE_DELETED, EventTypes.MESSAGE_DELETED):
            theirs.event_source.on(name, read)

        await mine.swipe.right()
        await settled(mine, theirs)
        await floor.update(lambda state: {**state, "b": True})
        assert await floor.get() == {"n": 1, "b": True}
        await mine.swipe.left()
        await settled(mine, theirs)
        await mine.delete_messages(1, swipe=0)
        await settled(mine, theirs)
        await mine.delete_messages(1, silent=True)
        await settled(mine, theirs)
        await mine.delete_messages(0)
        await settled(mine, theirs)
        assert seen == [{"n": 1}, {"n": 2}, {"n": 1, "b": True}, {"n": 1}, {}]
        await floor.ready()


async def test_floor_state_refuses_what_would_be_misattributed(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, _):
        floor = await mine.create_floor_state("plot")
        await mine.add_messages([{"mes": "hi"}, SWIPED])
        for target in (
            {"floor": 2}, {"floor": -1}, {"floor": 1.0}, {"floor": True}, {"floor": "1"}, {"floor": 1, "swipe_id": -1},
            {"floor": 1, "swipe_id": 3}, {"floor": 0, "swipe_id": 1}, {"swipe_id": "0"},
        ):
            assert await floor.update(lambda state: {"n": 1}, **target) is False  # type: ignore[arg-type]
            assert await floor.patch([{"op": "add", "path": "/n", "value": 1}], **target) is False  # type: ignore[arg-type]
        assert await floor.get() is None

        for nothing in ([], None, 5, "text"):
            assert await floor.update(lambda state, nothing=nothing: nothing) is True
        assert await floor.get() is None
        assert await floor.update(lambda state: {"late": 1}, floor=0)
        assert await floor.update(lambda state: {**state, "hidden": 1}, floor=1, swipe_id=2)
        assert await floor.get() == {"late": 1}
        await mine.swipe.left()
        assert await floor.get() == {"late": 1, "hidden": 1}
        assert await floor.patch([{"op": "add", "path": "/more", "value": 2}])
        assert (await floor.get())["more"] == 2
        with pytest.raises(ValueError, match="mine"):
            await floor.update(fails)

        with pytest.raises(AttributeError):
            floor.namespace = "other"
        floor.destroy()
        assert await floor.update(lambda state: {"x": 1}) is False
        assert await floor.patch([{"op": "add", "path": "/x", "value": 1}]) is False
        for namespace in ("x__floor_log", "two words", "chat_sync", ""):
            with pytest.raises(RefusedError, match="namespace"):
                await mine.create_floor_state(namespace)


def fails(_state: Any) -> Any:
    raise ValueError("mine")


async def test_two_tabs_count_in_one_floor_state(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        await mine.add_messages({"mes": "hi"})
        await settled(mine, theirs)
        floors = [await context.create_floor_state("count") for context in (mine, theirs)]
        results = await asyncio.gather(*(
            floor.update(lambda state: {"n": state.get("n", 0) + 1}) for _ in range(50) for floor in floors
        ))
        await settled(mine, theirs)
        assert all(results)
        assert await floors[0].get() == await floors[1].get() == {"n": 100}
