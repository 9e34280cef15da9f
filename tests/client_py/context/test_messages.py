"""Messages and events of the extension API, two contexts on one chat, on the real server."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import random
from typing import Any

import pytest

from tellback_client import ConflictError, RefusedError, ServerProcess
from tellback_client.context import Context, EventTypes, ReadOnlyViewError
from tests.support.contexts import heard_by, settled, two_contexts
from tests.support.waiting import until


async def test_added_messages_are_told_to_both_tabs_with_their_indexes(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        told, heard = heard_by(mine), heard_by(theirs)

        assert await mine.add_messages({"name": "User", "is_user": True, "mes": "hi"}) == 0
        assert await mine.add_messages([{"mes": "a"}, {"role": "user", "content": "b"}]) == [1, 2]
        assert await mine.add_messages([]) == []
        await settled(mine, theirs)

        assert told == heard == [("message_sent", 0), ("message_received", 1), ("message_sent", 2)]
        assert mine.chat == theirs.chat
        assert mine.get_message_count() == theirs.get_message_count() == 3
        assert mine.chat[0]["mes"] == "hi"


async def test_indexes_are_right_when_both_tabs_add_at_once(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        told = heard_by(mine)
        indexes = await asyncio.gather(*(
            context.add_messages({"mes": f"{tab} {number}", "is_user": True})
            for number in range(20) for tab, context in enumerate((mine, theirs))
        ))
        await settled(mine, theirs)

        assert sorted(indexes) == list(range(40))
        assert told == [("message_sent", index) for index in range(40)]
        texts = [mine.chat[index]["mes"] for index in indexes]
        assert texts == [f"{tab} {number}" for number in range(20) for tab in range(2)]


async def test_silent_keeps_only_the_own_listeners_out(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        told, heard = heard_by(mine), heard_by(theirs)

        await mine.add_messages([{"mes": "a"}, {"mes": "b"}], silent=True)
        await mine.update_messages({"index": 0, "patch": {"mes": "A"}}, silent=True)
        await mine.delete_messages(1, silent=True)
        await settled(mine, theirs)

        assert told == []
        assert heard == [
            ("message_received", 0), ("message_received", 1), ("message_edited", 0), ("message_updated", 0),
            ("message_deleted", 1),
        ]


async def test_updates_are_one_commit_deep_or_shallow(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        await mine.add_messages([{"mes": "a", "extra": {"x": 1, "deep": {"y": 2}}}, {"mes": "b", "extra": {"x": 1}}])
        await settled(mine, theirs)
        told, heard = heard_by(mine), heard_by(theirs)
        before = mine._current().chat.head.seq

        await mine.update_messages([
            {"index": 0, "patch": {"mes": "A", "extra": {"deep": {"z": 3}, "list": [1]}}},
            {"id": mine.chat[1]["id"], "patch": {"extra": {"model": None}}},
        ])
        await settled(mine, theirs)

        assert mine._current().chat.head.seq == before + 1
        assert theirs.chat[0]["mes"] == "A"
        assert theirs.chat[0]["extra"] == {"x": 1, "deep": {"y": 2, "z": 3}, "list": [1]}
        assert theirs.chat[1]["extra"] == {"x": 1, "model": None}
        both = [(name, index) for index in (0, 1) for name in ("message_edited", "message_updated")]
        assert told == heard == both

        await mine.update_messages({"index": 1, "patch": {"extra": {"only": True}}}, deep=False)
        assert mine.chat[1]["extra"] == {"only": True}
        await mine.update_messages({"index": 1, "patch": {"extra": {"only": True}}})
        await settled(mine, theirs)
        assert told == heard == [*both, ("message_edited", 1), ("message_updated", 1)]


async def test_a_wrong_index_is_an_error_and_nothing_of_the_batch_is_stored(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, _):
        await mine.add_messages([{"mes": "a"}, {"mes": "b"}])
        before = mine._current().chat.head

        for index in (2, -1, "nobody"):
            with pytest.raises(RefusedError) as refusal:
                await mine.update_messages([{"index": 0, "patch": {"mes": "A"}}, {"index": index, "patch": {}}])
            assert (refusal.value.code, refusal.value.pointer) == ("message-unknown", "/updates/1")
            with pytest.raises(RefusedError):
                await mine.delete_messages([0, index])
            assert mine.get_message(index) is None
        for wrong in (True, 1.0, None):
            with pytest.raises(TypeError):
                await mine.delete_messages(wrong)  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            await mine.update_messages({"index": 0})
        with pytest.raises(TypeError):
            await mine.add_messages(["text"])  # type: ignore[list-item]

        assert mine._current().chat.head == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud83d", 2**70])
async def test_what_json_cannot_carry_is_refused_and_holds_nothing_up(
    tellback_server: ServerProcess, value: object
) -> None:
    async with two_contexts(tellback_server) as (mine, _):
        await mine.add_messages({"mes": "a"})
        for call in (
            mine.add_messages({"mes": value}), mine.update_messages({"index": 0, "patch": {"extra": {"x": value}}}),
        ):
            with pytest.raises(RefusedError) as refusal:
                await call
            assert refusal.value.code in ("bad-json", "number-range")
        result = await mine.update_chat_state("memory", lambda _state: {"x": value})
        assert isinstance(result.error, RefusedError)
        assert await mine.save_chat_metadata({"x": value}) is False
        assert await mine.add_messages({"mes": "b"}) == 1
        assert "extra" not in mine.chat[0]
        assert mine.chat_metadata == {}


async def test_deleting_takes_each_message_once_and_tells_each_alone(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        await mine.add_messages([{"mes": str(number)} for number in range(8)])
        await settled(mine, theirs)
        ids = [message["id"] for message in mine.chat]
        infos: list[tuple[int, dict[str, Any]]] = []
        theirs.event_source.on(EventTypes.MESSAGE_DELETED, lambda length, info: infos.append((length, info)))

        deleted = await mine.delete_messages([7, 3, ids[3], 5, 3])
        assert [message["mes"] for message in deleted] == ["3", "5", "7"]
        assert (await mine.delete_messages(0))["mes"] == "0"
        assert await mine.delete_messages([]) == []
        await settled(mine, theirs)

        assert [message["mes"] for message in theirs.chat] == ["1", "2", "4", "6"]
        gone = [ids[7], ids[3], ids[5]]
        assert infos == [
            *[(5, {"index": int(index), "message_id": ids[index], "message_ids": gone}) for index in (7, 3, 5)],
            (4, {"index": 0, "message_id": ids[0], "message_ids": [ids[0]]}),
        ]


async def test_two_tabs_change_other_fields_of_one_message(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        await mine.add_messages({"mes": "a", "extra": {}})
        await settled(mine, theirs)

        await asyncio.gather(*(
            context.update_messages({"index": 0, "patch": {"extra": {f"{tab} {number}": number}}})
            for number in range(10) for tab, context in enumerate((mine, theirs))
        ))
        await settled(mine, theirs)

        assert len(mine.chat[0]["extra"]) == 20
        assert mine.chat == theirs.chat


async def test_the_same_field_is_a_conflict_that_is_told(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        await mine.add_messages({"mes": "a"})
        await settled(mine, theirs)
        conflicts: list[object] = []
        for context in (mine, theirs):
            context.event_source.on(EventTypes.WRITE_CONFLICTED, conflicts.append)

        results = await asyncio.gather(
            mine.update_messages({"index": 0, "patch": {"mes": "mine"}}),
            theirs.update_messages({"index": 0, "patch": {"mes": "theirs"}}),
            return_exceptions=True,
        )
        await settled(mine, theirs)

        (error,) = [result for result in results if result is not None]
        assert isinstance(error, ConflictError)
        assert conflicts == [error.conflict]
        await error.conflict.apply_mine_again()
        await settled(mine, theirs)
        assert mine.chat[0]["mes"] == theirs.chat[0]["mes"] == ("theirs" if results[1] is error else "mine")


async def test_a_view_cannot_be_changed_at_any_depth(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, _):
        await mine.add_messages({"mes": "a", "extra": {"list": [{"deep": 1}]}})
        view = mine.get_message(0)
        assert view is not None
        deep: Any = view["extra"]["list"]

        def changes() -> Any:
            yield lambda: view.__setitem__("mes", "b")
            yield lambda: view.update(mes="b")
            yield lambda: view.pop("mes")
            yield lambda: view.setdefault("new", 1)
            yield lambda: view.__ior__({"mes": "b"})
            yield lambda: view.__delitem__("mes")
            yield lambda: view["extra"].clear()
            yield lambda: deep.append(1)
            yield lambda: deep.__iadd__([1])
            yield lambda: deep.__setitem__(slice(None), [])
            yield lambda: deep.sort()
            yield lambda: deep[0].popitem()
            yield lambda: mine.chat.append({})
            yield lambda: mine.chat.__setitem__(0, {})
            yield lambda: mine.chat.__delitem__(0)
            yield lambda: mine.chat[0:1][0]["extra"]["list"].pop()
            yield lambda: next(iter(mine.chat))["extra"].update(x=1)
            yield lambda: mine.chat_metadata.update(x=1)

        for change in changes():
            with pytest.raises(ReadOnlyViewError, match="update_messages"):
                change()
        with pytest.raises(AttributeError):
            mine.chat = []  # type: ignore[misc,assignment]
        for plain in (view.copy(), copy.deepcopy(view), copy.copy(view)):
            plain["extra"]["list"][0]["deep"] = 2
            assert type(plain) is dict
        assert json.loads(json.dumps(view)) == view == mine.chat[0]
        assert mine.chat[0]["extra"] == {"list": [{"deep": 1}]}


async def test_r44_listeners_never_block_and_may_write(
    tellback_server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        order: list[str] = []
        gate = asyncio.Event()

        async def slow(index: int) -> None:
            await gate.wait()
            order.append(f"slow {index}")

        def fails() -> None:
            raise ValueError("mine alone")

        async def answers(index: int, info: dict[str, Any]) -> None:
            assert set(info) == {"message_id"}
            order.append(f"answers {index}")
            if index < 3:
                await theirs.add_messages({"mes": "answer", "is_user": True})

        for listener in (slow, fails, answers):
            theirs.event_source.on(EventTypes.MESSAGE_SENT, listener)
        once: list[int] = []
        theirs.event_source.once(EventTypes.MESSAGE_SENT, once.append)
        with caplog.at_level(logging.ERROR, "tellback_client.context"):
            await mine.add_messages({"mes": "a", "is_user": True})
            await until(lambda: theirs.get_message_count() == 1)
            await theirs.add_messages({"mes": "b", "is_user": True})
            assert order == []
            gate.set()
            await until(lambda: mine.get_message_count() == 5)
            await settled(mine, theirs)

        assert order == [f"{who} {index}" for index in range(5) for who in ("slow", "answers")]
        assert once == [0]
        assert sum("message_sent failed" in record.message for record in caplog.records) == 5
        theirs.event_source.off(EventTypes.MESSAGE_SENT, slow)
        theirs.event_source.off(EventTypes.MESSAGE_SENT, len)
        assert len(theirs.event_source._listeners["message_sent"]) == 2


async def test_r40_listeners_past_the_bound_are_told_to_read_the_chat_again(
    tellback_server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tellback_client.context.base.EVENTS_MAX", 10)
    async with two_contexts(tellback_server) as (mine, theirs):
        await settled(mine, theirs)
        gate = asyncio.Event()
        heard: list[str] = []

        async def slow() -> None:
            heard.append("sent")
            await gate.wait()

        theirs.event_source.on(EventTypes.MESSAGE_SENT, slow)
        theirs.event_source.on(EventTypes.CHAT_CHANGED, lambda chat: heard.append(chat))
        for number in range(16):
            await mine.add_messages({"mes": str(number), "is_user": True})
        await until(lambda: theirs.get_message_count() == 16)
        gate.set()
        await settled(mine, theirs)

        assert heard == ["sent", "First meeting", *["sent"] * 4]


async def test_events_go_on_in_order_through_kill_and_restart(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        told, heard = heard_by(mine), heard_by(theirs)
        online: list[str] = []
        theirs.event_source.on(EventTypes.ONLINE_STATUS_CHANGED, online.append)
        adding = [asyncio.create_task(mine.add_messages({"mes": str(n), "is_user": True})) for n in range(30)]
        await asyncio.sleep(0.01)
        tellback_server.kill()
        await asyncio.to_thread(tellback_server.restart)
        mine.client.reconnect()
        theirs.client.reconnect()
        assert await asyncio.gather(*adding) == list(range(30))
        await settled(mine, theirs)

        assert told == heard == [("message_sent", index) for index in range(30)]
        assert online[0] == "offline"
        await until(lambda: online[-1] == theirs.online_status == "connected")


@pytest.mark.parametrize("seed", range(3))
async def test_events_alone_tell_the_whole_chat(tellback_server: ServerProcess, seed: int) -> None:
    draw = random.Random(seed)
    async with two_contexts(tellback_server) as (mine, theirs):
        mirrors: list[list[str]] = [[], []]
        for context, mirror in zip((mine, theirs), mirrors, strict=True):

            def added(index: int, info: dict[str, Any], mirror: list[str] = mirror) -> None:
                assert index == len(mirror)
                mirror.append(info["message_id"])

            def deleted(_length: int, info: dict[str, Any], mirror: list[str] = mirror) -> None:
                mirror.remove(info["message_id"])

            context.event_source.on(EventTypes.MESSAGE_SENT, added)
            context.event_source.on(EventTypes.MESSAGE_RECEIVED, added)
            context.event_source.on(EventTypes.MESSAGE_DELETED, deleted)

        async def act(context: Context) -> None:
            count = context.get_message_count()
            if draw.random() < 0.6 or count == 0:
                await context.add_messages([{"mes": "x", "is_user": draw.random() < 0.5}] * draw.randint(1, 3))
            else:
                await context.delete_messages([draw.randrange(count) for _ in range(draw.randint(1, 3))])

        for _ in range(40):
            results = await asyncio.gather(*(
                act(context) for context in (mine, theirs) for _ in range(draw.randint(0, 3))
            ), return_exceptions=True)
            for result in results:
                # Two tabs may delete the same message at once.
                if isinstance(result, ConflictError):
                    result.conflict.take_theirs()
                elif result is not None:
                    assert isinstance(result, RefusedError)
                    assert result.code == "message-unknown"
        await settled(mine, theirs)
        assert mirrors[0] == mirrors[1] == [message["id"] for message in mine.chat]
