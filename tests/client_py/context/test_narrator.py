"""From effects to named events: literal values in, literal values out."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec import Raw

from tellback_client.context.emitter import EventSource, arity_of
from tellback_client.context.narrator import Narrator
from tellback_client.events import Committed
from tellback_protocol.chat import Chat
from tellback_protocol.effects import (
    AppendEffect,
    DeletedEffect,
    DeleteEffect,
    Effect,
    InsertEffect,
    MetadataEffect,
    PatchEffect,
    RenamedEffect,
    StateEffect,
)
from tellback_protocol.ids import Version
from tellback_protocol.values import dumps

VERSION = Version(1, 1, "00000000-0000-4000-8000-000000000000")


def told(narrator: Narrator, *effects: Effect) -> list[tuple[str, tuple[Any, ...]]]:
    return [(str(name), arguments) for name, arguments in narrator.tell(Committed(VERSION, list(effects), None, False))]


def messages(*ids: str, **fields: Any) -> list[Raw]:
    return [Raw(dumps({"id": one, **fields})) for one in ids]


def patch(message: str, *operations: tuple[Any, ...]) -> PatchEffect:
    made = [dict(zip(("op", "path", "value"), operation, strict=False)) for operation in operations]
    return PatchEffect(message, Raw(dumps(made)))


def test_added_messages_stand_where_the_commit_left_them() -> None:
    narrator = Narrator(["a", "b"], "chat")
    assert told(
        narrator, AppendEffect(messages("c", is_user=True)), InsertEffect("a", messages("x", "y")),
        InsertEffect(None, messages("first", role="user")), DeleteEffect(["b", "y"]),
    ) == [
        ("message_sent", (3, {"message_id": "c"})),
        ("message_received", (2, {"message_id": "x"})),
        ("message_sent", (0, {"message_id": "first"})),
        ("message_deleted", (4, {"index": 1, "message_id": "b", "message_ids": ["b", "y"]})),
    ]


def test_what_came_between_the_parts_of_a_snapshot_stands_once_in_the_order() -> None:
    narrator = Narrator(["a"], "chat")
    narrator.replaced(["x", "a", "b", "c"])
    assert told(narrator, AppendEffect(messages("b"))) == [("message_received", (2, {"message_id": "b"}))]
    assert told(narrator, InsertEffect(None, messages("x"))) == [("message_received", (0, {"message_id": "x"}))]
    assert told(narrator, AppendEffect(messages("c")), AppendEffect(messages("d"))) == [
        ("message_received", (3, {"message_id": "c"})), ("message_received", (4, {"message_id": "d"}))]


@pytest.mark.parametrize(("fields", "name"), [
    ({"is_user": True}, "message_sent"), ({"is_user": False, "role": "user"}, "message_received"),
    ({"role": "user"}, "message_sent"), ({"role": "assistant"}, "message_received"), ({}, "message_received"),
    ({"is_user": "yes"}, "message_received"), ({"is_user": 1}, "message_received"),
])
def test_who_speaks(fields: dict[str, Any], name: str) -> None:
    assert told(Narrator([], "chat"), AppendEffect(messages("a", **fields))) == [(name, (0, {"message_id": "a"}))]


def test_patches_are_edits_swipes_or_only_updates() -> None:
    narrator = Narrator(["a", "b"], "chat")
    info = {"message_id": "b"}

    assert told(narrator, patch("b", ("replace", "/mes", "x"), ("replace", "/swipes/0", "x"))) == [
        ("message_edited", (1, info)), ("message_updated", (1, info))]
    assert told(narrator, patch("b", ("replace", "/mes", "y"), ("replace", "/swipe_id", 1))) == [
        ("message_swiped", (1, {**info, "swipe_id": 1})), ("message_updated", (1, info))]
    assert told(narrator, patch("b", ("add", "/swipes/-", "z"), ("add", "/swipe_info/-", {}))) == [
        ("message_updated", (1, info))]
    assert told(narrator, patch(
        "b", ("remove", "/swipes/2"), ("remove", "/swipe_info/2"), ("replace", "/swipe_id", 1), ("replace", "/mes", "y")
    )) == [
        ("message_swipe_deleted", (1, {**info, "swipe_id": 2, "new_swipe_id": 1})), ("message_updated", (1, info))]
    assert told(narrator, patch("b", ("replace", "", {"id": "b"}))) == [
        ("message_edited", (1, info)), ("message_updated", (1, info))]
    for operations, branch in (
        ((("add", "/extra", {}), ("add", "/extra/branches", ["New"])), {"branch": "New", "kind": "branch"}),
        ((("add", "/extra/branches/-", "New"),), {"branch": "New", "kind": "branch"}),
        ((("add", "/extra/bookmark_link", "New"),), {"branch": "New", "kind": "checkpoint"}),
    ):
        assert told(narrator, patch("b", *operations)) == [
            ("message_updated", (1, info)), ("chat_branch_created", ({"index": 1, **info, **branch},))]
    assert told(narrator, patch("gone", ("replace", "/mes", "x"))) == []


def test_what_is_no_message() -> None:
    narrator = Narrator([], "First")
    assert told(
        narrator, MetadataEffect(Raw(b"[]")), StateEffect("memory", VERSION, None),
        RenamedEffect("character:Alice/Second"), RenamedEffect("group:Third/odd"), DeletedEffect(),
    ) == [
        ("tellback_chat_metadata_changed", ()), ("tellback_chat_state_changed", ("memory",)),
        ("chat_renamed", ("First", "Second")), ("chat_renamed", ("Second", "Third/odd")),
        ("chat_deleted", ("Third/odd",)),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_positions_are_those_of_the_chat_after_random_effects(seed: int) -> None:
    draw = random.Random(seed)
    chat = Chat(VERSION)
    narrator = Narrator([], "chat")
    for number in range(200):
        order = chat.order()
        effects: list[Effect] = []
        for part in range(draw.randint(1, 3)):
            kind = draw.random()
            if kind < 0.6 or not order:
                effects.append(AppendEffect(messages(f"{number}.{part}")))
            elif kind < 0.8:
                effects.append(InsertEffect(draw.choice([None, *order]), messages(f"{number}.{part}")))
            else:
                effects.append(DeleteEffect(draw.sample(order, draw.randint(1, min(3, len(order))))))
        for effect in effects:
            chat.apply(effect)
        narrator.tell(Committed(VERSION, effects, None, False))
        if draw.random() < 0.5:
            for message_id in draw.sample(chat.order(), min(5, len(chat.order()))):
                assert narrator.position(message_id) == chat.order().index(message_id)
            assert narrator.position("nobody") is None
    assert narrator._order == chat.order()


def test_how_many_arguments_a_listener_asks_for() -> None:
    assert arity_of(lambda: None) == 0
    assert arity_of(lambda index: index) == 1
    assert arity_of(lambda index, captured=1: index) == 1
    assert arity_of(lambda *arguments: arguments) is None
    assert arity_of([].append) == 1


async def test_listeners_come_once_go_and_are_called_in_order() -> None:
    source = EventSource()
    heard: list[object] = []

    async def later(value: object) -> None:
        heard.append(("later", value))

    source.on("x", later)
    source.once("x", heard.append)
    source.on("x", lambda: source.off("x", later))
    await source.emit("x", 1, 2)
    await source.emit("x", 3)
    await source.emit("nobody", 3)
    assert heard == [("later", 1), 1]
