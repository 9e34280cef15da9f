"""The difference of two contents of a chat: what came, went, changed and moved."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from tellback_server.backup_diff import VALUES_MAX, Change, ChatContent, diff_chats, diff_values


def content(*messages: tuple[str, str], metadata: Any = None, **states: Any) -> ChatContent:
    return ChatContent({one: {"id": one, "mes": mes} for one, mes in messages}, metadata or {}, states)


def test_messages_are_told_by_their_ids() -> None:
    before = content(("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"))
    after = content(("c", "3"), ("a", "1"), ("b", "two"), ("e", "5"))

    found = diff_chats(before, after)

    assert [(one.what, one.id, one.index) for one in found.messages] == [
        ("removed", "d", 3), ("moved", "c", 0), ("changed", "b", 2), ("added", "e", 3),
    ]
    assert found.messages[2].changes == [Change("/mes", "2", "two")]


def test_metadata_and_states_are_told_by_their_paths() -> None:
    before = content(metadata={"a": {"x/y": 1}, "gone": None}, memory={"n": [1, 2]}, old=1, same=[True])
    after = content(metadata={"a": {"x/y": 2}, "new": []}, memory={"n": [1]}, fresh={}, same=[True])

    found = diff_chats(before, after)

    assert found.metadata == [Change("/a/x~1y", 1, 2), Change("/gone", None), Change("/new", UNSET, [])]
    assert found.states == {
        "fresh": [Change("", UNSET, {})], "memory": [Change("/n/1", 2)], "old": [Change("", 1)],
    }
    assert diff_chats(before, before).is_empty


def test_true_is_not_one_and_a_document_that_differs_everywhere_is_told_whole() -> None:
    assert diff_values({"a": True}, {"a": 1}) == [Change("/a", True, 1)]
    assert diff_values({"a": 1}, {"a": 1.0}) == []
    one, other = list(range(VALUES_MAX + 1)), [-1] * (VALUES_MAX + 1)
    assert diff_values(one, other) == [Change("", one, other)]


@given(st.permutations("abcdefgh"), st.permutations("abcdefgh"))
def test_what_is_not_said_to_have_moved_is_in_order(one: list[str], other: list[str]) -> None:
    before, after = (content(*((each, each) for each in row)) for row in (one, other))
    found = diff_chats(before, after)
    assert {change.what for change in found.messages} <= {"moved"}
    moved = {change.id for change in found.messages}
    assert [each for each in one if each not in moved] == [each for each in other if each not in moved]
    assert len(moved) < len(one)
