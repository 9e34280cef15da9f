"""What a caller may hand over: the flaw, where it is, and that nothing of it is queued."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellback_client import RefusedError, ServerProcess, connect
from tellback_client.context import Context
from tellback_client.payload import payload, text, value_of
from tellback_protocol.errors import Refused
from tellback_protocol.values import read_payload
from tests.support.json_strategies import VALUES
from tests.support.waiting import GUARD_S

CHAT = "character:Alice/First meeting"
HALF = "\ud83d"
"""What is left of an emoji that was cut in the middle."""


def nested(levels: int) -> Any:
    value: Any = "deep"
    for _ in range(levels):
        value = [value]
    return value


FLAWS: dict[str, tuple[Any, str, str]] = {
    "half a surrogate pair": ({"mes": HALF}, "bad-json", "/mes"),
    "half a pair far inside": ({"extra": {"a/b": ["ok", {"~": "x" + HALF}]}}, "bad-json", "/extra/a~1b/1/~0"),
    "half a pair as a key": ({HALF: 1}, "bad-json", "/?"),
    "not a number": ({"mes": "null", "score": [1.5, math.nan]}, "bad-json", "/score/1"),
    "infinity": ({"score": -math.inf}, "bad-json", "/score"),
    "65 bits": ({"extra": {"gen_id": 2**64}}, "number-range", "/extra/gen_id"),
    "65 bits below zero": ({"gen_id": -(2**63) - 1}, "number-range", "/gen_id"),
    "65 levels": ({"extra": nested(64)}, "too-deep", ""),
    "2,000 levels": ({"extra": nested(2000)}, "too-deep", "/extra" + "/0" * 63),
}


@pytest.mark.parametrize("name", FLAWS)
def test_r18_r23_a_flaw_is_named_with_its_place(name: str) -> None:
    """[W4], on the client."""
    value, code, pointer = FLAWS[name]
    with pytest.raises(RefusedError) as refused:
        payload(value, "/messages/0")

    assert (refused.value.code, refused.value.retry) == (code, "never")
    assert refused.value.pointer == "/messages/0" + pointer


def test_what_the_wire_can_carry_is_carried() -> None:
    for value in (2**64 - 1, -(2**63), 1e308, None, {"extra": nested(63)}, {"a": [None, "null", "NaN"]}, {1: 2}):
        assert read_payload(payload(value, ""), "") is not Ellipsis
    assert text("character:Alice/\U0001f600", "/chat") == "character:Alice/\U0001f600"


FLAWED = st.recursive(
    st.one_of(st.text(max_size=4), st.integers(-(2**65), 2**65), st.floats(), st.none()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3), max_leaves=6,
)


@given(st.one_of(VALUES, FLAWED))
def test_what_passes_here_passes_there(value: Any) -> None:
    """The client refuses nothing that the server takes, and takes nothing that the server refuses."""
    try:
        data = payload(value, "")
    except RefusedError as error:
        with pytest.raises(Refused) as refused:
            read_payload(json.dumps(value).encode(), "")
        # Of two faults either may be the one that is told.
        assert refused.value.code == error.code or {refused.value.code, error.code} == {"bad-json", "number-range"}
    else:
        assert read_payload(data, "") == value


def test_what_a_file_held_before_stays_and_what_is_no_number_does_not() -> None:
    assert value_of({"gen_id": 2**70, "mes": HALF}) == {"gen_id": 2**70, "mes": HALF}
    for value in (math.nan, [HALF, math.inf], {"big": 2**70, "x": -math.inf}):
        with pytest.raises(RefusedError, match="no JSON"):
            value_of(value)


@pytest.mark.parametrize("name", FLAWS)
async def test_r18_r23_no_verb_of_a_chat_queues_what_cannot_be_stored(
    tellback_server: ServerProcess, name: str
) -> None:
    """A caller gets the error at once, the number is free, and the next write is the next number."""
    bad, code, _pointer = FLAWS[name]
    async with asyncio.timeout(GUARD_S), connect(tellback_server.url) as client:
        chat = await client.open(CHAT, create=True)
        first = await chat.append({"mes": "one", "swipes": ["one"], "swipe_id": 0})
        state = chat.state("memory")
        await state.set({"n": 1})
        used = chat.subscription.lane.next_number

        async def batch() -> None:
            async with chat.batch() as batch:
                batch.append({"mes": "good"})
                batch.append(bad)

        async def in_function() -> None:
            await chat.update_message(first.message_ids[0], lambda message: {**message, **bad})

        wrongs = [
            lambda: chat.append(bad),
            lambda: chat.append([{"mes": "good"}, bad]),
            lambda: chat.patch(first.message_ids[0], [{"op": "add", "path": "/extra", "value": bad}]),
            in_function,
            lambda: chat.swipe_add(first.message_ids[0], {"mes": "two", "extra": bad}),
            lambda: chat.update_metadata(bad),
            lambda: chat.update_metadata(lambda _metadata: bad),
            lambda: chat.set_metadata(bad),
            lambda: state.set(bad),
            lambda: state.merge(bad),
            lambda: state.update(lambda _old: bad),
            lambda: state.patch([{"op": "add", "path": "/x", "value": bad}]),
            lambda: chat.floor_state("mood").update(lambda _old: bad),
            lambda: client.create_chat("character:Alice/Never", messages=[bad]),
            batch,
        ]
        for wrong in wrongs:
            with pytest.raises(RefusedError) as refused:
                await wrong()
            assert refused.value.code == code

        assert (chat.pending, chat.subscription.lane.next_number) == (0, used)
        await chat.append({"mes": "two"})
        assert [message["mes"] for message in chat.messages] == ["one", "two"]
        await client.close_chat(chat)
        assert [message["mes"] for message in (await client.open(CHAT)).messages] == ["one", "two"]


async def test_r18_names_and_ids_that_are_no_text_are_refused_and_hold_up_nothing(
    tellback_server: ServerProcess,
) -> None:
    async with asyncio.timeout(GUARD_S), connect(tellback_server.url) as client:
        chat = await client.open(CHAT, create=True)
        wrongs = [
            lambda: client.open(f"character:Alice/{HALF}"),
            lambda: client.character(HALF),
            lambda: chat.delete([HALF]),
            lambda: chat.patch(HALF, [{"op": "remove", "path": "/mes"}]),
            lambda: chat.state(HALF).get(),
            lambda: chat.state(HALF).set({}),
            lambda: chat.rename(HALF),
            lambda: chat.swipe_select(HALF, 0),
        ]
        for wrong in wrongs:
            with pytest.raises((RefusedError, ValueError)):
                await wrong()
        results = await asyncio.gather(chat.append({"mes": "a"}), chat.delete([HALF]), chat.append({"mes": "b"}),
                                       return_exceptions=True)

        assert [type(result) is RefusedError for result in results] == [False, True, False]
        assert [message["mes"] for message in chat.messages] == ["a", "b"]


@pytest.mark.parametrize("name", FLAWS)
async def test_r18_the_extension_api_says_so_too(tellback_server: ServerProcess, name: str) -> None:
    bad, code, _pointer = FLAWS[name]
    async with asyncio.timeout(GUARD_S), connect(tellback_server.url) as client, Context(client) as context:
        await context.open_chat(CHAT, create=True)
        await context.add_messages([{"mes": "one"}])
        wrongs = [
            lambda: context.add_messages([{"mes": "x", **bad}]),
            lambda: context.update_messages([{"index": 0, "patch": bad}]),
        ]
        for wrong in wrongs:
            with pytest.raises(RefusedError) as refused:
                await wrong()
            assert refused.value.code == code
        assert await context.save_chat_metadata(bad) is False
        updated = await context.update_chat_state("memory", lambda _old: bad)
        assert (bool(updated), updated.error.code) == (False, code)
        await context.add_messages([{"mes": "two"}])
        assert [message["mes"] for message in context.chat] == ["one", "two"]
